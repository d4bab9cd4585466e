"""Which redshift PDFs a catalogue holds: columns of mixtures or of gridded densities, or a qp file beside it.

- `z_weights`, `z_means`, `z_sigmas` (lists per row, of any length), `z_lower`: Gaussian mixtures, as this program has;
- `z_grid`, `z_pdf` (lists per row; the grid is the same in all rows): densities of any other program.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from deepdisc.errors import InputError, first_line, require_extra
from deepdisc.evaluation.pdfs import GriddedPDFs, MixturePDFs, PDFs
from deepdisc.mixture import Mixture

MIXTURE_COLUMNS = ("z_weights", "z_means", "z_sigmas")
GRID_COLUMNS = ("z_grid", "z_pdf")
NORM_TOLERANCE = 0.01
_ODDS_WIDTH = 0.06  # Benitez (2000): the probability within 0.06 (1 + z) of the mode
_GRID_POINTS = 1000  # for qp's forms other than mixtures, lines and steps
_TAIL = 1e-4

ABSENT = "without a PDF"
UNNORMALISED = "PDF not normalised (weights or integral differ from 1 by more than 1 %)"
IMPOSSIBLE = "impossible PDF (negative density or weight, or a width that is not positive)"


@dataclass
class CatalogPDFs:
    """The PDFs of a catalogue's rows.

    Attributes:
        pdfs: of the usable rows, or None where there is none.
        usable: (N,) bool.
        excluded: numbers of rows that are not, by reason.
        reason: why there is none at all.
    """

    pdfs: PDFs | None
    usable: np.ndarray
    excluded: dict[str, int] = field(default_factory=dict)
    reason: str | None = None


def read_pdfs(catalog: pd.DataFrame) -> CatalogPDFs:
    """The redshift PDFs of a catalogue; rows whose PDF is absent, impossible or not normalised are counted, not used.

    Raises:
        InputError: rows with different bounds, or different grids.
    """
    if set(MIXTURE_COLUMNS) <= set(catalog.columns):
        return read_mixtures(catalog, MIXTURE_COLUMNS, "z_lower")
    if set(GRID_COLUMNS) <= set(catalog.columns):
        return _found(*_gridded(catalog))
    reason = f"no PDF columns ({', '.join(MIXTURE_COLUMNS)}, or {', '.join(GRID_COLUMNS)})"
    return CatalogPDFs(None, np.zeros(len(catalog), bool), {}, reason)


def read_mixtures(catalog: pd.DataFrame, names: Sequence[str], bound: str) -> CatalogPDFs:
    """Mixtures of any quantity from the columns of weights, means and sigmas, and of the bound; see `read_pdfs`."""
    return _found(*_mixtures(catalog, names, bound))


def _found(pdfs: PDFs | None, verdict: np.ndarray) -> CatalogPDFs:
    counts = {reason: int((verdict == reason).sum()) for reason in (ABSENT, UNNORMALISED, IMPOSSIBLE)}
    usable = verdict == ""
    reason = None if usable.any() else "no row has a usable PDF"
    return CatalogPDFs(pdfs, usable, {key: n for key, n in counts.items() if n}, reason)


def _mixtures(catalog: pd.DataFrame, names: Sequence[str], bound: str) -> tuple[PDFs | None, np.ndarray]:
    rows = [_rows(catalog, name) for name in names]
    size = np.array([[len(item) for item in column] for column in rows]).reshape(3, len(catalog))
    # Rows may have fewer components than others: padded with components of no weight.
    k = max(int(size.max(initial=1)), 1)
    weights, means, sigmas = (_padded(column, k, fill) for column, fill in zip(rows, (0.0, 0.0, 1.0), strict=True))
    complete = (size[0] > 0) & (size == size[0]).all(0)
    complete &= np.isfinite(weights).all(1) & np.isfinite(means).all(1) & np.isfinite(sigmas).all(1)
    verdict = np.full(len(catalog), "", dtype=object)
    verdict[np.abs(weights.sum(1) - 1) > NORM_TOLERANCE] = UNNORMALISED
    verdict[(weights < 0).any(1) | (sigmas <= 0).any(1)] = IMPOSSIBLE
    verdict[~complete] = ABSENT
    usable = verdict == ""
    if not usable.any():
        return None, verdict
    mixture = Mixture.from_columns(weights[usable], means[usable], sigmas[usable], _bound(catalog[usable], bound))
    return MixturePDFs(mixture), verdict


def _rows(catalog: pd.DataFrame, name: str) -> list[np.ndarray]:
    """A column of lists of numbers; empty where there is none."""
    try:
        return [np.zeros(0) if item is None else np.atleast_1d(np.asarray(item, np.float64)) for item in catalog[name]]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"column {name} holds text ({str(catalog[name].iloc[0])[:30]!r}), not lists of numbers, which CSV cannot "
            "keep; write the catalogue as Parquet or FITS, or the PDFs as a file of qp (--pdfs)"
        ) from error


def _padded(rows: list[np.ndarray], k: int, fill: float) -> np.ndarray:
    result = np.full((len(rows), k), fill)
    for line, row in zip(result, rows, strict=True):
        line[: len(row)] = row
    return result


def _bound(catalog: pd.DataFrame, name: str) -> float | None:
    """The one bound of all rows; None where it is NaN or no column."""
    lower = catalog[name].to_numpy(float) if name in catalog.columns else np.full(len(catalog), np.nan)
    bounds = np.unique(lower[np.isfinite(lower)])
    if len(bounds) > 1 or (len(bounds) == 1 and np.isnan(lower).any()):
        raise InputError(
            f"{name} is not the same in all rows ({bounds[0]:g} and {bounds[1] if len(bounds) > 1 else 'NaN'}); all "
            "PDFs of a catalogue must have the same bound"
        )
    return float(bounds[0]) if len(bounds) else None


def _gridded(catalog: pd.DataFrame) -> tuple[PDFs | None, np.ndarray]:
    grids = _rows(catalog, "z_grid")
    grid = next((item for item in grids if len(item) > 1), None)
    verdict = np.full(len(catalog), ABSENT, dtype=object)
    if grid is None:
        return None, verdict
    if not (np.isfinite(grid).all() and (np.diff(grid) >= 0).all() and grid[-1] > grid[0]):
        raise InputError("z_grid: the redshifts of the grid must be finite and increasing")
    for number, item in enumerate(grids):
        if len(item) > 1 and (item is not grid) and not np.array_equal(item, grid):
            raise InputError(f"z_grid: row {number} has another grid than the rows before; put all PDFs on one grid")
    densities = _rows(catalog, "z_pdf")
    full = np.array([len(item) == len(grid) and bool(np.isfinite(item).all()) for item in densities])
    if not full.any():
        return None, verdict
    values = np.stack([item for item, good in zip(densities, full, strict=True) if good])
    area = (values[:, 1:] + values[:, :-1]) @ np.diff(grid) / 2
    of_full = np.full(len(values), "", dtype=object)
    of_full[np.abs(area - 1) > NORM_TOLERANCE] = UNNORMALISED
    of_full[(values < 0).any(1)] = IMPOSSIBLE
    verdict[full] = of_full
    good = of_full == ""
    return (GriddedPDFs(grid, values[good]) if good.any() else None), verdict


# ------------------------------------------------------------------------------------------------------------------ qp
def read_ensemble(source):
    """The `qp.Ensemble` of a file (.hdf5, .fits, .pq), or one as it is.

    Raises:
        InputError: qp is not installed, or the file cannot be read.
    """
    qp = require_extra("qp", "pz")
    if not isinstance(source, str | os.PathLike):
        return source
    if not Path(source).exists():
        raise InputError(f"no PDFs at {source}; give a file that qp wrote (.hdf5, .fits or .pq)")
    try:
        return qp.read(os.fspath(source))
    except Exception as error:  # qp raises whatever its readers do
        raise InputError(f"{source}: cannot be read as PDFs by qp: {first_line(error)}") from error


def add_pdfs(catalog: pd.DataFrame, source) -> pd.DataFrame:
    """The catalogue with the PDFs of a qp ensemble, and point estimates (mode, median, mean, odds) where it has none.

    Args:
        catalog: the rows that the PDFs belong to.
        source: `qp.Ensemble` or the path of one (.hdf5, .fits, .pq). Row i is row i of the catalogue, unless both have
            `id`s (in the ensemble's ancillary data): then these say which.

    Raises:
        InputError: qp is not installed, the file cannot be read, or the rows do not correspond.
    """
    ensemble = read_ensemble(source)
    columns = pd.DataFrame(ensemble_columns(ensemble)).iloc[_rows_of(ensemble, catalog)]
    frame = catalog.drop(columns=[*MIXTURE_COLUMNS, *GRID_COLUMNS, "z_lower"], errors="ignore")
    frame = frame.assign(**{name: columns[name].to_numpy() for name in columns})
    return frame.assign(**_missing_estimates(frame))


def _rows_of(ensemble, catalog: pd.DataFrame) -> np.ndarray:
    ids = (ensemble.ancil or {}).get("id")
    if ids is not None and "id" in catalog.columns:
        place = pd.Series(np.arange(len(ids)), index=np.asarray(ids)).reindex(catalog["id"])
        if place.isna().any():
            raise InputError(f"the PDFs have no id {catalog['id'][place.isna().to_numpy()].iloc[0]} of the catalogue")
        return place.to_numpy(int)
    if ensemble.npdf != len(catalog):
        raise InputError(
            f"there are {ensemble.npdf} PDFs for {len(catalog)} rows of the catalogue; they must be in the same order, "
            "or both must have ids"
        )
    return np.arange(len(catalog))


def ensemble_columns(ensemble) -> dict[str, list]:
    """The columns of this module for an ensemble: exact for mixtures, straight lines and steps."""
    name = np.ravel(ensemble.metadata["pdf_name"])[0]
    name = name.decode() if isinstance(name, bytes) else str(name)
    data = ensemble.objdata
    if name == "mixmod":
        parts = [np.atleast_2d(data[key]) for key in ("weights", "means", "stds")]
        used = [np.isfinite(row) & (row > 0) for row in parts[0]]
        lists = ([row[keep] for row, keep in zip(part, used, strict=True)] for part in parts)
        return {**dict(zip(MIXTURE_COLUMNS, lists, strict=True)), "z_lower": [np.nan] * ensemble.npdf}
    if name == "interp":
        grid, values = np.ravel(ensemble.metadata["xvals"]), np.atleast_2d(data["yvals"])
    elif name == "hist":
        grid = np.repeat(np.ravel(ensemble.metadata["bins"]), 2)[1:-1]
        values = np.repeat(np.atleast_2d(data["pdfs"]), 2, axis=1)
    else:
        low, high = float(np.min(ensemble.ppf(_TAIL))), float(np.max(ensemble.ppf(1 - _TAIL)))
        bins = np.linspace(low, high, _GRID_POINTS)
        # Steps between the cumulative probabilities, which may dip a little; what lies beyond the tails is shared out.
        mass = np.diff(np.maximum.accumulate(np.atleast_2d(ensemble.cdf(bins)), axis=1), axis=1)
        grid = np.repeat(bins, 2)[1:-1]
        values = np.repeat(mass / mass.sum(1, keepdims=True) / np.diff(bins), 2, axis=1)
    return {"z_grid": [grid] * len(values), "z_pdf": list(values)}


def _missing_estimates(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """z_mode, z_median, z_mean and z_odds, as far as the catalogue lacks them; NaN without a usable PDF."""
    found = read_pdfs(frame)
    result = {}
    if found.pdfs is not None:
        mode = found.pdfs.mode()
        half = _ODDS_WIDTH * (1 + mode)
        estimates = {
            "z_mode": mode,
            "z_median": found.pdfs.median(),
            "z_mean": found.pdfs.mean(),
            "z_odds": found.pdfs.cdf(mode + half) - found.pdfs.cdf(mode - half),
        }
        for name, values in estimates.items():
            if name not in frame.columns:
                result[name] = np.full(len(frame), np.nan)
                result[name][found.usable] = values
    return result
