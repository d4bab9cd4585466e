"""One-to-one matching of points: in pixels, on the sky, or whatever else gives pairs a quality.

Legend: P predicted objects, T true objects (or any two catalogues, in this order), E candidate pairs. A pair's quality
lies in (0, 1]. The matching maximises the total quality over all one-to-one assignments. It is never a greedy or
per-object argmax, with which several detections could claim one true object.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

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


def chord(angle_arcsec: float) -> float:
    """Straight-line distance between unit vectors that are this far apart on the sky."""
    return 2 * float(np.sin(np.radians(angle_arcsec / 3600) / 2))
