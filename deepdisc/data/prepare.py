"""Fields with truth -> an on-disk data set of tiles, split by sky area.

A recipe is a YAML file; paths in it are relative to it::

    name: coadds                     # of the data set
    survey: SDSS                     # optional, free text
    class_names: [galaxy, star]      # class_id is the index
    bands: [g, r, i]                 # optional; default those of the first field
    fields:
      - name: field_000
        mosaic: field_000/mosaic.yaml
        truth: field_000/truth.parquet
        segmentation: field_000/segmentation.fits
        split: train                 # optional; for all fields or for none
        conditions: {...}            # optional; kept as provenance, as is a top-level `provenance`

Legend: *field* = one mosaic; *area* = a rectangle of a field that belongs to one split; *tile* = a piece of an area,
one file of the data set. Object positions in the data set's truth are in the pixels of their tile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fitsio
import numpy as np
import pandas as pd
import yaml
from rich.console import Console
from rich.progress import track

from deepdisc import catalog
from deepdisc.data.mosaic import Mosaic
from deepdisc.data.splits import SPLITS, Area, plan_areas, tile_edges
from deepdisc.data.truth import EDGE, read_segmentation, read_truth
from deepdisc.errors import InputError, nearest
from deepdisc.files import atomic_folder, read_yaml, refuse_to_overwrite, sha256, write_text

SCHEMA_VERSION = 1
DEFAULT_CLASSES = ("galaxy", "star")
DEFAULT_FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}


@dataclass
class Field:
    """One entry of a recipe, its truth read and checked. Paths are absolute."""

    name: str
    mosaic: Path
    truth_path: Path
    segmentation_path: Path
    split: str | None
    conditions: Any
    shape: tuple[int, int] = (0, 0)
    bands: tuple[str, ...] = ()
    pixel_scale_arcsec: float = float("nan")
    truth: pd.DataFrame = field(default_factory=pd.DataFrame)

    def segmentation(self) -> np.ndarray:
        """Read the segmentation map anew: keeping those of all fields would need their total size in memory."""
        return read_segmentation(self.segmentation_path, self.shape)


def prepare(
    recipe: str | Path,
    output: str | Path,
    *,
    tile_size: int = 512,
    fractions: Mapping[str, float] | None = None,
    bands: Sequence[str] | None = None,
    guard_pix: int = 32,
    seed: int = 0,
) -> Path:
    """Write the data set that `deepdisc.data.dataset.TileDataset` reads.

    Whole fields go to one split; fields that show the same sky stay together. With too few fields each is cut into
    one area per split along its longer side, with a gap between them; an object that still reaches across a gap keeps
    its pixels only in the area that has most of them and is masked in the other.

    Args:
        recipe: YAML file, see the top of this module.
        output: folder to create; must not exist.
        tile_size: largest side of a tile in pixels; tiles of an area are equal to within a pixel and do not overlap.
        fractions: share of the sky for each of "train", "val", "test"; default 0.8, 0.1, 0.1.
        bands: names and order; default those of the first field.
        guard_pix: width of the gap between areas of different splits in one field.
        seed: decides which field goes to which split.

    Returns:
        `output`.

    Raises:
        InputError: anything wrong in recipe, mosaics or truth; the output exists or cannot be written.
    """
    recipe, output = Path(recipe), Path(output)
    refuse_to_overwrite([output])
    if tile_size < 32:
        raise InputError(f"tile_size={tile_size} is too small; use at least 32 pixels")
    contents = read_recipe(recipe)
    bands = bands or contents.get("bands")
    fields = [_open_field(entry, contents["class_names"], bands) for entry in contents["fields"]]
    for other in fields[1:]:
        _check_alike(fields[0], other)
    areas = plan_areas(fields, dict(fractions or DEFAULT_FRACTIONS), guard_pix, seed)
    with atomic_folder(output) as temporary:
        (temporary / "tiles").mkdir()
        writer = _Writer(temporary, fields[0].bands)
        for area in track(areas, description="tiles", console=Console(stderr=True)):
            writer.write_area(fields[area.field], area, areas, tile_size)
        about = {"seed": seed, "tile_size": tile_size}
        if fields[0].split is None:
            about["fractions"] = dict(fractions or DEFAULT_FRACTIONS)
        writer.finish(contents, fields, about)
    return output


def read_recipe(path: Path) -> dict[str, Any]:
    """Read and check a recipe; the paths of its fields become absolute.

    Raises:
        InputError: missing file, not YAML, unknown or missing key, wrong kind of value, no field, a field twice.
    """
    if not path.is_file():
        raise InputError(f"no recipe at {path}; `deepdisc simulate` writes one, datasets/README.md describes it")
    contents = read_yaml(path, "recipe")
    if not isinstance(contents, dict) or not isinstance(contents.get("fields"), list) or not contents["fields"]:
        raise InputError(f"{path}: a recipe needs a list `fields` of entries with mosaic, truth and segmentation")
    known = {"name", "survey", "class_names", "bands", "pixel_scale_arcsec", "fields", "provenance"}
    _check_keys(contents, known, str(path))
    contents.setdefault("name", path.parent.name)
    contents.setdefault("class_names", list(DEFAULT_CLASSES))
    for key in ("class_names", "bands"):
        names = contents.get(key, ["any"])
        if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
            raise InputError(f"{path}: `{key}` is {names!r}; it is a list of names such as [g, r]")
    contents["fields"] = [_read_entry(entry, i, path) for i, entry in enumerate(contents["fields"])]
    names = [entry["name"] for entry in contents["fields"]]
    if len(set(names)) < len(names):
        raise InputError(f"{path}: field {max(names, key=names.count)!r} is listed more than once; give unique names")
    given = [entry["split"] is not None for entry in contents["fields"]]
    if any(given) and not all(given):
        raise InputError(f"{path}: field {names[given.index(False)]!r} has no split but others have; give all or none")
    return contents


def _read_entry(entry: Any, index: int, path: Path) -> dict[str, Any]:
    place = f"{path}: fields[{index}]"
    if not isinstance(entry, dict):
        raise InputError(f"{place} is not a mapping of mosaic, truth and segmentation")
    _check_keys(entry, {"name", "mosaic", "truth", "segmentation", "split", "conditions"}, place)
    for key in ("mosaic", "truth", "segmentation"):
        if not isinstance(entry.get(key), str):
            raise InputError(f"{place}: `{key}` is missing; give a path relative to the recipe")
        entry[key] = path.parent.resolve() / entry[key]
    entry["name"] = str(entry.get("name", f"field_{index:03d}"))
    entry.setdefault("split", None)
    if entry["split"] is not None and entry["split"] not in SPLITS:
        raise InputError(f"{place}: split {entry['split']!r} is not one of {', '.join(SPLITS)}")
    return entry


def _check_keys(found: Mapping, known: set[str], place: str) -> None:
    for key in found:
        if key not in known:
            close = nearest(str(key), known)
            raise InputError(f"{place}: unknown key {key!r}" + (f"; the nearest is {close!r}" if close else ""))


def _open_field(entry: Mapping[str, Any], class_names: Sequence[str], bands: Sequence[str] | None) -> Field:
    found = Field(*(entry.get(key) for key in ("name", "mosaic", "truth", "segmentation", "split", "conditions")))
    with Mosaic.open(entry["mosaic"]) as mosaic:
        mosaic = mosaic if bands is None else mosaic.select(list(bands))
        found.shape, found.bands = tuple(mosaic.shape), tuple(mosaic.bands)
        found.pixel_scale_arcsec = float(mosaic.pixel_scale_arcsec)
    found.truth = read_truth(found.truth_path, found.segmentation(), class_names)
    return found


def _check_alike(first: Field, other: Field) -> None:
    if set(other.bands) != set(first.bands):
        raise InputError(
            f"field {other.name!r} has bands {','.join(other.bands)}, {first.name!r} has {','.join(first.bands)}; list "
            "those they share as `bands` in the recipe"
        )
    if abs(other.pixel_scale_arcsec / first.pixel_scale_arcsec - 1) > 0.01:
        raise InputError(
            f"field {other.name!r} has {other.pixel_scale_arcsec:.4g} arcsec per pixel, {first.name!r} has "
            f"{first.pixel_scale_arcsec:.4g}; make one data set per pixel scale"
        )


class _Writer:
    """Writes tiles one by one and keeps what the tables and statistics need."""

    def __init__(self, folder: Path, bands: Sequence[str]):
        self.folder = folder
        self.bands = tuple(bands)
        self.tiles: list[dict[str, Any]] = []
        self.truths: list[pd.DataFrame] = []
        self.statistics: list[dict[str, np.ndarray]] = []

    def write_area(self, source: Field, area: Area, areas: Sequence[Area], tile_size: int) -> None:
        """Write all tiles of an area."""
        segmentation = source.segmentation()
        foreign = _foreign_ids(source, area, areas, segmentation)
        rows = tile_edges(area.y0, area.y1, tile_size)
        columns = tile_edges(area.x0, area.x1, tile_size)
        with Mosaic.open(source.mosaic) as opened:
            mosaic = opened.select(list(self.bands))
            for y0, y1 in rows:
                for x0, x1 in columns:
                    self._write_tile(mosaic, source, area.split, segmentation[y0:y1, x0:x1], foreign, (y0, x0, y1, x1))

    def _write_tile(self, mosaic, source: Field, split: str, segmentation, foreign, window) -> None:
        y0, x0, y1, x1 = window
        cutout = mosaic.read(y0, x0, y1, x1)
        image, variance, mask = (np.array(part) for part in (cutout.image, cutout.variance, cutout.mask))
        taken = np.isin(segmentation, foreign)
        mask[:, taken] = True
        image[mask] = 0
        segmentation = np.where(taken, 0, segmentation).astype(np.int32)
        ebv = np.atleast_2d(np.asarray(mosaic.ebv_at(y0, x0, y1, x1), dtype=np.float32))
        number = len(self.tiles)
        name = f"tiles/{number:05d}.fits"
        header = mosaic.grid.cutout(y0, x0, (y1 - y0, x1 - x0)).header()
        with fitsio.FITS(str(self.folder / name), "rw") as fits:
            fits.write(image.astype(np.float32), extname="IMAGE", header={**header, "BUNIT": "nJy"})
            fits.write(variance.astype(np.float32), extname="VARIANCE", header={"BUNIT": "nJy2"})
            fits.write(mask.astype(np.uint8), extname="MASK")
            fits.write(segmentation, extname="SEGMENTATION")
            fits.write(ebv, extname="EBV", header={"BUNIT": "mag"})
        self.tiles.append(
            {"tile": number, "file": name, "field": source.name, "split": split}
            | {"y0": y0, "x0": x0, "height": y1 - y0, "width": x1 - x0}
        )
        self.truths.append(_tile_truth(source, number, segmentation, foreign, window))
        if split == "train":
            self.statistics.append(_statistics(image, variance, mask))

    def finish(self, contents: Mapping[str, Any], fields: Sequence[Field], about: Mapping[str, Any]) -> None:
        """Write the tables and dataset.yaml."""
        truth = pd.concat(self.truths, ignore_index=True)
        known = [name for name in truth if catalog.describe(name) is not None and _storable(truth[name])]
        catalog.write_parquet(truth[known], self.folder / "truth.parquet", {"bands": list(self.bands), "frame": "tile"})
        tiles = pd.DataFrame(self.tiles)
        tiles.to_parquet(self.folder / "split.parquet", index=False)
        scale = fields[0].pixel_scale_arcsec
        provenance = {
            "written_by": "deepdisc.data.prepare",
            **about,
            "fields": [
                {"name": item.name, "truth_sha256": sha256(item.truth_path), "conditions": item.conditions}
                for item in fields
            ],
            **({"recipe": contents["provenance"]} if "provenance" in contents else {}),
        }
        description = {
            "schema_version": SCHEMA_VERSION,
            "name": contents["name"],
            "survey": contents.get("survey"),
            "bands": list(self.bands),
            "unit": "nJy",
            "pixel_scale_arcsec": scale,
            "class_names": list(contents["class_names"]),
            "normalisation": _normalisation(self.bands, self.statistics),
            "splits": {split: _count(tiles, truth, split, scale) for split in SPLITS if (tiles.split == split).any()},
            "provenance": provenance,
        }
        write_text(self.folder / "dataset.yaml", yaml.safe_dump(description, sort_keys=False))


def _storable(values: pd.Series) -> bool:
    """False for integer columns that only some fields have: integers cannot be missing."""
    return np.dtype(catalog.describe(values.name).dtype).kind not in "iu" or values.notna().all()


def _foreign_ids(source: Field, area: Area, areas: Sequence[Area], segmentation: np.ndarray) -> np.ndarray:
    """Ids with pixels in this area of which another split's area of the same field holds more."""
    size = int(source.truth.id.max()) + 1 if len(source.truth) else 1

    def count(part: Area) -> np.ndarray:
        return np.bincount(segmentation[part.y0 : part.y1, part.x0 : part.x1].ravel(), minlength=size)

    own, foreign = count(area), np.zeros(size, dtype=bool)
    for index, other in enumerate(areas):
        if other.field == area.field and other.split != area.split:
            theirs = count(other)
            foreign |= (own > 0) & ((theirs > own) | ((theirs == own) & (index < areas.index(area))))
    foreign[0] = False
    return np.flatnonzero(foreign)


def _tile_truth(source: Field, number: int, segmentation: np.ndarray, foreign: np.ndarray, window) -> pd.DataFrame:
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
