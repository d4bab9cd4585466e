"""Sky level and noise of an image on a coarse mesh, estimated block by block, for images without a noise map.

Each block's level is its sigma-clipped median and its noise the distance of the quartiles of the clipped pixels over
1.349 (the recipe of SExtractor's background, Bertin & Arnouts 1996, with quartiles in place of the standard deviation).
Blocks without enough pixels take the nearest block's values; a 3 x 3 median keeps a block full of galaxies from looking
noisy; between block centres the mesh is interpolated bilinearly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from deepdisc.errors import InputError

BLOCK_PIX = 256
_CLIP_SIGMA = 3.0
_QUARTILES_IN_SIGMA = 1.344735  # 2 Phi^-1(3/4) = 1.348980, times 0.996853 for a Gaussian cut at 3 sigma
_CLIP_ROUNDS = 8
_FEWEST_PIXELS = 64


def clipped_level_and_noise(values: np.ndarray) -> tuple[float, float]:
    """Sigma-clipped median and quartile noise of finite values; (NaN, NaN) when there are none or all are equal."""
    values = np.sort(values, axis=None)  # once: then each round of clipping is a slice
    for _ in range(_CLIP_ROUNDS):
        if values.size == 0:
            return np.nan, np.nan
        lower, level, upper = (float(values[int(part * (values.size - 1))]) for part in (0.25, 0.5, 0.75))
        sigma = (upper - lower) / _QUARTILES_IN_SIGMA
        if sigma == 0:  # coarsely quantised pixels: more than half of them are equal
            sigma = float(values.std(dtype=np.float64))
        if sigma == 0:
            return np.nan, np.nan
        first, last = np.searchsorted(values, [level - _CLIP_SIGMA * sigma, level + _CLIP_SIGMA * sigma])
        if last - first == values.size:
            break
        values = values[first:last]
    return level, sigma


def blocks(shape: tuple[int, int], size: int = BLOCK_PIX) -> Iterator[tuple[int, int, int, int, int, int]]:
    """Yield `row, column, y0, x0, y1, x1` of the even blocks of about `size` pixels that cover an image."""
    rows, columns = mesh_shape(shape, size)
    y = np.linspace(0, shape[0], rows + 1).round().astype(int)
    x = np.linspace(0, shape[1], columns + 1).round().astype(int)
    for row in range(rows):
        for column in range(columns):
            yield row, column, int(y[row]), int(x[column]), int(y[row + 1]), int(x[column + 1])


def mesh_shape(shape: tuple[int, int], size: int = BLOCK_PIX) -> tuple[int, int]:
    """Rows and columns of blocks."""
    return max(1, round(shape[0] / size)), max(1, round(shape[1] / size))


@dataclass(frozen=True)
class NoiseMesh:
    """Sky level and noise at the centres of evenly spaced blocks.

    Attributes:
        shape: (height, width) of the image, pixels.
        level: (rows, columns) sky level, the unit of the pixels.
        sigma: (rows, columns) noise per pixel, the unit of the pixels, positive.
    """

    shape: tuple[int, int]
    level: np.ndarray
    sigma: np.ndarray

    def level_at(self, y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
        """Sky level of a rectangle, (y1 - y0, x1 - x0) float32."""
        return self._interpolate(self.level, y0, x0, y1, x1)

    def variance_at(self, y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
        """Noise variance of a rectangle, (y1 - y0, x1 - x0) float32."""
        return self._interpolate(self.sigma, y0, x0, y1, x1) ** 2

    def _interpolate(self, values: np.ndarray, y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
        down, below, above = _weights(y0, y1, self.shape[0], values.shape[0])
        along, left, right = _weights(x0, x1, self.shape[1], values.shape[1])
        rows = values[below] * (1 - down)[:, None] + values[above] * down[:, None]
        return (rows[:, left] * (1 - along) + rows[:, right] * along).astype(np.float32)


def _weights(start: int, stop: int, length: int, cells: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fraction, lower cell and upper cell of each pixel centre among even cells, constant beyond the outer centres."""
    position = np.clip((np.arange(start, stop) + 0.5) * cells / length - 0.5, 0, cells - 1)
    lower = np.minimum(position.astype(int), max(cells - 2, 0))
    return position - lower, lower, np.minimum(lower + 1, cells - 1)


def estimate_mesh(
    read: Callable[[int, int, int, int], tuple[np.ndarray, np.ndarray]], shape: tuple[int, int], name: str
) -> NoiseMesh:
    """Measure the mesh of an image, holding one block at a time.

    Args:
        read: gives the pixels of a rectangle `y0, x0, y1, x1` and a bool array of the bad ones.
        shape: (height, width) of the image.
        name: the band, for the message.

    Raises:
        InputError: no block has noise, because the image is constant or has no valid pixel.
    """
    level = np.full(mesh_shape(shape), np.nan)
    sigma = np.full(mesh_shape(shape), np.nan)
    sparse = {}
    for row, column, *box in blocks(shape):
        pixels, bad = read(*box)
        good = pixels[~bad]
        if good.size >= _FEWEST_PIXELS:
            level[row, column], sigma[row, column] = clipped_level_and_noise(good)
        elif good.size:
            sparse[row, column] = clipped_level_and_noise(good)
    if not np.isfinite(sigma).any():
        for cell, values in sparse.items():
            level[cell], sigma[cell] = values
    known = np.isfinite(sigma)
    if not known.any():
        raise InputError(
            f"{name}: its noise cannot be measured because all valid pixels are equal; give a variance, rms "
            "or weight map"
        )
    nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    level, sigma = level[tuple(nearest)], sigma[tuple(nearest)]
    return NoiseMesh(
        tuple(shape),
        ndimage.median_filter(level, size=3, mode="nearest"),
        ndimage.median_filter(sigma, size=3, mode="nearest"),
    )
