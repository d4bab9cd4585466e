"""Shears from shapes: GalSim's re-Gaussianisation of every galaxy, corrected for its mean response. Needs `sim`.

Legend: N galaxies; ellipticities are distortions `(a^2 - b^2) / (a^2 + b^2)`, shears in the sky's frame.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from baselines import FWHM_TO_SIGMA, aperture_fluxes, read_pixels

from deepdisc.errors import require_extra
from deepdisc.evaluation.scoring import mosaic_fwhm_pix

HALF_SIDE = 24  # of the stamps, pixels
LEAST_RESOLUTION = 1 / 3  # galaxies hardly larger than the PSF are left out (Mandelbaum et al. 2005)
_LARGEST = 2.0  # distortion that noise may still make of a galaxy
_LEAST_ERROR = 1e-3
_ERROR_FACTOR = 2.5  # noise of exponential galaxies, signal-to-noise 15 to 1000, over what HSM states (2.3 to 2.6)
_WIDER = 1.3  # than the PSF: where the search for a galaxy's width starts; a wide start ends at neighbours
_LEAST_SCATTER = 0.05  # of the squared distortions: galaxies are not round


def hsm_ellipticities(mosaic, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """PSF-corrected ellipticities along the pixel axes and their errors, (3, N): e1, e2, error of each component.

    Re-Gaussianisation (Hirata & Seljak 2003, MNRAS 343, 459; Mandelbaum et al. 2005, MNRAS 361, 1287) on the sum of the
    bands with weights s / variance, s the galaxies' typical spectrum, with the PSF that such a galaxy has there by the
    PSFs that the mosaic states: single bands have too little signal for most galaxies. Neighbours stay: without their
    pixels shapes are less noisy (0.18 instead of 0.23 per ring) but their bias is larger (m = -0.34 instead of -0.13 in
    a crowded field). NaN where it fails, and for galaxies that are not resolved.

    Args:
        mosaic: the field.
        x: 0-based pixel centres of the galaxies.
        y: likewise.
    """
    galsim = require_extra("galsim", "sim")
    pixels = read_pixels(mosaic)
    fwhm = mosaic_fwhm_pix(mosaic) or 3.0
    fluxes, _ = aperture_fluxes(pixels, x, y, fwhm)
    spectrum = np.clip(np.nanmedian(fluxes / np.nansum(fluxes, axis=1, keepdims=True), axis=0), 0.01, None)
    variance = np.array([np.median(part[~bad]) for part, bad in zip(pixels.variance, pixels.mask, strict=True)])
    weight = spectrum / variance
    image = np.tensordot(weight, np.where(pixels.mask, 0, pixels.image), 1)
    good = ~pixels.mask.any(0)
    found = np.full((3, len(x)), np.nan)
    for row, (column, line) in enumerate(zip(x, y, strict=True)):
        x0, y0 = max(int(column) - HALF_SIDE, 0), max(int(line) - HALF_SIDE, 0)
        stamp = slice(y0, int(line) + HALF_SIDE), slice(x0, int(column) + HALF_SIDE)
        psf = np.tensordot(weight * spectrum, mosaic.psf_at(int(line), int(column), int(line) + 1, int(column) + 1), 1)
        if not psf.any() or not good[stamp].any():
            continue
        pictures = [
            galsim.Image(np.ascontiguousarray(part[stamp]), xmin=x0, ymin=y0) for part in (image, good.astype(np.int32))
        ]
        center = galsim.PositionD(column, line)
        star = galsim.Image(psf / psf.sum())
        found[:, row] = _shape(galsim, *pictures, star, float(weight**2 @ variance), center, fwhm * FWHM_TO_SIGMA)
    return found


def _shape(galsim, image, good, psf, variance: float, center, sigma: float) -> tuple[float, float, float]:
    """e1, e2 and their error; NaN where the method fails."""
    try:
        shape = galsim.hsm.EstimateShear(
            image,
            psf,
            weight=good,
            sky_var=variance,
            shear_est="REGAUSS",
            guess_centroid=center,
            guess_sig_gal=_WIDER * sigma,
            guess_sig_PSF=sigma,
            strict=False,
        )
    except galsim.GalSimError:
        return (math.nan,) * 3
    e1, e2, error = shape.corrected_e1, shape.corrected_e2, shape.corrected_shape_err
    failed = shape.error_message or shape.correction_status != 0 or error <= 0
    if failed or math.hypot(e1, e2) > _LARGEST or shape.resolution_factor < LEAST_RESOLUTION:
        return (math.nan,) * 3
    return e1, e2, max(_ERROR_FACTOR * error, _LEAST_ERROR)


def shears_from_ellipticities(e1: np.ndarray, e2: np.ndarray, error: np.ndarray) -> pd.DataFrame:
    """Shears `e / 2 R` with the responsivity R = 1 - e_rms^2 of all galaxies together (Bernstein & Jarvis 2002, AJ 123,
    583, eq. 5-33), and `shear_weight`, the inverse variance with the scatter of the shapes.

    Args:
        e1: (N) distortions, sky orientation; NaN: not measured.
        e2: likewise.
        error: of each component.

    Returns:
        `g1`, `g2`, `shear_weight`; NaN where not measured.
    """
    known = np.isfinite(e1) & np.isfinite(e2) & np.isfinite(error)
    own = (e1[known] ** 2 + e2[known] ** 2) / 2 - error[known] ** 2
    scatter = _LEAST_SCATTER
    for _ in range(3):  # the weights depend on what they give
        weight = 1 / (scatter + error[known] ** 2)
        scatter = max(float(np.average(own, weights=weight)), _LEAST_SCATTER) if known.any() else scatter
    return pd.DataFrame(
        {
            "g1": e1 / (2 * (1 - scatter)),
            "g2": e2 / (2 * (1 - scatter)),
            "shear_weight": np.where(known, 1 / (scatter + error**2), np.nan),
        }
    )
