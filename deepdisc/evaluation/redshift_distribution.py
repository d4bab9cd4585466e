"""The redshift distribution n(z) of samples chosen by predicted redshift: what stacked PDFs say against the truth.

Lensing and clustering need the mean and width of n(z) in each tomographic bin, far better than single redshifts:
the Dark Energy Science Collaboration asks for the mean to 0.002 (1 + z) in year 1 of LSST and 0.001 (1 + z) in year 10
(its Science Requirements Document, arXiv:1809.01669).

Legend: N objects, E bin edges of the histograms, R resamplings.
"""

from __future__ import annotations

import numpy as np

from deepdisc.evaluation.bins import quantile_edges
from deepdisc.evaluation.bootstrap import DEFAULT, Resampling, resampling_weights, summarize
from deepdisc.evaluation.pdfs import PDFs

TOMOGRAPHIC_BINS = 5
_STEPS = 50
_CHUNK = 20_000


def redshift_distribution(
    z_estimate: np.ndarray,
    z_true: np.ndarray,
    pdfs: PDFs | None,
    *,
    edges: np.ndarray | None = None,
    resampling: Resampling = DEFAULT,
) -> dict:
    """n(z) in tomographic bins, stacked from PDFs (or from point estimates where there are none), against the truth.

    Args:
        z_estimate: (N,) point estimates; an object's tomographic bin is that of its estimate.
        z_true: (N,).
        pdfs: of the same objects, or None.
        edges: of the tomographic bins; default five of equal numbers of objects.
        resampling: how the errors are drawn.

    Returns:
        `stacked` ("PDFs" or "point estimates"), `edges` (E,) of the histograms, and `bins`: the whole sample first,
        then each tomographic bin, as in `_compare`; objects beyond the histograms' ends count in the moments.
    """
    if len(z_true) == 0:
        return {"available": False, "reason": "no object has both redshifts"}
    top = max(float(np.max(z_true)), float(np.max(z_estimate)), 0.1)
    grid = np.linspace(min(0.0, float(np.min(z_true))), np.nextafter(top, np.inf), _STEPS + 1)
    edges = quantile_edges(z_estimate, TOMOGRAPHIC_BINS) if edges is None else np.asarray(edges, np.float64)
    whole = np.ones(len(z_true), bool)
    parts = [(None, None, whole)]
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        parts.append((float(low), float(high), (z_estimate >= low) & (z_estimate < high)))
    rows = []
    for low, high, chosen in parts:
        if chosen.any():
            stack = pdfs.take(np.flatnonzero(chosen)) if pdfs is not None else None
            figures = _compare(z_estimate[chosen], z_true[chosen], stack, grid, resampling.of(chosen))
            rows.append({"from": low, "to": high, **figures})
    return {
        "available": True,
        "stacked": "point estimates" if pdfs is None else "PDFs",
        "n": len(z_true),
        "edges": grid.tolist(),
        "bins": rows,
    }


def _compare(
    z_estimate: np.ndarray,
    z_true: np.ndarray,
    pdfs: PDFs | None,
    grid: np.ndarray,
    resampling: Resampling,
) -> dict:
    """One sample: shares per histogram bin and moments, with errors from resampling objects.

    Returns:
        `stack` and `truth` (E - 1,) shares of the sample, each with `_err`; `mean_stack`, `mean_truth`, `width_stack`,
        `width_truth` (standard deviations); `mean_bias = (mean_stack - mean_truth) / (1 + mean_truth)`, `width_bias`
        likewise; `ks`, the largest difference of the cumulative distributions at the edges.
    """
    n = len(z_true)
    weights = np.concatenate((np.ones((1, n)), resampling_weights(n, resampling)))  # the sample itself first
    weights = weights / weights.sum(1, keepdims=True)
    stack, truth = np.zeros((2, len(weights), len(grid) - 1))
    moments = np.zeros((4, len(weights)))
    for start in range(0, n, _CHUNK):
        part = slice(start, start + _CHUNK)
        w, z = weights[:, part], z_true[part]
        if pdfs is None:
            shares = _histogram(z_estimate[part], grid)
            first, second = z_estimate[part], z_estimate[part] ** 2
        else:
            piece = pdfs.take(np.arange(n)[part])
            shares, first, second = piece.binned(grid), piece.mean(), piece.second_moment()
        stack += w @ shares
        truth += w @ _histogram(z, grid)
        moments += np.stack([w @ column for column in (first, second, z, z**2)])
    figures = _moment_figures(*moments)
    figures["ks"] = np.abs(np.cumsum(stack - truth, axis=1)).max(1)
    known = len(weights) > 2 and np.ptp(weights[1:], axis=0).any()
    samples = {name: column[1:] if known else np.full(2, np.nan) for name, column in figures.items()}
    spread = [part[1:].std(0, ddof=1) if known else np.full(len(grid) - 1, np.nan) for part in (stack, truth)]
    return {
        "n": n,
        **summarize({name: column[0] for name, column in figures.items()}, samples),
        "stack": stack[0].tolist(),
        "stack_err": spread[0].tolist(),
        "truth": truth[0].tolist(),
        "truth_err": spread[1].tolist(),
    }


def _histogram(z: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """(N, E - 1): 1 in the bin of each object."""
    place = np.searchsorted(grid, z, side="right") - 1
    inside = (place >= 0) & (place < len(grid) - 1)
    table = np.zeros((len(z), len(grid) - 1))
    table[np.flatnonzero(inside), place[inside]] = 1
    return table


def _moment_figures(
    stack_first: np.ndarray, stack_second: np.ndarray, true_first: np.ndarray, true_second: np.ndarray
) -> dict[str, np.ndarray]:
    width_stack = np.sqrt(np.maximum(stack_second - stack_first**2, 0))
    width_truth = np.sqrt(np.maximum(true_second - true_first**2, 0))
    return {
        "mean_stack": stack_first,
        "mean_truth": true_first,
        "mean_bias": (stack_first - true_first) / (1 + true_first),
        "width_stack": width_stack,
        "width_truth": width_truth,
        "width_bias": (width_stack - width_truth) / (1 + true_first),
    }
