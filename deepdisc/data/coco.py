"""Data sets as COCO JSON, for detectron2 and pycocotools, and back.

Export keeps what a training on the data set sees: the objects that `truth.to_instances` labels, their boxes cut at the
tile's border and the pixels that are theirs. Import draws every outline into one map of object ids; where outlines
overlap, a pixel belongs to the smallest object that covers it, so that none hides another.

Category ids are class_id + 1, annotation ids count from 1 (COCOeval takes 0 for "no match"). Beside COCO's own keys an
annotation has `object_id` (its id in the data set) and the columns of the truth; unknown values are null.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fitsio
import numpy as np
import pandas as pd
import yaml
from rich.console import Console
from rich.progress import track

from deepdisc import catalog
from deepdisc.data import outlines
from deepdisc.data.annotations import (
    AnnotatedImage,
    Annotation,
    Annotations,
    BoxCheck,
    is_number,
    read_annotations,
    short,
)
from deepdisc.data.dataset import TileDataset, read_description
from deepdisc.data.fits_plane import FitsFile
from deepdisc.data.mosaic import Mosaic, describe_source
from deepdisc.data.prepare import prepare
from deepdisc.data.sources import BandSource
from deepdisc.data.splits import SPLITS
from deepdisc.data.transforms import Sample, crop
from deepdisc.data.truth import to_instances
from deepdisc.errors import InputError, first_line
from deepdisc.files import atomic_folder, refuse_to_overwrite, sha256, write_failure, write_text
from deepdisc.structures import Instances, RegionMasks

_LARGEST_ID = np.iinfo(np.int32).max
_PLACE = {"tile", "field", "id", *catalog.BOX_COLUMNS, "class_id", "class_name", "area_pix"}

logger = logging.getLogger(__name__)


# --------------------------------------------------------------------------------------------------------- export
def export(root: str | Path, output: str | Path, *, polygons: bool = False, min_visible: float = 0.3) -> Path:
    """Write the annotations of a data set, one COCO file per split: train.json, val.json, test.json.

    The images stay where they are: `file_name` is relative to the data set.

    Args:
        root: folder written by `prepare`.
        output: folder to create; must not exist.
        polygons: outlines as polygons instead of run-length codes; those with a hole keep the code, because COCO's
            polygons cannot express holes.
        min_visible: as for `TileDataset`.

    Returns:
        `output`.

    Raises:
        InputError: no or a damaged data set, or `output` exists or cannot be written.
    """
    output = Path(output)
    refuse_to_overwrite([output])
    description = read_description(root)
    contents = {split: split_to_coco(root, split, polygons, min_visible) for split in description["splits"]}
    with atomic_folder(output) as temporary:
        for split, content in contents.items():
            write_text(temporary / f"{split}.json", json.dumps(content, allow_nan=False) + "\n")
    return output


def split_to_coco(
    root: str | Path, split: str, polygons: bool = False, min_visible: float = 0.3
) -> dict[str, dict | list]:
    """One split of a data set as the contents of a COCO file; see `export`."""
    dataset = TileDataset(root, split, labels={})
    truth = pd.read_parquet(Path(root) / "truth.parquet")
    by_tile = dict(list(truth.groupby("tile")))
    about = dataset.description
    images, annotations = [], []
    for row in dataset.tiles.itertuples():
        segmentation, ebv = _read_maps(dataset.root / row.file)
        rows, objects = _labelled(segmentation, by_tile.get(row.tile, truth[:0]), min_visible)
        image = {"id": int(row.tile), "file_name": row.file, "height": int(row.height), "width": int(row.width)}
        place = {"field": row.field, "y0": int(row.y0), "x0": int(row.x0)}
        images.append(image | place | {"ebv": float(ebv.mean()), "bands": about["bands"]})
        for i, values in enumerate(rows.to_dict("records")):
            annotation = _annotation(values, objects.gt_boxes[i].tolist(), objects.gt_masks[i], polygons)
            annotations.append({"id": len(annotations) + 1, "image_id": image["id"], **annotation})
    codes = sum(isinstance(annotation["segmentation"], dict) for annotation in annotations)
    if polygons and codes:
        logger.info("%s: %d of %d outlines have holes and are run-length codes", split, codes, len(annotations))
    return {
        "info": {"description": about["name"]} | {key: about[key] for key in ("unit", "pixel_scale_arcsec", "bands")},
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(about["class_names"])],
        "images": images,
        "annotations": annotations,
    }


def _annotation(values: Mapping[str, Any], box: Sequence[float], mask: RegionMasks, polygons: bool) -> dict[str, Any]:
    """One object, from its row of the truth, its box x0, y0, x1, y1 and its mask (one)."""
    pixels, origin = mask.crops[0].numpy(), mask.regions[0, :2].tolist()
    outline = outlines.to_polygons(pixels, origin) if polygons else None
    return {
        "category_id": int(values["class_id"]) + 1,
        "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
        "area": int(pixels.sum()),
        "iscrowd": 0,
        "segmentation": outline or outlines.to_rle(mask.to_dense()[0].numpy()),
        "object_id": int(values["id"]),
        **{name: _plain(value) for name, value in values.items() if name not in _PLACE},
    }


def _read_maps(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Segmentation map and E(B-V) cells of a tile."""
    try:
        with fitsio.FITS(str(path)) as fits:
            return fits["SEGMENTATION"].read(), fits["EBV"].read()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {first_line(error)}; prepare the data set anew") from error


def _labelled(segmentation: np.ndarray, truth: pd.DataFrame, min_visible: float) -> tuple[pd.DataFrame, Instances]:
    """The tile's objects that a training labels: their rows of the truth, and boxes and masks."""
    height, width = segmentation.shape
    nothing = np.zeros((0, height, width), np.float32)  # the outlines need no pixels
    labels = {name: truth[name].to_numpy() for name in ("class_id", "flags", "area_pix")}
    sample = Sample(
        *(nothing, nothing, nothing.astype(bool), segmentation),
        ids=truth["id"].to_numpy(),
        boxes=truth[list(catalog.BOX_COLUMNS)].to_numpy(np.float32),
        labels={**labels, "row": np.arange(len(truth))},
    )
    objects = to_instances(crop(sample, 0, 0, height, width), min_visible)
    return truth.iloc[objects.gt_row.long().numpy()], objects


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return value if isinstance(value, str) or np.isfinite(value) else None


# --------------------------------------------------------------------------------------------------------- import
def prepare_annotations(
    source: str | Path | Mapping | Sequence,
    output: str | Path,
    *,
    images: str | Path | None = None,
    bands: Sequence[str] | None = None,
    pixel_scale: float | None = None,
    zero_points: float | str | Mapping[str, float | str] | None = None,
    class_names: Sequence[str] | None = None,
    tile_size: int = 512,
    fractions: Mapping[str, float] | None = None,
    seed: int | None = None,
) -> Path:
    """Make a data set from annotated images.

    Images are FITS files in any form that `Mosaic.open` takes as one file, tiles of our own data sets, or .npy arrays
    (band, y, x) or (y, x, band). Keys of an annotation that `deepdisc.catalog` describes (redshift, flux_<band>, ...)
    become columns of the truth. Object ids are those of `object_id` or `id` where all of an image are positive and
    different, else they count from 1.

    Args:
        source: COCO JSON or a list of detectron2's dataset dicts (see `annotations`), as a file or its contents; or a
            folder with one file per split, train.json, val.json, test.json, as `export` writes.
        output: folder to create; must not exist. Its name is the data set's where `info` has no `description`.
        images: folder that `file_name` is relative to, also tried with the last part of it alone; default: the
            annotations' folder.
        bands: names of the images' planes, or which and in which order where the annotations or the images name them.
        pixel_scale: arcsec, where neither the images nor the annotations say it.
        zero_points: AB magnitude of one image unit, or a flux unit, where the images do not say it; one or by band.
        class_names: by index, where the annotations do not name them; else their order.
        tile_size: as for `prepare`.
        fractions: as for `prepare`; with a folder the files are the splits.
        seed: as for `prepare`.

    Returns:
        `output`.

    Raises:
        InputError: anything wrong in the annotations or images; names file, image and annotation.
    """
    output = Path(output)
    refuse_to_overwrite([output])
    parts = _splits_of(source, fractions)
    temporary = output.with_name(f".{secrets.token_hex(4)}.partial.fields.{output.name}")
    try:
        temporary.mkdir(parents=True)
        writer = _FieldWriter(temporary, bands, pixel_scale, zero_points)
        named_by, names, name = "--classes", class_names, None
        for split, part in parts.items():
            annotations = read_annotations(part, names, named_by)
            if names is None:
                named_by, names = f"{part} has the categories", annotations.class_names
            name = name or annotations.about.get("description")
            folder = Path(images or (Path(part).parent if isinstance(part, str | Path) else "."))
            writer.write_all(annotations, folder, split)
        name = name if isinstance(name, str) and name.strip() else output.name
        writer.finish(list(names), [str(part) for part in parts.values() if isinstance(part, Path)], name)
        return prepare(temporary / "recipe.yaml", output, tile_size=tile_size, fractions=fractions, seed=seed)
    except OSError as error:
        raise write_failure(output, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _splits_of(source: Any, fractions: Any) -> dict[str | None, Any]:
    """Annotations by split; None where they are to be divided."""
    if not isinstance(source, str | os.PathLike):
        return {None: source}
    path = Path(source)
    if not path.is_dir():
        return {None: path}
    found = {split: path / f"{split}.json" for split in SPLITS if (path / f"{split}.json").is_file()}
    if "train" not in found:
        raise InputError(
            f"{path}: a folder of annotations holds train.json, and val.json and test.json where there are"
        )
    if fractions:
        raise InputError(f"{path}: its files are the splits already; leave --split out, or give one file")
    return found


class _FieldWriter:
    """Turns each annotated image into a field of a recipe."""

    def __init__(self, folder: Path, bands: Sequence[str] | None, pixel_scale: float | None, zero_points: Any):
        self.folder = folder
        self.bands = list(bands) if bands else None
        self.pixel_scale, self.zero_points = pixel_scale, zero_points
        self.fields: list[dict[str, Any]] = []
        self.unknown: set[str] = set()
        self.seen: set[Path] = set()
        self.overlapping = self.invisible = 0
        self.boxes = BoxCheck()

    def write_all(self, annotations: Annotations, images: Path, split: str | None) -> None:
        """Write the fields of one annotation file."""
        for image in track(
            annotations.images, description=f"{split or ''} images".strip(), console=Console(stderr=True)
        ):
            folder = self.folder / f"{len(self.fields):05d}"
            folder.mkdir()
            path = _find(image, images)
            if path.resolve() in self.seen:
                raise InputError(f"{image.label}: the same file is listed twice; an image belongs to one split, once")
            self.seen.add(path.resolve())
            shape = self._write_mosaic(image, path, annotations.about, folder)
            if image.shape not in (None, shape):
                raise InputError(
                    f"{image.label}: it is stated to be {image.shape[1]} x {image.shape[0]} pixels, but its file has "
                    f"{shape[1]} x {shape[0]}; correct height and width"
                )
            truth, segmentation = self._draw(image, shape)
            truth.to_parquet(folder / "truth.parquet")
            fitsio.write(str(folder / "segmentation.fits"), segmentation)
            about = {"file_name": image.file_name, "image_id": image.about.get("id")}
            names = {"mosaic": "mosaic.yaml", "truth": "truth.parquet", "segmentation": "segmentation.fits"}
            self.fields.append(
                {"name": f"image_{len(self.fields):05d}", "conditions": about}
                | {key: f"{folder.name}/{name}" for key, name in names.items()}
                | ({"split": split} if split else {})
            )

    def finish(self, class_names: list[str], sources: list[str], name: str) -> None:
        """Write the recipe, and say what was lost.

        Raises:
            InputError: most boxes are not those of their outlines.
        """
        self.boxes.report()
        if self.overlapping:
            logger.warning("%d objects lose pixels to smaller ones that overlap them", self.overlapping)
        if self.invisible:
            logger.warning("%d objects have no pixel and will not be labelled", self.invisible)
        if self.unknown:
            logger.warning("keys that no column is known for are left out: %s", ", ".join(sorted(self.unknown)))
        about = [{"file": Path(source).name, "sha256": sha256(source)} for source in sources]
        recipe = {"name": name, "class_names": class_names, "fields": self.fields}
        recipe |= {"provenance": {"annotations": about}} | ({"bands": self.bands} if self.bands else {})
        write_text(self.folder / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))

    def _write_mosaic(
        self, image: AnnotatedImage, path: Path, info: Mapping[str, Any], folder: Path
    ) -> tuple[int, int]:
        """Write the mosaic.yaml of an image, which must open; returns the image's shape."""
        planes = _names(image.about.get("bands") or info.get("bands"), image.label) or self.bands
        scale = self.pixel_scale or _positive_or_none(info.get("pixel_scale_arcsec"))
        if path.suffix == ".npy":
            self._require_for_array(path, planes, scale)
            fitsio.write(str(folder / "image.fits"), _read_array(path, len(planes), image.shape))
            path = folder / "image.fits"
        try:
            described = describe_source(str(path.resolve()), planes, zero_points=self.zero_points)
            tile = _is_tile(path)
            bands = {band.name: _entry(band, tile) for band in described.bands}
            mosaic = {"name": folder.name, "bands": bands}
            for key, value in (("pixel_scale_arcsec", scale), ("ebv", _positive_or_none(image.about.get("ebv")))):
                mosaic |= {} if value is None else {key: value}
            write_text(folder / "mosaic.yaml", yaml.safe_dump(mosaic, sort_keys=False))
            with Mosaic.open(folder) as opened:
                return tuple(opened.shape)
        except InputError as error:
            raise InputError(f"{image.label}: {error}") from error

    def _require_for_array(self, path: Path, planes: Sequence[str] | None, scale: float | None) -> None:
        options = {"--bands": planes, "--pixel-scale": scale, "--zero-point": self.zero_points}
        missing = [option for option, value in options.items() if value is None]
        if missing:
            raise InputError(f"{path}: an array does not say its bands, pixel scale or unit; give {', '.join(missing)}")

    def _draw(self, image: AnnotatedImage, shape: tuple[int, int]) -> tuple[pd.DataFrame, np.ndarray]:
        """The image's truth table, and its map of object ids."""
        drawn = [outlines.draw(item.segmentation, shape, item.label) for item in image.objects]
        masks = RegionMasks.cat([RegionMasks.empty(shape), *drawn])
        areas = masks.areas().numpy()
        compact = np.zeros(shape, np.int32)
        for i in np.argsort(-areas, kind="stable"):
            x0, y0, x1, y1 = masks.regions[i].tolist()
            compact[y0:y1, x0:x1][masks.crops[i].numpy()] = i + 1
        visible = np.bincount(compact.ravel(), minlength=len(areas) + 1)[1:]
        self.overlapping += int((visible < areas).sum())
        self.invisible += int((visible == 0).sum())
        tight = masks.boxes().tolist()
        boxes = [_box(item, own, shape) for item, own in zip(image.objects, tight, strict=True)]
        for item, own in zip(image.objects, tight, strict=True):
            self.boxes.add(item, own)
        ids = _ids(image.objects)
        return self._table(image.objects, ids, boxes), np.array([0, *ids], np.int32)[compact]

    def _table(self, objects: Sequence[Annotation], ids: list[int], boxes: list) -> pd.DataFrame:
        table = pd.DataFrame(np.array(boxes, np.float32).reshape(-1, 4), columns=list(catalog.BOX_COLUMNS))
        table.insert(0, "id", np.array(ids, np.int64))
        table["class_id"] = np.array([item.class_id for item in objects], np.int16)
        for name in sorted({name for item in objects for name in item.values} - {"id", "object_id"} - _PLACE):
            column = catalog.describe(name)
            if column is None or column.dtype == "str" or column.per_component:
                self.unknown.add(name)
                continue
            values = np.array([_number(item, name, np.dtype(column.dtype)) for item in objects])
            if np.dtype(column.dtype).kind == "f" or np.isfinite(values).all():  # integers cannot be missing
                table[name] = values.astype(column.dtype)
        return table


def _find(image: AnnotatedImage, folder: Path) -> Path:
    """The image's file; of a path from another machine only the last part counts."""
    for path in (folder / image.file_name, folder / Path(image.file_name).name):
        if path.is_file():
            return path
    raise InputError(f"{image.label}: there is no such file in {folder}; give its folder with --images")


def _names(value: Any, label: str) -> list[str] | None:
    if value is None or (isinstance(value, list) and value and all(isinstance(name, str) for name in value)):
        return value
    raise InputError(f"{label}: `bands` is {value!r:.60}; it is a list of names such as [g, r]")


def _positive_or_none(value: Any) -> float | None:
    return float(value) if is_number(value) and value > 0 else None


def _is_tile(path: Path) -> bool:
    """Whether a FITS file is a tile of our own data sets, with variance and mask beside its image."""
    file = FitsFile(path, "image")
    try:
        return {"IMAGE", "VARIANCE", "MASK", "SEGMENTATION"} <= {hdu.name for hdu in file.hdus}
    finally:
        file.close()


def _entry(band: BandSource, tile: bool) -> dict[str, Any]:
    """A band's entry in mosaic.yaml."""
    entry = {"image": band.image, "plane": band.plane, "zero_point": band.zero_point, "unit": band.unit}
    if tile:
        entry |= {"variance": f"{band.image}[VARIANCE]", "mask": f"{band.image}[MASK]"}
    return {key: value for key, value in entry.items() if value is not None}


def _read_array(path: Path, bands: int, shape: tuple[int, int] | None) -> np.ndarray:
    """A .npy array as (band, y, x) float32; the stated shape decides where it could be either order."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or first_line(error)}; check the file") from error
    except (ValueError, EOFError) as error:  # numpy would advise allow_pickle, which executes what the file says
        raise InputError(f"{path}: it is damaged, or not a .npy array of numbers; write it with numpy.save") from error
    if not isinstance(array, np.ndarray) or array.ndim != 3 or array.dtype.kind not in "fiu" or 0 in array.shape:
        raise InputError(f"{path}: it holds no image; it must be an array of numbers (band, y, x) or (y, x, band)")
    orders = [order for order in (array, np.moveaxis(array, 2, 0)) if len(order) == bands]
    if not orders:
        raise InputError(f"{path}: of shape {array.shape}, but {bands} bands are named; (band, y, x) or (y, x, band)")
    fitting = [order for order in orders if shape in (None, order.shape[1:])]
    return np.array((fitting or orders)[0], dtype=np.float32, order="C")  # a copy: fitsio swaps bytes and NaNs in place


def _ids(objects: Sequence[Annotation]) -> list[int]:
    for key in ("object_id", "id"):
        ids = [item.values.get(key) for item in objects]
        if all(type(i) is int and 0 < i <= _LARGEST_ID for i in ids) and len(set(ids)) == len(ids):
            return ids
    return list(range(1, len(objects) + 1))


def _box(item: Annotation, own: Sequence[float], shape: tuple[int, int]) -> Sequence[float]:
    """The stated box, or where there is none that of the outline, `own`."""
    height, width = shape
    x0, y0, x1, y1 = box = own if item.box is None else item.box
    if item.box is None and x1 <= x0:
        raise InputError(f"{item.label} has neither a bbox nor a pixel in its outline")
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        raise InputError(
            f"{item.label}: its box x {x0:g} to {x1:g}, y {y0:g} to {y1:g} is outside its image of {width} x {height} "
            "pixels; is bbox_mode right?"
        )
    return box


def _number(item: Annotation, name: str, dtype: np.dtype) -> float:
    """The value of a column of this type, NaN where it is unknown."""
    value = item.values.get(name)
    if value is None:
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{item.label}: {name} is {short(value)}; it must be a number, or null where unknown")
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    if value == value and not int(limits.min) <= value <= int(limits.max):  # integers of JSON have no limit
        raise InputError(f"{item.label}: {name} is {short(value)}; such a number cannot be stored, give null")
    return float(value)
