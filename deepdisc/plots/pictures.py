"""Pictures of the sky: colour composites, tiles with outlines, stamps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.ndimage import gaussian_filter

from deepdisc.plots.style import INK


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
