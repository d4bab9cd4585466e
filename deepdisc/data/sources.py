"""What a mosaic is made of: from `mosaic.yaml`, `BAND=FILE` pairs, a cube or a multi-extension file to one description.

The keys of mosaic.yaml are described in datasets/README.md.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from deepdisc.data.fits_plane import FitsFile, split_extension
from deepdisc.errors import InputError, nearest
from deepdisc.files import read_yaml

NOISE_KINDS = ("variance", "rms", "weight")
BACKGROUNDS = ("none", "subtract")
SKY_MAPS = ("sfd", "healpix")
_YAML_SUFFIXES = (".yaml", ".yml")
_FILES_VARIANCE = "VARIANCE"


@dataclass(frozen=True)
class BandSource:
    """Where one band's pixels and their meaning come from.

    Attributes:
        name: the band.
        image: file, with [EXTENSION] if not the first image.
        plane: 0-based plane where the files are cubes.
        noise_kind: "variance", "rms", "weight" (inverse variance) or None, in powers of the image's unit.
        noise: the file of that map, or one number for all pixels.
        mask: file whose nonzero pixels are bad.
        mask_bits: only these bits (0-based) of the mask are bad; None: any.
        zero_point: AB magnitude of one image unit; None: see `unit`, else the header.
        unit: flux unit of the image, such as nJy.
        saturate: image units from which on a pixel is saturated; None: SATURATE of the header, where there is one.
        no_data: pixels of this value hold no data; None: 0 for floating-point images without a noise map.
        weight_scale: factor on the inverse variance, "auto" to measure it from the sky, None for 1.
        psf: file of the point-spread function, see `deepdisc.data.psf`.
        psf_fwhm_arcsec: its full width at half maximum before the pixel.
    """

    name: str
    image: str
    plane: int | None = None
    noise_kind: str | None = None
    noise: str | float | None = None
    mask: str | None = None
    mask_bits: tuple[int, ...] | None = None
    zero_point: float | None = None
    unit: str | None = None
    saturate: float | None = None
    no_data: float | str | None = None
    weight_scale: float | str | None = None
    psf: str | None = None
    psf_fwhm_arcsec: float | None = None


@dataclass(frozen=True)
class MosaicSource:
    """All bands of a mosaic and what they share.

    Attributes:
        name: of the field.
        bands: in the order given.
        pixel_scale_arcsec: stated side of a pixel.
        ebv: Milky Way reddening E(B-V): one number, a FITS map, or {sfd: folder} or {healpix: file} with a `scale`.
        background: "none", or "subtract" the measured sky level.
        label: how messages call the source.
        any_case: band names are extension names, whose case FITS writers change: g and G are the same.
        metadata: whatever else mosaic.yaml says about the field.
    """

    name: str
    bands: tuple[BandSource, ...]
    pixel_scale_arcsec: float | None = None
    ebv: float | str | dict[str, Any] | None = None
    background: str = "none"
    label: str = "mosaic"
    any_case: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)


_BAND_KEYS = (
    "image", "plane", *NOISE_KINDS, "mask", "mask_bits", "zero_point", "unit", "saturate", "no_data",
    "weight_scale", "psf", "psf_fwhm_arcsec",
)  # fmt: skip
_MOSAIC_KEYS = ("name", "pixel_scale_arcsec", "ebv", "background", "weight_scale", "metadata", "bands")


def read_source(source: Any, plane_names: list[str] | None = None) -> MosaicSource:
    """Understand what the user gave as a mosaic.

    Args:
        source: a `MosaicSource`; path of a mosaic.yaml, of a cube or of a multi-extension FITS file;
            `["g=g.fits", ...]`; `{"g": "g.fits", "r": {"image": ..., "weight": ...}}`; or a mapping with the keys of
            mosaic.yaml.
        plane_names: names for the planes of a cube whose header gives none, or for a single image.

    Raises:
        InputError: a missing file, bad YAML, an unknown key, or planes without names.
    """
    if isinstance(source, MosaicSource):
        return source
    if isinstance(source, Mapping):
        if isinstance(source.get("bands"), Mapping):
            return source_from_mapping(source, "", "mosaic")
        return source_from_mapping({"bands": source}, "", "mosaic")
    if isinstance(source, list | tuple):
        if len(source) == 1 and not _is_pair(source[0]):
            return read_source(source[0], plane_names)
        return source_from_mapping({"bands": pairs(source, "BAND=FILE")}, "", "mosaic")
    text = os.fspath(source)
    if _is_pair(text):
        return read_source([text], plane_names)
    if text.lower().endswith(_YAML_SUFFIXES):
        return _from_yaml(Path(text))
    if Path(text).is_dir():
        inside = Path(text) / "mosaic.yaml"
        if inside.is_file():
            return _from_yaml(inside)
        raise InputError(f"{text} is a folder without mosaic.yaml; give a mosaic.yaml, BAND=FILE ..., or one FITS file")
    return _from_fits(text, plane_names)


def pairs(items: Iterable[str] | Mapping[str, Any] | None, form: str) -> dict[str, Any]:
    """Turn `["g=g.fits", ...]` into {"g": "g.fits", ...}; a mapping passes through, None is empty."""
    if items is None:
        return {}
    if isinstance(items, Mapping):
        return dict(items)
    found: dict[str, Any] = {}
    for item in [items] if isinstance(items, str) else items:
        band, equals, value = (part.strip() for part in str(item).partition("="))
        if not (band and equals and value):
            raise InputError(f"{str(item)!r} is not {form}; for example g=g.fits r=r.fits")
        if band in found:
            raise InputError(f"band {band} is given twice ({found[band]} and {value}); give each band once")
        found[band] = value
    return found


def _is_pair(text: Any) -> bool:
    return isinstance(text, str) and "=" in text and not os.path.exists(text)


# ------------------------------------------------------------------------------------------------------- YAML
def _from_yaml(path: Path) -> MosaicSource:
    content = read_yaml(path, "mosaic")
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: a mosaic.yaml holds keys such as `bands:`, not {type(content).__name__}")
    return source_from_mapping(content, os.fspath(path.parent), str(path))


def source_from_mapping(content: Mapping[str, Any], folder: str, label: str) -> MosaicSource:
    """The mosaic that the keys of a mosaic.yaml describe; relative paths start from `folder`.

    Raises:
        InputError: an unknown key or a wrong value.
    """
    _check_keys(content, _MOSAIC_KEYS, label)
    bands = content.get("bands")
    if not isinstance(bands, Mapping) or not bands:
        raise InputError(f"{label}: `bands:` must map each band to its image, for example `g: {{image: g.fits}}`")
    background = content.get("background") or "none"
    if background not in BACKGROUNDS:
        raise InputError(f"{label}: background is {background!r}; it is one of {', '.join(BACKGROUNDS)}")
    default_scale = content.get("weight_scale")
    found = [_band(str(name), value, default_scale, folder, f"{label}: band {name}") for name, value in bands.items()]
    metadata = content.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise InputError(f"{label}: metadata is {metadata!r}; it is a mapping of keys to values")
    return MosaicSource(
        name=str(content.get("name") or (Path(folder).resolve().name if folder else "mosaic")),
        bands=tuple(found),
        pixel_scale_arcsec=_optional_number(content, "pixel_scale_arcsec", label, positive=True),
        ebv=located_ebv(content.get("ebv"), folder, label),
        background=background,
        label=label,
        metadata=dict(metadata),
    )


def _band(name: str, value: Any, default_scale: Any, folder: str, label: str) -> BandSource:
    if isinstance(value, str | os.PathLike):
        value = {"image": os.fspath(value)}
    if not isinstance(value, Mapping):
        raise InputError(f"{label}: give a file name, or keys such as `image:`, not {value!r}")
    _check_keys(value, _BAND_KEYS, label)
    if not value.get("image"):
        raise InputError(f"{label}: `image:` is missing; name the FITS file of its pixels")
    kinds = [kind for kind in NOISE_KINDS if value.get(kind) is not None]
    if len(kinds) > 1:
        raise InputError(f"{label}: {' and '.join(kinds)} are both given; keep one")
    if value.get("zero_point") is not None and value.get("unit") is not None:
        raise InputError(f"{label}: zero_point and unit are both given; keep one")
    noise = value.get(kinds[0]) if kinds else None
    if kinds:
        noise = _located(noise, folder) if isinstance(noise, str) else _optional_number(value, kinds[0], label, True)
    plane = value.get("plane")
    if plane is not None and (isinstance(plane, bool) or not isinstance(plane, int)):
        raise InputError(f"{label}: plane is {plane!r}; it is a whole number, 0 for the first")
    return BandSource(
        name=name,
        image=_located(value["image"], folder),
        plane=plane,
        noise_kind=kinds[0] if kinds else None,
        noise=noise,
        mask=_located(value["mask"], folder) if value.get("mask") else None,
        mask_bits=_mask_bits(value.get("mask_bits"), label),
        zero_point=_optional_number(value, "zero_point", label),
        unit=value.get("unit"),
        saturate=_optional_number(value, "saturate", label, positive=True),
        no_data=_no_data(value, label),
        weight_scale=check_weight_scale(value.get("weight_scale", default_scale), label),
        psf=_located(value["psf"], folder) if value.get("psf") else None,
        psf_fwhm_arcsec=_optional_number(value, "psf_fwhm_arcsec", label, positive=True),
    )


def _check_keys(content: Mapping[str, Any], allowed: tuple[str, ...], label: str) -> None:
    for key in content:
        if key not in allowed:
            close = nearest(str(key), allowed)
            hint = f"did you mean {close!r}?" if close else f"the keys are {', '.join(allowed)}"
            raise InputError(f"{label}: unknown key {str(key)!r}; {hint}")


def _located(text: Any, folder: str) -> str:
    if not isinstance(text, str):
        raise InputError(f"{text!r} is not a file name")
    return os.path.join(folder, os.path.expanduser(text))


def located_ebv(value: Any, folder: str, label: str) -> float | str | dict[str, Any] | None:
    """Check what states E(B-V): a number, a FITS map, or a map of the whole sky; paths start from `folder`.

    Raises:
        InputError: none of these.
    """
    if isinstance(value, str):
        return _located(value, folder)
    if not isinstance(value, Mapping):
        return _optional_number({"ebv": value}, "ebv", label)
    kinds = [kind for kind in SKY_MAPS if isinstance(value.get(kind), str)]
    if len(kinds) != 1 or set(value) - {kinds[0], "scale"}:
        raise InputError(f"{label}: ebv is {dict(value)!r}; a map of the sky is {{sfd: FOLDER}} or {{healpix: FILE}}")
    scale = _optional_number(value, "scale", f"{label}: ebv", positive=True)
    return {kinds[0]: _located(value[kinds[0]], folder), "scale": 1.0 if scale is None else scale}


def _optional_number(content: Mapping[str, Any], key: str, label: str, positive: bool = False) -> float | None:
    value = content.get(key)
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or (positive and value <= 0):
        raise InputError(f"{label}: {key} is {value!r}; it must be a {'positive ' if positive else ''}number")
    return float(value)


def _no_data(value: Mapping[str, Any], label: str) -> float | str | None:
    if value.get("no_data") == "none":
        return "none"
    return _optional_number(value, "no_data", label)


def check_weight_scale(value: Any, label: str) -> float | str | None:
    """Return None, "auto" or a positive number, or raise InputError."""
    if value in (None, "none"):
        return None
    if value == "auto":
        return "auto"
    return _optional_number({"weight_scale": value}, "weight_scale", label, positive=True)


def _mask_bits(value: Any, label: str) -> tuple[int, ...] | None:
    if value is None:
        return None
    bits = value if isinstance(value, list | tuple) else [value]
    if not bits or any(isinstance(bit, bool) or not isinstance(bit, int) or not 0 <= bit < 63 for bit in bits):
        raise InputError(f"{label}: mask_bits is {value!r}; it is a list of bit numbers from 0 to 62")
    return tuple(bits)


# ------------------------------------------------------------------------------------------------------- FITS
def _from_fits(text: str, plane_names: list[str] | None) -> MosaicSource:
    path, extension = split_extension(text)
    name = Path(path).name.split(".")[0]
    with_file = FitsFile(path, "mosaic")
    any_case = False
    try:
        named = [hdu for hdu in with_file.hdus if hdu.name and len(hdu.dims) == 2 and not _is_noise(hdu.name)]
        first = with_file.image(extension)
        if len(first.dims) == 3:
            bands = _planes_of_cube(with_file, text, first, plane_names)
        elif extension is None and len(named) > 1:
            bands = [BandSource(hdu.name, f"{path}[{hdu.name}]") for hdu in named]
            any_case = True
        elif plane_names and len(plane_names) == 1:
            bands = [BandSource(plane_names[0], text)]
        else:
            raise InputError(
                f"{text} holds one image and does not say its band; give BAND={text} (all bands as BAND=FILE ...), "
                "a mosaic.yaml, a cube or a file with one named extension per band"
            )
    finally:
        with_file.close()
    return MosaicSource(name=name, bands=tuple(bands), label=text, any_case=any_case)


def _is_noise(extension: str) -> bool:
    return extension.upper() == _FILES_VARIANCE or extension.upper().endswith(f"_{_FILES_VARIANCE}")


def _planes_of_cube(file: FitsFile, text: str, hdu: Any, plane_names: list[str] | None) -> list[BandSource]:
    names = _names_in_header(file.primary_header(), hdu.dims[0]) or _names_in_header(file.header(hdu), hdu.dims[0])
    if names is None:
        names = plane_names
    if names is None:
        raise InputError(
            f"{text} is a cube of {hdu.dims[0]} planes whose header does not name the bands (BANDS, BAND1.., "
            "FILTER1..); name them in order, for example --bands u,g,r,i,z"
        )
    if len(names) != hdu.dims[0]:
        raise InputError(
            f"{text} has {hdu.dims[0]} planes, but {len(names)} bands are named ({', '.join(names)}); "
            "name one per plane"
        )
    return [BandSource(name, text, plane=plane) for plane, name in enumerate(names)]


def _names_in_header(header: Any, count: int) -> list[str] | None:
    listed = header.get("BANDS")
    if isinstance(listed, str) and "," in listed:
        return [name.strip() for name in listed.split(",")]
    for prefix in ("BAND", "FILTER"):
        names = [header.get(f"{prefix}{number}") for number in range(1, count + 1)]
        if all(isinstance(name, str) and name.strip() for name in names):
            return [name.strip() for name in names]
    return None


def add_own_variance(source: BandSource, file: FitsFile) -> BandSource:
    """Use the VARIANCE extension that lies beside the image in its own file, unless a noise map is configured.

    The extension is called VARIANCE, or NAME_VARIANCE beside an image extension called NAME.
    """
    if source.noise_kind is not None:
        return source
    path, extension = split_extension(source.image)
    image = file.image(extension)
    wanted = [f"{image.name.upper()}_{_FILES_VARIANCE}"] if image.name else []
    if sum(not _is_noise(hdu.name) and hdu.dims == image.dims for hdu in file.hdus) == 1:
        wanted.append(_FILES_VARIANCE)
    for hdu in file.hdus:
        if hdu.name.upper() in wanted and hdu.dims == image.dims and hdu.number != image.number:
            return replace(source, noise_kind="variance", noise=f"{path}[{hdu.name}]")
    return source
