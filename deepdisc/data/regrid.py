"""Bring bands that lie on different pixel grids onto one (`deepdisc regrid`; needs the extra `regrid`).

The work is done by the reproject library, one output block at a time, so that memory does not grow with the image.

- Surface brightness is interpolated (bicubic spline) where the new pixels are about as large as the old or smaller, and
  averaged over exact pixel overlaps where they are larger; times the ratio of the pixel areas that conserves flux.
- A new pixel is masked when any old pixel around it is.
- PSFs stay where they are, which is right for bands on the same grid; those of other bands are left out.
- The noise is that of the original pixels, measured before resampling if there is no map of it, times the same ratio
  once: summed over an object it is right, whereas the scatter of neighbouring new pixels, which are now correlated, is
  smaller than it says.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import fitsio
import numpy as np
import yaml
from astropy.wcs.utils import proj_plane_pixel_area
from scipy import ndimage

from deepdisc.data.band import Band, FileShelf
from deepdisc.data.fits_plane import share_window_budget
from deepdisc.data.mosaic import WINDOW_BYTES, Bands, describe_source, open_bands, resolve_bands
from deepdisc.data.noise import blocks
from deepdisc.errors import InputError, require_extra
from deepdisc.files import atomic_path, refuse_to_overwrite, write_text
from deepdisc.sky import PixelGrid

logger = logging.getLogger(__name__)

METHODS = ("auto", "interp", "exact")
_BLOCK_PIX = 512
_MARGIN_PIX = 12  # a cubic spline's memory fades by 0.27 per pixel: 1e-7
_SAME_PIX = 1e-3  # grids closer than this need no resampling
_COARSER = 1.3  # new pixels whose area exceeds the old by more are averaged over, not interpolated


def regrid(
    source: Any,
    output: str | os.PathLike,
    reference: str | None = None,
    *,
    method: str = "auto",
    bands: Bands | None = None,
    pixel_scale: float | None = None,
    progress: Callable[[str], None] = lambda message: None,
    **options: Any,
) -> Path:
    """Write all bands on one band's pixel grid: `<band>.fits` in nJy with a VARIANCE extension, and mosaic.yaml.

    Args:
        source: as for `Mosaic.open`, but the bands may lie on different grids.
        output: folder to write.
        reference: the band whose grid the others get; default the first.
        method: "interp", "exact", or "auto" to choose by the pixel sizes.
        bands: which bands, and under which names.
        pixel_scale: only checked against the WCS, which every band must have.
        progress: called with a line for each band.
        options: zero_points, variance, rms, weight, mask, weight_scale, background, ebv as for `Mosaic.open`.

    Returns:
        The mosaic.yaml.

    Raises:
        InputError: a band without a WCS, an unknown reference or method, the library is missing, a file that would be
            overwritten.
    """
    library = require_extra("reproject", "regrid")
    if method not in METHODS:
        raise InputError(f"method is {method!r}; it is one of {', '.join(METHODS)}")
    described = describe_source(source, bands, **options)
    wanted = resolve_bands(bands, described)
    reference = next(iter(wanted)) if reference is None else reference
    if reference not in wanted:
        raise InputError(f"the reference band {reference!r} is not among {', '.join(wanted)}; name one of them")
    output = Path(output)
    targets = {name: output / f"{name}.fits" for name in wanted}
    refuse_to_overwrite([*targets.values(), output / "mosaic.yaml"])
    new_folder = not output.exists()
    files = FileShelf()
    written: list[Path] = []
    try:
        opened = open_bands(described, set(wanted.values()), pixel_scale, files)
        share_window_budget((plane for band in opened.values() for plane in band.planes), WINDOW_BYTES)
        grid = opened[wanted[reference]].grid
        _require_wcs(opened.values())
        for name, own in wanted.items():
            progress(f"{name}: {opened[own].source.image}")
            resampler = _resampler(library, opened[own].grid, grid, method)
            written.append(targets[name])
            if not _write_band(targets[name], opened[own], name, grid, resampler):
                raise InputError(
                    f"band {name}: no pixel of {opened[own].source.image} falls on those of {reference}, they have "
                    "no sky in common; leave it out, or take files of the same place"
                )
        chosen = {name: opened[own] for name, own in wanted.items()}
        content = _yaml_content(described, chosen, reference, grid, output)
        write_text(output / "mosaic.yaml", yaml.safe_dump(content, sort_keys=False))
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        if new_folder and output.is_dir() and not any(output.iterdir()):
            output.rmdir()
        raise
    finally:
        files.close()
    return output / "mosaic.yaml"


def _require_wcs(bands: Any) -> None:
    for band in bands:
        if band.grid.wcs is None:
            raise InputError(
                f"band {band.name}: {band.source.image} has no WCS, so its place on the sky is unknown; "
                "regrid needs one in every band"
            )


def _yaml_content(source: Any, bands: dict[str, Band], reference: str, grid: PixelGrid, output: Path) -> dict[str, Any]:
    entries = {}
    for name, band in bands.items():
        entries[name] = {"image": f"{name}.fits", "variance": f"{name}.fits[VARIANCE]", "unit": "nJy"}
        if band.source.psf and band.grid.same_grid(grid, tolerance_pix=_SAME_PIX):
            entries[name]["psf"] = _relative(band.source.psf, output)
        elif band.source.psf:
            logger.warning(
                "band %s: its PSF, %s, is in the pixels of the old grid and is left out; draw it in those of the new "
                "one and name it as `psf` in mosaic.yaml",
                name,
                band.source.psf,
            )
        if band.source.psf_fwhm_arcsec:
            entries[name]["psf_fwhm_arcsec"] = band.source.psf_fwhm_arcsec
    content: dict[str, Any] = {"name": source.name, "pixel_scale_arcsec": grid.pixel_scale_arcsec}
    if source.ebv is not None:
        content["ebv"] = _relative(source.ebv, output)
    content["metadata"] = {**source.metadata, "regridded_onto": reference}
    return content | {"bands": entries}


def _relative(stated: Any, folder: Path) -> Any:
    """What states E(B-V) or a PSF, with paths relative to the folder."""
    if isinstance(stated, dict):
        return {key: _relative(value, folder) for key, value in stated.items()}
    return os.path.relpath(stated, folder) if isinstance(stated, str) else stated


# --------------------------------------------------------------------------------------------------- resampling
Resampler = Callable[[Band, int, int, int, int], tuple[np.ndarray, np.ndarray]]


def _resampler(library: ModuleType, old: PixelGrid, new: PixelGrid, method: str) -> Resampler:
    """A function of a band and a rectangle of the new grid, giving its image and variance, NaN where masked."""
    if old.same_grid(new, tolerance_pix=_SAME_PIX):
        return _copy
    ratio = proj_plane_pixel_area(new.wcs) / proj_plane_pixel_area(old.wcs)
    if method == "auto":
        method = "exact" if ratio > _COARSER else "interp"

    def resample(band: Band, y0: int, x0: int, y1: int, x1: int) -> tuple[np.ndarray, np.ndarray]:
        shape = y1 - y0, x1 - x0
        box = _footprint(old, new, y0, x0, y1, x1)
        if box is None:
            return np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
        image, variance, bad, _ = band.read(*box)
        if bad.all():
            return np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
        # Filled with the nearest good value, so that a spline does not ring around a hole; masked again below.
        nearest = ndimage.distance_transform_edt(bad, return_distances=False, return_indices=True)
        image, variance = image[tuple(nearest)].astype(np.float64), variance[tuple(nearest)].astype(np.float64)
        old_wcs = old.cutout(box[0], box[1], image.shape).wcs
        new_wcs = new.cutout(y0, x0, shape).wcs

        def project(values: np.ndarray, order: str) -> np.ndarray:
            if method == "exact":
                return library.reproject_exact((values, old_wcs), new_wcs, shape, return_footprint=False)
            options = {"order": order, "roundtrip_coords": False, "return_footprint": False}
            return library.reproject_interp((values, old_wcs), new_wcs, shape, **options)

        image = project(image, "bicubic") * ratio
        variance, part_bad = project(np.stack([variance, bad.astype(np.float64)]), "bilinear")
        variance = variance * ratio
        lost = ~(part_bad < 1e-3) | ~np.isfinite(image) | ~(variance > 0)
        image[lost] = variance[lost] = np.nan
        return image.astype(np.float32), variance.astype(np.float32)

    return resample


def _copy(band: Band, y0: int, x0: int, y1: int, x1: int) -> tuple[np.ndarray, np.ndarray]:
    image, variance, bad, _ = band.read(y0, x0, y1, x1)
    image[bad] = variance[bad] = np.nan
    return image, variance


def _footprint(old: PixelGrid, new: PixelGrid, y0: int, x0: int, y1: int, x1: int) -> tuple[int, int, int, int] | None:
    """The rectangle of the old grid that a rectangle of the new one needs; None when they do not meet."""
    y, x = np.meshgrid(np.linspace(y0 - 0.5, y1 - 0.5, 9), np.linspace(x0 - 0.5, x1 - 0.5, 9), indexing="ij")
    old_x, old_y = old.to_pixel(*new.to_sky(x.ravel(), y.ravel()))
    if not np.isfinite(old_x).any():
        return None
    top, left = (int(np.floor(np.nanmin(part))) - _MARGIN_PIX for part in (old_y, old_x))
    bottom, right = (int(np.ceil(np.nanmax(part))) + _MARGIN_PIX + 1 for part in (old_y, old_x))
    height, width = old.shape
    top, left, bottom, right = max(top, 0), max(left, 0), min(bottom, height), min(right, width)
    return (top, left, bottom, right) if top < bottom and left < right else None


# ------------------------------------------------------------------------------------------------------ writing
def _write_band(path: Path, band: Band, name: str, grid: PixelGrid, resample: Resampler) -> bool:
    """Write one band block by block; False where not a single pixel has a value."""
    filled = False
    with atomic_path(path) as temporary:
        image, variance = _create_planes(temporary, name, grid)
        for _, _, y0, x0, y1, x1 in blocks(grid.shape, _BLOCK_PIX):
            image[y0:y1, x0:x1], variance[y0:y1, x0:x1] = resample(band, y0, x0, y1, x1)
            filled = filled or bool(np.isfinite(image[y0:y1, x0:x1]).any())
        for plane in (image, variance):
            plane.flush()
    return filled


def _create_planes(path: Path, name: str, grid: PixelGrid) -> list[np.memmap]:
    """Create a FITS file with an IMAGE and a VARIANCE of a grid's shape; give both as writable big-endian arrays."""
    cards = [{"name": key, "value": value} for key, value in grid.header().items()]
    with fitsio.FITS(os.fspath(path), "rw") as file:
        for extension, unit in (("IMAGE", "nJy"), ("VARIANCE", "nJy2")):
            header = [*cards, {"name": "BUNIT", "value": unit}, {"name": "FILTER", "value": name}]
            file.create_image_hdu(dims=grid.shape, dtype="f4", extname=extension)
            file[-1].write_keys(header)
        offsets = [file[number].get_info()["data_start"] for number in (0, 1)]
    return [np.memmap(path, ">f4", "r+", offset, grid.shape) for offset in offsets]
