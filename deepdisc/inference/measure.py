"""What the pixels of a tile say about its detections: accurate positions, and how much of them is masked.

Legend: N objects; C bands; h, w tile pixels. An outline is a region (`x0, y0, x1, y1`, int, tile pixels) and a bool
crop of that size. Positions here are pixel *centres* of the tile (0-based).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deepdisc.catalog import FLAGS
from deepdisc.sky import edges_to_centers

FWHM_PER_SIGMA = 2.355
SIGMA_RANGE_PIX = (0.8, 10.0)  # of the centroid's window: narrower is all noise, wider adds the disc's asymmetry
WINDOW_SIGMAS = 4.0
MAX_ITERATIONS = 30
CONVERGED_PIX = 1e-3
MAX_SHIFT_PIX = 8  # the window's centre may leave the outline's centroid by this much
MIN_WINDOW_SHARE = 0.3  # of the window's weight that must lie on usable pixels
EDGE_PIX = 0.5  # a box that ends this near to the mosaic's edge touches it


@dataclass
class Stack:
    """All bands of a tile combined for measuring positions.

    Attributes:
        flux: (h, w) inverse-variance weighted mean of the bands, nJy, less the tile's median background.
        valid: (h, w) bool, at least one band has data.
        labels: (h, w) int32, 1 + number of the object that holds the pixel, 0 for background.
    """

    flux: np.ndarray
    valid: np.ndarray
    labels: np.ndarray


def stack_bands(
    image: np.ndarray, variance: np.ndarray, mask: np.ndarray, regions: np.ndarray, crops: Sequence[np.ndarray]
) -> Stack:
    """Combine the bands (C, h, w) of a tile; where outlines overlap, the first object (best score) holds the pixel."""
    flux = np.zeros(image.shape[1:], dtype=np.float32)
    total = np.zeros_like(flux)
    for band, noise, bad in zip(image, variance, mask, strict=True):
        weight = np.where(bad, 0, 1 / np.maximum(noise, np.finfo(np.float32).tiny))
        flux += weight * band
        total += weight
    valid = total > 0
    np.divide(flux, total, out=flux, where=valid)
    labels = np.zeros(valid.shape, dtype=np.int32)
    for i in reversed(range(len(crops))):
        x0, y0, x1, y1 = regions[i].tolist()
        labels[y0:y1, x0:x1][crops[i]] = i + 1
    background = valid & (labels == 0)
    if background.any():
        flux -= np.median(flux[background])
    return Stack(flux, valid, labels)


def centroids(stack: Stack, boxes: np.ndarray, regions: np.ndarray, crops: Sequence[np.ndarray]) -> np.ndarray:
    """Positions (N, 2) of objects as x, y.

    The windowed centroid; where it has no answer the centroid of the positive flux inside the outline; where there is
    none either, the centre of the box.

    Args:
        stack: the tile's pixels.
        boxes: (N, 4) tile pixels, edge coordinates.
        regions: (N, 4) int.
        crops: N outlines.
    """
    positions = edges_to_centers((boxes[:, :2] + boxes[:, 2:]) / 2)
    for i in range(len(boxes)):
        start = _outline_centroid(stack, regions[i], crops[i])
        if start is None:
            continue
        center, sigma = start
        reach = int(np.ceil(WINDOW_SIGMAS * sigma)) + MAX_SHIFT_PIX
        x0, y0 = np.maximum(np.floor(center).astype(int) - reach, 0).tolist()
        window = slice(y0, y0 + 2 * reach + 2), slice(x0, x0 + 2 * reach + 2)
        labels = stack.labels[window]
        usable = stack.valid[window] & ((labels == 0) | (labels == i + 1))
        found = windowed_centroid(stack.flux[window], usable, center - (x0, y0), sigma)
        positions[i] = center
        if found is not None:
            found = found + (x0, y0)
            low, high = edges_to_centers(boxes[i, :2]), edges_to_centers(boxes[i, 2:])
            positions[i] = found if (found >= low).all() and (found <= high).all() else center
    return positions


def _outline_centroid(stack: Stack, region: np.ndarray, crop: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Centroid (x, y) of the positive flux inside an outline, and the sigma of the window that suits the object."""
    x0, y0, x1, y1 = region.tolist()
    rows, columns = np.nonzero(crop & stack.valid[y0:y1, x0:x1])
    flux = stack.flux[y0:y1, x0:x1][rows, columns].clip(min=0).astype(np.float64)
    total = flux.sum()
    if not total > 0:
        return None
    center = np.array([(flux * columns).sum(), (flux * rows).sum()]) / total
    radius = np.hypot(columns - center[0], rows - center[1])
    order = np.argsort(radius)
    half = radius[order][np.searchsorted(np.cumsum(flux[order]), total / 2)]
    sigma = np.clip(2 * half / FWHM_PER_SIGMA, *SIGMA_RANGE_PIX)
    return center + (x0, y0), float(sigma)


def windowed_centroid(flux: np.ndarray, usable: np.ndarray, start: np.ndarray, sigma: float) -> np.ndarray | None:
    """Centroid under a Gaussian window that follows it: SExtractor's XWIN_IMAGE, YWIN_IMAGE.

    `x <- x + 2 sum(w f (x_i - x)) / sum(w f)` until it stands still (SExtractor manual, "Windowed positional
    parameters").
    A pixel that is not usable takes its mirror image about the centre out with it, so that gaps do not pull.

    Args:
        flux: (h, w) background-subtracted.
        usable: (h, w) bool.
        start: (2,) x, y, pixel centres.
        sigma: of the window, pixels.

    Returns:
        (2,) x, y; None if too little of the window is usable, its flux is not positive, or it wanders off.
    """
    y, x = np.arange(flux.shape[0]), np.arange(flux.shape[1])
    center = np.asarray(start, dtype=np.float64)
    has_gaps = not usable.all()
    for _ in range(MAX_ITERATIONS):
        if has_gaps:
            kept = usable & _mirrored(usable, center)
            seen, light = kept.astype(np.float32), np.where(kept, flux, 0)
        else:
            seen, light = np.ones_like(flux), flux
        # The window is a product of two Gaussians, so that all sums are vector-matrix-vector products.
        dx, dy = x - center[0], y - center[1]
        weight_x, weight_y = _gaussian(dx, sigma), _gaussian(dy, sigma)
        rows = weight_y @ light
        total = rows @ weight_x
        if weight_y @ seen @ weight_x < MIN_WINDOW_SHARE * 2 * np.pi * sigma**2 or not total > 0:
            return None
        step = 2 * np.array([rows @ (weight_x * dx), (weight_y * dy) @ light @ weight_x]) / total
        center = center + step
        if not (np.abs(center - start) < MAX_SHIFT_PIX).all():
            return None
        if np.hypot(*step) < CONVERGED_PIX:
            break
    return center


def _gaussian(offset: np.ndarray, sigma: float) -> np.ndarray:
    return np.where(np.abs(offset) < WINDOW_SIGMAS * sigma, np.exp(-0.5 * (offset / sigma) ** 2), 0)


def _mirrored(usable: np.ndarray, center: np.ndarray) -> np.ndarray:
    """The array reflected about a position; False beyond its borders."""
    height, width = usable.shape
    columns = np.rint(2 * center[0] - np.arange(width)).astype(int)
    rows = np.rint(2 * center[1] - np.arange(height)).astype(int)
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    return usable[rows.clip(0, height - 1)[:, None], columns.clip(0, width - 1)] & inside


def coverage_flags(
    mask: np.ndarray, boxes: np.ndarray, regions: np.ndarray, crops: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """MASKED and NO_COVERAGE, from the pixels of the outline (of the box where the outline has none).

    Args:
        mask: (C, h, w) bool, True without data.
        boxes: (N, 4) tile pixels, edge coordinates.
        regions: (N, 4) int.
        crops: N outlines.

    Returns:
        (flags (N,) int32, blind (N,) bool: no band has any data).
    """
    flags = np.zeros(len(boxes), dtype=np.int32)
    blind = np.zeros(len(boxes), dtype=bool)
    for i, crop in enumerate(crops):
        if crop.any():
            x0, y0, x1, y1 = regions[i].tolist()
            pixels = mask[:, y0:y1, x0:x1][:, crop]
        else:
            low, high = np.floor(boxes[i, :2]).astype(int), np.ceil(boxes[i, 2:]).astype(int)
            pixels = mask[:, low[1] : high[1], low[0] : high[0]].reshape(len(mask), -1)
        none, some = pixels.all(1), pixels.any(1)
        blind[i] = none.all()
        flags[i] |= FLAGS["NO_COVERAGE"].value * bool(none.any())
        flags[i] |= FLAGS["MASKED"].value * bool((some & ~none).any())
    return flags, blind


def edge_flags(boxes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """EDGE (N,) int32 for boxes (N, 4) in mosaic pixels."""
    low = (boxes[:, :2] <= EDGE_PIX).any(1)
    high = (boxes[:, 2:] >= np.array([shape[1], shape[0]]) - EDGE_PIX).any(1)
    return np.where(low | high, FLAGS["EDGE"].value, 0).astype(np.int32)
