"""The point-spread function (PSF) as it travels with pixels: one small image per band.

P = `PSF_SIDE` pixels, odd, those of the image it belongs to; the star is at the centre of the middle pixel, the sum is
1, the pixel is included (it is what a star looks like in the image). All zeros: unknown.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from deepdisc.errors import InputError

PSF_SIDE = 25  # holds 99 % of the light of ground-based images, 90 to 99 % of those from space, which have wide wings
MOFFAT_BETA = (
    3.0  # between the 2.5 and 4.8 that images and turbulence theory give (Trujillo et al. 2001, MNRAS 328, 977)
)
_CENTRED_PIX = 0.02  # closer to the middle than this a star stays where it is: interpolating would change it more
_FINE = 11  # sub-pixels across a pixel over which a profile is integrated


def unknown_psf(num_bands: int) -> np.ndarray:
    """(num_bands, P, P) float32 zeros."""
    return np.zeros((num_bands, PSF_SIDE, PSF_SIDE), np.float32)


def recorded_psf(stamp: np.ndarray, label: str) -> np.ndarray:
    """Bring the picture of a star to the form above: centred, cut or padded with zeros, of sum 1.

    A star that is more than `_CENTRED_PIX` off the middle is moved there by a quintic spline.

    Args:
        stamp: (height, width), even or odd, in the pixels of the image.
        label: what messages call it.

    Returns:
        (P, P) float32.

    Raises:
        InputError: pixels that are not finite, no light, or a star at the border of its picture.
    """
    stamp = np.asarray(stamp, np.float64)
    if stamp.ndim != 2 or min(stamp.shape) < 3:
        raise InputError(f"{label}: a PSF is a picture of at least 3 x 3 pixels; this one is {stamp.shape}")
    if not np.isfinite(stamp).all():
        raise InputError(f"{label}: the PSF holds NaN or infinite pixels; replace them, for example by 0")
    if stamp.sum() <= 0 or stamp.max() <= 0:
        raise InputError(f"{label}: the PSF's pixels add up to {stamp.sum():.4g}; it must hold light")
    y, x = _centre(stamp, label)
    row, column = round(y), round(x)
    if max(abs(y - row), abs(x - column)) > _CENTRED_PIX:
        stamp = ndimage.shift(stamp, (row - y, column - x), order=5, mode="grid-constant")
    half = PSF_SIDE // 2
    cut = np.pad(stamp, half)[row : row + PSF_SIDE, column : column + PSF_SIDE]
    if cut.sum() <= 0:
        raise InputError(f"{label}: the PSF has no light within {half} pixels of its peak; subtract its background")
    return (cut / cut.sum()).astype(np.float32)


def _centre(stamp: np.ndarray, label: str) -> tuple[float, float]:
    """(y, x) of the star: the point about which a round Gaussian of its width finds it balanced.

    Wings count little, as in the windowed positions of SExtractor and in adaptive moments (Bernstein & Jarvis 2002, AJ
    123, 583); a plain centroid would follow the spikes of a space telescope.
    """
    smooth = ndimage.gaussian_filter(stamp, 0.7, mode="constant")
    y, x = (float(one) for one in np.unravel_index(smooth.argmax(), stamp.shape))
    sigma = max(math.sqrt((smooth > smooth.max() / 2).sum() / math.pi) / math.sqrt(2 * math.log(2)), 0.7)
    rows, columns = np.indices(stamp.shape)
    for _ in range(100):
        light = stamp * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * sigma**2))
        dy, dx = ((light * (axis - at)).sum() / light.sum() for axis, at in ((rows, y), (columns, x)))
        # Twice the step, because the weight pulls the mean halfway back.
        y, x = y + 2 * dy, x + 2 * dx
        if not all(0.9 < at < side - 1.9 for at, side in zip((y, x), stamp.shape, strict=True)):
            raise InputError(f"{label}: the star lies at the border of its picture; cut it out around the star")
        if max(abs(dy), abs(dx)) < 1e-7:
            break
    return y, x


def moffat_psf(fwhm_pix: float, beta: float = MOFFAT_BETA) -> np.ndarray:
    """(P, P) float32 image of a round star, I ~ (1 + (r/a)^2)^-beta (Moffat 1969, A&A 3, 455), integrated over pixels.

    Args:
        fwhm_pix: full width at half maximum before the pixel.
        beta: exponent.
    """
    a = fwhm_pix / (2 * math.sqrt(2 ** (1 / beta) - 1))
    edge = PSF_SIDE / 2 - 0.5 / _FINE
    square = np.linspace(-edge, edge, PSF_SIDE * _FINE) ** 2
    light = (1 + (square[:, None] + square) / a**2) ** -beta
    pixels = light.reshape(PSF_SIDE, _FINE, PSF_SIDE, _FINE).sum(axis=(1, 3))
    return (pixels / pixels.sum()).astype(np.float32)


def psf_fwhm_pix(psf: np.ndarray) -> float:
    """Full width at half maximum with the pixel: diameter of the circle as large as the area above half of the peak.

    Args:
        psf: (P, P) as above; NaN for an unknown one.
    """
    if not psf.any():
        return float("nan")
    fine = ndimage.zoom(psf.astype(np.float64), 8, order=3, grid_mode=True, mode="grid-constant")
    return 2 * math.sqrt((fine > fine.max() / 2).sum() / 64 / math.pi)
