"""Candidate pairs of two catalogues, and the best one-to-one subset of them: exact, at any size.

Legend: P predicted objects, T true objects (or any two catalogues, in this order), E candidate pairs. A pair's quality
lies in [0, 1]. The assignment maximises the total quality over all one-to-one subsets. It is never a greedy or
per-object argmax, with which several detections could claim one true object.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components, min_weight_full_bipartite_matching
from scipy.spatial import cKDTree

from deepdisc.errors import InputError

MOST_PAIRS = 200_000_000  # candidates kept in memory at once, 24 bytes each

# Keeps an allowed pair of quality 0 (distance exactly at the limit) apart from "not a pair".
_ALLOWED = 1e-9
_DENSE = 1_000_000  # entries of the largest table that is solved densely, 8 MB


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

    Pairs that some best assignment must contain are taken first (see `_take_certain`); of what remains every connected
    component is solved exactly: densely (Jonker-Volgenant, `scipy.optimize.linear_sum_assignment`) where its table is
    small, else sparsely (`min_weight_full_bipartite_matching`), in memory proportional to the number of candidates.
    """
    if len(candidates) == 0:
        return NO_PAIRS
    certain, open_ = _take_certain(candidates)
    solved = _solve_components(candidates.select(open_))
    keep = np.concatenate((certain, open_[solved]))
    return candidates.select(keep[np.argsort(candidates.truth[keep])])


def _take_certain(candidates: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Positions of pairs that belong to a best assignment, and of those still to be decided.

    A pair that is worth at least as much as the best other pair of its detection plus the best other pair of its true
    object is in some best assignment: put into any other one, it displaces no more than those two. Taking it removes
    both objects and may decide their neighbours, so the rule is applied until it decides nothing more. In catalogues
    that are not crowded it decides almost everything, in a few sorted passes.
    """
    quality = candidates.quality + _ALLOWED
    by_pred = np.lexsort((-quality, candidates.pred))
    by_truth = np.lexsort((-quality, candidates.truth))
    certain = []
    alive = np.ones(len(quality), bool)
    while len(by_pred):
        best_of_both = np.zeros(len(quality), np.int8)
        rivals = np.zeros(len(quality))
        for order, owner in ((by_pred, candidates.pred), (by_truth, candidates.truth)):
            first = np.flatnonzero(np.diff(owner[order], prepend=-1))
            second = np.minimum(first + 1, len(order) - 1)
            has_second = (second > first) & (owner[order[second]] == owner[order[first]])
            best_of_both[order[first]] += 1
            rivals[order[first]] += np.where(has_second, quality[order[second]], 0.0)
        chosen = by_pred[(best_of_both[by_pred] == 2) & (quality[by_pred] >= rivals[by_pred])]
        if len(chosen) == 0:
            break
        certain.append(chosen)
        taken_pred, taken_truth = (np.zeros(rows.max() + 1, bool) for rows in (candidates.pred, candidates.truth))
        taken_pred[candidates.pred[chosen]], taken_truth[candidates.truth[chosen]] = True, True
        alive[by_pred[taken_pred[candidates.pred[by_pred]] | taken_truth[candidates.truth[by_pred]]]] = False
        by_pred, by_truth = by_pred[alive[by_pred]], by_truth[alive[by_truth]]
    return np.concatenate([*certain, np.zeros(0, np.int64)]), by_pred


def component_labels(candidates: Pairs) -> np.ndarray:
    """Label (E,) of the connected component that each candidate pair belongs to."""
    if len(candidates) == 0:
        return np.zeros(0, np.int64)
    first_truth = candidates.pred.max() + 1
    size = first_truth + candidates.truth.max() + 1
    nodes = (candidates.pred, candidates.truth + first_truth)
    graph = coo_matrix((np.ones(len(candidates), dtype=np.int8), nodes), shape=(size, size))
    return connected_components(graph, directed=False)[1][candidates.pred]


def _solve_components(candidates: Pairs) -> np.ndarray:
    """Positions of the pairs chosen within each connected component."""
    if len(candidates) == 0:
        return np.zeros(0, np.int64)
    label = component_labels(candidates)
    order = np.argsort(label, kind="stable")
    label = label[order]
    row, rows = _numbered(candidates.pred[order], label)
    column, columns = _numbered(candidates.truth[order], label)
    starts = np.flatnonzero(np.diff(label, prepend=-1))
    stops = np.append(starts[1:], len(label))
    quality = candidates.quality[order] + _ALLOWED
    keep = []
    for start, stop in zip(starts, stops, strict=True):
        part = slice(start, stop)
        shape = (int(rows[start]), int(columns[start]))
        solve = _solve_dense if shape[0] * shape[1] <= _DENSE else _solve_sparse
        keep.append(start + solve(row[part], column[part], quality[part], shape))
    return order[np.concatenate(keep)]


def _numbered(node: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the nodes of each component from 0; of pairs (E,) sorted by component: number, and size of its component.

    Args:
        node: (E,) row of one catalogue.
        label: (E,) component, in ascending order.
    """
    nodes, inverse = np.unique(node, return_inverse=True)
    component = np.zeros(len(nodes), np.int64)
    component[inverse] = label
    by_component = np.argsort(component, kind="stable")
    labels, first, count = np.unique(component[by_component], return_index=True, return_counts=True)
    number = np.empty(len(nodes), np.int64)
    number[by_component] = np.arange(len(nodes)) - np.repeat(first, count)
    return number[inverse], count[np.searchsorted(labels, label)]


def _solve_dense(row: np.ndarray, column: np.ndarray, quality: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    gain, position = np.zeros(shape), np.full(shape, -1)
    gain[row, column] = quality
    position[row, column] = np.arange(len(row))
    chosen = position[linear_sum_assignment(gain, maximize=True)]
    return chosen[chosen >= 0]


def _solve_sparse(row: np.ndarray, column: np.ndarray, quality: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """As `_solve_dense`, without its table.

    Each object of the smaller side may also stay single, with a partner of its own that no other can have, so that a
    full matching exists; costs are made positive by a constant, which every full matching pays alike.
    """
    if shape[0] > shape[1]:
        return _solve_sparse(column, row, quality, shape[::-1])
    n, m = shape
    highest = quality.max() + 1.0
    cost = np.concatenate((highest - quality, np.full(n, highest)))
    at = (np.concatenate((row, np.arange(n))), np.concatenate((column, m + np.arange(n))))
    _, partner = min_weight_full_bipartite_matching(csr_matrix((cost, at), shape=(n, m + n)))
    return np.flatnonzero(partner[row] == column)


# --------------------------------------------------------------------------------------------------------- distance
def tree_of(points: np.ndarray) -> cKDTree:
    """A KD-tree of finite points (N, D); cut at the middle of cells, which takes half the time of a balanced one."""
    return cKDTree(points, balanced_tree=False)


def near_pairs(a: cKDTree, b: cKDTree, distance: float, p: float = 2.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of two trees' points no farther apart than `distance`, and how far they are.

    Args:
        a: tree of one set of points.
        b: of the other.
        distance: the largest.
        p: 2 for straight lines, infinity for the largest difference of the coordinates.

    Raises:
        InputError: there are more than MOST_PAIRS.
    """
    if a.n * b.n > MOST_PAIRS and (count := int(a.count_neighbors(b, distance, p=p))) > MOST_PAIRS:
        raise InputError(
            f"{a.n:,} and {b.n:,} objects have {count:,} pairs within reach of each other, more than {MOST_PAIRS:,}; "
            "choose a smaller distance to match by, and check the units of positions and sizes"
        )
    found = a.sparse_distance_matrix(b, distance, p=p, output_type="ndarray")
    return found["i"], found["j"], found["v"]


def close_pairs(pred: np.ndarray, truth: np.ndarray, max_distance: float) -> Pairs:
    """All pairs of points (P, D) and (T, D) no farther apart than `max_distance`; quality `1 - distance / limit`.

    Points that are not finite are near nothing.

    Raises:
        InputError: there are more than MOST_PAIRS.
    """
    good = [np.flatnonzero(np.isfinite(points).all(1)) for points in (pred, truth)]
    if not len(good[0]) or not len(good[1]):
        return NO_PAIRS
    i, j, distance = near_pairs(tree_of(pred[good[0]]), tree_of(truth[good[1]]), max_distance)
    return Pairs(good[0][i], good[1][j], 1 - distance / max_distance)


def sky_vectors(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Unit vectors (N, 3) of ICRS positions in degrees: straight-line distances work at the poles and across RA 0."""
    ra, dec = np.radians(np.asarray(ra, np.float64)), np.radians(np.asarray(dec, np.float64))
    return np.stack((np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)), axis=1)


def chord(angle_arcsec: float) -> float:
    """Straight-line distance between unit vectors that are this far apart on the sky."""
    return 2 * float(np.sin(np.radians(angle_arcsec / 3600) / 2))
