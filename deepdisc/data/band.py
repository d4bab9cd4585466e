"""One band of a mosaic: its image, noise and mask read by rectangles and brought to nJy, nJy^2 and bool."""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections import ChainMap
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS, FITSFixedWarning

from deepdisc import photometry
from deepdisc.data.fits_plane import FitsFile, Plane, split_extension
from deepdisc.data.noise import NoiseMesh, estimate_mesh
from deepdisc.data.psf import read_psf
from deepdisc.data.sources import BandSource, add_own_variance
from deepdisc.errors import InputError
from deepdisc.sky import GRID_TOLERANCE_PIX, PixelGrid

_SCALE_TOLERANCE = 0.02
_STRIP_ROWS = 64
# FITS standard 4.0, section 8, for the two celestial axes, and the SIP convention's polynomials.
_WCS_KEYWORD = re.compile(
    r"WCSAXES|WCSNAME|NAXIS\d?|(CTYPE|CRVAL|CRPIX|CDELT|CUNIT|CROTA)\d|(CD|PC|PV|PS)\d_\d+|LONPOLE|LATPOLE|RADE(SYS|CSYS)"
    r"|EQUINOX|EPOCH|(A|B|AP|BP)_(ORDER|DMAX|\d+_\d+)"
)

# From MJy (-6) to the counts of a long exposure on a large telescope.
ZERO_POINT_RANGE = (-50.0, 60.0)


@dataclass(frozen=True)
class Sky:
    """What is measured from all of a band's pixels when it has to be: see `Band.sky`.

    Attributes:
        mesh: sky level and noise in nJy; None when neither is needed.
        variance_factor: the noise map's variance is multiplied by this.
    """

    mesh: NoiseMesh | None
    variance_factor: float


class BandPixels(NamedTuple):
    """A rectangle of a band, (h, w) each.

    Attributes:
        image: float32, nJy.
        variance: float32, nJy^2; None where there is no map, before the noise is estimated.
        bad: bool.
        saturated: bool; nowhere True unless the level is known.
    """

    image: np.ndarray
    variance: np.ndarray | None
    bad: np.ndarray
    saturated: np.ndarray


class FileShelf:
    """The FITS files of a mosaic, each opened (and unpacked) once however many bands it holds."""

    def __init__(self):
        self.files: dict[str, FitsFile] = {}

    def get(self, path: str, what: str) -> FitsFile:
        """The file of that path, opened when first asked for."""
        key = os.path.realpath(path)
        if key not in self.files:
            self.files[key] = FitsFile(path, what)
        return self.files[key]

    def close(self) -> None:
        """Close all files and remove what was unpacked."""
        for file in self.files.values():
            file.close()


class Band:
    """Reads one band.

    Args:
        source: where the pixels are and what they mean.
        shelf: opens the files.
        pixel_scale_arcsec: needed when the header has no WCS.
        background: "none" or "subtract".

    Attributes:
        name: the band.
        grid: its pixel grid.
        zero_point: AB magnitude of one image unit.
        noise_from: "variance", "rms" or "weight" map, or "estimated".
        saturate: level of saturation in image units, or None.
        psf: its point-spread function.

    Raises:
        InputError: files that are missing, damaged or of another shape; no zero point; no pixel scale; no valid pixel.
    """

    def __init__(
        self, source: BandSource, shelf: FileShelf, pixel_scale_arcsec: float | None = None, background: str = "none"
    ):
        self.name = source.name
        self.label = f"band {source.name}"
        self._background = background
        self._image = self._plane(shelf, source.image, source.plane, self.label)
        self.source = source = add_own_variance(source, self._image.file)
        header = self._image.header
        self.grid = _grid(header, self._image, pixel_scale_arcsec)
        self.zero_point = self._find_zero_point(header)
        low, high = ZERO_POINT_RANGE
        if not low <= self.zero_point <= high:
            raise InputError(
                f"band {source.name}: the zero point is {self.zero_point:g}; an AB magnitude of one image unit is "
                f"{low} to {high}: correct --zero-point, `zero_point:` in mosaic.yaml, or the header"
            )
        self.noise_from = source.noise_kind or "estimated"
        self.saturate = source.saturate if source.saturate is not None else self._stated_saturation(header)
        self._noise = source.noise
        if isinstance(source.noise, str):
            self._noise = self._plane(shelf, source.noise, source.plane, f"{source.noise_kind} map of {self.label}")
            self._check_map(self._noise)
        self._mask = None
        if source.mask:
            self._mask = self._plane(shelf, source.mask, source.plane, f"mask of {self.label}")
            self._check_map(self._mask)
        self._mask_bits = None if source.mask_bits is None else sum(1 << bit for bit in set(source.mask_bits))
        self._no_data = self._find_no_data()
        self.psf = read_psf(source, self.grid.pixel_scale_arcsec)
        self._sky: Sky | None = None
        self._lock = threading.Lock()
        self._require_valid_pixel()

    @staticmethod
    def _plane(shelf: FileShelf, text: str, plane: int | None, what: str) -> Plane:
        path, extension = split_extension(text)
        return Plane(shelf.get(path, what), extension, plane)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    @property
    def planes(self) -> list[Plane]:
        """The FITS planes this band reads."""
        return [plane for plane in (self._image, self._noise, self._mask) if isinstance(plane, Plane)]

    # ---------------------------------------------------------------------------------------------- opening
    def _find_zero_point(self, header: Any) -> float:
        source, name = self.source, f"{self.label}: {self._image.file.path}"
        if source.zero_point is not None:
            return source.zero_point
        merged = ChainMap(header, self._image.file.primary_header())
        if source.unit is None:
            return photometry.zero_point_from_header(merged, name)
        zero_point = photometry.zero_point_of_unit(str(source.unit), name, merged)
        if zero_point is None:
            raise InputError(f"{name}: {source.unit!r} is no flux unit; give for example nJy, uJy, nanomaggy or MJy/sr")
        return zero_point

    def _stated_saturation(self, header: Any) -> float | None:
        value = ChainMap(header, self._image.file.primary_header()).get("SATURATE")
        is_level = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
        return float(value) if is_level else None

    def _find_no_data(self) -> float | None:
        value = self.source.no_data
        if value == "none":
            return None
        if value is None and self._noise is None and not self._image.integer:
            return 0.0  # what resampling programs write where no exposure contributed
        return value

    def _check_map(self, plane: Plane) -> None:
        if plane.shape != self._image.shape:
            raise InputError(
                f"{plane.name} has {_size(plane.shape)} pixels, but the image {self._image.file.path} has "
                f"{_size(self._image.shape)}; give a map on the image's pixels"
            )
        wcs = celestial_wcs(plane.header)
        if wcs is None or self.grid.wcs is None:
            return
        offset = self.grid.offset_pix(PixelGrid.from_wcs(wcs, plane.shape))
        if offset > GRID_TOLERANCE_PIX:
            raise InputError(
                f"{plane.name} lies up to {offset:.2f} pixels away from its image {self._image.file.path} by their "
                "WCS; give a map on the image's pixels"
            )

    def _require_valid_pixel(self) -> None:
        """Look in the middle first; only a band without any pixel there is searched as a whole."""
        height, width = self._image.shape
        y, x = max(0, height // 2 - 16), max(0, width // 2 - 16)
        if not self._native(y, x, min(height, y + 32), min(width, x + 32)).bad.all():
            return
        for top in range(0, height, _STRIP_ROWS):
            for left in range(0, width, 4096):
                box = top, left, min(height, top + _STRIP_ROWS), min(width, left + 4096)
                if not self._native(*box).bad.all():
                    return
        raise InputError(
            f"{self.label}: {self._image.file.path} has no valid pixel: all are NaN, masked, without weight or equal "
            f"to no_data ({self._no_data}); leave the band out or correct its file"
        )

    # ---------------------------------------------------------------------------------------------- reading
    def _native(self, y0: int, x0: int, y1: int, x1: int) -> BandPixels:
        """A rectangle before sky and scaling."""
        factor = photometry.njy_per_count(self.zero_point)
        with np.errstate(over="ignore", invalid="ignore"):
            raw = self._image.read(y0, x0, y1, x1)
            image = (raw * factor).astype(np.float32, copy=False)
            variance = self._map_variance(y0, x0, y1, x1, factor)
        bad = ~np.isfinite(image)
        if self._no_data is not None:
            bad |= raw == self._no_data
        if variance is not None:
            bad |= ~(np.isfinite(variance) & (variance > 0))
        if self._mask is not None:
            bits = self._mask.read_bits(y0, x0, y1, x1)
            bad |= (bits if self._mask_bits is None else bits & self._mask_bits) != 0
        saturated = np.zeros(bad.shape, bool) if self.saturate is None else raw >= self.saturate
        return BandPixels(image, variance, bad, saturated)

    def _map_variance(self, y0: int, x0: int, y1: int, x1: int, factor: float) -> np.ndarray | None:
        if self._noise is None:
            return None
        if isinstance(self._noise, Plane):
            # Double precision: weights of images in maggies are beyond 1e24.
            values = self._noise.read(y0, x0, y1, x1).astype(np.float64)
        else:
            values = np.full((y1 - y0, x1 - x0), self._noise)
        if self.source.noise_kind == "weight":
            values = np.divide(1.0, values, out=np.full_like(values, np.nan), where=values > 0)
        elif self.source.noise_kind == "rms":
            values = np.where(values > 0, values, np.nan) ** 2
        return (values * factor**2).astype(np.float32)

    @property
    def sky(self) -> Sky:
        """What must be measured from the whole image, measured when first needed, one block of pixels at a time.

        The noise where there is no map of it; the sky level when it is to be subtracted; the factor that makes the
        robust scatter of image / sqrt(variance) on the sky one when weight_scale is "auto".
        """
        with self._lock:
            if self._sky is None:
                self._sky = self._measure_sky()
            return self._sky

    def _measure_sky(self) -> Sky:
        scale = None if self._noise is None else self.source.weight_scale  # an estimate needs no scaling
        factor = 1.0
        if scale == "auto":
            mesh = estimate_mesh(self._significance, self._image.shape, self.label)
            factor = float(np.median(mesh.sigma)) ** 2
        elif scale is not None:
            factor = 1.0 / float(scale)
        if self._noise is not None and self._background == "none":
            return Sky(None, factor)
        return Sky(estimate_mesh(self._image_and_bad, self._image.shape, self.label), factor)

    def _image_and_bad(self, *box: int) -> tuple[np.ndarray, np.ndarray]:
        pixels = self._native(*box)
        return pixels.image, pixels.bad

    def _significance(self, *box: int) -> tuple[np.ndarray, np.ndarray]:
        image, variance, bad, _ = self._native(*box)
        return image / np.sqrt(np.where(bad, 1.0, variance)), bad

    def read(self, y0: int, x0: int, y1: int, x1: int) -> BandPixels:
        """Pixels of a rectangle inside the image: image 0 and variance 1 where bad."""
        image, variance, bad, saturated = self._native(y0, x0, y1, x1)
        sky = self.sky
        if self._background == "subtract":
            image = image - sky.mesh.level_at(y0, x0, y1, x1)
        if variance is None:
            variance = sky.mesh.variance_at(y0, x0, y1, x1)
        if sky.variance_factor != 1.0:
            variance = variance * np.float32(sky.variance_factor)
        image[bad] = 0.0
        variance[bad] = 1.0
        return BandPixels(image, variance, bad, saturated)

    def describe(self) -> dict[str, Any]:
        """What a run should record about this band."""
        source = self.source
        return {
            "image": source.image,
            "zero_point": self.zero_point,
            "noise": source.noise if source.noise_kind else "estimated from the image",
            "noise_kind": self.noise_from,
            "mask": source.mask,
            "weight_scale": source.weight_scale,
            "saturate": self.saturate,
            "psf": self.psf.describe(self.grid.pixel_scale_arcsec),
            "psf_fwhm_arcsec": source.psf_fwhm_arcsec,
        }


def celestial_wcs(header: fits.Header) -> WCS | None:
    """The header's celestial WCS, or None without one."""
    # Dates and the observatory's place do not move pixels, but old notations of them make astropy warn at each copy.
    kept = fits.Header([card for card in header.cards if _WCS_KEYWORD.fullmatch(card.keyword)])
    with warnings.catch_warnings():
        # grizli writes CD beside PC and CDELT; the standard says that CD rules, and astropy says so.
        warnings.filterwarnings("ignore", message="cdelt will be ignored", category=RuntimeWarning)
        warnings.simplefilter("ignore", FITSFixedWarning)
        wcs = WCS(kept)
        return wcs.celestial if wcs.has_celestial else None


def _grid(header: Any, plane: Plane, pixel_scale_arcsec: float | None) -> PixelGrid:
    try:
        wcs = celestial_wcs(header)
    except Exception as error:  # noqa: BLE001  wcslib raises many kinds; the header is the user's
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"{plane.name}: its WCS cannot be understood ({reason}); correct the header") from error
    if wcs is not None:
        grid = PixelGrid.from_wcs(wcs, plane.shape)
        if pixel_scale_arcsec and abs(pixel_scale_arcsec / grid.pixel_scale_arcsec - 1) > _SCALE_TOLERANCE:
            raise InputError(
                f"{plane.name}: the stated pixel scale {pixel_scale_arcsec:g} arcsec contradicts its WCS "
                f"({grid.pixel_scale_arcsec:.4g} arcsec); leave it out"
            )
        return grid
    if not pixel_scale_arcsec:
        raise InputError(
            f"{plane.name} has no WCS, so its pixel scale is unknown; state it with --pixel-scale ARCSEC, or "
            "`pixel_scale_arcsec:` in mosaic.yaml"
        )
    return PixelGrid(plane.shape, pixel_scale_arcsec, None)


def _size(shape: tuple[int, int]) -> str:
    return f"{shape[1]} x {shape[0]}"
