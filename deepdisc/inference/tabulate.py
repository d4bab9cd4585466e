"""From the detector's `Instances` of one tile to catalogue columns in mosaic pixels, and from merged objects to rows.

Legend: N objects; boxes `x0, y0, x1, y1` in edge coordinates; columns as in `catalog.SCHEMA`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from deepdisc.catalog import FLAGS
from deepdisc.data.tiling import Tile
from deepdisc.errors import InputError
from deepdisc.inference.measure import centroids, coverage_flags, edge_flags, stack_bands
from deepdisc.inference.measured_columns import measured_columns, measured_flags, saturated_flags
from deepdisc.inference.merge import Merged, TileDetections
from deepdisc.sky import PixelGrid
from deepdisc.structures import Instances, sample_map

LEADING_COLUMNS = (
    "id", "x", "y", "ra", "dec", "x_min", "y_min", "x_max", "y_max", "score", "class_id", "class_name", "area_pix",
    "flags", "ebv",
)  # fmt: skip


def column_names(instances: Instances, bands: Sequence[str]) -> list[str]:
    """The catalogue's columns for what a detector of these bands gives."""
    return [*LEADING_COLUMNS, *measured_columns(instances[:0], bands)]


def tabulate(
    instances: Instances,
    tile: Tile,
    pixels: dict[str, torch.Tensor],
    shape: tuple[int, int],
    score_threshold: float | None,
    bands: Sequence[str],
) -> TileDetections:
    """Everything the catalogue will say about a tile's detections, except what needs their neighbours.

    Detections without extent inside the mosaic, or without a single valid pixel in any band, are dropped.

    Args:
        instances: the detector's output in tile pixels.
        tile: where the tile lies.
        pixels: the detector's input: "image", "variance", "mask" (C, h, w) and "ebv"; "saturated" (C, h, w) bool where
            the mosaic tells.
        shape: (height, width) of the mosaic.
        score_threshold: drop lower scores; None keeps all.
        bands: the model's, in its order.
    """
    objects = _clean(instances.to("cpu"), tile, shape, score_threshold)
    image, variance, mask = (np.asarray(pixels[name]) for name in ("image", "variance", "mask"))
    boxes, regions, crops = _geometry(objects, tile, shape)
    flags, blind = coverage_flags(mask, boxes, regions, crops)
    if blind.any():
        seen = np.flatnonzero(~blind)
        objects, boxes, regions, flags = objects[torch.as_tensor(seen)], boxes[seen], regions[seen], flags[seen]
        crops = [crops[i] for i in seen]
    positions = centroids(stack_bands(image, variance, mask, regions, crops), boxes, regions, crops)
    origin = np.array([tile.x0, tile.y0])
    mosaic_boxes = boxes + np.concatenate((origin, origin))
    columns = {
        "x": positions[:, 0] + tile.x0,
        "y": positions[:, 1] + tile.y0,
        "class_id": objects.pred_classes.numpy().astype(np.int16),
        "area_pix": np.array([np.count_nonzero(crop) for crop in crops], dtype=np.int32),
        "ebv": sample_map(pixels["ebv"], objects.pred_boxes, mask.shape[1:]).numpy(),
    }
    columns |= measured_columns(objects, bands)
    flags |= measured_flags(columns, bands, len(boxes))
    columns["flags"] = flags | saturated_flags(pixels.get("saturated"), boxes, regions, crops)
    scores = objects.scores.numpy().astype(np.float64)
    return TileDetections(tile, mosaic_boxes, scores, regions + np.concatenate((origin, origin)), crops, columns)


def _clean(objects: Instances, tile: Tile, shape: tuple[int, int], score_threshold: float | None) -> Instances:
    """Best score first; without low scores, boxes that are not finite, and boxes outside the mosaic."""
    boxes = _clip(objects.pred_boxes.double().numpy(), tile, shape)
    keep = np.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
    scores = objects.scores.numpy()
    if score_threshold is not None:
        keep &= scores >= score_threshold
    order = np.argsort(-scores, kind="stable")
    return objects[torch.as_tensor(order[keep[order]])]


def _clip(boxes: np.ndarray, tile: Tile, shape: tuple[int, int]) -> np.ndarray:
    """Boxes in tile pixels, clipped to the part of the tile that lies on the mosaic."""
    low = np.maximum([-tile.x0, -tile.y0], 0)
    high = np.minimum([shape[1], shape[0]], [tile.x1, tile.y1]) - [tile.x0, tile.y0]
    return np.concatenate((np.clip(boxes[:, :2], low, high), np.clip(boxes[:, 2:], low, high)), axis=1)


def _geometry(
    objects: Instances, tile: Tile, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Boxes, outline regions and crops in tile pixels, clipped to the mosaic; empty outlines without a mask head."""
    boxes = _clip(objects.pred_boxes.double().numpy(), tile, shape)
    if not objects.has("pred_masks"):
        return boxes, np.zeros((len(boxes), 4), dtype=np.int64), [np.zeros((0, 0), dtype=bool)] * len(boxes)
    masks = objects.pred_masks
    regions = _clip(masks.regions.numpy(), tile, shape)
    crops = []
    for before, after, crop in zip(masks.regions.tolist(), regions.tolist(), masks.crops, strict=True):
        inside = crop[after[1] - before[1] : after[3] - before[1], after[0] - before[0] : after[2] - before[0]]
        crops.append(inside.numpy().copy())
    return boxes, regions, crops


def rows(
    objects: Sequence[Merged], first_id: int, columns: Sequence[str], grid: PixelGrid, class_names: Sequence[str]
) -> pd.DataFrame:
    """Catalogue rows of merged objects, in their order, numbered from `first_id`.

    Args:
        objects: merged objects.
        first_id: number of the first.
        columns: names, in the order wanted.
        grid: the mosaic's pixels on the sky.
        class_names: names of the model's classes.
    """
    measured = [name for name in columns if objects and name in objects[0].source.columns]
    frame = {name: [item.source.columns[name][item.row] for item in objects] for name in measured}
    boxes = np.array([item.box for item in objects], dtype=np.float64).reshape(-1, 4)
    frame["id"] = np.arange(first_id, first_id + len(objects), dtype=np.int64)
    frame |= dict(zip(("x_min", "y_min", "x_max", "y_max"), boxes.T.astype(np.float32), strict=True))
    frame["score"] = np.array([item.score for item in objects], dtype=np.float32)
    if objects:
        frame["ra"], frame["dec"] = grid.to_sky(frame["x"], frame["y"])
        if "g1" in frame:
            _turn_shear(frame, grid)
        frame["class_name"] = [_class_name(int(number), class_names) for number in frame["class_id"]]
        frame["area_pix"] = [np.count_nonzero(item.crop) for item in objects]
        seam, blended = FLAGS["SEAM"].value, FLAGS["BLENDED"].value
        added = [seam * item.seam | blended * item.blended for item in objects]
        frame["flags"] = np.array(frame["flags"], dtype=np.int32) | added | edge_flags(boxes, grid.shape)
    return pd.DataFrame({name: frame.get(name, []) for name in columns})


def _turn_shear(frame: dict[str, Any], grid: PixelGrid) -> None:
    """Shears and their covariances from the pixel axes to the sky, in place."""
    x, y = np.asarray(frame["x"]), np.asarray(frame["y"])
    frame["g1"], frame["g2"] = grid.shear_to_sky(x, y, frame["g1"], frame["g2"])
    one, zero = np.ones(len(x)), np.zeros(len(x))
    turn = np.stack([grid.shear_to_sky(x, y, *axis) for axis in ((one, zero), (zero, one))], axis=1)  # (2, axis, N)
    error_1, error_2, mixed = (np.asarray(frame[name]) for name in ("g1_err", "g2_err", "g12_cov"))
    covariance = np.array([[error_1**2, mixed], [mixed, error_2**2]])
    turned = np.einsum("iaN,abN,jbN->ijN", turn, covariance, turn)
    frame["g1_err"], frame["g2_err"] = np.sqrt(turned[0, 0]), np.sqrt(turned[1, 1])
    frame["g12_cov"] = turned[0, 1]


def _class_name(number: int, names: Sequence[str]) -> str:
    if not 0 <= number < len(names):
        raise InputError(f"the model found class {number}, but only {len(names)} classes are named: {', '.join(names)}")
    return names[number]
