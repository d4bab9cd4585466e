"""Figures in bins: the edges, shares of objects with their binomial intervals, and any statistic with its error.

A bin holds `from <= value < to`; bins without objects are left out, values that are not finite are in no bin.
"""

from __future__ import annotations

import numpy as np

from deepdisc.evaluation.bootstrap import DEFAULT, Resampling, Statistic, fraction, with_errors


def binned_fraction(values: np.ndarray, success: np.ndarray, edges: np.ndarray) -> list[dict[str, float]]:
    """`success` (N,) per bin of `values`, with the 68 % Wilson interval."""
    return [{**place, **fraction(success[inside])} for place, inside in _bins(values, edges)]


def binned_statistic(
    values: np.ndarray,
    edges: np.ndarray,
    statistic: Statistic,
    *columns: np.ndarray,
    resampling: Resampling = DEFAULT,
) -> list[dict[str, float]]:
    """A statistic of `columns` (N,) per bin of `values`: `from`, `to`, `median`, `n`, and each figure with its error.

    Args:
        values: what is binned, (N,).
        edges: of the bins, increasing.
        statistic: see `bootstrap`.
        columns: handed to it.
        resampling: how the errors are drawn.
    """
    rows = []
    for place, inside in _bins(values, edges):
        chosen = (column[inside] for column in columns)
        figures = with_errors(statistic, *chosen, resampling=resampling.of(inside))
        rows.append({**place, "n": int(inside.sum()), **figures})
    return rows


def _bins(values: np.ndarray, edges: np.ndarray):
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (values >= low) & (values < high)
        if inside.any():
            yield {"from": float(low), "to": float(high), "median": float(np.median(values[inside]))}, inside


def even_edges(values: np.ndarray, width: float = 0.5, least: int = 10) -> np.ndarray:
    """Bin edges at multiples of `width` that hold all finite values, joined until each bin has `least` objects.

    Magnitudes by default. None are returned where no value is finite.
    """
    finite = np.sort(values[np.isfinite(values)])
    if len(finite) == 0:
        return np.zeros(0)
    low, high = np.floor(finite[0] / width) * width, (np.floor(finite[-1] / width) + 1) * width
    if (high - low) / width > 1000:  # stray values, or another quantity: twenty bins, and all else in the outer ones
        inner = np.unique(np.quantile(finite, np.linspace(0.01, 0.99, 19)))
        edges = np.concatenate(([low], inner[(inner > low) & (inner < high)], [high]))
    else:
        edges = np.arange(low, high + width / 2, width)
    kept = [edges[0]]
    for edge in edges[1:]:
        if np.searchsorted(finite, edge) - np.searchsorted(finite, kept[-1]) >= least:
            kept.append(edge)
    if kept[-1] != edges[-1]:  # too few beyond the last edge: they join the last bin
        kept[-1 if len(kept) > 1 else len(kept) :] = [edges[-1]]
    return np.array(kept)


def quantile_edges(values: np.ndarray, bins: int = 5, least: int = 10) -> np.ndarray:
    """Edges of up to `bins` bins with equal numbers of finite values, at least `least` in each; none without values."""
    finite = values[np.isfinite(values)]
    bins = max(1, min(bins, len(finite) // least))
    if len(finite) == 0:
        return np.zeros(0)
    edges = np.unique(np.quantile(finite, np.linspace(0, 1, bins + 1)))
    edges = edges if len(edges) > 1 else np.array([edges[0], edges[0]])
    edges[-1] = np.nextafter(edges[-1], np.inf)  # the largest value belongs to the last bin
    return edges
