"""Panels of points, lines, steps and bands with errors, side by side; and maps of the sky."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from deepdisc.plots.style import INK, QUIET, SERIES, axes_of


@dataclass(frozen=True)
class Series:
    """What is drawn in a panel: points with error bars, a line, a histogram's steps, or a band between two lines.

    Attributes:
        name: in the legend; "" for none.
        x: (N,), or (N + 1,) bin edges for steps.
        y: (N,) values; of a band, the lower line.
        err: (N,) 1-sigma errors, or (2, N) downwards and upwards, or None; of a band, (N,) the upper line.
        kind: "points", "line", "dashed", "steps", "band", or "bars" (thin, of length err, without points).
        color: of `SERIES`; None for the next one.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    err: np.ndarray | None = None
    kind: str = "points"
    color: str | None = None


@dataclass(frozen=True)
class Panel:
    """One diagram.

    Attributes:
        xlabel: with unit.
        ylabel: with unit.
        series: what is drawn.
        log_x: logarithmic axis.
        log_y: logarithmic axis.
        note: above the diagram, the number of objects, say.
        level: where a dashed horizontal line is drawn.
        ticks: names at x = 0, 1, ... instead of numbers.
        xlim: range of the axis.
        ylim: range of the axis.
    """

    xlabel: str
    ylabel: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False
    note: str = ""
    level: float | None = None
    ticks: Sequence[str] | None = None
    xlim: tuple[float | None, float | None] | None = None
    ylim: tuple[float | None, float | None] | None = None


def panels(items: Sequence[Panel], columns: int = 3) -> Figure:
    """Diagrams side by side, `columns` in a row; the legend stands in the first that has each set of names."""
    columns = min(columns, len(items))
    rows = -(-len(items) // columns)
    figure = Figure(figsize=(3.83 * columns, 2.9 * rows), layout="constrained")
    seen: set[tuple[str, ...]] = set()
    for i, item in enumerate(items):
        axes = axes_of(figure, rows, columns, i + 1)
        for number, series in enumerate(item.series):
            _draw(axes, series, series.color or SERIES[number % len(SERIES)])
        axes.set_xlabel(item.xlabel, fontsize=9, color=INK)
        axes.set_ylabel(item.ylabel, fontsize=9, color=INK)
        axes.tick_params(labelsize=8)
        for is_log, axis, name in ((item.log_x, axes.xaxis, "x"), (item.log_y, axes.yaxis, "y")):
            if is_log:
                axes.set(**{f"{name}scale": "log"})
                low, high = axis.get_data_interval()
                subs = (1, 2, 5) if 0 < low and high < 50 * low else (1, 3) if 0 < low and high < 1000 * low else (1,)
                axis.set_major_locator(LogLocator(subs=subs, numticks=8))
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter(NullFormatter())
        if item.level is not None:
            axes.axhline(item.level, color=INK, linewidth=0.9, linestyle="--")
        if item.ticks is not None:
            axes.set_xticks(range(len(item.ticks)), item.ticks, rotation=45 if len(item.ticks) > 5 else 0)
            axes.set_xlim(-0.6, len(item.ticks) - 0.4)
        if item.xlim is not None:
            axes.set_xlim(item.xlim)
        if item.ylim is not None:
            axes.set_ylim(item.ylim)
        if item.note:
            axes.set_title(item.note, fontsize=8, color=QUIET, loc="right")
        names = tuple(series.name for series in item.series if series.name)
        if names and names not in seen:
            seen.add(names)
            axes.legend(fontsize=8, frameon=False, loc="best")
    return figure


def _draw(axes, series: Series, color: str) -> None:
    label = series.name or None
    if series.kind == "steps":
        axes.stairs(series.y, series.x, color=color, linewidth=1.4, label=label)
        if series.err is not None:
            middle = (np.asarray(series.x)[1:] + np.asarray(series.x)[:-1]) / 2
            axes.errorbar(middle, series.y, yerr=series.err, fmt="none", ecolor=color, elinewidth=0.8, alpha=0.6)
    elif series.kind == "band":
        axes.fill_between(series.x, series.y, series.err, color=color, alpha=0.18, linewidth=0, label=label)
    elif series.kind == "bars":
        axes.errorbar(series.x, series.y, yerr=series.err, fmt="none", ecolor=color, elinewidth=0.7, alpha=0.5)
    elif series.kind == "line":
        axes.plot(series.x, series.y, color=color, linewidth=1.6, label=label)
    elif series.kind == "dashed":
        axes.plot(series.x, series.y, color=color, linewidth=0.9, linestyle="--", label=label)
    else:
        assert series.kind == "points", series.kind
        axes.errorbar(series.x, series.y, yerr=series.err, color=color, fmt="o", markersize=3.5, elinewidth=1.0,
                      capsize=1.5, label=label)  # fmt: skip


def sky_map(areas: Mapping[str, np.ndarray], xlabel: str, ylabel: str, east_left: bool) -> Figure:
    """Where tiles lie, one colour per split.

    Args:
        areas: name -> (N, 4, 2) corners.
        xlabel: with unit.
        ylabel: with unit.
        east_left: x grows to the left.
    """
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    axes = axes_of(figure, 111)
    for color, (name, corners) in zip(SERIES, areas.items(), strict=False):
        axes.add_collection(PolyCollection(corners, facecolor=color, edgecolor=color, alpha=0.35, linewidth=0.6))
        # Tiles of fields far apart are too small to be seen: a dot marks each.
        axes.plot(*corners.mean(axis=1).T, linestyle="", marker=".", markersize=2, color=color,
                  label=f"{name} ({len(corners):,} tiles)")  # fmt: skip
    axes.autoscale_view()
    axes.set_aspect("equal", adjustable="datalim")
    if east_left:
        axes.invert_xaxis()
    axes.set_xlabel(xlabel, fontsize=9, color=INK)
    axes.set_ylabel(ylabel, fontsize=9, color=INK)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1), markerscale=5)
    return figure
