"""The conditions one field is observed in: pointing, depth, seeing, reddening, densities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from astropy.wcs import WCS

from deepdisc.errors import require_extra
from deepdisc.photometry import njy_from_mag
from deepdisc.simulate.instruments import Band, Instrument
from deepdisc.simulate.settings import Sky
from deepdisc.sky import PixelGrid

if TYPE_CHECKING:
    import galsim

FIELDS_PER_ROW = 20
FIELD_SPACING = 1.2  # in units of the field's larger side: fields share no sky


@dataclass(frozen=True)
class Conditions:
    """One field's conditions. B = number of bands; arrays are (B,) in the order of `instrument.bands`.

    Attributes:
        instrument: pixel scale and bands.
        grid: pixels and their sky positions (TAN).
        depth_5sigma: AB magnitude of a 5-sigma point source in this field's seeing.
        psf_fwhm_arcsec: width of the Moffat PSF before the pixel.
        moffat_beta: its exponent.
        ebv: Milky Way E(B-V), mag.
        galaxy_density, star_density: factors on the population's densities.
        full_variance: whether the VARIANCE plane includes the objects' photon noise.
    """

    instrument: Instrument
    grid: PixelGrid
    depth_5sigma: np.ndarray
    psf_fwhm_arcsec: np.ndarray
    moffat_beta: float
    ebv: float
    galaxy_density: float
    star_density: float
    full_variance: bool

    @property
    def bands(self) -> tuple[Band, ...]:
        """The bands, in order."""
        return self.instrument.bands

    def psf(self, band: int, **keywords) -> galsim.GSObject:
        """The PSF of one band, flux 1, without the pixel; keywords go to GalSim."""
        galsim = require_extra("galsim", "sim")
        return galsim.Moffat(beta=self.moffat_beta, fwhm=float(self.psf_fwhm_arcsec[band]), **keywords)

    def sky_sigma_njy(self) -> np.ndarray:
        """(B,) noise of the sky per pixel: sigma = F5/5 sqrt(sum P^2), P the PSF in pixels (sum 1).

        The flux measured with weights P has the variance sigma^2 / sum P^2, e.g. King 1983, PASP 95, 163.
        """
        scale = self.instrument.pixel_scale_arcsec
        sharpness = []
        for band in range(len(self.bands)):
            pixels = self.psf(band).drawImage(nx=65, ny=65, scale=scale, method="auto", dtype=np.float64).array
            sharpness.append((pixels**2).sum())
        return njy_from_mag(self.depth_5sigma) / 5 * np.sqrt(sharpness)

    def electrons_per_njy(self) -> np.ndarray:
        """(B,) gain that makes the sky's photon noise the sky's noise: (sky per pixel) / (variance per pixel)."""
        surface = njy_from_mag([band.sky_mag_arcsec2 for band in self.bands])
        return surface * self.instrument.pixel_scale_arcsec**2 / self.sky_sigma_njy() ** 2


def draw_conditions(sky: Sky, instrument: Instrument, number: int, rng: np.random.Generator) -> Conditions:
    """Draw the conditions of field `number`; where it points depends on the number alone."""
    count = len(instrument.bands)
    depth = np.array([band.depth_5sigma for band in instrument.bands])
    depth = depth + rng.uniform(*sky.depth_offset) + rng.uniform(-1, 1, count) * sky.depth_jitter
    fwhm = np.array([band.psf_fwhm_arcsec for band in instrument.bands])
    fwhm = fwhm * rng.uniform(*sky.seeing_factor) * (1 + rng.uniform(-1, 1, count) * sky.seeing_jitter)
    wcs = tan_wcs(field_center(sky, instrument.pixel_scale_arcsec, number), sky.shape, instrument.pixel_scale_arcsec)
    return Conditions(
        instrument=instrument,
        grid=PixelGrid(sky.shape, instrument.pixel_scale_arcsec, wcs),
        depth_5sigma=depth,
        psf_fwhm_arcsec=fwhm,
        moffat_beta=float(rng.uniform(*sky.moffat_beta)),
        ebv=float(np.float32(rng.uniform(*sky.ebv))),
        galaxy_density=float(rng.uniform(*sky.galaxy_density)),
        star_density=float(rng.uniform(*sky.star_density)),
        full_variance=bool(rng.uniform() >= sky.background_only_variance),
    )


def field_center(sky: Sky, pixel_scale_arcsec: float, number: int) -> tuple[float, float]:
    """ICRS centre (degrees) of a field; rows of 20 fields, eastwards, then northwards."""
    step = FIELD_SPACING * max(sky.shape) * pixel_scale_arcsec / 3600
    dec = sky.center[1] + step * (number // FIELDS_PER_ROW)
    ra = sky.center[0] + step * (number % FIELDS_PER_ROW) / math.cos(math.radians(dec))
    return ra % 360, dec


def tan_wcs(center: Sequence[float], shape: tuple[int, int], pixel_scale_arcsec: float) -> WCS:
    """Gnomonic WCS, north up, east left, `center` (ICRS degrees) in the middle of the picture."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.cunit = ["deg", "deg"]
    wcs.wcs.crval = list(center)
    wcs.wcs.crpix = [(shape[1] + 1) / 2, (shape[0] + 1) / 2]
    wcs.wcs.cdelt = [-pixel_scale_arcsec / 3600, pixel_scale_arcsec / 3600]
    wcs.wcs.radesys = "ICRS"
    return wcs
