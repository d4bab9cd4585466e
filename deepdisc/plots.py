"""Figures: colour pictures of fields with outlines, redshifts, PIT, completeness and purity.

Every function takes arrays and returns a `matplotlib.figure.Figure`; nothing touches pyplot's global state, so that
they work in servers and threads. `png` turns a figure into bytes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.ndimage import gaussian_filter

BLUE, ORANGE, GREEN, RED, GREY, INK = "#2563eb", "#ea8a0c", "#16a34a", "#dc2626", "#9ca3af", "#1f2937"
SIDES = (BLUE, ORANGE)  # of a comparison: first, second


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
