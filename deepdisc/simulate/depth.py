"""The depth of an image, measured as surveys do: the scatter of fluxes where there is nothing."""

from __future__ import annotations

import math

import numpy as np

from deepdisc.photometry import mag_from_njy
from deepdisc.simulate.conditions import Conditions

FEWEST = 30  # places, below which nothing is said
ENOUGH = 10_000  # places: a depth to 0.01 mag
_OFFSETS = 5
_FINE = 10  # a pixel on the rim of an aperture is cut into this many per side
_STAMP = 129


def measure_depth(
    image: np.ndarray, is_empty: np.ndarray, conditions: Conditions, band: int, rng: np.random.Generator
) -> dict[str, float]:
    """5-sigma depth for a point source, as the band defines it: in its aperture, or with the PSF as weight.

    Fluxes are measured in places that do not overlap and hold no object. Their scatter is that of the lower half,
    because faint sources lift the upper one; a smooth background is taken out.

    Args:
        image: (H, W), nJy.
        is_empty: (H, W), True where a pixel is good and belongs to no object.
        conditions: of the field.
        band: number of the band.
        rng: where the places are, and the bootstrap.

    Returns:
        depth (AB mag; NaN with fewer than 30 places), depth_err (bootstrap), stated, n (places).
    """
    fluxes = empty_fluxes(image, is_empty, flux_kernel(conditions, band), rng)
    stated, n = float(conditions.depth_5sigma[band]), len(fluxes)
    if n < FEWEST:
        return {"depth": math.nan, "depth_err": math.nan, "stated": stated, "n": n}
    resampled = [_lower_sigma(fluxes[rng.integers(0, n, n)]) for _ in range(100)]
    sigma = _lower_sigma(fluxes)
    err = 2.5 / math.log(10) * float(np.std(resampled, ddof=1)) / sigma
    return {"depth": float(mag_from_njy(5 * sigma)), "depth_err": err, "stated": stated, "n": n}


def flux_kernel(conditions: Conditions, band: int) -> np.ndarray:
    """(k, k) weights, k odd, whose sum over a point source centred on them is its total flux."""
    scale, diameter = conditions.instrument.pixel_scale_arcsec, conditions.bands[band].depth_aperture_arcsec
    psf = conditions.psf(band).drawImage(nx=_STAMP, ny=_STAMP, scale=scale, method="auto", dtype=np.float64).array
    y, x = np.indices(psf.shape) - _STAMP // 2
    if diameter is not None:
        half = math.ceil(diameter / scale / 2)
        aperture = _disc(half, diameter / scale / 2)
        share = (aperture * _middle(psf, half)).sum()
        return aperture / share
    # The rim of a PSF adds nothing to the measurement, but makes places without objects rare.
    radius = np.maximum(np.abs(y), np.abs(x))
    weight = [(psf[radius <= half] ** 2).sum() for half in range(_STAMP // 2 + 1)]
    half = int(np.searchsorted(weight, 0.98 * weight[-1]))
    core = _middle(psf, half)
    return core / (core**2).sum()


def _middle(stamp: np.ndarray, half: int) -> np.ndarray:
    center = len(stamp) // 2
    return stamp[center - half : center + half + 1, center - half : center + half + 1]


def _disc(half: int, radius: float) -> np.ndarray:
    """(2 half + 1)^2 share of each pixel that lies in a disc about the middle one's centre."""
    side = 2 * half + 1
    fine = (np.arange(side * _FINE) + 0.5) / _FINE - side / 2
    inside = np.hypot(fine[:, None], fine[None, :]) <= radius
    return inside.reshape(side, _FINE, side, _FINE).mean(axis=(1, 3))


def empty_fluxes(image: np.ndarray, is_empty: np.ndarray, kernel: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N,) fluxes, nJy, in the empty squares of a lattice with the kernel's side; a smooth trend is removed."""
    side = len(kernel)
    best = np.zeros((0, 2), dtype=int)
    for _ in range(_OFFSETS):
        offset = rng.integers(0, side, 2)
        squares = _squares(is_empty, offset, side).all(axis=(1, 3))
        if squares.sum() > len(best):
            best, chosen = np.argwhere(squares), offset
    if not len(best):
        return np.zeros(0)
    best = rng.permutation(best)[:ENOUGH]
    cut = _squares(image, chosen, side)[best[:, 0], :, best[:, 1], :]
    return _without_trend(np.tensordot(cut, kernel, axes=2).astype(np.float64), best / max(image.shape))


def _squares(plane: np.ndarray, offset: np.ndarray, side: int) -> np.ndarray:
    """The plane from `offset` on, cut into (rows, side, columns, side)."""
    part = plane[offset[0] :, offset[1] :]
    rows, columns = part.shape[0] // side, part.shape[1] // side
    return part[: rows * side, : columns * side].reshape(rows, side, columns, side)


def _without_trend(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Values less a parabola in both axes, fitted to those within 3 sigma."""
    y, x = (places - places.mean(axis=0)).T
    terms = np.stack((np.ones_like(x), x, y, x * x, x * y, y * y), axis=1)[:, : 6 if len(values) >= FEWEST else 1]
    used = np.ones(len(values), dtype=bool)
    for _ in range(3):
        trend = terms @ np.linalg.lstsq(terms[used], values[used], rcond=None)[0]
        rest = values - trend
        used = np.abs(rest - np.median(rest)) <= 3 * max(_lower_sigma(rest), 1e-30)
    return rest


def _lower_sigma(values: np.ndarray) -> float:
    """Root mean square distance from the median of the values below it."""
    distance = np.median(values) - values
    return float(np.sqrt((distance[distance >= 0] ** 2).mean()))
