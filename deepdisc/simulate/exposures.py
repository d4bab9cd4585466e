"""Several exposures of one sky: telemetry, zero points that follow from it, seeing, pointing; and their mean.

H, W = height and width of the field in pixels. The zero point of an exposure is the AB magnitude that gives one
electron per second:

    zero point = ZP0 - k_b (airmass - 1) + c_T (temperature - 10 C) + c_H (humidity - 30 %) / 100 % - clouds + night

with ZP0 the instrument's (`electrons_zero_point`) and k_b the band's extinction in mag per airmass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.fft

from deepdisc.catalog import Column
from deepdisc.errors import InputError
from deepdisc.simulate.checks import Range, check_numbers, check_ranges, is_number

if TYPE_CHECKING:
    from deepdisc.simulate.conditions import Conditions

FIRST_NIGHT_MJD = 60_000.0
MERIDIAN_FRACTION = 0.2  # of the day (UT), when the field crosses the meridian: sidereal time's drift is left out
COOLING_PER_HOUR = 0.5  # K, as the night goes on
DRYING_PER_KELVIN = 2.0  # per cent of humidity that a warmer hour has less


@dataclass(frozen=True)
class Exposures:
    """N exposures of each field and band in place of one image. Ranges are (low, high).

    Their noise is such that their mean has the depth of the field (at zenith, without clouds). All share the field's
    pixel grid: they are registered, up to `registration_pix`; `dither_pix` moves the detectors, that is gaps, against
    the sky. The PSF of the field's conditions is the best there is, at zenith.

    Attributes:
        number: of exposures in each band.
        nights: over which they are spread evenly.
        latitude_deg: of the observatory.
        hour_angle_h: range of the hour angle; the airmass follows from it.
        extinction: mag per airmass: one number, or {band: number}.
        temperature_c: range of the nights' mean temperature.
        temperature_coefficient: c_T, mag per K.
        humidity_percent: range of the nights' mean humidity.
        humidity_coefficient: c_H, mag per 100 %.
        wind_m_s: mean wind; each exposure's is Weibull-distributed (shape 2).
        cloudy_nights: share of the nights with clouds.
        clouds_mag: mean extinction by clouds in such nights, exponential.
        night_rms: standard deviation, mag, of a term that each night has in each band.
        header_error: standard deviation, mag, of the header's zero point about the true one.
        seeing_scatter: standard deviation of the logarithm of the seeing (natural), above the best.
        seeing_airmass_power: the seeing grows as airmass to this power; 0.6 for Kolmogorov turbulence.
        dither_pix: largest shift of the detectors along each axis, whole pixels.
        registration_pix: standard deviation of each exposure's shift along each axis, which its WCS does not know of.
    """

    number: int = 4
    nights: int = 2
    latitude_deg: float = -30.0
    hour_angle_h: Range = (-3.0, 3.0)
    extinction: float | Mapping[str, float] = 0.1
    temperature_c: Range = (5.0, 18.0)
    temperature_coefficient: float = 0.0
    humidity_percent: Range = (10.0, 60.0)
    humidity_coefficient: float = 0.0
    wind_m_s: float = 6.0
    cloudy_nights: float = 0.0
    clouds_mag: float = 0.1
    night_rms: float = 0.0
    header_error: float = 0.0
    seeing_scatter: float = 0.0
    seeing_airmass_power: float = 0.0
    dither_pix: int = 0
    registration_pix: float = 0.0

    def __post_init__(self):
        check_ranges(self, "sky.exposures", _RANGES)
        check_numbers(self, "sky.exposures", _NUMBERS)
        if isinstance(self.extinction, Mapping):
            object.__setattr__(self, "extinction", {str(name): k for name, k in self.extinction.items()})
        for k in self.extinction.values() if isinstance(self.extinction, Mapping) else [self.extinction]:
            if not is_number(k) or not 0 <= k <= 5:
                raise InputError(f"sky.exposures.extinction holds {k!r}; mag per airmass must be within 0 to 5")

    def extinction_of(self, band: str) -> float:
        """Magnitudes per airmass of a band.

        Raises:
            InputError: the mapping lacks it.
        """
        if not isinstance(self.extinction, Mapping):
            return float(self.extinction)
        if band not in self.extinction:
            raise InputError(
                f"sky.exposures.extinction has no band {band!r}; it has {', '.join(self.extinction)}; add it, or give "
                "one number"
            )
        return self.extinction[band]


_RANGES = {"hour_angle_h": (-12, 12), "temperature_c": (-60, 60), "humidity_percent": (0, 100)}
_NUMBERS = {
    "number": (1, 999),
    "nights": (1, 10_000),
    "latitude_deg": (-90, 90),
    "temperature_coefficient": (-0.1, 0.1),
    "humidity_coefficient": (-1, 1),
    "wind_m_s": (0, 60),
    "cloudy_nights": (0, 1),
    "clouds_mag": (0, 3),
    "night_rms": (0, 1),
    "header_error": (0, 1),
    "seeing_scatter": (0, 1),
    "seeing_airmass_power": (0, 2),
    "dither_pix": (0, 10_000),
    "registration_pix": (0, 2),
}
HIGHEST_AIRMASS = 3.0

COLUMNS = (
    Column("exposure", "int32", "", "number of the exposure, from 0"),
    Column("band", "str", "", "name of the band"),
    Column("file", "str", "", "FITS file, relative to this table"),
    Column("night", "int32", "", "number of the night, from 0"),
    Column("mjd_obs", "float64", "d", "modified Julian date of the exposure"),
    Column("exposure_s", "float64", "s", "exposure time"),
    Column("airmass", "float64", "", "1 / sin(altitude)"),
    Column("temperature_c", "float64", "deg_C", "temperature of the air"),
    Column("humidity_percent", "float64", "%", "relative humidity"),
    Column("wind_m_s", "float64", "m/s", "speed of the wind"),
    Column("clouds_mag", "float64", "mag", "true extinction by clouds"),
    Column("seeing_arcsec", "float64", "arcsec", "full width at half maximum of the PSF"),
    Column("dither_y_pix", "int32", "pix", "shift of the detectors in y"),
    Column("dither_x_pix", "int32", "pix", "shift of the detectors in x"),
    Column("shift_y_pix", "float64", "pix", "true error of the registration in y: stars are this much higher"),
    Column("shift_x_pix", "float64", "pix", "true error of the registration in x"),
    Column("zero_point", "float64", "mag", "true AB zero point of the image's unit, electrons per second"),
    Column("zero_point_header", "float64", "mag", "the zero point that the header states"),
)


def draw_exposures(settings: Exposures, conditions: Conditions, rng: np.random.Generator) -> pd.DataFrame:
    """Draw the telemetry and the zero points of a field's exposures.

    Args:
        settings: of the exposures.
        conditions: of the field.
        rng: source of randomness.

    Returns:
        One row per band and exposure, band by band, with the columns of COLUMNS.

    Raises:
        InputError: the field is too low above the horizon, or a band has no extinction.
    """
    nights = pd.DataFrame(
        {
            "temperature": rng.uniform(*settings.temperature_c, settings.nights),
            "humidity": rng.uniform(*settings.humidity_percent, settings.nights),
            "cloudy": rng.uniform(size=settings.nights) < settings.cloudy_nights,
        }
    )
    bands = [_draw_band(settings, conditions, band, nights, rng) for band in range(len(conditions.bands))]
    return pd.concat(bands, ignore_index=True)[[column.name for column in COLUMNS]]


def _draw_band(
    settings: Exposures, conditions: Conditions, band: int, nights: pd.DataFrame, rng: np.random.Generator
) -> pd.DataFrame:
    one, number = conditions.bands[band], settings.number
    night = np.arange(number) * settings.nights // number
    hour = rng.uniform(*settings.hour_angle_h, number)
    table = _weather(settings, nights, night, hour, rng)
    table["airmass"] = airmass(settings, float(conditions.grid.wcs.wcs.crval[1]), hour)
    nightly = (
        rng.normal(scale=settings.night_rms, size=settings.nights) if settings.night_rms else np.zeros(len(nights))
    )
    table["zero_point"] = (
        one.electrons_zero_point
        - settings.extinction_of(one.name) * (table.airmass - 1)
        + settings.temperature_coefficient * (table.temperature_c - 10)
        + settings.humidity_coefficient * (table.humidity_percent - 30) / 100
        - table.clouds_mag
        + nightly[night]
    )
    table["zero_point_header"] = table.zero_point + rng.normal(size=number) * settings.header_error
    worse = table.airmass**settings.seeing_airmass_power * np.exp(
        abs(rng.normal(size=number)) * settings.seeing_scatter
    )
    table["seeing_arcsec"] = worse * conditions.psf_fwhm_arcsec[band]
    table["exposure_s"] = one.exposure_s * conditions.exposures[band] / number
    for axis in "yx":
        table[f"dither_{axis}_pix"] = rng.integers(-settings.dither_pix, settings.dither_pix + 1, number)
        table[f"shift_{axis}_pix"] = rng.normal(size=number) * settings.registration_pix
    names = [f"exposures/{index:03d}_{one.name}.fits" for index in range(number)]
    return table.assign(exposure=np.arange(number), band=one.name, file=names)


def _weather(
    settings: Exposures, nights: pd.DataFrame, night: np.ndarray, hour: np.ndarray, rng: np.random.Generator
) -> pd.DataFrame:
    """Telemetry of exposures: nights cool down, warmer hours are drier, clouds come in cloudy nights."""
    number = len(night)
    of_night = nights.iloc[night].reset_index(drop=True)
    warmer = -COOLING_PER_HOUR * hour + rng.normal(scale=0.3, size=number)
    humidity = of_night.humidity - DRYING_PER_KELVIN * warmer + rng.normal(scale=2.0, size=number)
    clouds = rng.exponential(settings.clouds_mag, number) if settings.clouds_mag else np.zeros(number)
    return pd.DataFrame(
        {
            "night": night,
            "mjd_obs": FIRST_NIGHT_MJD + night + MERIDIAN_FRACTION + hour / 24,
            "temperature_c": of_night.temperature + warmer,
            "humidity_percent": humidity.clip(1, 99),
            "wind_m_s": settings.wind_m_s / math.gamma(1.5) * rng.weibull(2.0, number),
            "clouds_mag": np.where(of_night.cloudy, clouds, 0.0),
        }
    )


def airmass(settings: Exposures, dec_deg: float, hour_angle_h: np.ndarray) -> np.ndarray:
    """1 / sin(altitude), sin(altitude) = sin(lat) sin(dec) + cos(lat) cos(dec) cos(hour angle).

    Raises:
        InputError: it is above HIGHEST_AIRMASS.
    """
    latitude, dec, hour = math.radians(settings.latitude_deg), math.radians(dec_deg), hour_angle_h * math.pi / 12
    sine = math.sin(latitude) * math.sin(dec) + math.cos(latitude) * math.cos(dec) * np.cos(hour)
    if sine.min() < 1 / HIGHEST_AIRMASS:
        raise InputError(
            f"sky.exposures: declination {dec_deg:.1f} is below airmass {HIGHEST_AIRMASS:g} at latitude "
            f"{settings.latitude_deg:g} and hour angles {list(settings.hour_angle_h)}; narrow hour_angle_h or move "
            "sky.center"
        )
    return 1 / sine


def blurred(light: np.ndarray, sigma_pix: float) -> np.ndarray:
    """(H, W) float32 light convolved with a Gaussian, exactly also where it is narrower than a pixel."""
    if sigma_pix < 0.01:
        return light.copy()
    pad = math.ceil(5 * sigma_pix) + 1
    wide = np.pad(light, pad, mode="symmetric")
    shape = [scipy.fft.next_fast_len(side, real=True) for side in wide.shape]
    y, x = scipy.fft.fftfreq(shape[0])[:, None], scipy.fft.rfftfreq(shape[1])
    transfer = np.exp(-2 * (np.pi * sigma_pix) ** 2 * (y**2 + x**2)).astype(np.float32)
    result = scipy.fft.irfft2(scipy.fft.rfft2(wide, s=shape) * transfer, s=shape)
    return np.ascontiguousarray(result[pad : pad + light.shape[0], pad : pad + light.shape[1]])


class WeightedMean:
    """The inverse-variance mean of images, pixel by pixel; masked pixels do not count.

    The weights are the variances of the sky alone: those of the objects' photons, which are noisy as the image is,
    would make objects too faint.
    """

    def __init__(self, shape: tuple[int, int]):
        self._weight = np.zeros(shape, dtype=np.float32)
        self._image = np.zeros(shape, dtype=np.float32)
        self._variance = np.zeros(shape, dtype=np.float32)
        self._bits: np.ndarray | None = None

    def add(self, image: np.ndarray, variance: np.ndarray, mask: np.ndarray | None, weight: float) -> None:
        """Add one image.

        Args:
            image: (H, W) nJy.
            variance: (H, W) nJy^2.
            mask: (H, W) uint8, 0 = good; None: all are.
            weight: 1 / (sky's sigma)^2, nJy^-2.
        """
        weights = np.full(image.shape, weight, dtype=np.float32)
        if mask is not None:
            bad = (mask > 0) | np.isnan(image)
            weights[bad] = 0
            image, variance = np.where(bad, 0, image), np.where(bad, 0, variance)
            # Where all images are bad, the mean is bad in each of their ways.
            self._bits = mask.copy() if self._bits is None else self._bits | mask
        self._weight += weights
        self._image += weights * image
        self._variance += weights**2 * variance

    def result(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """(H, W) mean, its variance (both NaN where nothing counted), and the mask, None if there was none."""
        none = self._weight == 0
        total = np.where(none, np.float32(np.nan), self._weight)
        mask = None if self._bits is None else np.where(none, self._bits, 0).astype(np.uint8)
        return self._image / total, self._variance / total**2, mask
