"""What a data set holds, in numbers: objects and missing labels per split, distributions, noise and masked pixels.

Legend: *row* = a line of truth.parquet, which is an object in a tile (one on a border has several); *labelled* = not
flagged FAINT and with pixels in the segmentation map, so that a training may learn from it. The truth is read column by
column and a sample of the tiles tile by tile, so that memory does not grow with the pixels of the data set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from deepdisc import catalog
from deepdisc.bands import by_wavelength
from deepdisc.data.dataset import read_description
from deepdisc.data.splits import SPLITS
from deepdisc.data.truth import STAR
from deepdisc.errors import InputError, first_line
from deepdisc.photometry import mag_from_njy

MOST_BINS = 40
# Columns that say where and which an object is; their distribution says nothing.
_BOOKKEEPING = {"id", "tile", "field", "class_id", "class_name", "flags", "population_row", "ra", "dec"}
_BOOKKEEPING |= {*catalog.POSITION_COLUMNS, *catalog.BOX_COLUMNS}
_FIRST = ("redshift", "hlr_arcsec", "snr", "area_pix", "blendedness")
_OPTIONAL = ("hlr_arcsec", "snr", "blendedness")
_LOGARITHMIC = ("hlr_arcsec", "snr", "area_pix")


@dataclass(frozen=True)
class Distribution:
    """A histogram per split.

    Attributes:
        name: column, or `g-r` for a colour.
        label: with unit.
        group: "magnitudes", "colours", "objects" or "tiles".
        edges: (n + 1,) of the bins; objects beyond are not in the counts.
        counts: split -> (n,).
        summary: split -> n, missing, median, p16, p84.
        logarithmic: the bins are equal in the logarithm.
    """

    name: str
    label: str
    group: str
    edges: np.ndarray
    counts: Mapping[str, np.ndarray]
    summary: Mapping[str, Mapping[str, float]]
    logarithmic: bool = False


class Truth:
    """The columns of a data set's truth.parquet, one at a time.

    Raises:
        InputError: the table is missing, unreadable, or lacks a column that every data set has.
    """

    def __init__(self, root: Path, split_of_tile: pd.Series):
        self.path = root / "truth.parquet"
        try:
            self._file = pq.ParquetFile(self.path)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{self.path}: cannot be read: {first_line(error)}; prepare the data set anew") from error
        schema = self._file.schema_arrow
        self.names = [
            field.name for field in schema if pa.types.is_floating(field.type) or pa.types.is_integer(field.type)
        ]
        for name in ("tile", "class_id", "flags", "area_pix"):
            if name not in self.names:
                raise InputError(f"{self.path}: there is no column {name!r}; prepare the data set anew")
        self.tile = self.column("tile").astype(np.int64)
        self.split = pd.Categorical(split_of_tile.reindex(self.tile).to_numpy(), categories=_ordered(split_of_tile))
        self.class_id = self.column("class_id").astype(np.int64)
        self.flags = self.column("flags").astype(np.int64)
        self.is_faint = (self.flags & catalog.FLAGS["FAINT"].value) > 0
        self.labelled = ~self.is_faint & (self.column("area_pix") > 0)

    def column(self, name: str) -> np.ndarray:
        """(N,) values, NaN where missing."""
        return self._file.read(columns=[name]).column(0).to_numpy()

    def magnitude(self, band: str) -> np.ndarray | None:
        """(N,) AB magnitude of a band, from its flux where it has no magnitude; None where it has neither."""
        if f"mag_{band}" in self.names:
            return self.column(f"mag_{band}").astype(float)
        return mag_from_njy(self.column(f"flux_{band}")) if f"flux_{band}" in self.names else None

    def distinct(self) -> np.ndarray:
        """(N,) True for the first row of each object."""
        table = self._file.read(columns=["field", "id"] if "field" in self._file.schema_arrow.names else ["id"])
        return ~table.to_pandas(strings_to_categorical=True).duplicated().to_numpy()

    def select(self, split: str) -> np.ndarray:
        """(N,) True for the rows of a split."""
        return np.asarray(self.split == split)


def read_tiles(root: Path) -> pd.DataFrame:
    """The data set's table of tiles, with an index that is the tile's number.

    Raises:
        InputError: it is missing or unreadable.
    """
    path = root / "split.parquet"
    try:
        tiles = pd.read_parquet(path)
        return tiles.set_index("tile", drop=False).rename_axis(None)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: cannot be read: {first_line(error)}; prepare the data set anew") from error


def _ordered(splits: pd.Series) -> list[str]:
    found = set(splits)
    return [name for name in SPLITS if name in found] + sorted(found - set(SPLITS))


def splits_of(tiles: pd.DataFrame) -> list[str]:
    """The splits there are, train first."""
    return _ordered(tiles.split)


# -------------------------------------------------------------------------------------------------------------- counts
def count(root: Path, tiles: pd.DataFrame, truth: Truth) -> dict[str, dict[str, Any]]:
    """Counts per split.

    Returns:
        split -> tiles, tiles_without_objects, area_arcmin2, objects (distinct), rows, labelled, faint, without_outline,
        classes (name -> labelled rows), flags (name -> labelled rows), missing (label -> labelled rows without it; a
        star lacks no redshift).
    """
    description = read_description(root)
    scale = float(description["pixel_scale_arcsec"])
    names = list(description["class_names"])
    distinct = truth.distinct()
    missing = _missing(truth, [*description["bands"]], names)
    result = {}
    for split in splits_of(tiles):
        rows = truth.select(split)
        labelled = rows & truth.labelled
        own = tiles[tiles.split == split]
        flags = truth.flags[labelled]
        result[split] = {
            "tiles": len(own),
            "tiles_without_objects": len(own) - len(np.unique(truth.tile[labelled])),
            "area_arcmin2": float((own.height * own.width).sum() * (scale / 60) ** 2),
            "objects": int((rows & distinct).sum()),
            "rows": int(rows.sum()),
            "labelled": int(labelled.sum()),
            "faint": int((rows & truth.is_faint).sum()),
            "without_outline": int((rows & ~truth.is_faint & ~truth.labelled).sum()),
            "classes": {name: int((truth.class_id[labelled] == i).sum()) for i, name in enumerate(names)},
            "flags": {name: int(((flags & flag.value) > 0).sum()) for name, flag in catalog.FLAGS.items()},
            "missing": {name: int((absent & labelled).sum()) for name, absent in missing.items()},
        }
    return result


def _missing(truth: Truth, bands: Sequence[str], class_names: Sequence[str]) -> dict[str, np.ndarray]:
    """Label -> (N,) True where it is missing."""
    is_star = np.isin(truth.class_id, [i for i, name in enumerate(class_names) if name == STAR])
    nothing = np.ones(len(truth.tile), dtype=bool)
    result = {"redshift": (_absent(truth.column("redshift")) if "redshift" in truth.names else nothing) & ~is_star}
    for band in bands:
        magnitude = truth.magnitude(band)
        result[f"brightness in {band}"] = nothing if magnitude is None else _absent(magnitude)
    for name in _OPTIONAL:
        result[name] = _absent(truth.column(name)) if name in truth.names else nothing
    return result


def _absent(values: np.ndarray) -> np.ndarray:
    return ~np.isfinite(values.astype(float))


# ------------------------------------------------------------------------------------------------------- distributions
def distributions(root: Path, tiles: pd.DataFrame, truth: Truth) -> Iterator[Distribution]:
    """Histograms of the labelled rows: magnitudes, colours of neighbouring bands, and every other number there is."""
    bands = by_wavelength(read_description(root)["bands"])
    splits = splits_of(tiles)

    def one(name: str, label: str, group: str, values: np.ndarray) -> Distribution:
        return _distribution(name, label, group, {s: values[truth.select(s) & truth.labelled] for s in splits})

    for band in bands:
        if (values := truth.magnitude(band)) is not None:
            yield one(f"mag_{band}", f"{band}, AB mag", "magnitudes", values)
    for blue, red in zip(bands[:-1], bands[1:], strict=True):
        pair = truth.magnitude(blue), truth.magnitude(red)
        if pair[0] is not None and pair[1] is not None:
            yield one(f"{blue}-{red}", f"{blue} - {red}, mag", "colours", pair[0] - pair[1])
    others = [name for name in truth.names if not name.startswith(("mag_", "flux_", "fluxerr_"))]
    for name in sorted(set(others) - _BOOKKEEPING, key=lambda name: (name not in _FIRST, others.index(name))):
        yield one(name, _label(name), "objects", truth.column(name))
    numbers = np.bincount(truth.tile[truth.labelled], minlength=int(tiles.tile.to_numpy().max(initial=0)) + 1)
    per_tile = {split: numbers[tiles.tile[tiles.split == split]] for split in splits}
    yield _distribution("objects_per_tile", "labelled objects in a tile", "tiles", per_tile)


def _label(name: str) -> str:
    known = catalog.describe(name)
    return f"{name}, {known.unit}" if known and known.unit else name


def _distribution(name: str, label: str, group: str, parts: Mapping[str, np.ndarray]) -> Distribution:
    finite = {split: (v := values.astype(float))[np.isfinite(v)] for split, values in parts.items()}
    everything = np.concatenate(list(finite.values()))
    logarithmic = name in _LOGARITHMIC and bool((everything > 0).any())
    usable = everything[everything > 0] if logarithmic else everything
    edges = _edges(usable, logarithmic, whole=np.all(np.mod(everything, 1) == 0))
    summary = {}
    for split, values in finite.items():
        low, middle, high = np.percentile(values, (16, 50, 84)) if len(values) else (np.nan,) * 3
        absent = len(parts[split]) - len(values)
        summary[split] = {"n": len(values), "missing": absent, "median": middle, "p16": low, "p84": high}
    counts = {split: np.histogram(values, edges)[0] for split, values in finite.items()}
    return Distribution(name, label, group, edges, counts, summary, logarithmic)


def _edges(values: np.ndarray, logarithmic: bool, whole: bool) -> np.ndarray:
    """Equal bins over nearly all values, the finer the more there are; bins of whole width about whole numbers."""
    low, high = np.percentile(values, (0.1, 99.9)) if len(values) else (0.0, 1.0)
    bins = int(np.clip(2 * len(values) ** (1 / 3), 6, MOST_BINS))  # Rice's rule
    if logarithmic:
        return np.geomspace(low, max(high, low * 1.1), bins + 1)
    if whole:
        width = max(1, int(np.ceil((high - low + 1) / bins)))
        return np.arange(np.floor(low) - 0.5, high + width + 0.5, width)
    return np.linspace(low, high, bins + 1) if high > low else np.linspace(low - 0.5, high + 0.5, bins + 1)


# -------------------------------------------------------------------------------------------------------------- pixels
def measure_pixels(image: np.ndarray, variance: np.ndarray, mask: np.ndarray, is_sky: np.ndarray) -> dict[str, Any]:
    """Noise of one tile, per band.

    Args:
        image: (C, h, w), nJy.
        variance: (C, h, w), nJy^2.
        mask: (C, h, w), True = bad.
        is_sky: (h, w), True where there is no object.

    Returns:
        Lists of C numbers, NaN where nothing can be measured: masked (share of the pixels), noise_njy (median of the
        stated 1-sigma noise), scatter (robust standard deviation of the sky in units of the stated noise: 1 where the
        noise is what is stated and pixels are independent), sky (median of the sky in the same unit).
    """
    result: dict[str, list[float]] = {"masked": [], "noise_njy": [], "scatter": [], "sky": []}
    for plane, noise, bad in zip(image, np.sqrt(variance), mask, strict=True):
        good = ~bad & (noise > 0)
        sky = (plane[good & is_sky] / noise[good & is_sky]).astype(float)
        middle = np.median(sky) if len(sky) else np.nan
        result["masked"].append(float(bad.mean()))
        result["noise_njy"].append(float(np.median(noise[good])) if good.any() else np.nan)
        result["sky"].append(float(middle))
        result["scatter"].append(1.4826 * float(np.median(np.abs(sky - middle))) if len(sky) else np.nan)
    return result


def summarise_pixels(bands: Sequence[str], measured: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Band -> for each of masked, noise_njy, scatter, sky: median over the tiles, `_err` (of that median), `_n` tiles.

    The error is 1.253 times the standard error of the mean, which is that of the median of a normal distribution.
    """
    result: dict[str, dict[str, float]] = {}
    for i, band in enumerate(bands):
        result[band] = {}
        for name in ("masked", "noise_njy", "scatter", "sky"):
            values = np.array([tile[name][i] for tile in measured], dtype=float)
            values = values[np.isfinite(values)]
            n = len(values)
            result[band][name] = float(np.median(values)) if n else np.nan
            result[band][f"{name}_err"] = 1.253 * float(np.std(values, ddof=1)) / np.sqrt(n) if n > 1 else np.nan
            result[band][f"{name}_n"] = n
    return result
