"""Outlines of objects as COCO writes them, run-length codes and polygons, from masks and back.

Legend: a mask is bool (height, width), of the whole image. A polygon is `x0, y0, x1, y1, ...` in pixel-edge coordinates
(pixel i covers [i, i+1)). Polygons made here run along the edges of pixels, so that pycocotools draws the same mask
again; but polygons can only be united, so an outline with a hole has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask

from deepdisc.data.annotations import is_number, short
from deepdisc.errors import InputError
from deepdisc.structures import RegionMasks


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

    Memory and time grow with the object, not with the image.

    Args:
        segmentation: as in the JSON file.
        shape: (height, width) of the image.
        label: what the segmentation belongs to, for messages.

    Raises:
        InputError: it is none of these, of another image size, or malformed.
    """
    if isinstance(segmentation, dict):
        return _fill(_checked_runs(segmentation, shape, label), shape)
    if isinstance(segmentation, list) and segmentation:
        for polygon in segmentation:
            _check_polygon(polygon, shape, label)
        parts = [[float(value) for value in polygon] for polygon in segmentation]
        code = coco_mask.merge(coco_mask.frPyObjects(parts, *shape))
        return _fill(_runs(code["counts"]), shape)
    raise InputError(
        f"{label}: its segmentation is {short(segmentation)}; give polygons [[x, y, ...], ...] or a run-length code "
        "{size, counts}"
    )


def _fill(runs: np.ndarray, shape: tuple[int, int]) -> RegionMasks:
    """The mask of a run-length code: lengths of runs of 0 and 1 by turns, down the columns; 0 first."""
    height = shape[0]
    ends = np.cumsum(runs)[1::2]
    lengths = runs[1::2][: len(ends)]
    ends, lengths = ends[lengths > 0], lengths[lengths > 0]
    if len(ends) == 0:
        return RegionMasks(torch.zeros((1, 4)), [torch.zeros((0, 0), dtype=torch.bool)], shape)
    starts = ends - lengths
    first, last = starts // height, (ends - 1) // height  # columns
    x0, x1, y0, y1 = int(first[0]), int(last[-1]) + 1, 0, height
    if (first == last).all():  # a run that goes on in the next column has the last and the first row
        y0, y1 = int((starts % height).min()), int(((ends - 1) % height).max()) + 1
    steps = np.zeros((x1 - x0) * (y1 - y0) + 1, np.int8)
    begin = (first - x0) * (y1 - y0) + starts % height - y0
    steps[begin] += 1
    steps[begin + lengths] -= 1
    crop = np.cumsum(steps[:-1], dtype=np.int8).astype(bool).reshape(x1 - x0, y1 - y0).T
    return RegionMasks(torch.tensor([[x0, y0, x1, y1]]), [torch.from_numpy(np.ascontiguousarray(crop))], shape)


def _check_polygon(polygon: Any, shape: tuple[int, int], label: str) -> None:
    numbers = isinstance(polygon, Sequence) and all(is_number(value) for value in polygon)
    if not numbers or len(polygon) < 6 or len(polygon) % 2:
        raise InputError(
            f"{label}: polygon {short(polygon)} is malformed; it is x, y of three or more corners in one list"
        )
    points = np.asarray(polygon, dtype=float).reshape(-1, 2)
    size = np.array(shape[::-1])
    if (points < -size).any() or (points > 2 * size).any():  # the memory for drawing grows with the outline's length
        raise InputError(
            f"{label}: polygon {short(polygon)} leaves its image of {shape[1]} x {shape[0]} pixels by more than the "
            "image's size; is it of this image?"
        )


def _checked_runs(code: dict[str, Any], shape: tuple[int, int], label: str) -> np.ndarray:
    if code.get("size") not in (list(shape), tuple(shape)):
        raise InputError(
            f"{label}: its run-length code is of size {short(code.get('size'))}, its image of {list(shape)} (height, "
            "width); they must agree"
        )
    counts = code.get("counts")
    found = _runs(counts) if isinstance(counts, str | bytes) else counts
    runs = found.tolist() if isinstance(found, np.ndarray) else found
    whole = isinstance(runs, list) and all(type(run) is int and run >= 0 for run in runs)
    # nothing may be drawn beyond the image, nor where runs are missing
    if not whole or sum(runs) != shape[0] * shape[1]:
        raise InputError(
            f"{label}: its run-length code is malformed: the runs must add up to {shape[0] * shape[1]} pixels, but "
            f"{'these add up to ' + short(sum(runs)) if whole else 'counts is ' + short(counts)}"
        )
    return np.asarray(runs, np.int64)


_LONGEST = 7  # groups of 5 bits for one number: 34 bits and the sign


def _runs(text: str | bytes) -> np.ndarray | None:
    """The runs of a compressed code, int64, None where it is none.

    Each number is written in groups of 5 bits, lowest first, as characters from "0" on; bit 5 says that another
    follows, bit 4 of the last is the sign. From the fourth run on it is the difference to the run two before.
    """
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    groups = np.frombuffer(data, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(groups & 32 == 0) + 1
    lengths = np.diff(ends, prepend=0)
    if not len(groups):
        return groups
    if ((groups < 0) | (groups > 63)).any() or not len(ends) or ends[-1] != len(groups) or lengths.max() > _LONGEST:
        return None
    starts = ends - lengths
    shifts = 5 * (np.arange(len(groups)) - np.repeat(starts, lengths))
    values = np.add.reduceat((groups & 31) << shifts, starts)
    values -= np.where(groups[ends - 1] & 16, 1 << 5 * lengths, 0)
    for chain in (slice(1, None, 2), slice(2, None, 2)):
        values[chain] = np.cumsum(values[chain])
    return values
