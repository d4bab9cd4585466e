"""Weights of objects in a loss by the value of their label.

A head that learns from a redshift survey spends most of its effort where most redshifts are. Weights by the inverse of
their density give every redshift the same say. **They change the prior**: a head trained with weights w(z) learns the
PDF of a sample whose redshift distribution is n(z) w(z), here a flat one. Its PDFs are then too wide and too far from
the peak of n(z) for a sample like the training set, and their PIT is not flat on it; multiplied by 1 / w(z) and
normalised they are back at the old prior.

In a config, which then holds the table itself, so that the trained model needs no file::

    import pandas as pd
    from deepdisc.heads.label_weights import LabelWeights, inverse_density
    _z = pd.read_parquet("DATASET/truth.parquet")["redshift"]
    model.roi_heads.heads.redshift.label_weights = L(LabelWeights)(**inverse_density(_z))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepdisc.errors import InputError
from deepdisc.heads.calibration import interpolate


class LabelWeights:
    """A table of weights, linear between its nodes and constant beyond them.

    Args:
        values: of the label, increasing.
        weights: at these values, not negative.

    Raises:
        InputError: the two differ in length, values do not increase, or a number is negative or not finite.
    """

    def __init__(self, values: Sequence[float], weights: Sequence[float]):
        self.values, self.weights = (torch.as_tensor(list(x), dtype=torch.float32) for x in (values, weights))
        if len(self.values) != len(self.weights) or not len(self.values):
            raise InputError(
                f"label_weights has {len(self.values)} values and {len(self.weights)} weights: give one weight each"
            )
        if not (self.values.isfinite().all() and (self.values.diff() > 0).all()):
            raise InputError(f"label_weights.values={list(values)} must be finite and increase")
        if not (self.weights.isfinite().all() and (self.weights >= 0).all()):
            raise InputError(f"label_weights.weights={list(weights)} must be finite and not negative")

    def __call__(self, labels: Tensor) -> Tensor:
        """Weights (n,) of labels (n,)."""
        nodes, weights = self.values.to(labels)[None], self.weights.to(labels)[None]
        return interpolate(labels[:, None], nodes, weights)[:, 0]


def inverse_density(
    labels: Any, smoothing: float = 0.1, max_ratio: float = 10.0, nodes: int = 40
) -> dict[str, list[float]]:
    """The table for `LabelWeights` that makes the training set's labels count as if they were evenly distributed.

    Args:
        labels: of the training set, any sequence; NaN = none.
        smoothing: standard deviation of the Gaussian that smooths their density, in the label's unit.
        max_ratio: the largest weight is at most so many times the smallest: what is rare is noisy.
        nodes: number of table entries between the smallest and the largest label.

    Returns:
        "values" and "weights", whose mean over the labels is 1, so that the learning rate need not change.

    Raises:
        InputError: fewer than two different labels, or a setting out of its range.
    """
    labels = np.asarray(labels, dtype=np.float64).ravel()
    labels = labels[np.isfinite(labels)]
    if not (smoothing > 0 and max_ratio >= 1 and nodes >= 2):
        raise InputError(
            f"inverse_density(smoothing={smoothing}, max_ratio={max_ratio}, nodes={nodes}): smoothing must be "
            "positive, max_ratio at least 1, nodes at least 2"
        )
    if len(np.unique(labels)) < 2:
        raise InputError(f"inverse_density: {len(labels)} finite labels with fewer than two values have no density")
    values = np.linspace(labels.min(), labels.max(), nodes)
    # A histogram ten times finer than the smoothing stands for the labels, of which there may be millions.
    bins = max(nodes, int(np.ceil(10 * np.ptp(labels) / smoothing)))
    counts, edges = np.histogram(labels, bins=bins)
    pull = (values[:, None] - (edges[:-1] + edges[1:]) / 2) / smoothing
    kernel = np.exp(-0.5 * pull**2)
    density = kernel @ counts / kernel.sum(1)  # of the bins that exist: no density is lost beyond the ends
    weights = 1 / np.maximum(density, density.max() / max_ratio)
    weights /= np.interp(labels, values, weights).mean()
    return {"values": [round(float(x), 6) for x in values], "weights": [round(float(x), 6) for x in weights]}
