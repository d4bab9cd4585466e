"""Which outlines overlap, and by how much: boxes, and the pixels of segmentation maps.

Legend: P predicted objects, T true objects, E overlapping pairs; IoU = intersection over union.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.spatial import cKDTree

from deepdisc.errors import InputError
from deepdisc.matching import Pairs, near_pairs, tree_of

_FAR = 1e9  # pixels between fields: none of one may be near any of another
_PIXELS_AT_ONCE = 1 << 22


# -------------------------------------------------------------------------------------------------------------- boxes
def finite_boxes(boxes: np.ndarray) -> np.ndarray:
    """Bool (N,): boxes (N, 4) that are finite and have an area."""
    return np.isfinite(boxes).all(1) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def touching_boxes(
    pred: np.ndarray, truth: np.ndarray, groups: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of all pairs of boxes that overlap, without the P x T table; arguments as in `box_overlaps`."""
    sides = [np.asarray(boxes, np.float64).reshape(-1, 4) for boxes in (pred, truth)]
    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    classes = [list(_size_classes(boxes, None if groups is None else groups[k])) for k, boxes in enumerate(sides)]
    for rows_a, tree_a, size_a in classes[0]:
        for rows_b, tree_b, size_b in classes[1]:
            i, j, _ = near_pairs(tree_a, tree_b, (size_a + size_b) / 2, p=np.inf)
            i, j = rows_a[i], rows_b[j]
            a, b = sides[0][i], sides[1][j]
            overlap = (a[:, :2] < b[:, 2:]).all(1) & (b[:, :2] < a[:, 2:]).all(1)
            found.append((i[overlap], j[overlap]))
    return tuple(np.concatenate(part) for part in zip(*found, strict=True))


def _size_classes(boxes: np.ndarray, group: np.ndarray | None) -> Iterator[tuple[np.ndarray, cKDTree, float]]:
    """Boxes by octave of their longer side, so that one huge box does not widen the search around small ones.

    Yields:
        rows (n,), the tree of their centres (fields lie far apart in a third coordinate), and the longest side.
    """
    rows = np.flatnonzero(finite_boxes(boxes))
    side = (boxes[rows, 2:] - boxes[rows, :2]).max(1)
    points = (boxes[rows, :2] + boxes[rows, 2:]) / 2
    if group is not None:
        points = np.column_stack((points, _FAR * group[rows]))
    octave = np.floor(np.log2(side)).astype(int)
    for size in np.unique(octave):
        chosen = octave == size
        yield rows[chosen], tree_of(points[chosen]), float(side[chosen].max())


def box_overlaps(pred: np.ndarray, truth: np.ndarray, groups: tuple[np.ndarray, np.ndarray] | None = None) -> Pairs:
    """All pairs of boxes that overlap, with their intersection over union, without the P x T table.

    Args:
        pred: (P, 4) `x0, y0, x1, y1` in pixel-edge coordinates; rows that are not finite overlap nothing.
        truth: (T, 4) likewise.
        groups: integer labels (P,) and (T,); only boxes with the same label (same field) can overlap.
    """
    pred, truth = np.asarray(pred, np.float64).reshape(-1, 4), np.asarray(truth, np.float64).reshape(-1, 4)
    i, j = touching_boxes(pred, truth, groups)
    size = np.minimum(pred[i, 2:], truth[j, 2:]) - np.maximum(pred[i, :2], truth[j, :2])
    intersection = size[:, 0] * size[:, 1]
    area_pred, area_truth = (np.prod(part[:, 2:] - part[:, :2], axis=1) for part in (pred, truth))
    return Pairs(i, j, intersection / (area_pred[i] + area_truth[j] - intersection))


# -------------------------------------------------------------------------------------------------- segmentation maps
def segmentation_overlaps(pred_map, truth_map, pred_ids: np.ndarray, truth_ids: np.ndarray) -> Pairs:
    """All pairs of outlines that overlap, with their intersection over union, from two segmentation maps.

    Args:
        pred_map: (h, w) integers below 2^31, 0 = background, value = id in the predicted catalogue; anything that
            slices by rows.
        truth_map: (h, w) likewise for the truth.
        pred_ids: (P,) ids of the predicted catalogue's rows, each once.
        truth_ids: (T,) ids of the true catalogue's rows, each once.

    Raises:
        InputError: the two maps differ in shape, or an id occurs twice.
    """
    if tuple(pred_map.shape) != tuple(truth_map.shape):
        raise InputError(
            f"the segmentation maps have different shapes, {tuple(pred_map.shape)} predicted and "
            f"{tuple(truth_map.shape)} true; both must cover the same mosaic"
        )
    label_pred, label_truth, pixels = _count_labels(pred_map, truth_map)
    area_pred, area_truth = _sums(label_pred, pixels), _sums(label_truth, pixels)
    row_pred, row_truth = _rows_of(label_pred, pred_ids, "predicted"), _rows_of(label_truth, truth_ids, "true")
    kept = (row_pred >= 0) & (row_truth >= 0)
    union = (area_pred + area_truth - pixels)[kept]
    return Pairs(row_pred[kept], row_truth[kept], pixels[kept] / union)


def labels_present(labels, ids: np.ndarray) -> np.ndarray:
    """Bool (N,): ids (N,) that occur in a segmentation map (h, w)."""
    rows = max(1, _PIXELS_AT_ONCE // max(1, labels.shape[1]))
    present = [np.unique(np.asarray(labels[start : start + rows])) for start in range(0, labels.shape[0], rows)]
    return np.isin(ids, np.concatenate([*present, np.zeros(0, np.int64)])) & (np.asarray(ids) > 0)


def _count_labels(pred_map, truth_map) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs of labels that occur at a pixel (one of them may be 0), and the number of such pixels."""
    height, width = pred_map.shape
    rows = max(1, _PIXELS_AT_ONCE // max(1, width))
    keys, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for start in range(0, height, rows):
        pred, truth = (
            np.asarray(labels[start : start + rows]).astype(np.int64).ravel() for labels in (pred_map, truth_map)
        )
        key = (np.clip(pred, 0, None) << 32) | np.clip(truth, 0, None)
        # Runs of equal pixels first: there are far fewer of them to sort than pixels.
        first = np.flatnonzero(np.diff(key, prepend=-1))
        run = np.diff(first, append=len(key))
        strip, place = np.unique(key[first], return_inverse=True)
        keys.append(strip)
        counts.append(np.bincount(place, run, len(strip)).astype(np.int64))
    key, place = np.unique(np.concatenate(keys), return_inverse=True)
    pixels = np.bincount(place, np.concatenate(counts), len(key))
    return key >> 32, key & 0xFFFFFFFF, pixels


def _sums(label: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """The area (E,) of the object that each pair's label belongs to."""
    _, place = np.unique(label, return_inverse=True)
    return np.bincount(place, pixels)[place] if len(label) else pixels


def _rows_of(label: np.ndarray, ids: np.ndarray, which: str) -> np.ndarray:
    """The catalogue's row (E,) with each label; -1 for the background and for labels that no row has."""
    ids = np.asarray(ids, np.int64)
    order = np.argsort(ids, kind="stable")
    twice = np.flatnonzero(np.diff(ids[order]) == 0)
    if len(twice):
        raise InputError(
            f"the {which} catalogue has id {ids[order][twice[0]]} more than once; to match by outlines each id must be "
            "the label of one object in the segmentation map"
        )
    if len(ids) == 0:
        return np.full(len(label), -1)
    place = np.minimum(np.searchsorted(ids[order], label), len(ids) - 1)
    return np.where((ids[order][place] == label) & (label > 0), order[place], -1)
