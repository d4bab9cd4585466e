"""Detector defects and what hits it: saturation and bleeding, spikes, cosmic rays, trails, hot pixels, dead columns.

H, W = height and width of an image in pixels. Functions change images in place; charges are in electrons.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from deepdisc.simulate.noise import Star

STEP_PIX = 0.1  # a track of a cosmic ray is laid down in steps of this length
CHARGE_SCATTER = 0.5 * math.log(10)  # of the logarithm of a cosmic ray's charge per pixel: 0.5 dex
FAINTEST_SPIKE = 0.1  # of the sky's sigma: where the middle of a spike is fainter, it ends


def saturate(image: np.ndarray, full: float, bleed: bool) -> np.ndarray:
    """Let pixels fill up.

    Args:
        image: (H, W) float32; no pixel is left above `full`.
        full: what a pixel holds, in the image's unit.
        bleed: what it cannot hold runs up and down its column in equal parts, into the next pixels that have room; what
            reaches the edge is lost.

    Returns:
        (H, W) bool, True where a pixel is full.
    """
    over = image >= full
    if bleed:
        for column in np.flatnonzero(over.any(axis=0)):
            _bleed_column(image[:, column], over[:, column], full)
        over |= image >= full
    image[over] = full
    return over


def _bleed_column(column: np.ndarray, over: np.ndarray, full: float) -> None:
    """Spread the excess of each run of full pixels of one column, in place."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], over.astype(np.int8), [0]])))
    runs = edges.reshape(-1, 2)
    excess = [float((column[start:stop].astype(np.float64) - full).sum()) for start, stop in runs]
    column[over] = full
    for (start, stop), surplus in zip(runs, excess, strict=True):
        _pour(column[stop:], surplus / 2, full)
        _pour(column[:start][::-1], surplus / 2, full)


def _pour(cells: np.ndarray, amount: float, full: float) -> None:
    """Fill cells one after the other until the amount is used up."""
    held = np.cumsum(np.maximum(full - cells.astype(np.float64), 0))
    filled = int(np.searchsorted(held, amount, side="right"))
    rest = amount - (held[filled - 1] if filled else 0.0)
    cells[:filled] = np.maximum(cells[:filled], full)
    if filled < len(cells):
        cells[filled] += rest


def add_spikes(
    light: np.ndarray,
    stars: Iterable[Star],
    number: int,
    angle_rad: float,
    share: float,
    fwhm_pix: float,
    sigma_njy: float,
) -> None:
    """Add diffraction spikes to (H, W) light, in place.

    Each spike falls as (a + r)^-2 along it, a = 4 FWHM (the envelope of the diffraction of a thin straight vane), and
    is a Gaussian as wide as the PSF across.

    Args:
        light: overwritten.
        stars: those of the field.
        number: of spikes, evenly around the star.
        angle_rad: of the first, from +x to +y.
        share: of the star's light in all spikes together, on top of it.
        fwhm_pix: of the PSF.
        sigma_njy: the sky's noise per pixel, which decides where a spike ends.
    """
    core, width = 4 * fwhm_pix, fwhm_pix / 2.3548
    for x, y, flux in stars:
        line = share * flux / number * core  # light per pixel of length is line / (core + r)^2
        length = math.sqrt(line / (math.sqrt(2 * math.pi) * width * FAINTEST_SPIKE * sigma_njy)) - core
        if length < fwhm_pix:
            continue
        for one in range(number):
            angle = angle_rad + 2 * math.pi * one / number
            _add_spike(light, (x, y), angle, line, core, length, width)


def _add_spike(
    light: np.ndarray, start: tuple[float, float], angle: float, line: float, core: float, length: float, width: float
) -> None:
    cos, sin = math.cos(angle), math.sin(angle)
    ends = np.array([start, (start[0] + length * cos, start[1] + length * sin)])
    low, high = ends.min(axis=0) - 4 * width, ends.max(axis=0) + 4 * width
    x0, y0 = (max(math.floor(value), 0) for value in low)
    x1, y1 = (min(math.ceil(value) + 1, side) for value, side in zip(high, light.shape[::-1], strict=True))
    if x0 >= x1 or y0 >= y1:
        return
    dx, dy = np.arange(x0, x1) - start[0], (np.arange(y0, y1) - start[1])[:, None]
    along, across = dx * cos + dy * sin, dy * cos - dx * sin
    profile = line / (core + np.maximum(along, 0)) ** 2 * np.exp(-0.5 * (across / width) ** 2)
    inside = (along >= 0) & (along <= length)
    light[y0:y1, x0:x1] += (inside * profile / (math.sqrt(2 * math.pi) * width)).astype(np.float32)


def cosmic_ray_tracks(
    shape: tuple[int, int], per_million: float, length_pix: float, electrons: float, rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draw the cosmic rays of one exposure.

    Args:
        shape: (H, W).
        per_million: mean number per million pixels.
        length_pix: mean length of a track, exponential; a shorter one than a pixel fills one pixel.
        electrons: median charge per pixel of path, log-normal.
        rng: source of randomness.

    Returns:
        For each track the flat indices of its pixels inside the image, and their charges.
    """
    tracks = []
    for _ in range(rng.poisson(per_million * shape[0] * shape[1] / 1e6)):
        y, x = rng.uniform(-0.5, np.subtract(shape, 0.5))
        angle, length = rng.uniform(0, 2 * math.pi), max(rng.exponential(length_pix), 1.0)
        density = electrons * math.exp(rng.normal(scale=CHARGE_SCATTER))
        along = np.arange(0, length, STEP_PIX)
        rows = np.floor(y + along * math.sin(angle) + 0.5).astype(int)
        columns = np.floor(x + along * math.cos(angle) + 0.5).astype(int)
        inside = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
        pixels, steps = np.unique(rows[inside] * shape[1] + columns[inside], return_counts=True)
        tracks.append((pixels, steps * STEP_PIX * density))
    return tracks


def satellite_trail(shape: tuple[int, int], fwhm_pix: float, rng: np.random.Generator) -> np.ndarray:
    """(H, W) float32: a straight streak across the image, 1 along its middle, Gaussian across."""
    y0, x0 = rng.uniform(0, shape)
    angle = rng.uniform(0, math.pi)
    y, x = np.arange(shape[0], dtype=np.float32)[:, None] - np.float32(y0), np.arange(shape[1], dtype=np.float32)
    across = y * np.float32(math.cos(angle)) - (x - np.float32(x0)) * np.float32(math.sin(angle))
    return np.exp(-0.5 * (across * np.float32(2.3548 / fwhm_pix)) ** 2)


def hot_pixels(
    shape: tuple[int, int], per_million: float, electrons: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices of the hot pixels of an image, and their charges (exponential)."""
    pixels = np.unique(rng.integers(shape[0] * shape[1], size=rng.poisson(per_million * shape[0] * shape[1] / 1e6)))
    return pixels, rng.exponential(electrons, len(pixels))


def dead_columns(shape: tuple[int, int], per_thousand: float, rng: np.random.Generator) -> np.ndarray:
    """Numbers of the columns that see nothing."""
    return np.unique(rng.integers(shape[1], size=rng.poisson(per_thousand * shape[1] / 1000)))
