"""The files of a data set: tiles one by one, then the tables and dataset.yaml.

Legend: *field* = one mosaic; *area* = a rectangle of a field that belongs to one split; *tile* = a piece of an area,
one file of the data set. Object positions in the data set's truth are in the pixels of their tile.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import fitsio
import numpy as np
import pandas as pd
import yaml
from scipy.spatial import cKDTree

from deepdisc import catalog
from deepdisc.data.mosaic import Mosaic
from deepdisc.data.splits import SPLITS, Area, leaks, tile_edges
from deepdisc.data.truth import EDGE
from deepdisc.files import write_text

SCHEMA_VERSION = 2
_CELL_PIX = 64  # of E(B-V) made from the objects' values, and of PSFs that vary over the field

logger = logging.getLogger(__name__)


class HasPixels(Protocol):
    """What is asked of a field here; see `deepdisc.data.prepare.Field`."""

    name: str
    mosaic: Any
    ebv: Any
    truth: pd.DataFrame
    outlines: pd.DataFrame | None

    def segmentation(self) -> np.ndarray:
        """(height, width) int32 ids; negative: light to be masked."""


class TileWriter:
    """Writes tiles one by one and keeps what the tables and statistics need."""

    def __init__(self, folder: Path, bands: Sequence[str]):
        self.folder = folder
        (folder / "tiles").mkdir()
        self.bands = tuple(bands)
        self.tiles: list[dict[str, Any]] = []
        self.truths: list[pd.DataFrame] = []
        self.outlines: list[pd.DataFrame] = []
        self.statistics: list[dict[str, np.ndarray]] = []

    def write_field(
        self, source: HasPixels, areas: Sequence[Area], tile_size: int, progress: Callable[[], None]
    ) -> None:
        """Write the tiles of all areas of a field; `progress` is called after each area."""
        segmentation = source.segmentation()
        owner = owning_splits(source.truth, segmentation, areas)
        with Mosaic.open(source.mosaic, ebv=None if source.ebv == "column" else source.ebv) as opened:
            mosaic = opened.select(list(self.bands))
            for area in areas:
                foreign = np.flatnonzero((owner >= 0) & (owner != SPLITS.index(area.split)))
                for y0, y1 in tile_edges(area.y0, area.y1, tile_size):
                    for x0, x1 in tile_edges(area.x0, area.x1, tile_size):
                        part = segmentation[y0:y1, x0:x1]
                        self._write_tile(mosaic, source, area.split, part, foreign, (y0, x0, y1, x1))
                progress()

    def _write_tile(self, mosaic, source: HasPixels, split: str, segmentation, foreign, window) -> None:
        y0, x0, y1, x1 = window
        cutout = mosaic.read(y0, x0, y1, x1)
        image, variance, mask = (np.array(part) for part in (cutout.image, cutout.variance, cutout.mask))
        taken = np.isin(segmentation, foreign) | (segmentation < 0)
        mask[:, taken] = True
        image[mask] = 0
        segmentation = np.where(taken, 0, segmentation).astype(np.int32)
        ebv = ebv_of_objects(source.truth, window) if source.ebv == "column" else mosaic.ebv_at(y0, x0, y1, x1)
        number = len(self.tiles)
        name = f"tiles/{number:05d}.fits"
        header = mosaic.grid.cutout(y0, x0, (y1 - y0, x1 - x0)).header()
        with fitsio.FITS(str(self.folder / name), "rw") as fits:
            fits.write(image.astype(np.float32), extname="IMAGE", header={**header, "BUNIT": "nJy"})
            fits.write(variance.astype(np.float32), extname="VARIANCE", header={"BUNIT": "nJy2"})
            fits.write(mask.astype(np.uint8), extname="MASK")
            fits.write(segmentation, extname="SEGMENTATION")
            fits.write(np.atleast_2d(np.asarray(ebv, np.float32)), extname="EBV", header={"BUNIT": "mag"})
            fits.write(_psf_cells(mosaic, window), extname="PSF")
        self.tiles.append(
            {"tile": number, "file": name, "field": source.name, "split": split}
            | {"y0": y0, "x0": x0, "height": y1 - y0, "width": x1 - x0}
        )
        rows = _tile_truth(source, number, segmentation, foreign, window)
        self.truths.append(rows)
        if source.outlines is not None:
            whole = source.outlines[source.outlines.id.isin(rows.id)]
            self.outlines.append(whole.assign(tile=np.int32(number), y0=whole.y0 - y0, x0=whole.x0 - x0))
        if split == "train":
            self.statistics.append(_statistics(image, variance, mask))

    def finish(
        self, about: Mapping[str, Any], class_names: Sequence[str], scale_arcsec: float, provenance: dict
    ) -> None:
        """Write the tables and dataset.yaml.

        Args:
            about: name and survey.
            class_names: names by index.
            scale_arcsec: side of a pixel.
            provenance: plain values that say where everything comes from.
        """
        truth = pd.concat(self.truths, ignore_index=True)
        known = [name for name in truth if catalog.describe(name) is not None and _storable(truth[name])]
        for name in known:
            if catalog.describe(name).dtype == "str":
                truth[name] = truth[name].astype(object).where(truth[name].notna(), "")
        catalog.write_parquet(truth[known], self.folder / "truth.parquet", {"bands": list(self.bands), "frame": "tile"})
        tiles = pd.DataFrame(self.tiles)
        tiles.to_parquet(self.folder / "split.parquet", index=False)
        if self.outlines:
            pd.concat(self.outlines, ignore_index=True).to_parquet(self.folder / "outlines.parquet", index=False)
        leaking = leaks(truth[known], tiles)
        assert leaking["objects"] == 0, leaking
        if leaking["positions"]:
            logger.warning("%d objects lie on the sky where another split has one too", leaking["positions"])
        splits = {split: _count(tiles, truth, split, scale_arcsec) for split in SPLITS if (tiles.split == split).any()}
        for split, counts in splits.items():
            logger.info("%s: %s", split, ", ".join(f"{key} {_short(value)}" for key, value in counts.items()))
        description = {
            "schema_version": SCHEMA_VERSION,
            **about,
            "bands": list(self.bands),
            "unit": "nJy",
            "pixel_scale_arcsec": scale_arcsec,
            "class_names": list(class_names),
            "normalisation": _normalisation(self.bands, self.statistics),
            "splits": splits,
            "provenance": {"written_by": "deepdisc.data.prepare"} | provenance,
        }
        write_text(self.folder / "dataset.yaml", yaml.safe_dump(description, sort_keys=False))


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _storable(values: pd.Series) -> bool:
    """False for integer columns that only some fields have: integers cannot be missing."""
    return np.dtype(catalog.describe(values.name).dtype).kind not in "iu" or values.notna().all()


def owning_splits(truth: pd.DataFrame, segmentation: np.ndarray, areas: Sequence[Area]) -> np.ndarray:
    """Which split, as an index of `SPLITS`, each object of a field belongs to; in others it is masked and not listed.

    That in whose areas it has most pixels; -1 for objects without a pixel in any area, and for the background.

    Returns:
        (largest id + 1,) by id.
    """
    size = int(truth.id.max()) + 1 if len(truth) else 1
    counts = np.zeros((len(SPLITS), size), np.int64)
    for part in areas:
        ids = np.maximum(segmentation[part.y0 : part.y1, part.x0 : part.x1], 0)
        counts[SPLITS.index(part.split)] += np.bincount(ids.ravel(), minlength=size)
    counts[:, 0] = 0
    return np.where(counts.any(axis=0), counts.argmax(axis=0), -1)


def ebv_of_objects(truth: pd.DataFrame, window: tuple[int, int, int, int]) -> np.ndarray:
    """E(B-V) in even cells of a rectangle `y0, x0, y1, x1` of the field: that of the nearest object that has one."""
    y0, x0, y1, x1 = window
    rows, columns = (-(-length // _CELL_PIX) for length in (y1 - y0, x1 - x0))
    y = y0 + (np.arange(rows) + 0.5) * (y1 - y0) / rows - 0.5
    x = x0 + (np.arange(columns) + 0.5) * (x1 - x0) / columns - 0.5
    known = truth[truth.ebv.notna()]
    centres = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1)
    _, nearest = cKDTree(known[["y", "x"]].to_numpy(float)).query(centres)
    return known.ebv.to_numpy(np.float32)[nearest]


def _psf_cells(mosaic: Mosaic, window: tuple[int, int, int, int]) -> np.ndarray:
    """(rows, columns, C, P, P) float32 PSFs in even cells of a rectangle `y0, x0, y1, x1`: one if they do not vary."""
    y0, x0, y1, x1 = window
    size = _CELL_PIX if mosaic.psf_varies else max(y1 - y0, x1 - x0)
    columns = tile_edges(x0, x1, size)
    return np.stack(
        [
            [mosaic.psf_at(top, left, bottom, right) for left, right in columns]
            for top, bottom in tile_edges(y0, y1, size)
        ]
    )


def _tile_truth(source: HasPixels, number: int, segmentation: np.ndarray, foreign: np.ndarray, window) -> pd.DataFrame:
    """Rows of the objects with pixels in the tile or centred on it, in the tile's pixels; EDGE if it cuts them."""
    y0, x0, y1, x1 = window
    truth = source.truth
    centred = truth.x.between(x0 - 0.5, x1 - 0.5, "left") & truth.y.between(y0 - 0.5, y1 - 0.5, "left")
    rows = truth[(truth.id.isin(np.unique(segmentation)) | centred) & ~truth.id.isin(foreign)].copy()
    for name, offset in (("x", x0), ("x_min", x0), ("x_max", x0), ("y", y0), ("y_min", y0), ("y_max", y0)):
        rows[name] = rows[name] - offset
    cut = (rows.x_min < 0) | (rows.y_min < 0) | (rows.x_max > x1 - x0) | (rows.y_max > y1 - y0)
    rows["flags"] = rows["flags"].astype(np.int32) | np.where(cut, EDGE, 0).astype(np.int32)
    rows.insert(0, "tile", np.int32(number))
    rows["field"] = source.name
    return rows


def _statistics(image: np.ndarray, variance: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """Per band: number of valid pixels, sums of flux and flux^2, median noise."""
    valid = ~mask
    flux = image.astype(np.float64)
    noise = [np.median(np.sqrt(v[m])) if m.any() else np.nan for v, m in zip(variance, valid, strict=True)]
    axes = (1, 2)
    return {
        "pixels": valid.sum(axes),
        "sum": (flux * valid).sum(axes),
        "squares": (flux**2 * valid).sum(axes),
        "noise": np.array(noise),
    }


def _normalisation(bands: Sequence[str], tiles: Sequence[Mapping[str, np.ndarray]]) -> dict[str, dict[str, float]]:
    """Per band over the training tiles, valid pixels only: mean and standard deviation of the flux, median noise."""
    result = {}
    for i, band in enumerate(bands):
        pixels = sum(int(tile["pixels"][i]) for tile in tiles)
        if pixels == 0:
            result[band] = {"mean_njy": None, "std_njy": None, "noise_njy": None}
            continue
        mean = sum(float(tile["sum"][i]) for tile in tiles) / pixels
        square = sum(float(tile["squares"][i]) for tile in tiles) / pixels
        noise = float(np.nanmedian([tile["noise"][i] for tile in tiles]))
        result[band] = {"mean_njy": mean, "std_njy": max(square - mean**2, 0.0) ** 0.5, "noise_njy": noise}
    return result


def _count(tiles: pd.DataFrame, truth: pd.DataFrame, split: str, scale_arcsec: float) -> dict[str, Any]:
    chosen = tiles[tiles.split == split]
    objects = truth[truth.tile.isin(chosen.tile)]
    distinct = objects.drop_duplicates(["field", "id"])
    return {
        "tiles": len(chosen),
        "area_arcmin2": float((chosen.height * chosen.width).sum() * (scale_arcsec / 60) ** 2),
        "objects": len(distinct),
        "with_redshift": int(distinct.redshift.notna().sum()),
    }
