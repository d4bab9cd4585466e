"""Instruments as data: pixel scale and, per band, filter, PSF, exposure, noise and depth (data/instruments/*.yaml).

Keys that all bands share may stand in `every_band`.

The noise of the sky follows from photon statistics and not from the depth; the published depth is what the tests
compare it with. Electrons per detector pixel over all exposures have the variance

    exposures (exposure_s (sky + dark_e_s) + read_noise_e^2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from deepdisc.errors import InputError, first_line, nearest
from deepdisc.files import read_yaml
from deepdisc.photometry import AB_ZERO_POINT_NJY
from deepdisc.simulate.filters import extinction_coefficient, load_filter, shipped_filters
from deepdisc.simulate.psfs import PSF, parse_psf

FOLDER = Path(__file__).parent / "data" / "instruments"


@dataclass(frozen=True)
class Band:
    """One band of an instrument.

    Attributes:
        name: the band's name in the mosaic.
        filter: a shipped transmission curve ("nircam_F444W"), or the path of a text file; see filters.py.
        psf: its point-spread function without the mosaic's pixel; see psfs.py.
        depth_5sigma: published depth: total AB magnitude of a point source of signal-to-noise 5.
        sky_mag_arcsec2: surface brightness of the sky, AB mag per square arcsec.
        exposure_s: time of one exposure, seconds.
        exposures: number of exposures of one place.
        electrons_zero_point: AB magnitude that gives one electron per second.
        read_noise_e: electrons per detector pixel and exposure.
        dark_e_s: dark current (and other glow that is no sky), electrons per second and detector pixel.
        saturation_e: full well, electrons per detector pixel in one exposure.
        depth_aperture_arcsec: diameter of the aperture that the depth is defined with, corrected for the light outside
            it; None: the PSF as weight.
        detector_pixel_arcsec: side of a detector's pixel; None: the mosaic's. The noise per area stays the same.
        noise_scale: calibration: what the noise by photon statistics is multiplied by to give the published depth.
        reddening: extinction A_b / E(B-V).
    """

    name: str
    filter: str
    psf: PSF
    depth_5sigma: float
    sky_mag_arcsec2: float
    exposure_s: float
    exposures: float
    electrons_zero_point: float
    read_noise_e: float
    dark_e_s: float
    saturation_e: float
    depth_aperture_arcsec: float | None = None
    detector_pixel_arcsec: float | None = None
    noise_scale: float = 1.0
    reddening: float | None = None

    @property
    def pivot_nm(self) -> float:
        """Pivot wavelength of the filter, nm."""
        return load_filter(self.filter).pivot_angstrom / 10

    @property
    def electrons_per_njy(self) -> float:
        """Electrons that 1 nJy gives in one exposure."""
        return self.exposure_s * 10 ** (0.4 * (self.electrons_zero_point - AB_ZERO_POINT_NJY))

    def noise_density_njy(self) -> float:
        """Standard deviation (nJy) of the sky in 1 square arcsec of all exposures."""
        pixel = self.detector_pixel_arcsec**2
        sky = 10 ** (0.4 * (self.electrons_zero_point - self.sky_mag_arcsec2)) * pixel
        variance = (self.exposure_s * (sky + self.dark_e_s) + self.read_noise_e**2) / pixel
        return self.noise_scale * math.sqrt(variance / self.exposures) / self.electrons_per_njy


@dataclass(frozen=True)
class Instrument:
    """A pixel scale (arcsec) and the bands, in the order asked for."""

    name: str
    pixel_scale_arcsec: float
    bands: tuple[Band, ...]

    @classmethod
    def load(cls, source: str, bands: Sequence[str] | None = None) -> Instrument:
        """Read a shipped instrument by name, or a YAML file of the same form by path.

        Args:
            source: "nircam", "sdss", ... or the path of a YAML file.
            bands: names of the bands wanted, in this order; None for all.

        Raises:
            InputError: no such instrument or band, or the file lacks a value or has one that makes no sense.
        """
        path = _path_of(source)
        description = read_yaml(path, "instrument")
        if not isinstance(description, Mapping) or not _maps(description.get("bands")):
            raise InputError(
                f"{path}: not an instrument; it needs pixel_scale_arcsec and bands, a mapping of keys for each"
            )
        scale = _number(description.get("pixel_scale_arcsec"), f"{path}: pixel_scale_arcsec", positive=True)
        shared = description.get("every_band") or {}
        every = {name: {**shared, **values} for name, values in description["bands"].items()}
        chosen = list(every) if bands is None else list(bands)
        for name in chosen:
            if name not in every:
                raise InputError(f"instrument {source!r} has no band {name!r}; it has {', '.join(every)}")
        made = tuple(_band(str(name), every[name], scale, path) for name in chosen)
        return cls(str(description.get("name", path.stem)), scale, made)


def _maps(bands: Any) -> bool:
    return isinstance(bands, Mapping) and all(isinstance(values, Mapping) for values in bands.values())


def shipped_instruments() -> tuple[str, ...]:
    """Names of the instruments that ship with the package."""
    return tuple(path.stem for path in sorted(FOLDER.glob("*.yaml")))


def _path_of(source: str) -> Path:
    path = FOLDER / f"{source}.yaml" if source in shipped_instruments() else Path(source)
    if not path.is_file():
        guess = nearest(source, shipped_instruments())
        hint = f"; did you mean {guess!r}?" if guess else ""
        known = ", ".join(shipped_instruments())
        raise InputError(f"no instrument {source!r}: give one of {known}, or the path of a .yaml file{hint}")
    return path


_TEXTS = ("name", "filter", "psf")
_KEYS = tuple(field.name for field in fields(Band)[1:])
_NEEDED = tuple(field.name for field in fields(Band)[1:] if field.default is MISSING)
_POSITIVE = ("exposure_s", "exposures", "saturation_e", "depth_aperture_arcsec", "detector_pixel_arcsec", "noise_scale")
_NOT_NEGATIVE = ("read_noise_e", "dark_e_s", "reddening")


def _band(name: str, values: Mapping[str, Any], scale: float, path: Path) -> Band:
    where = f"{path}: band {name}"
    missing, unknown = [key for key in _NEEDED if key not in values], [key for key in values if key not in _KEYS]
    if missing or unknown:
        problem = f"{missing[0]!r} is missing" if missing else f"unknown key {unknown[0]!r}"
        raise InputError(f"{where}: not an instrument: {problem}; a band has {', '.join(_KEYS)}")
    numbers = {
        key: _number(value, f"{where}: {key}", positive=key in _POSITIVE, negative=key not in _NOT_NEGATIVE)
        for key, value in values.items()
        if key not in _TEXTS
    }
    numbers.setdefault("detector_pixel_arcsec", scale)
    source = str(values["filter"])
    source = source if source in shipped_filters() else str(path.parent / source)
    try:
        load_filter(source)
        psf = parse_psf(values["psf"], path.parent)
        if "reddening" not in numbers:
            numbers["reddening"] = extinction_coefficient(source)
    except InputError as error:
        raise InputError(f"{where}: {first_line(error)}") from error
    return Band(name=name, filter=source, psf=psf, **numbers)


def _number(value: Any, where: str, *, positive: bool = False, negative: bool = True) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where} is {value!r}; it must be a number") from error
    if not math.isfinite(number) or (positive and number <= 0) or (not negative and number < 0):
        raise InputError(f"{where} is {value}; it must be {'positive' if positive else 'finite and not negative'}")
    return number
