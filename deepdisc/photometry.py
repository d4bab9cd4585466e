"""Fluxes and magnitudes: nJy <-> AB magnitude <-> asinh magnitude, and the zero point that a FITS header states.

The physical unit inside the program is nJy: m_AB = 31.4 - 2.5 log10(f / nJy).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from deepdisc.errors import InputError

AB_ZERO_POINT_NJY = 31.4  # 2.5 log10(3631 Jy / 1 nJy) = 31.4001; surveys use the round number

_UNIT_IN_NJY = {
    "njy": 1.0,
    "nanojansky": 1.0,
    "ujy": 1e3,
    "microjansky": 1e3,
    "mjy": 1e6,
    "millijansky": 1e6,
    "megajansky": 1e15,
    "jy": 1e9,
    "jansky": 1e9,
    "nanomaggy": 10 ** (0.4 * (AB_ZERO_POINT_NJY - 22.5)),
    "nmgy": 10 ** (0.4 * (AB_ZERO_POINT_NJY - 22.5)),
    "maggy": 10 ** (0.4 * AB_ZERO_POINT_NJY),
    "mgy": 10 ** (0.4 * AB_ZERO_POINT_NJY),
}
_ZERO_POINT_KEYWORDS = ("MAGZERO", "MAGZPT", "ZEROPNT", "ZEROPOINT", "ZEROPOIN", "MAGZP", "ABZP", "ZPAB", "PHOTZP")
_STERADIAN_PER_SQUARE_ARCSEC = (math.pi / 180 / 3600) ** 2


def njy_from_mag(mag: Any) -> np.ndarray:
    """Flux in nJy of an AB magnitude."""
    return 10 ** (0.4 * (AB_ZERO_POINT_NJY - np.asarray(mag, dtype=np.float64)))


def mag_from_njy(flux_njy: Any) -> np.ndarray:
    """AB magnitude of a flux in nJy; NaN where the flux is not positive."""
    flux = np.asarray(flux_njy, dtype=np.float64)
    positive = flux > 0
    return np.where(positive, AB_ZERO_POINT_NJY - 2.5 * np.log10(np.where(positive, flux, 1.0)), np.nan)


def asinh_mag(flux_njy: Any, softening_njy: Any) -> np.ndarray:
    """Asinh magnitude (Lupton, Gunn & Szalay 1999), finite for any flux.

    Args:
        flux_njy: flux in nJy, of any sign.
        softening_njy: the flux scale below which it becomes linear, about the 1-sigma noise, in nJy.
    """
    softening = np.asarray(softening_njy, dtype=np.float64)
    scaled = np.asarray(flux_njy, dtype=np.float64) / (2 * softening)
    return AB_ZERO_POINT_NJY - 2.5 / math.log(10) * (np.arcsinh(scaled) + np.log(softening))


def njy_per_count(zero_point: float) -> float:
    """nJy per image unit, where the image unit has this AB zero point (1 unit has magnitude `zero_point`)."""
    return 10 ** (0.4 * (AB_ZERO_POINT_NJY - zero_point))


def zero_point_of(njy_per_unit: float) -> float:
    """AB zero point of an image whose unit is `njy_per_unit` nJy."""
    return AB_ZERO_POINT_NJY - 2.5 * math.log10(njy_per_unit)


def zero_point_of_unit(unit: str, name: str, header: Mapping[str, Any] | None = None) -> float | None:
    """AB zero point of a flux unit such as `nJy`, `10.0*nanoJansky`, `nanomaggy`, `MJy/sr`; None if it is no flux unit.

    Args:
        unit: the unit's text (BUNIT or configuration).
        name: file or band, for the message.
        header: needed for surface brightness, whose pixel area it states (PIXAR_SR or PIXAR_A2).

    Raises:
        InputError: surface brightness without a pixel area.
    """
    text = unit.strip().replace(" ", "")
    match = re.fullmatch(r"(?:([0-9.]+(?:e[+-]?[0-9]+)?)\*?)?([a-z]+)(/sr)?(?:/pix(?:el)?)?", text, re.IGNORECASE)
    if match is None:
        return None
    number, base, per_sr = match.groups()
    # Case tells MJy and MJY, as some headers have it, from mJy; of all other units it says nothing.
    base = "megajansky" if base.startswith("M") and base.lower() == "mjy" else base.lower()
    if base not in _UNIT_IN_NJY:
        return None
    area_sr = _pixel_area_sr(header or {}, unit, name) if per_sr else 1.0
    return zero_point_of(float(number or 1.0) * _UNIT_IN_NJY[base] * area_sr)


def _pixel_area_sr(header: Mapping[str, Any], unit: str, name: str) -> float:
    if _number(header.get("PIXAR_SR")):
        return float(header["PIXAR_SR"])
    if _number(header.get("PIXAR_A2")):
        return float(header["PIXAR_A2"]) * _STERADIAN_PER_SQUARE_ARCSEC
    raise InputError(
        f"{name}: the unit {unit!r} needs the pixel's area, but the header has neither PIXAR_SR nor PIXAR_A2; "
        "add one, or give the band's zero_point in the configuration"
    )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def zero_point_from_header(header: Mapping[str, Any], name: str) -> float:
    """AB zero point of an image's unit, from its header.

    A flux unit in BUNIT comes first, because mosaicking software updates it; then PHOTFNU (Jy per unit), a zero-point
    keyword, and PHOTFLAM with PHOTPLAM (HST, erg/s/cm2/A). PHOTMJSR is not used: it converts the detector's counts, and
    survives unchanged in headers of mosaics that have another unit and pixel.

    Args:
        header: the image's header (mapping of keywords).
        name: file or band, for the message.

    Raises:
        InputError: nothing says what the unit is.
    """
    unit = str(header.get("BUNIT") or "")
    from_unit = zero_point_of_unit(unit, name, header) if unit else None
    if from_unit is not None:
        return from_unit
    if _number(header.get("PHOTFNU")):
        return zero_point_of(float(header["PHOTFNU"]) * 1e9)
    for keyword in _ZERO_POINT_KEYWORDS:
        value = header.get(keyword)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    if _number(header.get("PHOTFLAM")) and _number(header.get("PHOTPLAM")):
        flam, pivot = float(header["PHOTFLAM"]), float(header["PHOTPLAM"])
        return -2.5 * math.log10(flam) - 5 * math.log10(pivot) - 2.408
    raise InputError(
        f"{name}: no zero point: the header has no flux unit in BUNIT ({unit or 'absent'}), no PHOTFNU, "
        f"{', '.join(_ZERO_POINT_KEYWORDS[:4])} or PHOTFLAM; give it with --zero-point, or `zero_point:` or `unit:` "
        "of the band in mosaic.yaml"
    )
