"""Drawing one object with GalSim: the light of all bands on a stamp just large enough.

B = number of bands, n = side of a stamp (odd). Galaxies are an exponential disc and a de Vaucouleurs bulge of the same
spectrum, so that every band's total flux is the population's; stars are the PSF.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepdisc.errors import require_extra
from deepdisc.simulate.conditions import Conditions
from deepdisc.simulate.population import GALAXY

STAMP_LEVEL = 0.1  # a stamp ends where the light falls below this signal-to-noise per pixel
HALF_SIZES = (6, 256)  # smallest and largest half side of a stamp, pixels
NEGLIGIBLE = 0.01  # a bulge or disc with a smaller share of the light is left out, the other takes it over
# GalSim's accuracy by signal-to-noise. A cut at maxk leaves ripples of about maxk_threshold times the light, which must
# stay below the noise; folding_threshold is the share of the light that may come back from beyond the stamp.
_NAMES = ("minimum_fft_size", "folding_threshold", "maxk_threshold", "kvalue_accuracy")
ACCURACY = (
    (30.0, dict(zip(_NAMES, (32, 1e-2, 5e-3, 1e-3), strict=True))),
    (300.0, dict(zip(_NAMES, (64, 5e-3, 1e-3, 1e-4), strict=True))),
    (3000.0, dict(zip(_NAMES, (128, 1e-3, 1e-4, 1e-5), strict=True))),
    (math.inf, dict(zip(_NAMES, (128, 1e-3, 1e-5, 1e-6), strict=True))),
)


@dataclass
class Stamp:
    """Light of one object on a square of pixels.

    Attributes:
        light: (B, n, n) float32, nJy.
        y0, x0: the field's pixel where the stamp begins, may be negative.
    """

    light: np.ndarray
    y0: int
    x0: int

    def clip(self, shape: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """(slices of the field, slices of the stamp) where both overlap."""
        side = self.light.shape[-1]
        y0, x0 = max(self.y0, 0), max(self.x0, 0)
        y1, x1 = min(self.y0 + side, shape[0]), min(self.x0 + side, shape[1])
        inside = (slice(y0 - self.y0, y1 - self.y0), slice(x0 - self.x0, x1 - self.x0))
        return (slice(y0, y1), slice(x0, x1)), inside


@dataclass
class _Level:
    """One accuracy: GalSim's parameters, the bands' PSFs with the pixel, and their transforms by grid."""

    highest_snr: float
    gsparams: Any
    psfs: list[Any]
    optics: dict[tuple[int, float], list[np.ndarray]]


class Painter:
    """Draws the objects of one field.

    An object's Fourier transform is drawn once, multiplied by each band's PSF and pixel, whose transforms are kept, and
    transformed back: GalSim's `drawImage(method="auto")` in parts, as its `drawFFT_makeKImage` proposes. Lengths are in
    pixels here, for that is what these parts of GalSim expect.
    """

    def __init__(self, conditions: Conditions):
        self._galsim = require_extra("galsim", "sim")
        self._conditions = conditions
        self._scale = conditions.instrument.pixel_scale_arcsec
        self._sigma = conditions.sky_sigma_njy()
        self._flux_names = [f"flux_{band.name}" for band in conditions.bands]
        self._levels = [self._level(snr, options) for snr, options in ACCURACY]
        self._sharpest = int(conditions.psf_fwhm_arcsec.argmin())

    def _level(self, highest_snr: float, options: dict[str, Any]) -> _Level:
        galsim = self._galsim
        gsparams = galsim.GSParams(maximum_fft_size=16_384, **options)
        pixel = galsim.Pixel(1.0, gsparams=gsparams)
        psfs = [
            galsim.Convolve([self._conditions.psf(band, gsparams=gsparams).dilate(1 / self._scale), pixel])
            for band in range(len(self._flux_names))
        ]
        return _Level(highest_snr, gsparams, psfs, {})

    def paint(self, source: Any) -> Stamp | None:
        """Draw one object.

        Args:
            source: one row of the objects, with attributes by column name (`DataFrame.itertuples`).

        Returns:
            The stamp, or None if it lies outside the field.
        """
        fluxes = [getattr(source, name) for name in self._flux_names]
        half = self.half_size(source, fluxes)
        x, y = math.floor(source.x + 0.5), math.floor(source.y + 0.5)
        height, width = self._conditions.grid.shape
        if not (-half <= x < width + half and -half <= y < height + half):
            return None
        level = next(level for level in self._levels if source.snr_estimate < level.highest_snr)
        bare = self._galaxy(source, level.gsparams) if source.class_id == GALAXY else self._galsim.DeltaFunction()
        profile = bare.shift(source.x - x, source.y - y)
        return Stamp(self._observe(profile, fluxes, half, level), y - half, x - half)

    def _observe(self, profile: Any, fluxes: Sequence[float], half: int, level: _Level) -> np.ndarray:
        """(B, 2 half + 1, 2 half + 1) float32: the profile of unit flux, seen through every band's PSF and pixel."""
        galsim = self._galsim
        light = np.empty((len(fluxes), 2 * half + 1, 2 * half + 1), dtype=np.float32)
        images = [galsim.ImageF(band, xmin=-half, ymin=-half, scale=1.0) for band in light]
        seen = galsim.Convolve([profile, level.psfs[self._sharpest]], gsparams=level.gsparams)
        transform, size = seen.drawFFT_makeKImage(images[0])
        profile.drawKImage(transform, recenter=False)
        bare = transform.array.copy()
        for image, flux, optics in zip(images, fluxes, self._optics(transform, level), strict=True):
            np.multiply(bare, optics, out=transform.array)
            transform.array[:] *= np.float32(flux)
            seen.drawFFT_finish(image, transform, size, add_to_image=False)
        return light

    def _optics(self, like: Any, level: _Level) -> list[np.ndarray]:
        """The bands' transforms of PSF and pixel on the same grid as `like`, kept for the next object."""
        key = (like.bounds.ymax, like.scale)
        if key not in level.optics:
            level.optics[key] = [psf.drawKImage(like.copy(), recenter=False).array for psf in level.psfs]
        return level.optics[key]

    def _galaxy(self, source: Any, gsparams: Any) -> Any:
        """Disc plus bulge of unit flux, without the PSF, in pixels."""
        galsim, scale = self._galsim, self._scale
        share = _bulge_share(source)
        angle = source.angle_rad * galsim.radians
        parts = []
        if share < 1:
            hlr = source.disk_hlr_arcsec / scale
            disk = galsim.Exponential(half_light_radius=hlr, flux=1 - share, gsparams=gsparams)
            parts.append(disk.shear(q=source.disk_axis_ratio, beta=angle))
        if share > 0:
            hlr = source.bulge_hlr_arcsec / scale
            bulge = galsim.DeVaucouleurs(half_light_radius=hlr, flux=share, gsparams=gsparams)
            parts.append(bulge.shear(q=source.bulge_axis_ratio, beta=angle))
        return parts[0] if len(parts) == 1 else galsim.Add(parts, gsparams=gsparams)

    def half_size(self, source: Any, fluxes: Sequence[float]) -> int:
        """Half side (pixels) of the stamp: where disc, bulge and PSF fall below STAMP_LEVEL, plus one PSF width."""
        amplitude = math.sqrt(sum((flux / sigma) ** 2 for flux, sigma in zip(fluxes, self._sigma, strict=True)))
        per_arcsec2 = amplitude * self._scale**2 / STAMP_LEVEL  # total light over the level, if spread over 1 arcsec2
        fwhm = float(self._conditions.psf_fwhm_arcsec.max())
        radius = _moffat_radius(per_arcsec2, fwhm, self._conditions.moffat_beta)
        if source.class_id == GALAXY:
            share = _bulge_share(source)
            if share < 1:
                radius = max(
                    radius, _disk_radius((1 - share) * per_arcsec2, source.disk_hlr_arcsec, source.disk_axis_ratio)
                )
            if share > 0:
                radius = max(
                    radius, _bulge_radius(share * per_arcsec2, source.bulge_hlr_arcsec, source.bulge_axis_ratio)
                )
        return int(min(max(math.ceil((radius + fwhm) / self._scale), HALF_SIZES[0]), HALF_SIZES[1]))


def _bulge_share(source: Any) -> float:
    """The bulge's share of the light, rounded to 0 or 1 where the rest is negligible."""
    share = float(source.bulge_fraction)
    if share < NEGLIGIBLE:
        return 0.0
    return 1.0 if share > 1 - NEGLIGIBLE else share


# Radii (arcsec, along the major axis) where a profile of total light `light` falls to 1 per square arcsec.
def _moffat_radius(light: float, fwhm: float, beta: float) -> float:
    """Moffat 1969: I = light (beta - 1) / (pi a^2) (1 + (r/a)^2)^-beta, a = fwhm / (2 sqrt(2^(1/beta) - 1))."""
    a = fwhm / (2 * math.sqrt(2 ** (1 / beta) - 1))
    excess = (light * (beta - 1) / (math.pi * a**2)) ** (1 / beta) - 1
    return a * math.sqrt(excess) if excess > 0 else 0.0


def _disk_radius(light: float, hlr: float, axis_ratio: float) -> float:
    """I = light / (2 pi h^2) exp(-r/h), half-light radius 1.678 h."""
    h = hlr / 1.678
    peak = light / (2 * math.pi * h**2)
    return h / math.sqrt(axis_ratio) * math.log(peak) if peak > 1 else 0.0


def _bulge_radius(light: float, hlr: float, axis_ratio: float) -> float:
    """I = I_e exp(-7.669 ((r/R)^(1/4) - 1)), light = 7.215 pi R^2 I_e (Graham & Driver 2005, PASA 22, 118)."""
    at_hlr = light / (7.215 * math.pi * hlr**2)
    root = 1 + math.log(at_hlr) / 7.669
    return hlr / math.sqrt(axis_ratio) * root**4 if root > 0 else 0.0
