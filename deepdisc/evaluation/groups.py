"""Blends: which objects of two catalogues hang together by candidate pairs, n of one to m of the other.

Legend: P predicted objects, T true objects, E candidate pairs. A group is a connected component of the graph whose
nodes are all objects and whose edges are the candidates; an object without candidates is a group of its own (1-0 or
0-1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from deepdisc.matching import Pairs


@dataclass(frozen=True)
class Groups:
    """The groups of two catalogues.

    Attributes:
        pred: (P,) int64 number of the group of each predicted object, from 0.
        truth: (T,) int64 likewise of each true object.
        table: one row per group: group, n_pred, n_truth.
    """

    pred: np.ndarray
    truth: np.ndarray
    table: pd.DataFrame

    def counts(self) -> dict[str, int]:
        """How many groups there are of n predicted and m true objects: {"1-1": 950, "0-1": 30, "1-2": 7, ...}."""
        sizes = self.table.groupby(["n_pred", "n_truth"]).size()
        return {f"{n}-{m}": int(count) for (n, m), count in sizes.sort_values(ascending=False, kind="stable").items()}

    def matrix(self, most: int = 4) -> list[list[int]]:
        """Number of groups by [predicted objects][true objects], each 0 to `most`, the last being `most` or more."""
        n, m = (np.minimum(self.table[name].to_numpy(), most) for name in ("n_pred", "n_truth"))
        return np.bincount(n * (most + 1) + m, minlength=(most + 1) ** 2).reshape(most + 1, most + 1).tolist()


def blend_groups(candidates: Pairs, n_pred: int, n_truth: int) -> Groups:
    """Group the rows of two catalogues of these lengths by their candidate pairs."""
    nodes = n_pred + n_truth
    edges = (candidates.pred, candidates.truth + n_pred)
    graph = coo_matrix((np.ones(len(candidates), np.int8), edges), shape=(nodes, nodes))
    label = connected_components(graph, directed=False)[1].astype(np.int64) if nodes else np.zeros(0, np.int64)
    pred, truth = label[:n_pred], label[n_pred:]
    n_groups = int(label.max(initial=-1)) + 1
    sizes = [np.bincount(part, minlength=n_groups) for part in (pred, truth)]
    return Groups(pred, truth, pd.DataFrame({"group": np.arange(n_groups), "n_pred": sizes[0], "n_truth": sizes[1]}))
