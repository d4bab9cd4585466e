"""Point-spread functions as data: what an instrument's YAML says of a band's PSF, and the GalSim profile of it.

Profiles have flux 1, lengths in arcsec, and do not include the pixel: drawing adds it. Kinds:

    psf: {kind: moffat, fwhm_arcsec: 1.3, beta: 3.0}
    psf: {kind: optical, diameter_m: 2.0, obscuration: 0.0, jitter_arcsec: 0.05}   # and struts, aberrations_waves
    psf: {kind: image, file: f444w.fits, stretch: 1.0, jitter_arcsec: 0.0}
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.io import fits

from deepdisc.errors import InputError, require_extra

if TYPE_CHECKING:
    import galsim

FOLDER = Path(__file__).parent / "data" / "psfs"


@dataclass(frozen=True)
class MoffatPSF:
    """Seeing: I ~ (1 + (r/a)^2)^-beta (Moffat 1969, A&A 3, 455); `fwhm_arcsec` is its width without the pixel."""

    fwhm_arcsec: float
    beta: float = 3.0

    def profile(self, wavelength_nm: float, **keywords: Any) -> galsim.GSObject:
        """The profile; the wavelength does not matter."""
        return require_extra("galsim", "sim").Moffat(beta=self.beta, fwhm=self.fwhm_arcsec, **keywords)


@dataclass(frozen=True)
class OpticalPSF:
    """Diffraction by a telescope, and a Gaussian for the jitter of its pointing and the diffusion of charge.

    Attributes:
        diameter_m: of the aperture.
        obscuration: diameter of the central obscuration, in units of the aperture's.
        struts: number of struts that hold the secondary mirror; 0 for none.
        strut_thickness: in units of the diameter.
        strut_angle_deg: of the first strut.
        aberrations_waves: Zernike coefficients from the 4th (defocus) on, in waves, Noll's order.
        jitter_arcsec: standard deviation per axis of the Gaussian; 0 for none.
    """

    diameter_m: float
    obscuration: float = 0.0
    struts: int = 0
    strut_thickness: float = 0.05
    strut_angle_deg: float = 0.0
    aberrations_waves: tuple[float, ...] = ()
    jitter_arcsec: float = 0.0

    def profile(self, wavelength_nm: float, **keywords: Any) -> galsim.GSObject:
        """The profile at one wavelength; an Airy pattern where nothing but the aperture is given."""
        galsim = require_extra("galsim", "sim")
        aperture = {"lam": wavelength_nm, "diam": self.diameter_m, "obscuration": self.obscuration}
        if not self.struts and not any(self.aberrations_waves):
            return _blurred(galsim.Airy(**aperture, scale_unit=galsim.arcsec, **keywords), self.jitter_arcsec, keywords)
        optics = galsim.OpticalPSF(
            **aperture,
            nstruts=int(self.struts),
            strut_thick=self.strut_thickness,
            strut_angle=self.strut_angle_deg * galsim.degrees,
            aberrations=[0, 0, 0, 0, *self.aberrations_waves],
            scale_unit=galsim.arcsec,
            **keywords,
        )
        return _blurred(optics, self.jitter_arcsec, keywords)


@dataclass(frozen=True)
class ImagePSF:
    """A measured or computed image of a star, its centre in the middle of the picture.

    Attributes:
        file: FITS file whose header has the pixel scale (PIXELSCL, PIXSCL or PIXSCALE, arcsec), the image in its first
            extension that holds one; a name in data/psfs, or a path (relative ones from the instrument's file).
        stretch: factor on its width, for a band whose image is taken from another: the ratio of the wavelengths.
        jitter_arcsec: as that of OpticalPSF, for images that lack it.
    """

    file: str
    stretch: float = 1.0
    jitter_arcsec: float = 0.0

    def profile(self, wavelength_nm: float, **keywords: Any) -> galsim.GSObject:
        """The interpolated image, its sum taken for the whole light; the wavelength does not matter."""
        return _blurred(_interpolated(self.file, **keywords).dilate(self.stretch), self.jitter_arcsec, keywords)


PSF = MoffatPSF | OpticalPSF | ImagePSF
_KINDS = {"moffat": MoffatPSF, "optical": OpticalPSF, "image": ImagePSF}
_POSITIVE = ("fwhm_arcsec", "diameter_m", "stretch")


def _blurred(profile: galsim.GSObject, sigma_arcsec: float, keywords: Mapping[str, Any]) -> galsim.GSObject:
    galsim = require_extra("galsim", "sim")
    if not sigma_arcsec:
        return profile
    return galsim.Convolve([profile, galsim.Gaussian(sigma=sigma_arcsec, **keywords)], **keywords)


def parse_psf(description: Any, folder: Path) -> PSF:
    """The PSF of a YAML mapping.

    Args:
        description: keys `kind` and those of the kind.
        folder: of the YAML file, from which relative paths start.

    Raises:
        InputError: it is no mapping, the kind or a key is unknown or missing, or a value is no such number.
    """
    if not isinstance(description, Mapping) or description.get("kind") not in _KINDS:
        raise InputError(f"psf is {description}; give a mapping with kind: {', '.join(_KINDS)}")
    kind = _KINDS[description["kind"]]
    given = {name: value for name, value in description.items() if name != "kind"}
    allowed = {field.name: field for field in fields(kind)}
    unknown = [name for name in given if name not in allowed]
    missing = [name for name, field in allowed.items() if field.default is MISSING and name not in given]
    if unknown or missing:
        problem = f"unknown key {unknown[0]!r}" if unknown else f"{missing[0]!r} is missing"
        raise InputError(f"psf of kind {description['kind']}: {problem}; its keys are {', '.join(allowed)}")
    values = {name: _value(name, value, folder) for name, value in given.items()}
    return kind(**values)


def _value(name: str, value: Any, folder: Path) -> Any:
    if name == "file":
        shipped = FOLDER / str(value)
        return str(shipped if shipped.is_file() else folder / str(value))
    try:
        number = tuple(float(one) for one in value) if name == "aberrations_waves" else float(value)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"psf: {name} is {value!r}; it must be a number (aberrations_waves: a list of them)"
        ) from error
    if name != "aberrations_waves" and (number < 0 or (name in _POSITIVE and number == 0) or not math.isfinite(number)):
        raise InputError(f"psf: {name} is {value}; it must be positive")
    return number


@functools.lru_cache(maxsize=64)
def _interpolated(file: str, **keywords: Any) -> galsim.GSObject:
    """The picture as a profile of flux 1; kept, because GalSim's profiles hold large tables that copies share."""
    galsim = require_extra("galsim", "sim")
    pixels, scale = read_psf_image(file)
    return galsim.InterpolatedImage(galsim.Image(pixels, scale=scale), flux=1.0, **keywords)


@functools.cache
def read_psf_image(path: str) -> tuple[np.ndarray, float]:
    """(n, n) float64 image of sum 1 and its pixel scale (arcsec).

    Raises:
        InputError: it cannot be read, has no pixel scale, is not square or has no light.
    """
    try:
        with fits.open(path) as file:
            hdu = next((one for one in file if one.is_image and one.data is not None and one.data.ndim == 2), None)
            if hdu is None:
                raise InputError(f"{path}: holds no image; give a FITS file with a picture of a star")
            pixels, header = np.array(hdu.data, dtype=np.float64), dict(hdu.header)
    except OSError as error:
        raise InputError(f"cannot read the PSF image {path}: {error.strerror or error}; check its path") from error
    scale = next((header[key] for key in ("PIXELSCL", "PIXSCL", "PIXSCALE") if key in header), None)
    if scale is None:
        raise InputError(f"{path}: its header has no PIXELSCL (arcsec per pixel); add it")
    if pixels.shape[0] != pixels.shape[1] or not np.isfinite(pixels).all() or pixels.sum() <= 0:
        raise InputError(f"{path}: a PSF image must be square, finite and hold light; it is {pixels.shape}")
    return pixels / pixels.sum(), float(scale)


@functools.cache
def fwhm_arcsec(psf: PSF, wavelength_nm: float) -> float:
    """Full width at half maximum without the pixel."""
    return psf.fwhm_arcsec if isinstance(psf, MoffatPSF) else float(psf.profile(wavelength_nm).calculateFWHM())


@functools.cache
def radial_profile(psf: PSF, wavelength_nm: float) -> tuple[np.ndarray, np.ndarray]:
    """Radii (arcsec) and the highest surface brightness (per square arcsec, of flux 1) at or beyond each, in any
    direction: spikes count.
    """
    profile, side = psf.profile(wavelength_nm), 257
    radii, brightness = [], []
    for step in fwhm_arcsec(psf, wavelength_nm) * np.array([0.1, 1.0]):
        image = profile.drawImage(nx=side, ny=side, scale=step, method="no_pixel", dtype=np.float64).array / step**2
        pixels = np.hypot(*(np.indices(image.shape) - side // 2)).round().astype(int).ravel()
        brightest = np.zeros(pixels.max() + 1)
        np.maximum.at(brightest, pixels, image.ravel())
        wanted = slice(0 if not radii else 13, side // 2)  # the coarse picture goes on where the fine one ends
        radii.append(np.arange(len(brightest))[wanted] * step)
        brightness.append(brightest[wanted])
    falling = np.maximum.accumulate(np.concatenate(brightness)[::-1])[::-1]
    return np.concatenate(radii), np.maximum(falling, 0)


# ------------------------------------------------------------------------------------------- variation over the field
TERMS = 5  # of a polynomial of second order, without the constant


def variation_terms(u: Any, v: Any) -> np.ndarray:
    """(5, ...) products of Legendre polynomials at u, v in -1..1, each of mean 0 and mean square 1 over the square."""
    u, v = np.asarray(u, dtype=np.float64), np.asarray(v, dtype=np.float64)
    second = math.sqrt(5) / 2
    return np.stack([math.sqrt(3) * u, math.sqrt(3) * v, 3 * u * v, second * (3 * u**2 - 1), second * (3 * v**2 - 1)])
