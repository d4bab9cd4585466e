"""What lies on the light: noise, correlated by resampling where wanted, uneven sky, and scattered light.

H, W = height and width of the field in pixels. All light is in nJy per pixel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from scipy import ndimage
from scipy.interpolate import RectBivariateSpline

ROWS_PER_BLOCK = 256  # noise is drawn for this many rows at a time, which bounds the memory
LOWEST_VARIANCE = 0.25  # times the sky's, where a chance hole in the sky would leave none
KERNELS = ("none", "bilinear", "lanczos3", "gaussian")
FAINTEST_HALO = 0.02  # of the sky's sigma per pixel: where a halo fades below, it ends


def add_noise(
    light: np.ndarray,
    sky_sigma_njy: float,
    electrons_per_njy: float,
    full_variance: bool,
    rng: np.random.Generator,
    coverage: np.ndarray | None = None,
    kernel: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Observe a noiseless band.

    The noise is the sky's with the read noise (Gaussian) and the objects' photons' (Poisson). The variance is what a
    survey writes down: the sky's, plus the photons that it counted in the very pixel, noise included, so that it does
    not betray the truth. A kernel correlates the noise but leaves the variance: a kernel of unit sum keeps the noise of
    large apertures, for which the variances of the pixels add up, and makes single pixels less noisy than they say.

    Args:
        light: (H, W) float32, nJy; overwritten with the observed image.
        sky_sigma_njy: the sky's noise per pixel.
        electrons_per_njy: gain.
        full_variance: False leaves the objects' photons out of the variance, not out of the noise.
        rng: source of randomness.
        coverage: (H, W) share of the exposures that saw the pixel, above 0 and at most 1; None: all saw all.
        kernel: (along y, along x) as `resampling_kernel` makes it; None: white noise.

    Returns:
        (H, W) float32 image (nJy) and variance (nJy^2).
    """
    expected_light = None if kernel is None else light.copy()
    variance = np.full_like(light, sky_sigma_njy**2)
    if coverage is not None:
        variance /= coverage
    for start in range(0, len(light), ROWS_PER_BLOCK):
        block = slice(start, start + ROWS_PER_BLOCK)
        rows, gain, sigma = light[block], electrons_per_njy, np.float32(sky_sigma_njy)
        if coverage is not None:
            gain, sigma = electrons_per_njy * coverage[block], np.sqrt(variance[block])
        expected = np.maximum(rows, 0).astype(np.float64) * gain  # FFT drawing may ring below zero
        photons = rng.poisson(expected) - expected
        rows += rng.standard_normal(rows.shape, dtype=np.float32) * sigma
        rows += (photons / gain).astype(np.float32)
        if full_variance:
            lowest = LOWEST_VARIANCE * variance[block]
            variance[block] += rows / np.float32(gain)
            np.maximum(variance[block], lowest, out=variance[block])
    if kernel is not None:
        light -= expected_light
        light[:] = correlate_noise(light, kernel)
        light += expected_light
    return light, variance


# ----------------------------------------------------------------------------------------------- correlated noise
def resampling_kernel(kind: str, shift: tuple[float, float], sigma_pix: float) -> tuple[np.ndarray, np.ndarray]:
    """The weights, along y and along x, with which resampling adds the pixels of an exposure to one of the mosaic.

    Args:
        kind: "bilinear", "lanczos3" (both by a shift of `shift` pixels), or "gaussian" (of `sigma_pix`, for mosaics of
            many exposures, as drizzling makes them).
        shift: (y, x) within 0 to 1, pixels.
        sigma_pix: for "gaussian".

    Returns:
        Two arrays of unit sum and odd length.
    """
    if kind == "gaussian":
        taps = np.arange(-math.ceil(4 * sigma_pix), math.ceil(4 * sigma_pix) + 1)
        weights = np.exp(-(taps**2) / (2 * sigma_pix**2))
        return weights / weights.sum(), weights / weights.sum()
    reach = {"bilinear": 1, "lanczos3": 3}[kind]
    taps = np.arange(-reach, reach + 1)
    return tuple(_interpolation_weights(kind, taps - fraction) for fraction in shift)


def _interpolation_weights(kind: str, distance: np.ndarray) -> np.ndarray:
    if kind == "bilinear":
        weights = np.maximum(1 - abs(distance), 0)
    else:
        weights = np.where(abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
    return weights / weights.sum()


def correlate_noise(noise: np.ndarray, kernel: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """(H, W) noise convolved with a separable kernel; the edges wrap, so that it is the same everywhere."""
    for axis, weights in enumerate(kernel):
        noise = ndimage.convolve1d(noise, weights, axis=axis, mode="wrap")
    return noise


# ---------------------------------------------------------------------------------------------------- uneven sky
def sky_plane(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """(H, W) float32 plane in a random direction, from -1/2 to 1/2 between two opposite corners or edges."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.linspace(-0.5, 0.5, shape[0])[:, None], np.linspace(-0.5, 0.5, shape[1])
    longest = abs(np.sin(angle)) + abs(np.cos(angle))
    return ((y * np.sin(angle) + x * np.cos(angle)) / longest).astype(np.float32)


def smooth_field(shape: tuple[int, int], scale_pix: float, rng: np.random.Generator) -> np.ndarray:
    """(H, W) float32 random field of mean 0 and standard deviation 1 that changes over `scale_pix` pixels."""
    knots = [np.linspace(0, side - 1, max(4, math.ceil(side / scale_pix) + 1)) for side in shape]
    spline = RectBivariateSpline(*knots, rng.standard_normal([len(one) for one in knots]))
    field = spline(np.arange(shape[0]), np.arange(shape[1])).astype(np.float32)
    field -= field.mean()
    return field / field.std()


def wisps(shape: tuple[int, int], number: int, rng: np.random.Generator) -> np.ndarray:
    """(H, W) float32: `number` long, faint patches of stray light, each 1 at its peak.

    Patches are Gaussians, 5 to 15 per cent of the field long (standard deviation), and a fifth of that wide.
    """
    light = np.zeros(shape, dtype=np.float32)
    y, x = np.arange(shape[0], dtype=np.float32)[:, None], np.arange(shape[1], dtype=np.float32)
    for _ in range(number):
        y0, x0 = rng.uniform(0, shape)
        angle, length = rng.uniform(0, np.pi), rng.uniform(0.05, 0.15) * max(shape)
        along = (x - x0) * np.float32(np.cos(angle)) + (y - y0) * np.float32(np.sin(angle))
        across = (y - y0) * np.float32(np.cos(angle)) - (x - x0) * np.float32(np.sin(angle))
        light += np.exp(-0.5 * ((along / length) ** 2 + (5 * across / length) ** 2)).astype(np.float32)
    return light


# ----------------------------------------------------------------------------------------- light around bright stars
Star = tuple[float, float, float]  # x, y (0-based pixel centres), flux (nJy)


def add_halos(light: np.ndarray, stars: Iterable[Star], share: float, radius_pix: float, sigma_njy: float) -> None:
    """Add to (H, W) light, in place, a halo around every star bright enough for it to show.

    I(r) = share F / (2 pi a^2) (1 + (r/a)^2)^(-3/2), a Moffat profile of unit integral, which falls as r^-3. A negative
    share is the bowl that a sky subtraction leaves around a star.

    Args:
        light: overwritten.
        stars: those of the field and around it.
        share: of the star's light, on top of it.
        radius_pix: a.
        sigma_njy: the sky's noise per pixel, which decides where a halo ends.
    """
    for x, y, flux in stars:
        peak = share * flux / (2 * np.pi * radius_pix**2)
        steps = (abs(peak) / (FAINTEST_HALO * sigma_njy)) ** (2 / 3) - 1
        if steps > 0:
            where, square = _around(light.shape, x, y, radius_pix * math.sqrt(steps))
            light[where] += (peak * (1 + square / radius_pix**2) ** -1.5).astype(np.float32)


def add_ghosts(light: np.ndarray, stars: Iterable[Star], share: float, radius_pix: float, sigma_njy: float) -> None:
    """Add, in place, the reflection of every bright star: an even ring opposite to it, as seen from the field's middle.

    The ring is the out-of-focus image of the pupil, half as wide inside as outside. Arguments as for `add_halos`.
    """
    height, width = light.shape
    for x, y, flux in stars:
        level = share * flux / (np.pi * radius_pix**2 * 0.75)
        if level > FAINTEST_HALO * sigma_njy:
            where, square = _around(light.shape, width - 1 - x, height - 1 - y, radius_pix)
            light[where] += np.float32(level) * ((square <= radius_pix**2) & (square >= (radius_pix / 2) ** 2))


def _around(shape: tuple[int, int], x: float, y: float, radius: float) -> tuple[tuple[slice, slice], np.ndarray]:
    """The pixels of a square around a position, and their squared distances from it."""
    rows, columns = (
        slice(min(max(math.floor(at - radius), 0), side), min(max(math.ceil(at + radius) + 1, 0), side))
        for at, side in zip((y, x), shape, strict=True)
    )
    dy, dx = np.arange(rows.start, rows.stop) - y, np.arange(columns.start, columns.stop) - x
    return (rows, columns), dy[:, None] ** 2 + dx**2
