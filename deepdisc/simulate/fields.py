"""Fields of a synthetic sky: drawn, covered with noise, and written with their truth."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from astropy.io import fits

from deepdisc import catalog
from deepdisc.config import instantiate
from deepdisc.errors import InputError, require_extra
from deepdisc.files import atomic_path, refuse_to_overwrite, write_text
from deepdisc.simulate.conditions import Conditions, draw_conditions
from deepdisc.simulate.instruments import Instrument
from deepdisc.simulate.objects import draw_objects
from deepdisc.simulate.population import CLASS_NAMES, Population
from deepdisc.simulate.scene import build_scene, truth_table
from deepdisc.simulate.settings import Sky

logger = logging.getLogger(__name__)

ROWS_PER_BLOCK = 256  # noise is drawn for this many rows at a time, which bounds the memory
LOWEST_VARIANCE = 0.25  # times the sky's, where a chance hole in the sky would leave none


def simulate(cfg: Mapping[str, Any] | Sky, output: str | os.PathLike, seed: int = 0) -> list[Path]:
    """Make the fields of a sky config.

    Field k depends on the seed and k alone: more fields, other processes or another order change no byte of it. The
    files of a field are `mosaic.yaml`, `<band>.fits` (primary: image in nJy with WCS; VARIANCE), `segmentation.fits`
    and `truth.parquet`; they lie in `output` itself if there is one field, else in `output`/field_000 and so on.
    `output`/recipe.yaml lists them, with the settings and each field's conditions.

    Args:
        cfg: a loaded sky config (its key `sky`), or the settings themselves.
        output: folder to write into.
        seed: not negative.

    Returns:
        The paths of the fields' mosaic.yaml.

    Raises:
        InputError: GalSim is missing, a setting is out of range, the output cannot be written or holds a sky already.
    """
    require_extra("galsim", "sim")
    sky = cfg if isinstance(cfg, Sky) else _settings(cfg)
    if seed < 0:
        raise InputError(f"seed is {seed}; it must not be negative")
    instrument = Instrument.load(sky.instrument, sky.bands)
    output = Path(output)
    folders = [output] if sky.fields == 1 else [output / f"field_{number:03d}" for number in range(sky.fields)]
    names = [*_FILES.values(), *(f"{band.name}.fits" for band in instrument.bands)]
    refuse_to_overwrite([output / "recipe.yaml", *(folder / name for folder in folders for name in names)])
    work = [(sky, number, folder, seed) for number, folder in enumerate(folders)]
    if sky.workers == 1:
        described = [simulate_field(*one) for one in work]
    else:
        with concurrent.futures.ProcessPoolExecutor(max_workers=sky.workers) as pool:
            described = list(pool.map(simulate_field, *zip(*work, strict=True)))
    entries = [
        {**_entry(folder, output), "conditions": conditions}
        for folder, conditions in zip(folders, described, strict=True)
    ]
    _write_recipe(output, sky, instrument, seed, entries)
    return [folder / "mosaic.yaml" for folder in folders]


def _settings(cfg: Mapping[str, Any]) -> Sky:
    if "sky" not in cfg:
        raise InputError(f"this is no sky config: it has no key 'sky', but {', '.join(cfg)}; see configs/sky/demo.py")
    return instantiate(cfg["sky"])


def simulate_field(sky: Sky, number: int, folder: Path, seed: int) -> dict[str, Any]:
    """Make one field and return its conditions, as plain values."""

    def random(*stream: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number, *stream)))

    conditions = draw_conditions(sky, Instrument.load(sky.instrument, sky.bands), number, random(0))
    objects = draw_objects(sky, conditions, Population.load(sky.population_part), random(1))
    scene = build_scene(sky, conditions, objects)
    truth = truth_table(conditions, objects, scene)
    for band in range(len(conditions.bands)):
        _write_band(
            folder / f"{conditions.bands[band].name}.fits", conditions, band, scene.light[band], random(2, band)
        )
    _write_segmentation(folder / "segmentation.fits", conditions, scene.segmentation)
    bands = [band.name for band in conditions.bands]
    catalog.write_parquet(truth, folder / "truth.parquet", {"bands": bands, "class_names": list(CLASS_NAMES)})
    _write_mosaic(folder / "mosaic.yaml", conditions)
    faint = int((truth["flags"] & catalog.FLAGS["FAINT"].value > 0).sum())
    logger.info("%s: %d objects drawn, %d labelled, %d faint", folder, len(objects), len(truth) - faint, faint)
    return _described(conditions)


def add_noise(
    light: np.ndarray, sky_sigma_njy: float, electrons_per_njy: float, full_variance: bool, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Observe a noiseless band.

    The noise is the sky's (Gaussian) and the objects' photons' (Poisson). The variance is what a survey writes down:
    the sky's, plus the photons that it counted in the very pixel, noise included, so that it does not betray the truth.

    Args:
        light: (H, W) float32, nJy; overwritten with the observed image.
        sky_sigma_njy: the sky's noise per pixel.
        electrons_per_njy: gain.
        full_variance: False leaves the objects' photons out of the variance, not out of the noise.
        rng: source of randomness.

    Returns:
        (H, W) float32 image (nJy) and variance (nJy^2).
    """
    variance = np.full_like(light, sky_sigma_njy**2)
    for start in range(0, len(light), ROWS_PER_BLOCK):
        rows = light[start : start + ROWS_PER_BLOCK]
        expected = np.maximum(rows, 0).astype(np.float64) * electrons_per_njy  # FFT drawing may ring below zero
        photons = rng.poisson(expected) - expected
        rows += rng.standard_normal(rows.shape, dtype=np.float32) * np.float32(sky_sigma_njy)
        rows += (photons / electrons_per_njy).astype(np.float32)
        if full_variance:
            block = variance[start : start + ROWS_PER_BLOCK]
            block += rows / np.float32(electrons_per_njy)
            np.maximum(block, np.float32(LOWEST_VARIANCE * sky_sigma_njy**2), out=block)
    return light, variance


def _write_band(path: Path, conditions: Conditions, band: int, light: np.ndarray, rng: np.random.Generator) -> None:
    sigma, gain = conditions.sky_sigma_njy()[band], conditions.electrons_per_njy()[band]
    image, variance = add_noise(light, sigma, gain, conditions.full_variance, rng)
    header = fits.Header(conditions.grid.header())
    header["BUNIT"] = "nJy"
    header["FILTER"] = (conditions.bands[band].name, "band")
    header["PSFFWHM"] = (round(float(conditions.psf_fwhm_arcsec[band]), 5), "[arcsec] Moffat PSF without the pixel")
    header["PSFBETA"] = (round(conditions.moffat_beta, 5), "Moffat exponent")
    header["DEPTH5"] = (round(float(conditions.depth_5sigma[band]), 5), "[mag] 5 sigma, point source, AB")
    header["GAIN"] = (round(float(gain), 7), "electrons per nJy")
    primary = fits.PrimaryHDU(image, header)
    header = header.copy()
    header["BUNIT"] = "nJy2"
    with atomic_path(path) as temporary:
        fits.HDUList([primary, fits.ImageHDU(variance, header, name="VARIANCE")]).writeto(temporary)


def _write_segmentation(path: Path, conditions: Conditions, segmentation: np.ndarray) -> None:
    with atomic_path(path) as temporary:
        fits.PrimaryHDU(segmentation, fits.Header(conditions.grid.header())).writeto(temporary)


def _write_mosaic(path: Path, conditions: Conditions) -> None:
    bands = {
        band.name: {
            "image": f"{band.name}.fits",
            "variance": f"{band.name}.fits[VARIANCE]",
            "unit": "nJy",
            "psf_fwhm_arcsec": round(float(fwhm), 5),
        }
        for band, fwhm in zip(conditions.bands, conditions.psf_fwhm_arcsec, strict=True)
    }
    mosaic = {
        "name": f"synthetic {conditions.instrument.name}",
        "pixel_scale_arcsec": conditions.instrument.pixel_scale_arcsec,
        "ebv": conditions.ebv,
        "bands": bands,
    }
    write_text(path, yaml.safe_dump(mosaic, sort_keys=False))


def _described(conditions: Conditions) -> dict[str, Any]:
    """A field's conditions as plain values, for the recipe."""
    names = [band.name for band in conditions.bands]

    def by_band(values: np.ndarray) -> dict[str, float]:
        return {name: round(float(value), 5) for name, value in zip(names, values, strict=True)}

    return {
        "ra_dec_deg": [round(float(value), 7) for value in conditions.grid.wcs.wcs.crval],
        "depth_5sigma": by_band(conditions.depth_5sigma),
        "psf_fwhm_arcsec": by_band(conditions.psf_fwhm_arcsec),
        "moffat_beta": round(conditions.moffat_beta, 5),
        "ebv": round(conditions.ebv, 7),
        "galaxy_density": round(conditions.galaxy_density, 5),
        "star_density": round(conditions.star_density, 5),
        "full_variance": conditions.full_variance,
    }


def _entry(folder: Path, output: Path) -> dict[str, str]:
    place = folder.relative_to(output)
    files = {kind: (place / name).as_posix() for kind, name in _FILES.items()}
    return {"name": folder.name if place.parts else "field_000", **files}


_FILES = {"mosaic": "mosaic.yaml", "segmentation": "segmentation.fits", "truth": "truth.parquet"}


def _write_recipe(output: Path, sky: Sky, instrument: Instrument, seed: int, entries: list[dict[str, Any]]) -> None:
    settings = {name: value for name, value in dataclasses.asdict(sky).items() if name != "workers"}
    recipe = {
        "name": f"synthetic {instrument.name}",
        "pixel_scale_arcsec": instrument.pixel_scale_arcsec,
        "bands": [band.name for band in instrument.bands],
        "class_names": list(CLASS_NAMES),
        "fields": entries,
        "provenance": {"made_by": "deepdisc simulate", "seed": seed, "sky": _plain(settings)},
    }
    write_text(output / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
