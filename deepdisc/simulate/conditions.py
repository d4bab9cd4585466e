"""The conditions one field is observed in: pointing, depth, seeing, reddening, densities."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.wcs import WCS
from scipy import ndimage

from deepdisc.errors import InputError
from deepdisc.photometry import mag_from_njy
from deepdisc.simulate.instruments import Band, Instrument
from deepdisc.simulate.psfs import PSF, TERMS, MoffatPSF, fwhm_arcsec, radial_profile, variation_terms
from deepdisc.simulate.settings import Sky
from deepdisc.sky import PixelGrid

if TYPE_CHECKING:
    import galsim

FIELDS_PER_ROW = 20
SMALLEST_CELL_PIX = 48  # in which the PSF is constant: every cell costs a PSF for each band
DUST_CELLS = 32  # across a field's longer side, in which E(B-V) varies
FIELD_SPACING = 1.2  # in units of the field's larger side: fields share no sky


@dataclass(frozen=True, eq=False)
class Conditions:
    """One field's conditions. B = number of bands; arrays are (B,) in the order of `instrument.bands`.

    Attributes:
        instrument: pixel scale and bands.
        grid: pixels and their sky positions (TAN).
        psf_width: factors on the widths of the instrument's PSFs.
        exposure_factor: factors on the instrument's numbers of exposures.
        moffat_beta: exponent in place of the instrument's, or None.
        psf_cells: cells across the field's longer side in which the PSF is constant.
        psf_variation: (B, 3, 5) coefficients of `psfs.variation_terms` for the relative width and the shear (e1, e2,
            pixel axes) of the PSF.
        ebv: Milky Way E(B-V), mag: the field's mean.
        ebv_cells: (rows, columns) factors on it in square cells that cover the field, row 0 at the bottom.
        galaxy_density, star_density: factors on the population's densities.
        full_variance: whether the VARIANCE plane includes the objects' photon noise.
    """

    instrument: Instrument
    grid: PixelGrid
    psf_width: np.ndarray
    exposure_factor: np.ndarray
    moffat_beta: float | None
    psf_cells: int
    psf_variation: np.ndarray
    ebv: float
    ebv_cells: np.ndarray
    galaxy_density: float
    star_density: float
    full_variance: bool

    @property
    def bands(self) -> tuple[Band, ...]:
        """The bands, in order."""
        return self.instrument.bands

    @property
    def exposures(self) -> np.ndarray:
        """(B,) effective number of exposures."""
        return np.array([band.exposures for band in self.bands]) * self.exposure_factor

    # ---------------------------------------------------------------------------------------------------------- PSF
    def psf(self, band: int, x: float | None = None, y: float | None = None, **keywords: Any) -> galsim.GSObject:
        """The PSF of one band, flux 1, without the pixel.

        Args:
            band: its number.
            x: 0-based pixel centre: the PSF is that of the cell that holds x, y; None: the field's mean.
            y: the same.
            keywords: go to GalSim ("gsparams").
        """
        profile = _spec(self.bands[band], self.moffat_beta).profile(self.bands[band].pivot_nm, **keywords)
        width, e1, e2 = float(self.psf_width[band]), 0.0, 0.0
        if x is not None and self.psf_varies:
            change, e1, e2 = self.psf_variation[band] @ variation_terms(*self._cell_center(x, y))
            width *= 1 + change
        profile = profile if width == 1 else profile.dilate(width)
        return profile.shear(g1=e1, g2=e2) if e1 or e2 else profile

    @property
    def psf_varies(self) -> bool:
        """Whether the PSF is another one elsewhere in the field."""
        return bool(np.any(self.psf_variation))

    def psf_cell(self, x: Any, y: Any) -> np.ndarray:
        """Numbers (from 0, int) of the cells in which the PSF is constant; 0 everywhere if it does not vary."""
        column, row, columns = self._cells(x, y)
        return row * columns + column if self.psf_varies else np.zeros_like(column)

    def psf_cell_centers(self) -> np.ndarray:
        """(K, 2) x, y of the middles of all cells by number, 0-based pixel centres; the field's middle if it is one."""
        height, width = self.grid.shape
        if not self.psf_varies:
            return np.array([[(width - 1) / 2, (height - 1) / 2]])
        side = max(self.grid.shape) / self.psf_cells
        last_column, last_row, _ = self._cells(width - 1, height - 1)
        row, column = np.indices((int(last_row) + 1, int(last_column) + 1)).reshape(2, -1)
        return np.stack([column + 0.5, row + 0.5], axis=1) * side - 0.5

    def _cells(self, x: Any, y: Any) -> tuple[np.ndarray, np.ndarray, int]:
        side = max(self.grid.shape) / self.psf_cells
        rows, columns = (max(1, math.ceil(length / side - 1e-9)) for length in self.grid.shape)
        column = np.clip((np.asarray(x) + 0.5) // side, 0, columns - 1).astype(np.int64)
        row = np.clip((np.asarray(y) + 0.5) // side, 0, rows - 1).astype(np.int64)
        return column, row, columns

    def _cell_center(self, x: float, y: float) -> tuple[float, float]:
        """Centre of the cell that holds x, y, as u, v in -1..1 across the field's longer side."""
        column, row, _ = self._cells(x, y)
        return 2 * (float(column) + 0.5) / self.psf_cells - 1, 2 * (float(row) + 0.5) / self.psf_cells - 1

    @functools.cached_property
    def psf_fwhm_arcsec(self) -> np.ndarray:
        """(B,) full width at half maximum of the PSF before the pixel."""
        return self.psf_width * [fwhm_arcsec(_spec(band, self.moffat_beta), band.pivot_nm) for band in self.bands]

    def psf_radius_arcsec(self, band: int, per_arcsec2: np.ndarray) -> np.ndarray:
        """(N,) radii beyond which the PSF of flux 1 is everywhere fainter than (N,) these, per square arcsec."""
        radius, brightness = radial_profile(_spec(self.bands[band], self.moffat_beta), self.bands[band].pivot_nm)
        width = float(self.psf_width[band])
        return width * np.interp(-np.asarray(per_arcsec2) * width**2, -brightness, radius)

    # ----------------------------------------------------------------------------------------------------------- dust
    def ebv_at(self, x: Any, y: Any) -> np.ndarray:
        """(N,) E(B-V) at 0-based pixel centres: straight lines between the centres of the cells, level beyond them."""
        side = self.ebv_cell_pix
        place = np.stack([(np.asarray(one, dtype=np.float64) + 0.5) / side - 0.5 for one in (y, x)])
        return self.ebv * ndimage.map_coordinates(self.ebv_cells, place, order=1, mode="nearest")

    @property
    def ebv_cell_pix(self) -> float:
        """Side of a cell of `ebv_cells`, pixels."""
        return max(self.grid.shape) / max(self.ebv_cells.shape)

    def ebv_map(self) -> tuple[np.ndarray, WCS]:
        """(rows, columns) E(B-V) in cells, and their WCS, for a FITS map."""
        side, wcs = self.ebv_cell_pix, self.grid.wcs.deepcopy()
        wcs.wcs.crpix = (wcs.wcs.crpix - 0.5) / side + 0.5
        wcs.wcs.cdelt = wcs.wcs.cdelt * side
        return self.ebv * self.ebv_cells, wcs

    # -------------------------------------------------------------------------------------------------------- noise
    def sky_sigma_njy(self) -> np.ndarray:
        """(B,) noise of the sky per pixel, by photon statistics (see instruments.py)."""
        density = np.array([band.noise_density_njy() for band in self.bands])
        return density * self.instrument.pixel_scale_arcsec / np.sqrt(self.exposure_factor)

    def electrons_per_njy(self) -> np.ndarray:
        """(B,) electrons that 1 nJy gives in all exposures together."""
        return np.array([band.electrons_per_njy for band in self.bands]) * self.exposures

    @functools.cached_property
    def depth_5sigma(self) -> np.ndarray:
        """(B,) AB magnitude of a point source of signal-to-noise 5, as each band defines its depth."""
        sigma = self.sky_sigma_njy()
        return np.array([self._depth(band, float(sigma[band])) for band in range(len(self.bands))])

    def _depth(self, band: int, sigma_njy: float) -> float:
        """The error of the flux is sigma / sqrt(sum P^2) with the PSF as weight, P the PSF in pixels (King 1983, PASP
        95, 163), and sigma sqrt(pixels) / (share of the light) in an aperture.
        """
        scale, diameter = self.instrument.pixel_scale_arcsec, self.bands[band].depth_aperture_arcsec
        if diameter is None:
            pixels = self.psf(band).drawImage(nx=129, ny=129, scale=scale, method="auto", dtype=np.float64).array
            return float(mag_from_njy(5 * sigma_njy / math.sqrt((pixels**2).sum())))
        # Fine steps, because an aperture of few pixels is not round; the pixel is added as a convolution.
        fine = self.psf(band).drawImage(nx=401, ny=401, scale=diameter / 80, method="auto", dtype=np.float64).array
        y, x = np.indices(fine.shape) - 200
        share = fine[np.hypot(x, y) <= 40].sum()
        return float(mag_from_njy(5 * sigma_njy * math.sqrt(math.pi / 4) * diameter / scale / share))


def _spec(band: Band, moffat_beta: float | None) -> PSF:
    return band.psf if moffat_beta is None else replace(band.psf, beta=moffat_beta)


def draw_conditions(sky: Sky, instrument: Instrument, number: int, rng: np.random.Generator) -> Conditions:
    """Draw the conditions of field `number`; where it points depends on the number alone.

    Raises:
        InputError: `sky.moffat_beta` is given and a band's PSF is no Moffat profile.
    """
    count = len(instrument.bands)
    # Depths grow by m where exposures are 10^(0.8 m) times as many.
    deeper = rng.uniform(*sky.depth_offset) + rng.uniform(-1, 1, count) * sky.depth_jitter
    width = rng.uniform(*sky.seeing_factor) * (1 + rng.uniform(-1, 1, count) * sky.seeing_jitter)
    wcs = tan_wcs(field_center(sky, instrument.pixel_scale_arcsec, number), sky.shape, instrument.pixel_scale_arcsec)
    return Conditions(
        instrument=instrument,
        grid=PixelGrid(sky.shape, instrument.pixel_scale_arcsec, wcs),
        psf_width=width,
        exposure_factor=10 ** (0.8 * deeper),
        moffat_beta=_draw_beta(sky, instrument, rng),
        psf_cells=max(1, min(sky.psf_cells, max(sky.shape) // SMALLEST_CELL_PIX)),
        ebv=float(np.float32(rng.uniform(*sky.ebv))),
        galaxy_density=float(rng.uniform(*sky.galaxy_density)),
        star_density=float(rng.uniform(*sky.star_density)),
        full_variance=bool(rng.uniform() >= sky.background_only_variance),
        psf_variation=_draw_variation(sky, count, rng),
        ebv_cells=_draw_dust(sky, rng),
    )


def _draw_beta(sky: Sky, instrument: Instrument, rng: np.random.Generator) -> float | None:
    if sky.moffat_beta is None:
        return None
    for band in instrument.bands:
        if not isinstance(band.psf, MoffatPSF):
            raise InputError(
                f"sky.moffat_beta is {list(sky.moffat_beta)}, but band {band.name} of {instrument.name} has no Moffat "
                "PSF; leave it None"
            )
    return float(rng.uniform(*sky.moffat_beta))


def _draw_variation(sky: Sky, count: int, rng: np.random.Generator) -> np.ndarray:
    """(B, 3, 5) coefficients: their squares add up, on average, to the squares of the rms that the sky asks for."""
    rms = np.array([sky.psf_width_rms, sky.psf_ellipticity_rms, sky.psf_ellipticity_rms])
    return rng.normal(size=(count, 3, TERMS)) * rms[:, None] / math.sqrt(TERMS)


def _draw_dust(sky: Sky, rng: np.random.Generator) -> np.ndarray:
    """(rows, columns) log-normal field of mean 1 and rms `sky.ebv_rms`, one cell where that is 0.

    The power spectrum of the logarithm goes as k^-2.7, as that of the cirrus (Miville-Deschenes et al. 2007, A&A 469,
    595).
    """
    if not sky.ebv_rms:
        return np.ones((1, 1))
    # Twice the field, so that its periodic repetition does not show.
    kx, ky = np.meshgrid(np.fft.rfftfreq(2 * DUST_CELLS), np.fft.fftfreq(2 * DUST_CELLS))
    k = np.hypot(kx, ky)
    k[0, 0] = np.inf
    noise = np.fft.rfft2(rng.normal(size=(2 * DUST_CELLS, 2 * DUST_CELLS)))
    rows, columns = (max(1, math.ceil(DUST_CELLS * side / max(sky.shape) - 1e-9)) for side in sky.shape)
    field = np.fft.irfft2(noise * k ** (-2.7 / 2), s=noise.shape[:1] * 2)[:rows, :columns]
    field = np.exp(math.sqrt(math.log1p(sky.ebv_rms**2)) * (field - field.mean()) / max(field.std(), 1e-12))
    return field / field.mean()


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
