"""Truth catalogues and segmentation maps -> checked tables, and `gt_*` fields of one piece of sky.

Legend: ids are those of the field's segmentation map (0 = background); boxes are pixel edges, x and y pixel centres.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import fitsio
import numpy as np
import pandas as pd
import torch
from scipy import ndimage

from deepdisc import catalog
from deepdisc.data.fits_plane import split_extension
from deepdisc.data.transforms import Sample
from deepdisc.errors import InputError, first_line
from deepdisc.sky import edges_to_centers
from deepdisc.structures import Instances, RegionMasks

FAINT = catalog.FLAGS["FAINT"].value
EDGE = catalog.FLAGS["EDGE"].value
BLENDED = catalog.FLAGS["BLENDED"].value
STAR = "star"
_LARGEST_ID = np.iinfo(np.int32).max
_BOOKKEEPING = ("class_id", "flags", "area_pix", "snr", "neighbours")

logger = logging.getLogger(__name__)


def read_segmentation(path: str | Path, shape: tuple[int, int]) -> np.ndarray:
    """Read a field's segmentation map (height, width) as int32.

    Args:
        path: FITS file, whose first 2-d integer image is taken; or file.fits[EXTENSION].
        shape: of the mosaic.

    Raises:
        InputError: missing or unreadable file, no 2-d integer image in it, another shape than the mosaic's, or ids
            that int32 cannot hold.
    """
    file, extension = split_extension(str(path))
    if not Path(file).is_file():
        raise InputError(f"no segmentation map at {file}")
    segmentation = None
    try:
        with fitsio.FITS(file) as fits:
            for hdu in fits if extension is None else [fits[extension]]:
                if hdu.get_exttype() == "IMAGE_HDU" and len(hdu.get_dims()) == 2 and segmentation is None:
                    found = hdu.read()
                    segmentation = found if found.dtype.kind in "iu" else None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as FITS: {first_line(error)}") from error
    if segmentation is None:
        raise InputError(f"{path}: holds no 2-d integer image; write one object id per pixel, as integers")
    if segmentation.shape != tuple(shape):
        raise InputError(f"{path}: shape {segmentation.shape} differs from the mosaic's {tuple(shape)}")
    if segmentation.max(initial=0) > _LARGEST_ID:
        raise InputError(f"{path}: id {segmentation.max()} is too large; number the objects from 1 to {_LARGEST_ID}")
    return segmentation.astype(np.int32)


def read_truth(path: str | Path, segmentation: np.ndarray, class_names: Sequence[str]) -> pd.DataFrame:
    """Read a field's truth and check it against its segmentation map; see `check_truth`.

    Args:
        path: a catalogue with at least `id` and `class_id` or `class_name`.
        segmentation: (height, width) int32.
        class_names: names, `class_id` is the index.
    """
    return check_truth(catalog.read(path), segmentation, class_names, str(path))


def check_truth(truth: pd.DataFrame, segmentation: np.ndarray, class_names: Sequence[str], label: str) -> pd.DataFrame:
    """Check a field's truth against its segmentation map, and complete it.

    Columns that follow from the map are filled in where the catalogue lacks them: the box, x and y (centre of the box)
    and `area_pix`, which is always counted in the map. The redshift of a star (`class_name` "star") and negative
    redshifts, with which catalogues mark unknown ones, become NaN.

    Args:
        truth: with at least `id` and `class_id` or `class_name`.
        segmentation: (height, width) int32.
        class_names: names, `class_id` is the index.
        label: what the truth comes from, for messages.

    Returns:
        One row per object, sorted by id, in the pixels of the field.

    Raises:
        InputError: a column is missing, an id occurs twice, a box is inverted or off the image, a class is unknown,
            or the segmentation map holds ids that the catalogue lacks.
    """
    catalog.validate(truth, ["id"], label)
    truth = truth.sort_values("id", ignore_index=True)
    truth = _with_classes(truth, class_names, label)
    truth = _with_geometry(truth, segmentation, label)
    catalog.validate(truth, ["id", "x", "y", *catalog.BOX_COLUMNS, "class_id"], label)
    height, width = segmentation.shape
    off = (truth.x_max <= 0) | (truth.y_max <= 0) | (truth.x_min >= width) | (truth.y_min >= height)
    if off.any():
        row = truth[off].iloc[0]
        raise InputError(f"{label}: the box of object {row.id} is outside the {width} x {height} image; remove the row")
    if "redshift" not in truth:
        truth["redshift"] = np.float32("nan")
    negative = truth.redshift < 0
    if negative.any():
        logger.warning("%s: %d negative redshifts are taken as unknown", label, negative.sum())
    truth["redshift"] = truth.redshift.where(~negative & (truth.class_name != STAR))
    if "redshift_source" in truth:
        truth["redshift_source"] = truth.redshift_source.where(truth.redshift.notna(), "")
    if "flags" not in truth:
        truth["flags"] = np.int32(0)
    return truth


def _with_classes(truth: pd.DataFrame, class_names: Sequence[str], path: str | Path) -> pd.DataFrame:
    if "class_id" not in truth:
        catalog.validate(truth, ["class_name"], str(path))
        unknown = set(truth.class_name) - set(class_names)
        if unknown:
            name = sorted(unknown)[0]
            raise InputError(f"{path}: class {name!r} is not among the recipe's class_names {list(class_names)}")
        truth["class_id"] = truth.class_name.map({name: i for i, name in enumerate(class_names)})
    bad = ~truth.class_id.isin(range(len(class_names)))
    if bad.any():
        raise InputError(
            f"{path}: object {truth.id[bad].iloc[0]} has class_id {truth.class_id[bad].iloc[0]}; the recipe's "
            f"class_names {list(class_names)} allow 0 to {len(class_names) - 1}"
        )
    truth["class_id"] = truth.class_id.astype(np.int16)
    truth["class_name"] = [class_names[i] for i in truth.class_id]
    return truth


def _with_geometry(truth: pd.DataFrame, segmentation: np.ndarray, path: str | Path) -> pd.DataFrame:
    if segmentation.min(initial=0) < 0:
        raise InputError(f"{path}: its segmentation map has negative ids; 0 is the background, ids are positive")
    ids = truth.id.to_numpy(np.int64)
    if ids.max(initial=0) > _LARGEST_ID:
        raise InputError(f"{path}: id {ids.max()} is too large; number the objects from 1 to {_LARGEST_ID}")
    areas = np.bincount(segmentation.ravel(), minlength=int(ids.max(initial=0)) + 1)
    present = np.flatnonzero(areas)
    strangers = np.setdiff1d(present[present > 0], ids)
    if len(strangers):
        raise InputError(
            f"{path}: the segmentation map holds id {strangers[0]} (and {len(strangers) - 1} more) that the catalogue "
            "lacks; do both belong to the same field?"
        )
    if len(ids) and ids.min() <= 0:
        raise InputError(f"{path}: id {ids.min()} is not allowed; ids are positive, 0 is the background")
    truth["area_pix"] = areas[ids].astype(np.int32)
    if not set(catalog.BOX_COLUMNS) <= set(truth):
        truth = truth[truth.area_pix > 0].reset_index(drop=True)
        slices = ndimage.find_objects(segmentation)
        found = [slices[i - 1] for i in truth.id]
        boxes = np.array([[s[1].start, s[0].start, s[1].stop, s[0].stop] for s in found], np.float32).reshape(-1, 4)
        truth[list(catalog.BOX_COLUMNS)] = boxes
    if not {"x", "y"} <= set(truth):
        truth["x"] = edges_to_centers((truth.x_min + truth.x_max) / 2)
        truth["y"] = edges_to_centers((truth.y_min + truth.y_max) / 2)
    return truth


def visible_areas(sample: Sample) -> tuple[np.ndarray, list[tuple[slice, slice] | None], np.ndarray]:
    """Count each object's pixels in the sample.

    Returns:
        areas: (N,) int64.
        regions: for each object the slices (y, x) around its pixels, None without any.
        compact: (h, w) int32, 0 = background or unlisted object, i + 1 = object i.
    """
    lookup = np.zeros(max(int(sample.segmentation.max(initial=0)), int(sample.ids.max(initial=0))) + 1, np.int32)
    lookup[sample.ids] = np.arange(1, len(sample.ids) + 1)
    compact = lookup[sample.segmentation]
    areas = np.bincount(compact.ravel(), minlength=len(sample.ids) + 1)[1:]
    regions = ndimage.find_objects(compact, max_label=len(sample.ids)) if len(sample.ids) else []
    return areas, regions, compact


def to_instances(sample: Sample, min_visible: float = 0.3, label_snr: float | None = None) -> Instances:
    """The labelled objects of a sample as detector targets.

    Objects are left out when flagged FAINT, when fewer than `min_visible` of their pixels are in the sample (cut by
    its border), when they have no pixel at all (hidden behind a neighbour), or below `label_snr`.

    Args:
        sample: labels must hold "class_id", "flags" and "area_pix" (pixels in the whole field), and may hold "snr" and
            "neighbours"; every other label X becomes gt_X, with gt_has_X = finite.
        min_visible: smallest visible fraction of the object's pixels.
        label_snr: smallest total signal-to-noise ("snr" label); None for no limit.

    Returns:
        Instances with gt_boxes (N, 4) float32, the whole footprint's box cut at the border; gt_classes (N,) int64;
        gt_masks RegionMasks; gt_flags (N,) int64, BLENDED as "neighbours" says where it is there; gt_<label> float32
        and gt_has_<label> bool, (N,) or (N, k) as the label; of spin-2 labels (N, 2) and (N,).
    """
    areas, regions, compact = visible_areas(sample)
    labels = sample.labels
    keep = (areas > 0) & (areas >= min_visible * labels["area_pix"]) & ((labels["flags"] & FAINT) == 0)
    if label_snr is not None and "snr" in labels:
        keep &= ~(labels["snr"] < label_snr)  # an unknown (NaN) signal-to-noise keeps its label
    keep &= (sample.boxes[:, 2] > sample.boxes[:, 0]) & (sample.boxes[:, 3] > sample.boxes[:, 1])
    picked = np.flatnonzero(keep)
    cut = [regions[i] for i in picked]
    windows = torch.tensor([[s[1].start, s[0].start, s[1].stop, s[0].stop] for s in cut], dtype=torch.int64)
    crops = [torch.from_numpy(compact[window] == i + 1) for i, window in zip(picked, cut, strict=True)]
    instances = Instances(
        sample.shape,
        gt_boxes=torch.from_numpy(sample.boxes[picked].astype(np.float32)),
        gt_classes=torch.from_numpy(labels["class_id"][picked].astype(np.int64)),
        gt_masks=RegionMasks(windows.reshape(-1, 4), crops, sample.shape),
        gt_flags=torch.from_numpy(_flags(labels)[picked]),
    )
    for name, value in (*labels.items(), *sample.spin2.items()):
        if name in _BOOKKEEPING:
            continue
        value = value[picked].astype(np.float32)
        known = np.isfinite(value).all(axis=1) if name in sample.spin2 else np.isfinite(value)
        instances.set(f"gt_{name}", torch.from_numpy(value))
        instances.set(f"gt_has_{name}", torch.from_numpy(known))
    return instances


def _flags(labels: Mapping[str, np.ndarray]) -> np.ndarray:
    """(N,) int64."""
    flags = labels["flags"].astype(np.int64)
    if "neighbours" not in labels:
        return flags
    return np.where(labels["neighbours"] > 0, flags | BLENDED, flags & ~BLENDED)
