"""Figures: colour pictures of fields and tiles with outlines, panels of histograms and curves, redshifts, PIT, ...

Every function takes arrays and returns a `matplotlib.figure.Figure`; nothing touches pyplot's global state, so that
they work in servers and threads. `png` turns a figure into bytes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PatchCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter
from scipy.ndimage import gaussian_filter

BLUE, ORANGE, GREEN, RED, GREY, INK = "#2563eb", "#ea8a0c", "#16a34a", "#dc2626", "#9ca3af", "#1f2937"
SIDES = (BLUE, ORANGE)  # of a comparison: first, second
SERIES = (BLUE, ORANGE, GREEN, RED)


def png(figure: Figure, dpi: int = 110) -> bytes:
    """The figure as a PNG file's bytes."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", facecolor="white")
    return buffer.getvalue()


def _axes(figure: Figure, *args, **kwargs):
    axes = figure.add_subplot(*args, **kwargs)
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=9)
    return axes


# ------------------------------------------------------------------------------------------------------------ pictures
def asinh_rgb(image: np.ndarray, softening: float = 6.0, white: float | None = None) -> np.ndarray:
    """Colour picture (h, w, 3) in 0..1 (after Lupton et al. 2004): asinh of the brightness, colour kept throughout.

    Args:
        image: (3, h, w) red, green, blue in any flux unit; NaN shows black.
        softening: where the scale turns from linear to logarithmic, in units of the noise.
        white: brightness shown white, in units of the noise; default from the brightest pixels.
    """
    planes = np.nan_to_num(np.asarray(image, np.float64))
    middle = np.array([np.median(plane[plane != 0]) if np.any(plane) else 0.0 for plane in planes])[:, None, None]
    noise = np.array([_noise(plane) for plane in planes])[:, None, None]
    planes = planes - middle
    # Bands are balanced on their bright pixels, so that a typical galaxy is white in any unit and any filter set.
    bright = np.percentile(planes, 99.5, axis=(1, 2))[:, None, None]
    planes = planes / np.maximum(bright, 3 * noise)
    # Brightness: the bands weighted by how deep they are, so that a noisy band does not cover the picture with grain.
    weight = (noise / np.maximum(bright, 3 * noise)) ** -2
    total = (weight * planes).sum(0) / weight.sum()
    total = total / _noise(total)
    white = max(60.0, float(np.percentile(total, 99.8))) if white is None else white
    light = np.clip(np.arcsinh((total + 1) / softening) / np.arcsinh(white / softening), 0, None)
    # Colour: from slightly smoothed planes, and fading to grey where there is only noise.
    smooth = np.stack([gaussian_filter(plane, 1.0) for plane in planes])
    mean = smooth.mean(0)
    depth = gaussian_filter(total, 1.0) / 0.28  # the noise of white noise after that filter
    trust = np.clip((depth - 2) / 8, 0, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        tint = np.where(mean > 0, np.clip(smooth / mean, 0, 3), 1.0)
    rgb = light * (1 + trust * (tint - 1))
    peak = rgb.max(0)
    rgb = np.where(peak > 1, rgb / np.maximum(peak, 1e-30), rgb)  # saturated pixels keep their hue
    return np.moveaxis(np.clip(rgb, 0, 1), 0, -1)


def _noise(plane: np.ndarray) -> float:
    """Robust standard deviation of the sky; a tiny number, not 0, for a constant plane."""
    values = plane[plane != 0] if np.any(plane) else plane.ravel()
    return max(1.4826 * float(np.median(np.abs(values - np.median(values)))), 1e-30)


def field(
    rgb: np.ndarray,
    origin: tuple[int, int],
    boxes: np.ndarray,
    kinds: np.ndarray,
    missed: np.ndarray,
    outlines: np.ndarray | None = None,
) -> Figure:
    """The field beside the field with outlines.

    Args:
        rgb: (h, w, 3) in 0..1.
        origin: (x0, y0) of the picture in the mosaic.
        boxes: (N, 4) detections, pixel-edge coordinates of the mosaic.
        kinds: (N,) of "correct", "false", "excused".
        missed: (M, 2) positions of missed true objects, 0-based pixel centres of the mosaic.
        outlines: (h, w) labels of the picture's pixels: drawn instead of the boxes of correct detections.
    """
    h, w = rgb.shape[:2]
    x0, y0 = origin
    figure = Figure(figsize=(11.5, 11.5 / 2 * h / w + 0.55), layout="constrained")
    extent = (x0, x0 + w, y0, y0 + h)
    plain, drawn = figure.subplots(1, 2)
    for axes in (plain, drawn):
        axes.imshow(rgb, origin="lower", extent=extent, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
    colors = {"correct": "#4ade80", "false": "#f87171", "excused": "#cbd5e1"}
    near = (boxes[:, 2] > x0) & (boxes[:, 0] < x0 + w) & (boxes[:, 3] > y0) & (boxes[:, 1] < y0 + h)
    for kind, color in colors.items():
        chosen = boxes[near & (kinds == kind)]
        if kind == "correct" and outlines is not None:
            drawn.add_collection(LineCollection(label_borders(outlines, origin), colors=color, linewidths=0.8))
        else:
            patches = [Rectangle((b[0], b[1]), b[2] - b[0], b[3] - b[1]) for b in chosen]
            drawn.add_collection(PatchCollection(patches, facecolor="none", edgecolor=color, linewidth=1.0))
    inside = (missed[:, 0] > x0) & (missed[:, 0] < x0 + w) & (missed[:, 1] > y0) & (missed[:, 1] < y0 + h)
    drawn.scatter(*(missed[inside] + 0.5).T, s=60, marker="o", facecolor="none", edgecolor="#fde047", linewidth=1.2)
    drawn.set(xlim=(x0, x0 + w), ylim=(y0, y0 + h))
    shown = {kind: int((near & (kinds == kind)).sum()) for kind in colors}
    names = {"correct": "right", "false": "false", "excused": "of faint objects"}
    handles = [
        drawn.plot([], [], color=color, marker="s", markersize=9, markerfacecolor="none", linestyle="")[0]
        for color in (*colors.values(), "#fde047")
    ]
    handles[-1].set_marker("o")
    labels = [f"{names[kind]} ({shown[kind]})" for kind in colors] + [f"missed ({int(inside.sum())})"]
    drawn.legend(
        handles,
        labels,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        ncol=4,
        fontsize=9,
        frameon=False,
        handletextpad=0.3,
    ).set_in_layout(True)
    for text in drawn.get_legend().get_texts():
        text.set_color(INK)
    return figure


def label_borders(labels: np.ndarray, origin: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Line segments (S, 2, 2) between pixels of different labels: ((x, y), (x, y)) in pixel-edge coordinates."""
    x0, y0 = origin
    padded = np.pad(np.asarray(labels), 1)
    y, x = np.nonzero(padded[:, 1:] != padded[:, :-1])
    vertical = np.stack((np.stack((x, y - 1), 1), np.stack((x, y), 1)), axis=1)
    y, x = np.nonzero(padded[1:] != padded[:-1])
    horizontal = np.stack((np.stack((x - 1, y), 1), np.stack((x, y), 1)), axis=1)
    return np.concatenate((vertical, horizontal)).astype(float) + np.array([x0, y0])


def tile(
    rgb: np.ndarray, borders: np.ndarray, boxes: np.ndarray, colors: Sequence[str], texts: Sequence[str], title: str
) -> Figure:
    """A tile beside the same tile with the objects' outlines and boxes, and a text at each box.

    Args:
        rgb: (h, w, 3) in 0..1.
        borders: (S, 2, 2) of `label_borders`.
        boxes: (N, 4) pixel-edge coordinates of the tile.
        colors: of the boxes, N.
        texts: N; empty ones are not written.
        title: above the picture.
    """
    h, w = rgb.shape[:2]
    figure = Figure(figsize=(11.5, 11.5 / 2 * h / w + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=10, color=INK, ha="left", x=0.01)
    plain, drawn = figure.subplots(1, 2)
    for axes in (plain, drawn):
        axes.imshow(rgb, origin="lower", extent=(0, w, 0, h), interpolation="nearest")
        axes.tick_params(labelsize=8, colors=INK)
        axes.set_xlabel("x, pixels", fontsize=8, color=INK)
    plain.set_ylabel("y, pixels", fontsize=8, color=INK)
    drawn.add_collection(LineCollection(borders, colors="#f9fafb", linewidths=0.5, alpha=0.8))
    patches = [Rectangle((b[0], b[1]), b[2] - b[0], b[3] - b[1]) for b in boxes]
    drawn.add_collection(PatchCollection(patches, facecolor="none", edgecolor=list(colors), linewidth=0.9))
    for box, text, color in zip(boxes, texts, colors, strict=True):
        if text:
            x, y = np.clip(box[0], 0, 0.95 * w), np.clip(box[3] + 0.003 * h, 0, 0.975 * h)
            drawn.text(x, y, text, color=color, fontsize=6.5, clip_on=True, ha="left", va="bottom")
    drawn.set(xlim=(0, w), ylim=(0, h))
    return figure


def picture(rgb: np.ndarray, origin: tuple[int, int] = (0, 0)) -> Figure:
    """A colour picture (h, w, 3) in 0..1 with pixel axes; `origin` is x0, y0 in the mosaic."""
    h, w = rgb.shape[:2]
    x0, y0 = origin
    figure = Figure(figsize=(9.5, 9.5 * h / w + 0.4), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(rgb, origin="lower", extent=(x0, x0 + w, y0, y0 + h), interpolation="nearest")
    axes.tick_params(labelsize=8, colors=INK)
    axes.set_xlabel("x, pixels", fontsize=8, color=INK)
    axes.set_ylabel("y, pixels", fontsize=8, color=INK)
    return figure


def stamps(images: Sequence[Sequence[np.ndarray]], rows: Sequence[str], columns: Sequence[str]) -> Figure:
    """Small pictures in rows (objects) and columns (bands), dark on light, asinh scale.

    Args:
        images: per row and column (h, w) in units of the noise.
        rows: text beside each row.
        columns: text above each column.
    """
    count = len(columns)
    figure = Figure(figsize=(1.25 * count + 1.2, 1.25 * len(images) + 0.3), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    grid = figure.subplots(len(images), count, squeeze=False)
    for i, line in enumerate(images):
        for j, image in enumerate(line):
            axes = grid[i, j]
            peak = max(10.0, float(np.nanmax(image, initial=0.0)))
            shown = np.arcsinh(np.nan_to_num(image) / 2) / np.arcsinh(peak / 2)
            axes.imshow(shown, origin="lower", cmap="gray_r", vmin=np.arcsinh(-1) / np.arcsinh(peak / 2), vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
            if i == 0:
                axes.set_title(columns[j], fontsize=9, color=INK)
            if j == 0:
                axes.set_ylabel(rows[i], fontsize=7.5, color=INK, rotation=0, ha="right", va="center")
    return figure


# -------------------------------------------------------------------------------------------------------------- panels
@dataclass(frozen=True)
class Series:
    """What is drawn in a panel: points with error bars, a line, a histogram's steps, or a band between two lines.

    Attributes:
        name: in the legend; "" for none.
        x: (N,), or (N + 1,) bin edges for steps.
        y: (N,) values; of a band, the lower line.
        err: (N,) 1-sigma errors, or None; of a band, (N,) the upper line.
        kind: "points", "line", "steps", "band", or "bars" (thin, of length err, without points).
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
        axes = _axes(figure, rows, columns, i + 1)
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
            axes.set_title(item.note, fontsize=8, color="#6b7280", loc="right")
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
    axes = _axes(figure, 111)
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


# ----------------------------------------------------------------------------------------------------------- redshifts
def redshifts(z_phot: np.ndarray, z_true: np.ndarray, label: str = "predicted redshift") -> Figure:
    """Predicted against true redshift, coloured by density, with the lines of 1:1 and of +-0.15 (1 + z)."""
    figure = Figure(figsize=(5.2, 6.2), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(3.2, 1), hspace=0.03)
    top = _axes(figure, grid[0])
    bottom = _axes(figure, grid[1], sharex=top)
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


def pit(values: np.ndarray, bins: int = 20) -> Figure:
    """Histogram of PIT values, with the 1- and 2-sigma range expected of honest PDFs."""
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = _axes(figure, 111)
    counts, edges = np.histogram(values, bins=bins, range=(0, 1))
    expected = len(values) / bins
    spread = np.sqrt(expected * (1 - 1 / bins))
    scale = expected or 1.0
    for k, alpha in ((2, 0.18), (1, 0.28)):
        axes.axhspan(
            (expected - k * spread) / scale, (expected + k * spread) / scale, color=GREY, alpha=alpha, linewidth=0
        )
    axes.stairs(counts / scale, edges, fill=True, color=BLUE, alpha=0.35)
    axes.stairs(counts / scale, edges, color=BLUE, linewidth=1.4)
    axes.axhline(1, color=INK, linewidth=1, linestyle="--")
    axes.set(
        xlim=(0, 1),
        ylim=(0, None),
        xlabel="PIT: predicted probability below the true redshift",
        ylabel="objects / expected",
    )
    axes.text(
        0.98, 0.95, f"{len(values):,} objects", transform=axes.transAxes, ha="right", va="top", fontsize=9, color=INK
    )
    return figure


# ---------------------------------------------------------------------------------------------------------- detections
def fractions(
    panels: Sequence[tuple[str, str, Mapping[str, Sequence[Mapping[str, float]]]]],
    logarithmic: Sequence[bool] | None = None,
) -> Figure:
    """Fractions in bins with their 68 % intervals, panel beside panel.

    Args:
        panels: (x label, y label, {name: rows of `detection.binned_fraction`}); one colour per name.
        logarithmic: whether each panel's x axis is.
    """
    logarithmic = logarithmic or [False] * len(panels)
    figure = Figure(figsize=(5.2 * len(panels), 3.4), layout="constrained")
    for i, (xlabel, ylabel, curves) in enumerate(panels):
        axes = _axes(figure, 1, len(panels), i + 1)
        for color, (name, rows) in zip((BLUE, ORANGE, GREEN, RED), curves.items(), strict=False):
            if not rows:
                continue
            x = np.array([row["median"] for row in rows])
            y, low, high = (np.array([row[key] for row in rows]) for key in ("value", "low", "high"))
            axes.errorbar(
                x, y, yerr=np.clip((y - low, high - y), 0, None), color=color, marker="o", markersize=4.5,
                linewidth=1.5, elinewidth=1.2, capsize=2.5, label=name,
            )  # fmt: skip
        axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(-0.02, 1.04))
        if logarithmic[i]:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.tick_params(axis="x", which="minor", labelbottom=False)
        if len(curves) > 1 or any(name for name in curves):
            axes.legend(fontsize=9, frameon=False, loc="best")
    return figure


def purity_against_completeness(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], xlabel: str) -> Figure:
    """Purity against completeness as the score threshold moves, one curve per catalogue."""
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    axes = _axes(figure, 111)
    for color, (name, (completeness, purity)) in zip(SIDES, curves.items(), strict=False):
        axes.plot(completeness, purity, color=color, linewidth=1.8, label=name)
        if len(completeness):
            axes.plot(completeness[0], purity[0], color=color, marker="o", markersize=6)
    axes.set(xlabel=xlabel, ylabel="purity")
    axes.legend(fontsize=9, frameon=False, loc="lower left", title="(dot: no cut)", title_fontsize=8)
    return figure
