"""What the report's view of the field needs, as plain numbers: pictures, outlines, verdicts, rows and densities."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import ndtr

from deepdisc import catalog
from deepdisc.bands import by_wavelength
from deepdisc.catalog import BOX_COLUMNS
from deepdisc.evaluation.assessment import column
from deepdisc.evaluation.pdf_columns import CatalogPDFs, read_mixtures, read_pdfs
from deepdisc.evaluation.pdfs import MixturePDFs
from deepdisc.evaluation.report.images import BUDGET_BYTES, MOST_WINDOW, Window, pictures
from deepdisc.evaluation.report.outlines import shapes
from deepdisc.evaluation.scoring import Scored, Setting

MOST_OBJECTS = 20_000
MOST_BYTES = 26_000_000  # of pictures and tables together: with words and figures the report stays below 30 MB
_GRID_POINTS = 120
_LEAST_WEIGHT = 1e-3  # lighter components of a mixture cannot be seen
_RADIUS = 3.5  # pixels, of the circle for objects without an outline
# kind, words, ink on the dark picture, line width, dashes, shown at first
LAYERS = (
    ("right", "right", "#4ade80", 1.4, [], True),
    ("false", "false", "#f87171", 2.2, [6, 3], True),
    ("missed", "missed", "#fde047", 2.2, [2, 2.5], True),
    ("truth", "true objects", "#38bdf8", 1.2, [], False),
    ("faint", "need not be found", "#cbd5e1", 1.0, [], False),
)


def field_data(
    sides: Sequence[Scored], setting: Setting, names: Sequence[str], segmentations: Sequence, fields: int = 1
) -> tuple[dict, np.ndarray] | str:
    """The data of the view, and its colour picture (h, w, 3) in 0..1; or words that say why there is none.

    Args:
        sides: one or two scored catalogues.
        setting: under which they were.
        names: of the catalogues.
        segmentations: (H, W) labels = id, or None, for each.
        fields: that share the report's size.
    """
    truth = setting.truth
    if setting.mosaic is None:
        return "No picture: no mosaic was given."
    if "field" in truth and truth["field"].nunique() > 1:
        return "No picture: the truth covers several fields."
    placed = [with_positions(side.pred) for side in sides]
    if any(frame is None for frame in placed):
        return "No picture: the catalogue has no positions in pixels, and the mosaic has no WCS."
    true_rows = with_positions(truth)
    true_rows = truth.iloc[:0].assign(x=[], y=[]) if true_rows is None else true_rows
    window = choose_window(setting.mosaic, [*placed, true_rows])
    chosen = [np.flatnonzero(window.holds(*frame[["x", "y"]].to_numpy(float).T)) for frame in (*placed, true_rows)]
    shape = tuple(setting.mosaic.shape)
    tables = [
        _table(frame.iloc[rows], setting, _labels(labels, shape), window)
        for frame, rows, labels in zip(
            (*placed, true_rows), chosen, (*segmentations, setting.truth_segmentation), strict=True
        )
    ]
    *found, true_table = tables
    _add_verdicts(found, true_table, sides, chosen)
    bands = flux_bands([side.pred for side in sides])
    for table, side, rows, name in zip(found, sides, chosen, names, strict=False):
        shown = side.pred.iloc[rows]
        table |= {"name": name, "pdfs": densities(shown), "fluxes": flux_densities(shown, bands)}
    # What the densities and tables leave of the whole, after their base64 form, is for the pictures.
    held = len(json.dumps(tables))
    images, rgb = pictures(setting.mosaic, window, min(BUDGET_BYTES, int(0.75 * max(MOST_BYTES - held, 4e6))) // fields)
    every = {name for table in tables for name in table["columns"]}
    data = {
        "window": [window.x0, window.y0, window.width, window.height],
        "arcsec_per_pixel": _plain(getattr(setting.mosaic, "pixel_scale_arcsec", None)),
        "radius": _RADIUS,
        "bands": bands,
        "pictures": images,
        "catalogues": found,
        "truth": true_table,
        "units": {name: unit for name in every if (unit := unit_of(name))},
        "layers": [
            dict(zip(("kind", "label", "color", "width", "dash", "shown"), layer, strict=True)) for layer in LAYERS
        ],
    }
    return data, rgb


def with_positions(frame: pd.DataFrame) -> pd.DataFrame | None:
    """The catalogue with x, y (from its boxes if it has no others), or None."""
    if {"x", "y"} <= set(frame.columns):
        return frame
    if not set(BOX_COLUMNS) <= set(frame.columns):
        return None
    x0, y0, x1, y1 = frame[list(BOX_COLUMNS)].to_numpy(float).T
    return frame.assign(x=(x0 + x1) / 2 - 0.5, y=(y0 + y1) / 2 - 0.5)


def choose_window(mosaic, frames: Sequence[pd.DataFrame]) -> Window:
    """The whole mosaic, or the part of it around the median object that is not too large and not too full."""
    height, width = mosaic.shape
    positions = np.concatenate([frame[["x", "y"]].to_numpy(float) for frame in frames])
    positions = positions[np.isfinite(positions).all(1)]
    middle = np.median(positions, axis=0) if len(positions) else np.array([width / 2, height / 2])
    side = min(max(height, width), MOST_WINDOW)
    while True:
        w, h = min(side, width), min(side, height)
        x0 = int(np.clip(middle[0] - w / 2, 0, width - w))
        y0 = int(np.clip(middle[1] - h / 2, 0, height - h))
        window = Window(x0, y0, w, h)
        inside = int(window.holds(*positions.T).sum())
        if inside <= MOST_OBJECTS * len(frames) or side < 64:
            return window
        side = int(side * 0.8)


def _labels(labels, shape: tuple[int, int]) -> np.ndarray | None:
    """The map, if it covers the mosaic pixel by pixel."""
    return labels if labels is not None and tuple(labels.shape) == shape else None


def _table(frame: pd.DataFrame, setting: Setting, labels, window: Window) -> dict:
    """Positions, outlines and columns of the rows that are shown."""
    outlines = shapes(frame, labels, window)
    x, y = frame[["x", "y"]].to_numpy(float).T
    brightness = column(frame, f"mag_{setting.band}") if setting.band else None
    order = np.arange(len(frame)) if brightness is None else np.argsort(np.argsort(brightness))
    boxed = set(BOX_COLUMNS) <= set(frame.columns)
    sizes = np.full(len(frame), 2 * _RADIUS)
    if boxed:
        x0, y0, x1, y1 = frame[list(BOX_COLUMNS)].to_numpy(float).T
        sizes = np.nan_to_num(np.maximum(x1 - x0, y1 - y0), nan=2 * _RADIUS)
    scalar = [name for name in frame.columns if frame[name].dtype.kind in "iufbOUT" and _is_scalar(frame[name])]
    ids = frame["id"] if "id" in frame else pd.Series(np.arange(len(frame)))
    return {
        "x": (x + 0.5).round(2).tolist(),  # pixel edges, as the page draws
        "y": (y + 0.5).round(2).tolist(),
        "size": sizes.round(1).tolist(),
        "order": order.tolist(),
        "id": _values(ids),
        "shapes": outlines,
        "columns": [str(name) for name in scalar],
        "values": [_values(frame[name]) for name in scalar],
    }


def _is_scalar(values: pd.Series) -> bool:
    if values.dtype.kind != "O":
        return True
    first = next((item for item in values if item is not None), None)
    return first is None or np.isscalar(first)


def _values(values: pd.Series) -> list:
    """A column as JSON takes it: numbers with six significant digits (sky positions: 1e-6 deg), None for missing."""
    if values.dtype.kind != "f":
        return [None if item is None or item is pd.NA else _plain(item) for item in values.tolist()]
    numbers = values.to_numpy(np.float64)
    finite = np.isfinite(numbers)
    safe = np.where(finite & (numbers != 0), np.abs(numbers), 1.0)
    digits = 6 if values.name in ("ra", "dec") else 5 - np.floor(np.log10(safe)).astype(int)
    factor = 10.0 ** np.broadcast_to(digits, safe.shape)
    rounded = np.round(np.where(finite, numbers, 0) * factor) / factor
    return [value if good else None for value, good in zip(rounded.tolist(), finite.tolist(), strict=True)]


def _plain(value):
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if isinstance(value, int | bool | str | None) else str(value)


def unit_of(name: str) -> str:
    """The unit that the schema gives a column, or ""."""
    described = catalog.describe(name)
    return "" if described is None else described.unit or ""


def _add_verdicts(found: list[dict], truth: dict, sides: Sequence[Scored], chosen: Sequence[np.ndarray]) -> None:
    """`kinds`: c, f, e (right, false, excused) of detections; t, m, i (found, missed, not required) of true objects.

    `match`: the row of the partner among those shown, or -1; of the true objects, for each catalogue.
    """
    *own, true_rows = chosen
    truth |= {"kinds": [], "match": []}
    for table, side, rows in zip(found, sides, own, strict=True):
        result = side.assessment
        kinds = np.where(result.correct, "c", np.where(result.excused, "e", "f"))
        table["kinds"] = "".join(kinds[rows])
        true_kinds = np.where(result.found, "t", np.where(result.required, "m", "i"))
        truth["kinds"].append("".join(true_kinds[true_rows]))
        truth_of = np.full(len(kinds), -1)
        pred_of = np.full(len(true_kinds), -1)
        truth_of[result.pairs.pred], pred_of[result.pairs.truth] = result.pairs.truth, result.pairs.pred
        table["match"] = _renumbered(truth_of[rows], true_rows, len(true_kinds))
        truth["match"].append(_renumbered(pred_of[true_rows], rows, len(kinds)))


def _renumbered(rows: np.ndarray, shown: np.ndarray, total: int) -> list[int]:
    """Row numbers of a catalogue of `total` rows as numbers among those shown; -1 for others."""
    place = np.full(total + 1, -1)  # the last for -1
    place[shown] = np.arange(len(shown))
    return place[rows].tolist()


def densities(frame: pd.DataFrame) -> dict | None:
    """The rows' redshift densities: mixtures with the truncation in their amplitudes, or values on a common grid."""
    found = read_pdfs(frame)
    if found.pdfs is None:
        return None
    rows: list[list[float]] = [[] for _ in range(len(frame))]
    if isinstance(found.pdfs, MixturePDFs):
        return _mixtures(found)
    low, high = float(found.pdfs.grid[0]), float(found.pdfs.grid[-1])
    at = np.linspace(low, high, _GRID_POINTS)
    values = np.stack([found.pdfs.density(np.full(len(found.pdfs), z)) for z in at], axis=1)
    for row, line in zip(np.flatnonzero(found.usable), values, strict=True):
        rows[row] = [float(f"{value:.3g}") for value in line]
    return {"grid": {"low": low, "high": high, "rows": rows}}


def flux_bands(frames: Sequence[pd.DataFrame]) -> list[str]:
    """Bands of which any catalogue has fluxes with errors or densities, from blue to red."""
    names = [str(name) for frame in frames for name in frame.columns]
    prefixes = ("fluxerr_", "flux_weights_")
    found = [name.removeprefix(prefix) for name in names for prefix in prefixes if name.startswith(prefix)]
    return by_wavelength(list(dict.fromkeys(found)))


def flux_densities(frame: pd.DataFrame, bands: Sequence[str]) -> dict[str, dict]:
    """The rows' flux densities in the bands that have any, as `densities` gives mixtures."""
    result = {}
    for band in bands:
        names = [f"flux_{part}_{band}" for part in ("weights", "means", "sigmas")]
        if set(names) <= set(frame.columns):
            found = read_mixtures(frame, names, f"flux_lower_{band}")
            if found.pdfs is not None:
                result[str(band)] = _mixtures(found)
    return result


def _mixtures(found: CatalogPDFs) -> dict:
    rows: list[list[float]] = [[] for _ in range(len(found.usable))]
    mixture = found.pdfs.mixture
    weights, mean, sigma = (part.numpy() for part in (mixture.weights, mixture.component_mean, mixture.component_sigma))
    if mixture.lower is not None:
        weights = weights / np.maximum(ndtr((mean - mixture.lower) / sigma), 1e-300)
    parts = np.stack((weights, mean, sigma), axis=2)
    for row, components in zip(np.flatnonzero(found.usable), parts, strict=True):
        kept = components[components[:, 0] > _LEAST_WEIGHT]
        rows[row] = [float(f"{value:.4g}") for value in kept.ravel()]
    return {"lower": mixture.lower, "rows": rows}
