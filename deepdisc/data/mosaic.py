"""A multi-band mosaic, read lazily by rectangles: image in nJy, variance in nJy^2, mask.

Legend: C bands; (h, w) height and width of a rectangle. Rectangles are `y0, x0, y1, x1` in mosaic pixels, half open,
and may run past the mosaic's edge.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from deepdisc.data.band import Band, FileShelf
from deepdisc.data.fits_plane import share_window_budget
from deepdisc.data.reddening import Reddening
from deepdisc.data.sources import BACKGROUNDS, NOISE_KINDS, MosaicSource, check_weight_scale, pairs, read_source
from deepdisc.errors import InputError, nearest
from deepdisc.sky import GRID_TOLERANCE_PIX, PixelGrid

WINDOW_BYTES = 64 * 2**20

Bands = str | Iterable[str] | Mapping[str, str]


@dataclass(frozen=True)
class Cutout:
    """Pixels of a rectangle.

    Attributes:
        image: (C, h, w) float32 in nJy per pixel, 0 where masked.
        variance: (C, h, w) float32 in nJy^2, positive and finite everywhere (1 where masked).
        mask: (C, h, w) bool, True where the pixel is bad or has no data.
        saturated: (C, h, w) bool, masked or not; nowhere True in bands whose level of saturation is not known.
    """

    image: np.ndarray
    variance: np.ndarray
    mask: np.ndarray
    saturated: np.ndarray


class Mosaic:
    """A field in several bands on one pixel grid; see `Mosaic.open`.

    Attributes:
        name: of the field.
        bands: band names, in the order of the channels.
        shape: (height, width) in pixels.
        grid: pixels and sky; `grid.wcs` is None when the headers have no WCS, and then there are no sky positions.
        pixel_scale_arcsec: side of a pixel.
        ebv: E(B-V) when it is one number, "map" when it varies, None when it was not given.
        metadata: what a run should record: name and, for each band, files, zero point, noise and PSF.
    """

    def __init__(
        self, name: str, bands: Mapping[str, Band], grid: PixelGrid, reddening: Reddening | None, files: FileShelf
    ):
        self.name = name
        self._bands = dict(bands)
        self.grid = grid
        self._reddening = reddening
        self._files = files
        share_window_budget((plane for band in self._bands.values() for plane in band.planes), WINDOW_BYTES)

    # ---------------------------------------------------------------------------------------------- opening
    @classmethod
    def open(
        cls,
        source: Any,
        bands: Bands | None = None,
        pixel_scale: float | None = None,
        zero_points: float | str | Mapping[str, float | str] | None = None,
        *,
        variance: Mapping[str, Any] | Iterable[str] | None = None,
        rms: Mapping[str, Any] | Iterable[str] | None = None,
        weight: Mapping[str, Any] | Iterable[str] | None = None,
        mask: Mapping[str, str] | Iterable[str] | None = None,
        weight_scale: float | str | None = None,
        background: str | None = None,
        ebv: float | str | Mapping[str, Any] | None = None,
    ) -> Mosaic:
        """Open a mosaic without reading its pixels.

        Args:
            source: a mosaic.yaml (or its folder); `["g=g.fits", ...]` or `{"g": "g.fits", ...}`; or one FITS file: a
                cube (planes, y, x), or one extension per band.
            bands: which bands and in which order: `["g", "r"]`, "g,r", or {name here: name in the mosaic} = "z=Z".
                For a cube whose header does not name its planes: their names, in order.
            pixel_scale: side of a pixel in arcsec; needed where the headers have no WCS.
            zero_points: AB magnitude of one image unit, or a flux unit; one for all bands or by band. Overrides
                mosaic.yaml and the headers.
            variance: noise maps by band, in the image's unit squared. Without any noise map a VARIANCE extension in the
                image's own file is used; without that, the noise is estimated.
            rms: the same as the noise's standard deviation, in the image's unit.
            weight: the same as the inverse variance.
            mask: files by band whose nonzero pixels are bad.
            weight_scale: factor on the inverse variance of the noise maps, or "auto": the factor that makes the
                scatter of the sky what the maps say. Default: the maps are taken as they are.
            background: "subtract" subtracts the measured sky level; default "none".
            ebv: Milky Way E(B-V), a number, a FITS map, or a map of the whole sky as in mosaic.yaml.

        Raises:
            InputError: the files cannot make one mosaic; the message says which and what to do.
        """
        described = describe_source(
            source,
            bands,
            zero_points=zero_points,
            variance=variance,
            rms=rms,
            weight=weight,
            mask=mask,
            weight_scale=weight_scale,
            background=background,
            ebv=ebv,
        )
        wanted = resolve_bands(bands, described)
        files = FileShelf()
        try:
            opened = open_bands(described, set(wanted.values()), pixel_scale, files)
            _check_one_grid(list(opened.values()))
            grid = next((band.grid for band in opened.values() if band.grid.wcs is not None), None)
            grid = grid or next(iter(opened.values())).grid
            reddening = None if described.ebv is None else Reddening(described.ebv, grid, files)
        except BaseException:
            files.close()
            raise
        return cls(described.name, {name: opened[own] for name, own in wanted.items()}, grid, reddening, files)

    def select(self, bands: Bands) -> Mosaic:
        """The same mosaic with these bands in this order, perhaps under other names ({new name: name here}, "z=Z").

        It shares the files with this one.

        Raises:
            InputError: a band is not there.
        """
        wanted = {name: _find(own, self.bands, f"mosaic {self.name}", False) for name, own in _band_map(bands).items()}
        chosen = {name: self._bands[own] for name, own in wanted.items()}
        return Mosaic(self.name, chosen, self.grid, self._reddening, self._files)

    # ------------------------------------------------------------------------------------------- properties
    @property
    def bands(self) -> list[str]:
        """Band names, in the order of the channels."""
        return list(self._bands)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.grid.shape

    @property
    def pixel_scale_arcsec(self) -> float:
        """Side of a pixel, arcsec."""
        return self.grid.pixel_scale_arcsec

    @property
    def ebv(self) -> float | str | None:
        """E(B-V) when it is one number, "map" when it varies over the field, None when it was not given."""
        if self._reddening is None:
            return None
        return "map" if self._reddening.value is None else self._reddening.value

    @property
    def ebv_source(self) -> str:
        """Where E(B-V) comes from, in words."""
        return "not given, taken as 0" if self._reddening is None else self._reddening.origin

    @property
    def metadata(self) -> dict[str, Any]:
        """Name, shape, pixel scale, E(B-V) and the description of each band."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "pixel_scale_arcsec": self.pixel_scale_arcsec,
            "has_wcs": self.grid.wcs is not None,
            "ebv": self.ebv,
            "bands": {name: {"band": band.name, **band.describe()} for name, band in self._bands.items()},
        }

    # ---------------------------------------------------------------------------------------------- reading
    def read(self, y0: int, x0: int, y1: int, x1: int) -> Cutout:
        """Read a rectangle; the part outside the mosaic is masked.

        Raises:
            InputError: a file is damaged there.
        """
        assert y1 > y0 and x1 > x0, "an empty rectangle"
        size = len(self._bands), y1 - y0, x1 - x0
        cutout = Cutout(
            image=np.zeros(size, np.float32),
            variance=np.ones(size, np.float32),
            mask=np.ones(size, bool),
            saturated=np.zeros(size, bool),
        )
        top, left, bottom, right = max(y0, 0), max(x0, 0), min(y1, self.shape[0]), min(x1, self.shape[1])
        if top < bottom and left < right:
            inside = slice(top - y0, bottom - y0), slice(left - x0, right - x0)
            for channel, band in enumerate(self._bands.values()):
                pixels = band.read(top, left, bottom, right)
                cutout.image[channel][inside], cutout.variance[channel][inside] = pixels.image, pixels.variance
                cutout.mask[channel][inside], cutout.saturated[channel][inside] = pixels.bad, pixels.saturated
        return cutout

    def ebv_at(self, y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
        """E(B-V) of a rectangle, float32: shape () or even cells (rows, columns) that cover it; 0 when not given."""
        return np.zeros((), np.float32) if self._reddening is None else self._reddening.at(y0, x0, y1, x1)

    def psf_at(self, y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
        """(C, P, P) float32 PSF of each band at the middle of a rectangle; see `deepdisc.psf`."""
        x, y = (x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2
        return np.stack([band.psf.at(x, y) for band in self._bands.values()])

    @property
    def psf_varies(self) -> bool:
        """Whether some band's PSF is another one elsewhere in the field."""
        return any(len(band.psf.stamps) > 1 for band in self._bands.values())

    def measure_sky(self) -> Mosaic:
        """Measure now, once, the noise and sky levels that reading needs; worker processes then receive them."""
        for band in self._bands.values():
            band.sky  # noqa: B018
        return self

    def close(self) -> None:
        """Close the files and remove what was unpacked from .gz or .bz2; reading again opens them again."""
        for band in self._bands.values():
            for plane in band.planes:
                plane.drop_window()
        self._files.close()

    def __enter__(self) -> Mosaic:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        (height, width), scale = self.shape, self.pixel_scale_arcsec
        return f"Mosaic({self.name!r}, {','.join(self.bands)}, {width} x {height} px, {scale:.4g} arcsec/px)"


# ------------------------------------------------------------------------------------------------ band names
def _band_map(bands: Bands) -> dict[str, str]:
    """{name here: name in the mosaic} from "g,z=Z", a list of such items, or a mapping."""
    if isinstance(bands, Mapping):
        return {str(name): str(own) for name, own in bands.items()}
    found: dict[str, str] = {}
    for item in bands.split(",") if isinstance(bands, str) else bands:
        name, _, own = (part.strip() for part in str(item).partition("="))
        if not name or name in found:
            raise InputError(f"bands {bands!r}: name each band once, as NAME or NAME=NAME_IN_THE_MOSAIC")
        found[name] = own or name
    if not found:
        raise InputError("no band is named; name at least one")
    return found


def _find(name: str, have: list[str], label: str, any_case: bool) -> str:
    if name in have:
        return name
    folded = [other for other in have if any_case and other.upper() == name.upper()]
    if len(folded) == 1:
        return folded[0]
    close = nearest(name, have)
    raise InputError(
        f"{label} has no band {name!r}; it has {', '.join(have)}"
        + (f"; if {close} is meant, say {name}={close} in --bands" if close else "; add it, or use a model without it")
    )


def resolve_bands(bands: Bands | None, source: MosaicSource) -> dict[str, str]:
    """{name here: name in the source} of the wanted bands; all of them when None."""
    have = [band.name for band in source.bands]
    if bands is None:
        return {name: name for name in have}
    return {name: _find(own, have, source.label, source.any_case) for name, own in _band_map(bands).items()}


# -------------------------------------------------------------------------------------------------- overrides
def describe_source(
    source: Any,
    bands: Bands | None = None,
    *,
    zero_points: Any = None,
    mask: Any = None,
    weight_scale: Any = None,
    background: str | None = None,
    ebv: float | str | Mapping[str, Any] | None = None,
    **maps: Any,
) -> MosaicSource:
    """Read the source and put what the caller says in place of what it says; arguments as for `Mosaic.open`."""
    source = read_source(source, None if bands is None else list(_band_map(bands).values()))
    changes: dict[str, dict[str, Any]] = {band.name: {} for band in source.bands}

    def change(option: str, values: Mapping[str, Any], make: Any) -> None:
        for name, value in values.items():
            own = _find(name, list(changes), f"{option}: {source.label}", source.any_case)
            changes[own].update(make(value))

    zero_points = {} if zero_points is None else zero_points
    if isinstance(zero_points, int | float | str) and "=" not in str(zero_points):
        zero_points = dict.fromkeys(changes, zero_points)
    change("zero point", pairs(zero_points, "BAND=ZERO_POINT"), _zero_point_change)
    for kind in NOISE_KINDS:
        values = pairs(maps.get(kind), "BAND=FILE")
        change(kind, values, lambda value, kind=kind: {"noise_kind": kind, "noise": _map_value(value)})
    change("mask", pairs(mask, "BAND=FILE"), lambda value: {"mask": os.fspath(value)})
    if weight_scale is not None:
        scale = check_weight_scale(weight_scale, source.label)
        change("weight_scale", dict.fromkeys(changes, scale), lambda value: {"weight_scale": value})
    if background is not None and background not in BACKGROUNDS:
        raise InputError(f"background is {background!r}; it is one of {', '.join(BACKGROUNDS)}")
    return replace(
        source,
        bands=tuple(replace(band, **changes[band.name]) for band in source.bands),
        background=background or source.background,
        ebv=source.ebv if ebv is None else _map_value(ebv),
    )


def _zero_point_change(value: float | str) -> dict[str, Any]:
    try:
        return {"zero_point": float(value), "unit": None}
    except ValueError:
        return {"zero_point": None, "unit": str(value)}


def _map_value(value: Any) -> float | str | Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    return float(value) if isinstance(value, int | float) else os.fspath(value)


# ------------------------------------------------------------------------------------------------- pixel grids
def open_bands(source: MosaicSource, names: set[str], pixel_scale: float | None, files: FileShelf) -> dict[str, Band]:
    """Open the named bands, each on its own pixel grid."""
    scale = pixel_scale if pixel_scale is not None else source.pixel_scale_arcsec
    if scale is not None and not 0 < scale < float("inf"):
        raise InputError(f"the pixel scale is {scale!r} arcsec; it must be a positive number")
    chosen = [band for band in source.bands if band.name in names]
    return {band.name: Band(band, files, scale, source.background) for band in chosen}


def _check_one_grid(bands: list[Band]) -> None:
    """Raise InputError unless all bands have the first one's shape and, where they have a WCS, the same sky."""
    first = next((band for band in bands if band.grid.wcs is not None), bands[0])
    for band in bands:
        if band.grid.shape != first.grid.shape:
            (height, width), (first_height, first_width) = band.grid.shape, first.grid.shape
            problem = f"{band.name} has {width} x {height} pixels, {first.name} has {first_width} x {first_height}"
        elif first.grid.offset_pix(band.grid) > GRID_TOLERANCE_PIX:
            offset = first.grid.offset_pix(band.grid)
            problem = f"{band.name} is displaced from {first.name} by up to {offset:.2f} pixels"
        else:
            continue
        files = " ".join(f"{item.name}={item.source.image}" for item in bands)
        raise InputError(
            f"the bands {first.name} and {band.name} lie on different pixel grids: {problem}; bring all onto one with: "
            f"deepdisc regrid {files} --reference {first.name} --output DIR"
        )
