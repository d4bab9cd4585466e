"""One-to-one matching of two catalogues: by overlap of boxes or outlines, by pixel distance, by distance on the sky.

Legend: P predicted objects, T true objects, E candidate pairs. A pair's quality lies in (0, 1]: the intersection over
union, or `1 - distance / max_distance`. The matching maximises the total quality over all one-to-one assignments. It is
never a greedy or per-object argmax, with which several detections could claim one true object.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from deepdisc.catalog import BOX_COLUMNS
from deepdisc.errors import InputError

# Keeps an allowed pair of quality 0 (distance exactly at the limit) apart from "not a pair".
_ALLOWED = 1e-9


@dataclass(frozen=True)
class Pairs:
    """Pairs of rows of two catalogues (candidates, or a matching).

    Attributes:
        pred: (E,) int64 row numbers in the predicted catalogue.
        truth: (E,) int64 row numbers in the true catalogue.
        quality: (E,) float64 in [0, 1].
    """

    pred: np.ndarray
    truth: np.ndarray
    quality: np.ndarray

    def __len__(self) -> int:
        return len(self.pred)

    def select(self, keep: np.ndarray) -> Pairs:
        """The pairs where `keep` (E,) is True (or at these positions)."""
        return Pairs(self.pred[keep], self.truth[keep], self.quality[keep])


NO_PAIRS = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))


# ------------------------------------------------------------------------------------------------------- assignment
def assign(candidates: Pairs) -> Pairs:
    """The one-to-one subset of the candidates with the largest total quality, ordered by row of the truth.

    The candidates' graph is split into connected components, so that the cost is that of the largest blend and not of
    the whole field; each component is solved exactly (Jonker-Volgenant, `scipy.optimize.linear_sum_assignment`).
    """
    if len(candidates) == 0:
        return NO_PAIRS
    label = component_labels(candidates)
    order = np.argsort(label, kind="stable")
    starts = np.flatnonzero(np.diff(label[order], prepend=-1))
    keep = []
    for members in np.split(order, starts[1:]):
        keep.append(members if len(members) == 1 else _solve(candidates, members))
    keep = np.concatenate(keep)
    return candidates.select(keep[np.argsort(candidates.truth[keep])])


def component_labels(candidates: Pairs) -> np.ndarray:
    """Label (E,) of the connected component that each candidate pair belongs to."""
    first_truth = candidates.pred.max() + 1
    size = first_truth + candidates.truth.max() + 1
    nodes = (candidates.pred, candidates.truth + first_truth)
    graph = coo_matrix((np.ones(len(candidates), dtype=np.int8), nodes), shape=(size, size))
    return connected_components(graph, directed=False)[1][candidates.pred]


def _solve(candidates: Pairs, members: np.ndarray) -> np.ndarray:
    """Positions of the pairs chosen within one connected component."""
    rows, row = np.unique(candidates.pred[members], return_inverse=True)
    columns, column = np.unique(candidates.truth[members], return_inverse=True)
    gain = np.zeros((len(rows), len(columns)))
    position = np.full(gain.shape, -1)
    gain[row, column] = candidates.quality[members] + _ALLOWED
    position[row, column] = members
    chosen = position[linear_sum_assignment(gain, maximize=True)]
    return chosen[chosen >= 0]


# ---------------------------------------------------------------------------------------------------------- overlap
def box_overlaps(pred: np.ndarray, truth: np.ndarray, groups: tuple[np.ndarray, np.ndarray] | None = None) -> Pairs:
    """All pairs of boxes that overlap, with their intersection over union, without the P x T table.

    Args:
        pred: (P, 4) `x0, y0, x1, y1` in pixel-edge coordinates; rows that are not finite overlap nothing.
        truth: (T, 4) likewise.
        groups: integer labels (P,) and (T,); only boxes with the same label (same field) can overlap.
    """
    pred, truth = np.asarray(pred, np.float64).reshape(-1, 4), np.asarray(truth, np.float64).reshape(-1, 4)
    if len(pred) == 0 or len(truth) == 0:
        return NO_PAIRS
    groups = groups or (np.zeros(len(pred), np.int64), np.zeros(len(truth), np.int64))
    boxes = np.concatenate((pred, truth))
    usable = np.isfinite(boxes).all(1) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    if not usable.any():
        return NO_PAIRS
    sides = (boxes[usable, 2:] - boxes[usable, :2]).max(1)
    cell = max(1.0, 1.5 * float(np.median(sides)))
    row, cells = _cells_of(boxes, usable, np.concatenate(groups), cell)
    # Boxes that share a grid cell are candidates: one product of two sparse incidence matrices finds them all.
    _, cells = np.unique(cells, axis=0, return_inverse=True)
    incidence = csr_matrix((np.ones(len(row), np.int32), (row, cells.ravel())), shape=(len(boxes), cells.max() + 1))
    i, j = (incidence[: len(pred)] @ incidence[len(pred) :].T).nonzero()
    low = np.maximum(pred[i, :2], truth[j, :2])
    high = np.minimum(pred[i, 2:], truth[j, 2:])
    intersection = np.prod(np.clip(high - low, 0, None), axis=1)
    area_pred, area_truth = (np.prod(part[:, 2:] - part[:, :2], axis=1) for part in (pred, truth))
    overlap = intersection > 0
    i, j, intersection = i[overlap].astype(np.int64), j[overlap].astype(np.int64), intersection[overlap]
    return Pairs(i, j, intersection / (area_pred[i] + area_truth[j] - intersection))


def _cells_of(boxes: np.ndarray, usable: np.ndarray, groups: np.ndarray, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """Which cells of a square grid each box touches: row numbers (M,) and cells (M, 3) as (group, y, x)."""
    rows = np.flatnonzero(usable)
    first = np.floor(boxes[rows, :2] / cell).astype(np.int64)
    last = np.floor(boxes[rows, 2:] / cell).astype(np.int64)
    across = last - first + 1
    count = across.prod(1)
    row = np.repeat(np.arange(len(rows)), count)
    step = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    x = first[row, 0] + step % across[row, 0]
    y = first[row, 1] + step // across[row, 0]
    return rows[row], np.stack((groups[rows[row]], y, x), axis=1)


def segmentation_overlaps(pred_map, truth_map, pred_ids: np.ndarray, truth_ids: np.ndarray) -> Pairs:
    """All pairs of outlines that overlap, with their intersection over union, from two segmentation maps.

    Args:
        pred_map: (h, w) integers, 0 = background, value = id in the predicted catalogue; anything that slices by rows.
        truth_map: (h, w) likewise for the truth.
        pred_ids: (P,) ids of the predicted catalogue's rows.
        truth_ids: (T,) ids of the true catalogue's rows.

    Raises:
        InputError: the two maps differ in shape.
    """
    if tuple(pred_map.shape) != tuple(truth_map.shape):
        raise InputError(
            f"the segmentation maps have different shapes, {tuple(pred_map.shape)} predicted and "
            f"{tuple(truth_map.shape)} true; both must cover the same mosaic"
        )
    counts: dict[tuple[int, int], int] = {}
    for start in range(0, pred_map.shape[0], 1024):
        strip_pred = np.asarray(pred_map[start : start + 1024]).astype(np.int64)
        strip_truth = np.asarray(truth_map[start : start + 1024]).astype(np.int64)
        covered = (strip_pred > 0) | (strip_truth > 0)
        both, n = np.unique(np.stack((strip_pred[covered], strip_truth[covered])), axis=1, return_counts=True)
        for label_pred, label_truth, pixels in zip(*both.tolist(), n.tolist(), strict=True):
            counts[label_pred, label_truth] = counts.get((label_pred, label_truth), 0) + pixels
    area_pred: dict[int, int] = {}
    area_truth: dict[int, int] = {}
    for (label_pred, label_truth), pixels in counts.items():
        area_pred[label_pred] = area_pred.get(label_pred, 0) + pixels
        area_truth[label_truth] = area_truth.get(label_truth, 0) + pixels
    row_pred = {int(label): row for row, label in enumerate(pred_ids)}
    row_truth = {int(label): row for row, label in enumerate(truth_ids)}
    pairs = [
        (row_pred[a], row_truth[b], n / (area_pred[a] + area_truth[b] - n))
        for (a, b), n in counts.items()
        if a in row_pred and b in row_truth and a > 0 and b > 0
    ]
    if not pairs:
        return NO_PAIRS
    pred, truth, quality = (np.array(column) for column in zip(*pairs, strict=True))
    return Pairs(pred.astype(np.int64), truth.astype(np.int64), quality)


# --------------------------------------------------------------------------------------------------------- distance
def close_pairs(pred: np.ndarray, truth: np.ndarray, max_distance: float) -> Pairs:
    """All pairs of points (P, D) and (T, D) no farther apart than `max_distance`; quality `1 - distance / limit`."""
    good_pred = np.flatnonzero(np.isfinite(pred).all(1))
    good_truth = np.flatnonzero(np.isfinite(truth).all(1))
    if len(good_pred) == 0 or len(good_truth) == 0:
        return NO_PAIRS
    found = cKDTree(pred[good_pred]).sparse_distance_matrix(
        cKDTree(truth[good_truth]), max_distance, output_type="ndarray"
    )
    return Pairs(good_pred[found["i"]], good_truth[found["j"]], 1 - found["v"] / max_distance)


def sky_vectors(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Unit vectors (N, 3) of ICRS positions in degrees: straight-line distances work at the poles and across RA 0."""
    ra, dec = np.radians(np.asarray(ra, np.float64)), np.radians(np.asarray(dec, np.float64))
    return np.stack((np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)), axis=1)


# --------------------------------------------------------------------------------------------------------- criterion
@dataclass(frozen=True)
class Criterion:
    """What makes a detection and a true object the same object.

    Attributes:
        kind: "iou" (boxes), "pixels" (distance of the positions x, y) or "sky" (distance of ra, dec).
        limit: smallest intersection over union, or largest distance in pixels or in arcsec.
    """

    kind: str
    limit: float

    _NEEDS = {"iou": BOX_COLUMNS, "pixels": ("x", "y"), "sky": ("ra", "dec")}

    def __post_init__(self) -> None:
        if self.kind not in self._NEEDS:
            raise InputError(f"unknown way of matching {self.kind!r}; choose one of {', '.join(self._NEEDS)}")
        if not self.limit > 0 or (self.kind == "iou" and self.limit > 1):
            raise InputError(
                f"the limit for matching by {self.kind} is {self.limit}; an intersection over union must lie in (0, 1] "
                "and a distance must be positive"
            )

    def __str__(self) -> str:
        return {
            "iou": f"boxes with an intersection over union of at least {self.limit:g}",
            "pixels": f"positions within {self.limit:g} pixels",
            "sky": f"positions within {self.limit:g} arcsec",
        }[self.kind]

    def usable(self, *catalogs: pd.DataFrame) -> bool:
        """Whether all catalogues have the columns, with at least one finite row (or no rows at all)."""
        names = list(self._NEEDS[self.kind])
        return all(
            set(names) <= set(catalog.columns)
            and (len(catalog) == 0 or bool(np.isfinite(catalog[names].to_numpy(float)).all(1).any()))
            for catalog in catalogs
        )

    def candidates(self, pred: pd.DataFrame, truth: pd.DataFrame) -> Pairs:
        """All pairs that fulfil the criterion, not yet one-to-one.

        Raises:
            InputError: a catalogue lacks the columns that the criterion needs.
        """
        names = list(self._NEEDS[self.kind])
        for label, catalog in (("predicted", pred), ("true", truth)):
            missing = [name for name in names if name not in catalog.columns]
            if missing:
                raise InputError(
                    f"the {label} catalogue has no column {', '.join(missing)}, needed to match by {self.kind}; add it "
                    "or match in another way"
                )
        a, b = pred[names].to_numpy(np.float64), truth[names].to_numpy(np.float64)
        groups = common_groups(pred, truth)
        if self.kind == "iou":
            pairs = box_overlaps(a, b, groups)
            return pairs.select(pairs.quality >= self.limit)
        if self.kind == "sky":
            # The chord of the limit. Groups do not matter: one position on the sky is one object in any field.
            return close_pairs(sky_vectors(*a.T), sky_vectors(*b.T), 2 * np.sin(np.radians(self.limit / 3600) / 2))
        far = 1e9  # one field's pixels must never be near another's
        a, b = (np.column_stack((part, far * group)) for part, group in zip((a, b), groups, strict=True))
        return close_pairs(a, b, self.limit)

    def match(self, pred: pd.DataFrame, truth: pd.DataFrame) -> Pairs:
        """The best one-to-one matching of two catalogues."""
        return assign(self.candidates(pred, truth))


def common_groups(pred: pd.DataFrame, truth: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Integer labels of the field (or tile) of every row: pixel coordinates compare only within the same one."""
    for name in ("field", "tile"):
        if name in pred.columns and name in truth.columns:
            codes, _ = pd.factorize(pd.concat((pred[name], truth[name]), ignore_index=True))
            return codes[: len(pred)].astype(np.int64), codes[len(pred) :].astype(np.int64)
    return np.zeros(len(pred), np.int64), np.zeros(len(truth), np.int64)
