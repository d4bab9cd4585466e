"""Drawing one object with GalSim: the light of all bands on a stamp just large enough.

B = number of bands, n = side of a stamp (odd). What is drawn: see `shapes`. Lengths are in pixels.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from deepdisc.errors import InputError, first_line, require_extra
from deepdisc.simulate.conditions import Conditions
from deepdisc.simulate.shapes import Shapes, draw_knots

# GalSim's accuracy by signal-to-noise. A cut at maxk leaves ripples of about maxk_threshold times the light, which must
# stay below the noise; folding_threshold is the share of the light that may come back from beyond the stamp.
_NAMES = ("minimum_fft_size", "folding_threshold", "maxk_threshold", "kvalue_accuracy")
ACCURACY = (
    (30.0, dict(zip(_NAMES, (32, 1e-2, 5e-3, 1e-3), strict=True))),
    (100.0, dict(zip(_NAMES, (64, 5e-3, 1e-3, 1e-4), strict=True))),
    (3000.0, dict(zip(_NAMES, (128, 1e-3, 1e-4, 1e-5), strict=True))),
    (math.inf, dict(zip(_NAMES, (128, 1e-3, 1e-5, 1e-6), strict=True))),
)
LONG_PERIOD = 1024  # pixels; grids are not made larger for light that is fainter than the noise
KEPT_BYTES = 2**28  # of transforms of PSFs that are kept for the next object
KEPT_STAMPS = 256  # pictures of real galaxies that are kept


@dataclass
class Stamp:
    """Light of one object on a square of pixels.

    Attributes:
        light: (B, n, n) float32, nJy.
        y0, x0: the field's pixel where the stamp begins, may be negative.
        flux_error: (B,) 1-sigma error, nJy, of the flux measured with the object's own profile as weight.
    """

    light: np.ndarray
    y0: int
    x0: int
    flux_error: np.ndarray

    def clip(self, shape: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """(slices of the field, slices of the stamp) where both overlap."""
        side = self.light.shape[-1]
        y0, x0 = max(self.y0, 0), max(self.x0, 0)
        y1, x1 = min(self.y0 + side, shape[0]), min(self.x0 + side, shape[1])
        inside = (slice(y0 - self.y0, y1 - self.y0), slice(x0 - self.x0, x1 - self.x0))
        return (slice(y0, y1), slice(x0, x1)), inside


@dataclass
class _Level:
    """One accuracy: GalSim's parameters, and what was made with them: round profiles by index, by cell the sharpest PSF
    (with the pixel), which tells how fine a grid must be.
    """

    highest_snr: float
    gsparams: Any
    profiles: dict[float, Any] = field(default_factory=dict)
    sharpest: dict[int, Any] = field(default_factory=dict)


class Painter:
    """Draws the objects of one field.

    The transform of each part of an object is drawn once, the parts are added with the shares they have in a band,
    multiplied by the band's PSF and pixel, whose transforms are kept, and transformed back: GalSim's
    `drawImage(method="auto")` in parts, as its `drawFFT_makeKImage` proposes.

    Args:
        conditions: of the field.
        real_galaxies: catalogue file of a `galsim.RealGalaxyCatalog`, for objects that are such stamps.
    """

    def __init__(self, conditions: Conditions, real_galaxies: str | None = None):
        self._galsim = require_extra("galsim", "sim")
        self._conditions = conditions
        self._scale = conditions.instrument.pixel_scale_arcsec
        self._variance, self._gain = conditions.sky_sigma_njy() ** 2, conditions.electrons_per_njy()
        self._levels = [
            _Level(snr, self._galsim.GSParams(maximum_fft_size=32_768, **options)) for snr, options in ACCURACY
        ]
        self._psfs: dict[int, list[Any]] = {}
        self._optics: OrderedDict[tuple, list[np.ndarray]] = OrderedDict()
        self._optics_bytes = 0
        self._real_path = real_galaxies
        self._real: dict[int, Any] = {}

    def paint(self, shapes: Shapes, row: int) -> Stamp:
        """Draw one object; also where its stamp lies outside the field."""
        level = next(level for level in self._levels if shapes.estimated_snr[row] < level.highest_snr)
        x, y = shapes.x[row], shapes.y[row]
        center = self._galsim.PositionD(x - math.floor(x + 0.5), y - math.floor(y + 0.5))
        parts = self._parts(shapes, row, center, level)
        light = self._observe(parts, int(shapes.half[row]), level, int(shapes.cell[row]), (x, y))
        error = np.empty(len(light))
        for band, flux in enumerate(shapes.flux[row]):
            # Horne 1986, PASP 98, 609, eq. 9: 1 / var(flux) = sum P^2 / V, with the object's own photons in V.
            noise = self._variance[band] + np.maximum(light[band] * flux, 0) / self._gain[band]
            error[band] = 1 / math.sqrt((light[band].astype(np.float64) ** 2 / noise).sum())
            light[band] *= np.float32(flux)
        y0, x0 = (int(corner[row]) for corner in shapes.corner)
        return Stamp(light, y0, x0, error)

    # ------------------------------------------------------------------------------------------------------- parts
    def _parts(self, shapes: Shapes, row: int, center: Any, level: _Level) -> list[tuple[np.ndarray, Any]]:
        """(B,) share of the light and profile of flux 1, shifted to `center`, for each part of an object."""
        everything = np.ones(shapes.flux.shape[1])
        if not shapes.is_galaxy[row]:
            return [(everything, self._galsim.DeltaFunction(gsparams=level.gsparams).shift(center))]
        if shapes.stamp[row] >= 0:
            return [(everything, self._real_galaxy(shapes, row, center, level))]
        bulge, parts = shapes.bulge_share[row], []
        knots = float(shapes.knot_share[row])
        if (bulge < 1).any():
            disk = self._round(shapes.disk_n[row], level)
            if knots < 1:
                parts.append(((1 - bulge) * (1 - knots), self._placed(disk, shapes.disk_map[row], center)))
            if knots > 0:
                parts.append(((1 - bulge) * knots, self._knots(shapes, row, center)))
        if (bulge > 0).any():
            parts.append((bulge, self._placed(self._round(shapes.bulge_n[row], level), shapes.bulge_map[row], center)))
        return parts

    def _round(self, n: float, level: _Level) -> Any:
        """The round profile of half-light radius 1; kept, because GalSim's tables of an index live as long as it."""
        key = round(float(n), 3)
        if key not in level.profiles:
            galsim, known = self._galsim, {0.5: "Gaussian", 1.0: "Exponential", 4.0: "DeVaucouleurs"}
            keywords = {"half_light_radius": 1.0, "gsparams": level.gsparams}
            level.profiles[key] = (
                getattr(galsim, known[key])(**keywords) if key in known else galsim.Sersic(key, **keywords)
            )
        return level.profiles[key]

    def _placed(self, profile: Any, matrix: np.ndarray, center: Any) -> Any:
        """A round profile under a linear map, its flux kept."""
        return self._galsim.Transformation(
            profile, jac=matrix.ravel().tolist(), flux_ratio=1 / abs(np.linalg.det(matrix)), offset=center
        )

    def _knots(self, shapes: Shapes, row: int, center: Any) -> Points:
        place, light = draw_knots(int(shapes.seed[row]), int(shapes.knots[row]), float(shapes.disk_n[row]))
        return Points(place @ shapes.disk_map[row].T + [center.x, center.y], light)

    def _real_galaxy(self, shapes: Shapes, row: int, center: Any, level: _Level) -> Any:
        """The picture of a real galaxy without its telescope's PSF, scaled to the half-light radius asked for."""
        number = int(shapes.stamp[row])
        if number not in self._real:
            if len(self._real) >= KEPT_STAMPS:
                self._real.pop(next(iter(self._real)))
            self._real[number] = self._read_real(number)
        profile, hlr_arcsec = self._real[number]
        return self._placed(profile.withGSParams(level.gsparams), shapes.disk_map[row] / hlr_arcsec, center)

    def _read_real(self, number: int) -> tuple[Any, float]:
        """Profile of flux 1 and its half-light radius, arcsec; the PSF's is taken off in squares."""
        catalog = self._catalog
        if number >= catalog.nobjects:
            raise InputError(f"stamp {number} is not in {self._real_path}, which has {catalog.nobjects} galaxies")
        galaxy = self._galsim.RealGalaxy(catalog, index=number, flux=1.0)
        seen, psf = galaxy.original_gal.calculateHLR(), galaxy.original_psf.calculateHLR()
        return galaxy, math.sqrt(max(seen**2 - psf**2, (0.3 * psf) ** 2))

    @cached_property
    def _catalog(self) -> Any:
        if self._real_path is None:
            raise InputError("an object is the picture of a real galaxy: say in sky.real_galaxies which catalogue's")
        try:
            return self._galsim.RealGalaxyCatalog(str(self._real_path))
        except (OSError, self._galsim.GalSimError) as error:
            raise InputError(
                f"sky.real_galaxies is {self._real_path}: not a catalogue of real galaxies in GalSim's form "
                f"({first_line(error)}); give the path of its FITS table"
            ) from error

    # --------------------------------------------------------------------------------------------------- observing
    def _observe(
        self, parts: list[tuple[np.ndarray, Any]], half: int, level: _Level, cell: int, place: tuple[float, float]
    ) -> np.ndarray:
        """(B, 2 half + 1, 2 half + 1) float32: the parts, of total flux 1, through every band's PSF and pixel."""
        galsim = self._galsim
        light = np.empty((len(self._conditions.bands), 2 * half + 1, 2 * half + 1), dtype=np.float32)
        images = [galsim.ImageF(band, xmin=-half, ymin=-half, scale=1.0) for band in light]
        point = galsim.DeltaFunction(gsparams=level.gsparams)
        like = [point if isinstance(part, Points) else part for _, part in parts]
        seen = galsim.Convolve([galsim.Add(like), self._sharpest(level, cell, place)], gsparams=level.gsparams)
        transform, size = _k_image(galsim, seen, half)
        bare = []
        for _, part in parts:
            part.drawKImage(transform, recenter=False)
            bare.append(transform.array.copy())
        shares = np.array([share for share, _ in parts], dtype=np.float32)
        same = (shares == shares[:, :1]).all()
        total = _combine(bare, shares[:, 0])
        for band, (image, optics) in enumerate(zip(images, self._optics_like(transform, cell, place), strict=True)):
            np.multiply(total if same else _combine(bare, shares[:, band]), optics, out=transform.array)
            seen.drawFFT_finish(image, transform, size, add_to_image=False)
        return light

    def _psf(self, band: int, place: tuple[float, float], gsparams: Any) -> Any:
        """A band's PSF at x, y with the pixel."""
        psf = self._conditions.psf(band, *place, gsparams=gsparams).dilate(1 / self._scale)
        return self._galsim.Convolve([psf, self._galsim.Pixel(1.0, gsparams=gsparams)], gsparams=gsparams)

    def _every_psf(self, cell: int, place: tuple[float, float]) -> list[Any]:
        """The bands' PSFs in the cell that holds x, y, at the highest accuracy."""
        if cell not in self._psfs:
            finest = self._levels[-1].gsparams
            self._psfs[cell] = [self._psf(band, place, finest) for band in range(len(self._conditions.bands))]
        return self._psfs[cell]

    def _sharpest(self, level: _Level, cell: int, place: tuple[float, float]) -> Any:
        """The PSF of the band that needs the finest grid."""
        if cell not in level.sharpest:
            highest = [psf.maxk for psf in self._every_psf(cell, place)]
            level.sharpest[cell] = self._psf(int(np.argmax(highest)), place, level.gsparams)
        return level.sharpest[cell]

    def _optics_like(self, like: Any, cell: int, place: tuple[float, float]) -> Iterable[np.ndarray]:
        """The bands' transforms of PSF and pixel on the same grid as `like`; those used last are kept, unless huge."""
        key, psfs = (cell, like.bounds.ymax, like.scale), self._every_psf(cell, place)
        if like.array.nbytes * len(psfs) > KEPT_BYTES // 4:
            return (_transform_like(psf, like) for psf in psfs)
        if key not in self._optics:
            self._optics[key] = [_transform_like(psf, like) for psf in psfs]
            self._optics_bytes += _bytes(self._optics[key])
            while self._optics_bytes > KEPT_BYTES and len(self._optics) > 1:
                self._optics_bytes -= _bytes(self._optics.popitem(last=False)[1])
        self._optics.move_to_end(key)
        return self._optics[key]


def _k_image(galsim: Any, seen: Any, half: int) -> tuple[Any, int]:
    """An empty k-image for a stamp, and the side of the periodic grid of pixels that it is transformed to.

    As GalSim's `drawFFT_makeKImage`, but for the period, which there holds nearly all light of the object (5,000 pixels
    for a bulge of 15): LONG_PERIOD or two stamps are enough, because outside its stamp an object is fainter than
    STAMP_LEVEL.
    """
    least, enough = max(2 * half + 2, seen.gsparams.minimum_fft_size), max(4 * half + 2, LONG_PERIOD)
    size = galsim.Image.good_fft_size(max(min(seen.getGoodImageSize(1.0), enough), least))
    # In quarters of the pixels' own frequencies, so that the transforms of PSFs that are kept serve many objects.
    side = size * max(4, math.ceil(4 * seen.maxk / math.pi)) // 4
    return galsim.ImageCF(galsim.BoundsI(0, side // 2, -side // 2, side // 2), scale=2 * math.pi / size), size


def _transform_like(psf: Any, like: Any) -> np.ndarray:
    """The transform on the grid of a k-image; 0 beyond the PSF's own highest frequency, where GalSim's pictures end."""
    transform = psf.drawKImage(like.copy(), recenter=False).array
    bounds = like.bounds
    kx, ky = (like.scale * np.arange(a, b + 1) for a, b in ((bounds.xmin, bounds.xmax), (bounds.ymin, bounds.ymax)))
    return transform * ((abs(kx) <= psf.maxk) & (abs(ky) <= psf.maxk)[:, None])


class Points:
    """Points at (J, 2) positions x, y with (J,) light, together 1; draws its transform as GalSim's profiles do."""

    def __init__(self, positions: np.ndarray, light: np.ndarray):
        self.positions, self.light = positions, light

    def drawKImage(self, image: Any, recenter: bool) -> None:  # noqa: N802
        """Fill a k-image: the sum of light exp(-i (kx x + ky y)), a product of two factors for each point."""
        bounds = image.bounds
        kx = image.scale * np.arange(bounds.xmin, bounds.xmax + 1)
        ky = image.scale * np.arange(bounds.ymin, bounds.ymax + 1)
        along_x = np.exp(-1j * np.outer(self.positions[:, 0], kx)).astype(np.complex64)
        along_y = (self.light[:, None] * np.exp(-1j * np.outer(self.positions[:, 1], ky))).astype(np.complex64)
        # einsum and not @: its sums do not depend on the number of threads.
        image.array[:] = np.einsum("jy,jx->yx", along_y, along_x)


def _combine(transforms: list[np.ndarray], shares: np.ndarray) -> np.ndarray:
    total = transforms[0] * shares[0]
    for transform, share in zip(transforms[1:], shares[1:], strict=True):
        total += transform * share
    return total


def _bytes(arrays: list[np.ndarray]) -> int:
    return sum(array.nbytes for array in arrays)
