"""Diagrams of scores: predicted against true redshifts, purity against completeness."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from deepdisc.plots.style import INK, RED, SIDES, axes_of


def redshifts(z_phot: np.ndarray, z_true: np.ndarray, label: str = "predicted redshift") -> Figure:
    """Predicted against true redshift, coloured by density, with the lines of 1:1 and of +-0.15 (1 + z)."""
    figure = Figure(figsize=(5.2, 6.2), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(3.2, 1), hspace=0.03)
    top = axes_of(figure, grid[0])
    bottom = axes_of(figure, grid[1], sharex=top)
    limit = 1.05 * max(float(np.percentile(np.concatenate((z_true, z_phot)), 99.7)), 0.1) if len(z_true) else 1.0
    shade = _density(z_true, z_phot, limit)
    order = np.argsort(shade)
    line = np.array([0, limit])
    for axes, y in ((top, z_phot), (bottom, (z_phot - z_true) / (1 + z_true))):
        axes.scatter(z_true[order], y[order], c=shade[order], s=9, cmap="viridis", linewidths=0, rasterized=True)
    top.plot(line, line, color=INK, linewidth=1)
    for sign in (-1, 1):
        top.plot(line, line + sign * 0.15 * (1 + line), color=RED, linewidth=0.9, linestyle="--")
        bottom.axhline(sign * 0.15, color=RED, linewidth=0.9, linestyle="--")
    bottom.axhline(0, color=INK, linewidth=1)
    top.set(xlim=(0, limit), ylim=(0, limit), ylabel=label)
    top.tick_params(labelbottom=False)
    bottom.set(ylim=(-0.5, 0.5), xlabel="true redshift", ylabel=r"$\Delta z/(1+z)$")
    beyond = int(((z_true > limit) | (z_phot > limit)).sum())
    top.text(
        0.03, 0.97, f"{len(z_true):,} objects" + (f", {beyond} beyond the axes" if beyond else ""),
        transform=top.transAxes, va="top", fontsize=9, color=INK,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 2},
    )  # fmt: skip
    return figure


def _density(x: np.ndarray, y: np.ndarray, limit: float) -> np.ndarray:
    """Log of the number of points in each point's cell of a 60 x 60 grid."""
    if len(x) == 0:
        return np.zeros(0)
    cells = [np.clip((values / limit * 60).astype(int), 0, 59) for values in (x, y)]
    counts = np.zeros((60, 60))
    np.add.at(counts, tuple(cells), 1)
    return np.log(counts[tuple(cells)])


def purity_against_completeness(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], xlabel: str) -> Figure:
    """Purity against completeness as the score threshold moves, one curve per catalogue."""
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    axes = axes_of(figure, 111)
    for color, (name, (completeness, purity)) in zip(SIDES, curves.items(), strict=False):
        axes.plot(completeness, purity, color=color, linewidth=1.8, label=name)
        if len(completeness):
            axes.plot(completeness[0], purity[0], color=color, marker="o", markersize=6)
    axes.set(xlabel=xlabel, ylabel="purity")
    axes.legend(fontsize=9, frameon=False, loc="lower left", title="(dot: no cut)", title_fontsize=8)
    return figure
