"""The ellipticity of the PSF where the objects are, for what of it leaks into measured shapes."""

from __future__ import annotations

import numpy as np

from deepdisc.errors import require_extra
from deepdisc.simulate.conditions import Conditions

STEPS_PER_FWHM = 5.0
SIDE = 65


def psf_ellipticity(conditions: Conditions, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the bands of the PSF's ellipticity (a - b) / (a + b), from its adaptive moments, without the pixel.

    Args:
        conditions: of the field.
        x: (N,) 0-based pixel centres.
        y: (N,) 0-based pixel centres.

    Returns:
        (N,) components in sky orientation, as those of shear.
    """
    cells = np.asarray(conditions.psf_cell(x, y))
    shapes = np.zeros((len(cells), 2))
    for cell in np.unique(cells):
        here = cells == cell
        first = int(np.argmax(here))
        bands = [_shape(conditions, band, float(x[first]), float(y[first])) for band in range(len(conditions.bands))]
        shapes[here] = np.mean(bands, axis=0)
    return conditions.grid.shear_to_sky(x, y, shapes[:, 0], shapes[:, 1])


def _shape(conditions: Conditions, band: int, x: float, y: float) -> tuple[float, float]:
    """Ellipticity of one band's PSF at x, y along the pixel axes."""
    galsim = require_extra("galsim", "sim")
    step = float(conditions.psf_fwhm_arcsec[band]) / STEPS_PER_FWHM
    picture = conditions.psf(band, x, y).drawImage(nx=SIDE, ny=SIDE, scale=step, method="no_pixel")
    shape = galsim.hsm.FindAdaptiveMom(picture).observed_shape
    return shape.g1, shape.g2
