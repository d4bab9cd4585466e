"""The files of a field and of a sky: FITS images, truth, mosaic.yaml and recipe.yaml; each appears whole or not at all.

H, W = height and width of the field in pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from astropy.io import fits

from deepdisc import catalog
from deepdisc.files import atomic_path, write_text
from deepdisc.simulate.conditions import Conditions
from deepdisc.simulate.effects import MASK_BITS
from deepdisc.simulate.exposures import COLUMNS as EXPOSURE_COLUMNS
from deepdisc.simulate.instruments import Instrument
from deepdisc.simulate.lensing import ConvergenceMap
from deepdisc.simulate.observe import Observed
from deepdisc.simulate.population import CLASS_NAMES
from deepdisc.simulate.psf_stamps import BelievedPSF
from deepdisc.simulate.settings import Sky
from deepdisc.sky import PixelGrid

RECIPE_FILES = {
    "mosaic": "mosaic.yaml",
    "segmentation": "segmentation.fits",
    "truth": "truth.parquet",
    "outlines": "outlines.parquet",
}
DUST_FILE = "ebv.fits"
PSF_FILE = "psf.fits"
LENSING_STEP_PIX = 8  # the maps of shear have one pixel for so many of the field along each axis


def file_names(sky: Sky, bands: Sequence[str]) -> list[str]:
    """Names of the files and folders of a field."""
    names = [*RECIPE_FILES.values(), PSF_FILE, *(f"{band}.fits" for band in bands)]
    if sky.lensing is not None and sky.lensing.kappa_rms > 0:
        names.append("lensing.fits")
    if sky.ebv_rms > 0:
        names.append(DUST_FILE)
    if sky.exposures is not None:
        names += ["exposures.parquet", "exposures"]
    return names


# ------------------------------------------------------------------------------------------------------------ pixels
def write_image(path: Path, grid: PixelGrid, observed: Observed, cards: Mapping[str, Any], unit: str) -> None:
    """Write an image: primary HDU, VARIANCE and, where there is one, MASK.

    Args:
        path: of the FITS file.
        grid: of the pixels.
        observed: image and variance in `unit` and `unit` squared.
        cards: header keywords -> value or (value, comment).
        unit: BUNIT.
    """
    header = fits.Header(grid.header())
    header["BUNIT"] = unit
    header.update(cards)
    variance_header = header.copy()
    variance_header["BUNIT"] = f"{unit}2" if unit.isalpha() else f"({unit})2"
    hdus = [fits.PrimaryHDU(observed.image, header), fits.ImageHDU(observed.variance, variance_header, name="VARIANCE")]
    if observed.mask is not None:
        mask_header = fits.Header(grid.header())
        for name, bit in MASK_BITS.items():
            mask_header[f"BIT{bit:02d}"] = name
        hdus.append(fits.ImageHDU(observed.mask, mask_header, name="MASK"))
    with atomic_path(path) as temporary:
        fits.HDUList(hdus).writeto(temporary)


def write_segmentation(path: Path, grid: PixelGrid, segmentation: np.ndarray) -> None:
    """Write the (H, W) int32 map of the objects' ids."""
    with atomic_path(path) as temporary:
        fits.PrimaryHDU(segmentation, fits.Header(grid.header())).writeto(temporary)


def write_lensing(path: Path, grid: PixelGrid, field: ConvergenceMap) -> None:
    """Write KAPPA, GAMMA1 and GAMMA2 (sky orientation; not reduced) at the centres of blocks of pixels."""
    step = LENSING_STEP_PIX
    shape = tuple(-(-side // step) for side in grid.shape)
    y, x = (index * step + (step - 1) / 2 for index in np.indices(shape))
    kappa, gamma = field.at(x.ravel(), y.ravel())
    planes = (kappa, *grid.shear_to_sky(x.ravel(), y.ravel(), gamma.real, gamma.imag))
    coarse = PixelGrid(shape, grid.pixel_scale_arcsec * step, grid.wcs.slice((slice(0, None, step),) * 2))
    header = fits.Header(coarse.header())
    hdus = [
        fits.ImageHDU(plane.reshape(shape).astype(np.float32), header, name=name)
        for name, plane in zip(("KAPPA", "GAMMA1", "GAMMA2"), planes, strict=True)
    ]
    with atomic_path(path) as temporary:
        fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(temporary)


def write_dust(path: Path, conditions: Conditions) -> None:
    """Write E(B-V) (mag) in the cells in which it is known."""
    cells, wcs = conditions.ebv_map()
    with atomic_path(path) as temporary:
        fits.PrimaryHDU(cells.astype(np.float32), wcs.to_header(relax=True)).writeto(temporary)


def write_psfs(path: Path, psfs: Sequence[BelievedPSF]) -> None:
    """Write the bands' PSFs: one extension per band, with a picture, or with a cube and the places in POSITIONS."""
    hdus: list[fits.hdu.base.ExtensionHDU] = []
    for psf in psfs:
        pictures, positions = psf.cells()
        scale = psf.conditions.instrument.pixel_scale_arcsec
        header = fits.Header([("PIXELSCL", scale, "[arcsec] side of a pixel")])
        name = psf.conditions.bands[psf.band].name
        hdus.append(fits.ImageHDU(pictures if len(pictures) > 1 else pictures[0], header, name=name))
    if len(positions) > 1:
        columns = [fits.Column(axis, "D", "pix", array=positions[:, i]) for i, axis in enumerate("XY")]
        hdus.append(fits.BinTableHDU.from_columns(columns, name="POSITIONS"))
    with atomic_path(path) as temporary:
        fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(temporary)


# ------------------------------------------------------------------------------------------------------------ tables
def write_truth(path: Path, truth: pd.DataFrame, bands: Sequence[str]) -> None:
    """Write the truth catalogue."""
    catalog.write_parquet(truth, path, {"bands": list(bands), "class_names": list(CLASS_NAMES)})


def write_outlines(path: Path, table: pd.DataFrame) -> None:
    """Write the whole outlines of the labelled objects (see `outlines.amodal_table`)."""
    kinds = {"id": pa.int64(), "rle": pa.binary()}
    schema = pa.schema([pa.field(name, kinds.get(name, pa.int32())) for name in table])
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pandas(table, schema, preserve_index=False), temporary, compression="zstd")


def write_exposures(path: Path, table: pd.DataFrame) -> None:
    """Write what is true of each exposure, with units and meanings as field metadata."""
    fields = [
        pa.field(
            column.name,
            pa.string() if column.dtype == "str" else pa.from_numpy_dtype(np.dtype(column.dtype)),
            metadata={"unit": column.unit, "description": column.description},
        )
        for column in EXPOSURE_COLUMNS
    ]
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pandas(table, pa.schema(fields), preserve_index=False), temporary)


# -------------------------------------------------------------------------------------------------------------- text
def write_mosaic(path: Path, conditions: Conditions, psf_fwhm_arcsec: Sequence[float], masked: bool) -> None:
    """Write mosaic.yaml, with the PSF file and widths that the survey believes in and whether the images have masks.

    Where E(B-V) varies over the field, its map is written beside it.
    """
    bands, varies = {}, conditions.ebv_cells.size > 1
    if varies:
        write_dust(path.with_name(DUST_FILE), conditions)
    for band, fwhm in zip(conditions.bands, psf_fwhm_arcsec, strict=True):
        file = f"{band.name}.fits"
        mask = {"mask": f"{file}[MASK]"} if masked else {}
        psf = {"psf": f"{PSF_FILE}[{band.name}]", "psf_fwhm_arcsec": round(float(fwhm), 5)}
        bands[band.name] = {"image": file, "variance": f"{file}[VARIANCE]", **mask, "unit": "nJy", **psf}
    mosaic = {
        "name": f"synthetic {conditions.instrument.name}",
        "pixel_scale_arcsec": conditions.instrument.pixel_scale_arcsec,
        "ebv": DUST_FILE if varies else conditions.ebv,
        "bands": bands,
    }
    write_text(path, yaml.safe_dump(mosaic, sort_keys=False))


def describe(conditions: Conditions) -> dict[str, Any]:
    """A field's conditions as plain values, for the recipe."""
    names = [band.name for band in conditions.bands]

    def by_band(values: np.ndarray) -> dict[str, float]:
        return {name: round(float(value), 5) for name, value in zip(names, values, strict=True)}

    beta = {} if conditions.moffat_beta is None else {"moffat_beta": round(conditions.moffat_beta, 5)}
    return {
        "ra_dec_deg": [round(float(value), 7) for value in conditions.grid.wcs.wcs.crval],
        "depth_5sigma": by_band(conditions.depth_5sigma),
        "psf_fwhm_arcsec": by_band(conditions.psf_fwhm_arcsec),
        **beta,
        "ebv": round(conditions.ebv, 7),
        "galaxy_density": round(conditions.galaxy_density, 5),
        "star_density": round(conditions.star_density, 5),
        "full_variance": conditions.full_variance,
    }


def write_recipe(
    output: Path, sky: Sky, instrument: Instrument, seed: int, folders: Sequence[Path], conditions: Sequence[dict]
) -> None:
    """Write recipe.yaml: the fields with their conditions, and the settings they were made with."""
    settings = {name: value for name, value in dataclasses.asdict(sky).items() if name != "workers"}
    recipe = {
        "name": f"synthetic {instrument.name}",
        "pixel_scale_arcsec": instrument.pixel_scale_arcsec,
        "bands": [band.name for band in instrument.bands],
        "class_names": list(CLASS_NAMES),
        "fields": [
            {**_entry(folder, output), "conditions": one} for folder, one in zip(folders, conditions, strict=True)
        ],
        "provenance": {"made_by": "deepdisc simulate", "seed": seed, "sky": _plain(settings)},
    }
    write_text(output / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))


def _entry(folder: Path, output: Path) -> dict[str, str]:
    place = folder.relative_to(output)
    files = {kind: (place / name).as_posix() for kind, name in RECIPE_FILES.items()}
    return {"name": folder.name if place.parts else "field_000", **files}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
