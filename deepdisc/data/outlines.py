"""Outlines of objects as COCO writes them, run-length codes and polygons, from masks and back.

Legend: a mask is bool (height, width), of the whole image. A polygon is `x0, y0, x1, y1, ...` in pixel-edge coordinates
(pixel i covers [i, i+1)). Polygons made here run along the edges of pixels, so that pycocotools draws the same mask
again; but polygons can only be united, so an outline with a hole has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask

from deepdisc.errors import InputError
from deepdisc.structures import PolygonMasks, RegionMasks


def to_rle(mask: np.ndarray) -> dict[str, Any]:
    """A mask as COCO's compressed run-length code: `size` [height, width] and `counts`, text."""
    code = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")}


def to_polygons(mask: np.ndarray, origin: tuple[int, int] = (0, 0)) -> list[list[int]] | None:
    """A mask as polygons, one for each of its parts; None when it is empty or a part has a hole.

    Args:
        mask: bool, of the whole image or of the rectangle around the object.
        origin: x, y of the mask's first pixel in the image.
    """
    # Two pixels for one: then each side of the outline has its own contour points and (c + 1) // 2 is the edge.
    doubled = np.kron(mask.astype(np.uint8), np.ones((2, 2), np.uint8))
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if not contours or (hierarchy[..., 3] >= 0).any():  # a contour with a parent is a hole's
        return None
    return [_polygon((contour[:, 0] + 1) // 2 + origin) for contour in contours]


def _polygon(points: np.ndarray) -> list[int]:
    """Corners (n, 2) as one list of numbers, without repetitions."""
    return points[(points != np.roll(points, 1, axis=0)).any(axis=1)].ravel().tolist()


def draw(segmentation: Any, shape: tuple[int, int], label: str) -> RegionMasks:
    """The mask, one, of a COCO segmentation: polygons, which are united, or a run-length code, compressed or not.

    Args:
        segmentation: as in the JSON file.
        shape: (height, width) of the image.
        label: what the segmentation belongs to, for messages.

    Raises:
        InputError: it is none of these, of another image size, or malformed.
    """
    if isinstance(segmentation, dict):
        mask = coco_mask.decode(_checked_rle(segmentation, shape, label))
        return RegionMasks.from_dense(torch.from_numpy(mask)[None])
    if isinstance(segmentation, list) and segmentation:
        for polygon in segmentation:
            _check_polygon(polygon, shape, label)
        return PolygonMasks([segmentation], shape).rasterize()
    raise InputError(
        f"{label}: its segmentation is {_short(segmentation)}; give polygons [[x, y, ...], ...] or a run-length code "
        "{size, counts}"
    )


def _check_polygon(polygon: Any, shape: tuple[int, int], label: str) -> None:
    numbers = isinstance(polygon, Sequence) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in polygon
    )
    if not numbers or len(polygon) < 6 or len(polygon) % 2:
        raise InputError(
            f"{label}: polygon {_short(polygon)} is malformed; it is x, y of three or more corners in one list"
        )
    points = np.asarray(polygon, dtype=float).reshape(-1, 2)
    size = np.array(shape[::-1])
    if (points < -size).any() or (points > 2 * size).any():  # the memory for drawing grows with the outline's length
        raise InputError(
            f"{label}: polygon {_short(polygon)} leaves its image of {shape[1]} x {shape[0]} pixels by more than the "
            "image's size; is it of this image?"
        )


def _checked_rle(code: dict[str, Any], shape: tuple[int, int], label: str) -> dict[str, Any]:
    if list(code.get("size") or ()) != list(shape):
        raise InputError(
            f"{label}: its run-length code is of size {_short(code.get('size'))}, its image of {list(shape)} (height, "
            "width); they must agree"
        )
    counts = code.get("counts")
    text = counts.decode("ascii", "replace") if isinstance(counts, bytes) else counts
    runs = _runs(text) if isinstance(text, str) else text
    whole = isinstance(runs, list) and all(type(run) is int and run >= 0 for run in runs)
    # pycocotools leaves the rest of the mask uninitialised where runs are missing
    if not whole or sum(runs) != shape[0] * shape[1]:
        raise InputError(
            f"{label}: its run-length code is malformed: the runs must add up to {shape[0] * shape[1]} pixels, but "
            f"{'these add up to ' + str(sum(runs)) if whole else 'counts is ' + _short(counts)}"
        )
    return coco_mask.frPyObjects({"size": list(shape), "counts": runs}, *shape)


def _runs(text: str) -> list[int] | None:
    """The runs of a compressed code, None where it is none.

    Each number is written in groups of 5 bits, lowest first, as characters from "0" on; bit 5 says that another
    follows, bit 4 of the last is the sign. From the fourth run on it is the difference to the run two before.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        group = ord(character) - 48
        if not 0 <= group < 64:
            return None
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return None if shift else runs


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
