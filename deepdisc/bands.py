"""Names of bands: which wavelength they stand for, and which three make a colour picture."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from deepdisc.errors import InputError

# Central wavelengths, micrometres, of the bands that most surveys call by these names.
_BROAD = {
    "FUV": 0.153, "NUV": 0.23, "u": 0.36, "B": 0.44, "g": 0.48, "V": 0.55, "r": 0.62, "R": 0.65, "VIS": 0.71,
    "i": 0.76, "I": 0.79, "Z": 0.88, "z": 0.9, "y": 0.98, "Y": 1.02, "J": 1.25, "H": 1.63, "Ks": 2.15, "K": 2.2,
}  # fmt: skip
# Hubble's numbers below 1 micrometre count nanometres, those of its infrared camera and of JWST tens of nanometres.
_HUBBLE_OPTICAL = {225, 275, 300, 336, 390, 435, 438, 475, 555, 606, 625, 775, 814, 850}
_NUMBERED = re.compile(r"F(\d{3,4})(?:W2|LP|[WMNX])$", re.IGNORECASE)


def wavelength_um(band: str) -> float | None:
    """The central wavelength (micrometres) that a name such as `g`, `r_hsc`, `F444W` or `HST_F814W` says; else None."""
    for word in re.split(r"[^A-Za-z0-9]+", band):
        numbered = _NUMBERED.match(word)
        if numbered:
            number = int(numbered.group(1))
            return number / (1000 if number in _HUBBLE_OPTICAL else 100)
        if word in _BROAD:
            return _BROAD[word]
    return None


def by_wavelength(bands: Sequence[str]) -> list[str]:
    """The bands from blue to red; as they are given where a name says no wavelength, or no band of its own."""
    known = [wavelength_um(band) for band in bands]
    return list(bands) if None in known else [band for _, band in sorted(zip(known, bands, strict=True))]


def label_columns(labels: Mapping[str, str | Sequence[str]], bands: Sequence[str]) -> dict[str, str | list[str]]:
    """The columns of labels: a name stays a name, one that holds "{band}" becomes a list with one name per band."""
    return {
        label: [names.replace("{band}", band) for band in bands] if isinstance(names, str) and "{band}" in names
        else names if isinstance(names, str) else list(names)
        for label, names in labels.items()
    }  # fmt: skip


def rgb_bands(bands: Sequence[str]) -> list[str]:
    """The bands for red, green and blue; the outermost of five or more and ultraviolet ones are noisy and left out.

    Raises:
        InputError: there are no bands.
    """
    if not bands:
        raise InputError("there are no bands to make a picture of")
    ordered = by_wavelength(bands)
    n = len(ordered)
    if n >= 5:
        visible = [band for band in ordered[1 : n // 2] if (wavelength_um(band) or 1.0) > 0.4]
        return [ordered[n - 2], ordered[n // 2], (visible or ordered[1:])[0]]
    return [ordered[-1], ordered[n // 2], ordered[0]]
