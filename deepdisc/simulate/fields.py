"""Fields of a synthetic sky: drawn, lensed, observed, and written with their truth."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from deepdisc.catalog import FLAGS
from deepdisc.config import instantiate
from deepdisc.errors import InputError, require_extra
from deepdisc.files import refuse_to_overwrite, refuse_unwritable
from deepdisc.photometry import njy_per_count
from deepdisc.simulate import writing
from deepdisc.simulate.conditions import Conditions, draw_conditions
from deepdisc.simulate.effects import MASK_BITS, FieldEffects, draw_field_effects
from deepdisc.simulate.exposures import WeightedMean, blurred, draw_exposures
from deepdisc.simulate.instruments import Instrument
from deepdisc.simulate.lensing import ConvergenceMap, lens_objects, turn_for_ring
from deepdisc.simulate.objects import draw_objects
from deepdisc.simulate.observe import Observed, PixelFlags, camera_of, displaced, observe, stars_of
from deepdisc.simulate.outlines import amodal_table
from deepdisc.simulate.population import Population
from deepdisc.simulate.processes import process_pool
from deepdisc.simulate.psf_shapes import psf_ellipticity
from deepdisc.simulate.psf_stamps import BelievedPSF, Smear
from deepdisc.simulate.scene import Scene, build_scene, truth_table
from deepdisc.simulate.settings import Sky
from deepdisc.simulate.shapes import lensed_ellipticity

logger = logging.getLogger(__name__)

# Streams of random numbers of a field. Noise is apart, so that lensing or effects do not change it.
CONDITIONS, OBJECTS, NOISE, LENSING, EFFECTS, EXPOSURES = range(6)
Random = Callable[..., np.random.Generator]


def simulate(
    cfg: Mapping[str, Any] | Sky,
    output: str | os.PathLike,
    seed: int = 0,
    *,
    report: bool = False,
    compare: str | os.PathLike | None = None,
    compare_area_arcmin2: float | None = None,
) -> list[Path]:
    """Make the fields of a sky config.

    Field k depends on the seed and k alone: more fields, other processes or another order change no byte of it. The
    files of a field are `mosaic.yaml`, `<band>.fits` (primary: image in nJy with WCS; VARIANCE; with effects MASK),
    `psf.fits` (a picture of a star per band), `segmentation.fits`, `truth.parquet` and `outlines.parquet` (whole
    outlines, also where hidden); with a random
    convergence field `lensing.fits`, with exposures `exposures.parquet` and the folder `exposures`. They lie in
    `output` itself if there is one field, else in `output`/field_000 and so on. `output`/recipe.yaml lists them, with
    the settings and each field's conditions; `output`/report.html shows what was drawn beside what it was drawn from.

    Args:
        cfg: a loaded sky config (its key `sky`), or the settings themselves.
        output: folder to write into.
        seed: not negative.
        report: write report.html and report.json as well.
        compare: another catalogue for the report, see `report.write_report`.
        compare_area_arcmin2: its area.

    Returns:
        The paths of the fields' mosaic.yaml.

    Raises:
        InputError: GalSim is missing, a setting is out of range, the output cannot be written or holds a sky already.
    """
    require_extra("galsim", "sim")
    sky = cfg if isinstance(cfg, Sky) else _settings(cfg)
    if seed < 0:
        raise InputError(f"seed is {seed}; it must not be negative")
    if sky.lensing is not None and sky.lensing.ring_pairs and sky.fields % 2:
        raise InputError(f"sky.fields is {sky.fields}; with sky.lensing.ring_pairs it must be even")
    instrument = Instrument.load(sky.instrument, sky.bands)
    output = Path(output)
    folders = [output] if sky.fields == 1 else [output / f"field_{number:03d}" for number in range(sky.fields)]
    names = writing.file_names(sky, [band.name for band in instrument.bands])
    refuse_unwritable(output)
    own = ["recipe.yaml", *(["report.html", "report.json"] if report else [])]
    refuse_to_overwrite([*(output / name for name in own), *(folder / name for folder in folders for name in names)])
    if report and compare is not None:
        from deepdisc.simulate.report import read_catalogue  # here, because it imports matplotlib

        read_catalogue(Path(compare), [band.name for band in instrument.bands])  # a wrong one costs no simulation
    with _Bar(sky.fields) as bar:
        described = _make_fields(sky, folders, seed, bar)
    writing.write_recipe(output, sky, instrument, seed, folders, described)
    if report:
        from deepdisc.simulate.report import write_report  # here, because it imports matplotlib

        conditions = [field_conditions(sky, number, seed) for number in range(sky.fields)]
        other = None if compare is None else Path(compare)
        logger.info("%s", write_report(output, sky, conditions, folders, other, compare_area_arcmin2))
    return [folder / "mosaic.yaml" for folder in folders]


def _settings(cfg: Mapping[str, Any]) -> Sky:
    if "sky" not in cfg:
        raise InputError(f"this is no sky config: it has no key 'sky', but {', '.join(cfg)}; see configs/sky/demo.py")
    return instantiate(cfg["sky"])


def _make_fields(sky: Sky, folders: Sequence[Path], seed: int, bar: _Bar) -> list[dict[str, Any]]:
    """Make all fields, side by side or one after the other; returns their conditions."""
    if sky.fields == 1:
        made = [simulate_field(sky, 0, folders[0], seed, sky.workers, bar.objects)]
    elif sky.workers == 1:
        made = [bar.field(simulate_field(sky, number, folder, seed)) for number, folder in enumerate(folders)]
    else:
        with process_pool(min(sky.workers, sky.fields)) as pool:
            waiting = [pool.submit(simulate_field, sky, k, folder, seed) for k, folder in enumerate(folders)]
            try:
                for done in concurrent.futures.as_completed(waiting):
                    bar.field(done.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        made = [one.result() for one in waiting]
    for folder, one in zip(folders, made, strict=True):
        logger.info("%s: %d objects drawn, %d labelled, %d faint", folder, one.objects, one.labelled, one.faint)
    return [one.conditions for one in made]


# ----------------------------------------------------------------------------------------------------------- one field
@dataclasses.dataclass(frozen=True)
class Made:
    """What a field has become: its conditions as plain values, and numbers of objects."""

    conditions: dict[str, Any]
    objects: int
    labelled: int
    faint: int


def _random(sky: Sky, number: int, seed: int) -> Random:
    """A function that makes the source of randomness of one stream of field `number`.

    The two fields of a ring pair share all streams but those of the images.
    """

    def random(stream: int, *image: int) -> np.random.Generator:
        source = number if image else _place(sky, number)
        return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(source, stream, *image)))

    return random


def _place(sky: Sky, number: int) -> int:
    """The number of the field that decides what is seen in field `number`: of a ring pair, the first."""
    paired = sky.lensing is not None and sky.lensing.ring_pairs
    return number - number % 2 if paired else number


def field_conditions(sky: Sky, number: int, seed: int) -> Conditions:
    """The conditions of field `number`."""
    instrument = Instrument.load(sky.instrument, sky.bands)
    return draw_conditions(sky, instrument, _place(sky, number), _random(sky, number, seed)(CONDITIONS))


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What a field is before it is painted.

    Attributes:
        sky: settings.
        conditions: of the field.
        objects: their table, lensed.
        convergence: the random convergence field, where there is one.
        effects: what the field has drawn of `sky.effects`; None without them.
        random: makes the source of randomness of a stream.
    """

    sky: Sky
    conditions: Conditions
    objects: pd.DataFrame
    convergence: ConvergenceMap | None
    effects: FieldEffects | None
    random: Random

    def stated_psf(self, band: int) -> float:
        """Factor by which the survey takes a band's PSF to be wider than it is."""
        return 1.0 if self.effects is None else float(self.effects.stated_psf[band])


def draw_field(sky: Sky, number: int, seed: int) -> Drawn:
    """Draw conditions, objects and effects of field `number`."""
    random, conditions = _random(sky, number, seed), field_conditions(sky, number, seed)
    population = Population.load(sky.population, sky.population_part, sky.templates)
    objects = draw_objects(sky, conditions, population, random(OBJECTS))
    if sky.lensing is not None and sky.lensing.ring_pairs:
        objects = turn_for_ring(objects, number)
    objects, convergence = lens_objects(sky.lensing, conditions, objects, random(LENSING))
    if sky.lensing is not None:
        e1, e2 = psf_ellipticity(conditions, objects.x.to_numpy(), objects.y.to_numpy())
        objects = objects.assign(psf_e1=e1, psf_e2=e2)
    e1, e2 = lensed_ellipticity(objects, conditions)
    objects = objects.assign(e1=e1, e2=e2)
    effects = None if sky.effects is None else draw_field_effects(sky.effects, conditions, random(EFFECTS))
    return Drawn(sky, conditions, objects, convergence, effects, random)


def simulate_field(
    sky: Sky,
    number: int,
    folder: Path,
    seed: int,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Made:
    """Make one field.

    Args:
        sky: settings.
        number: of the field.
        folder: to write into.
        seed: of the sky.
        workers: processes that paint it.
        progress: told how many more objects are painted, and how many there are.
    """
    field = draw_field(sky, number, seed)
    conditions, objects = field.conditions, field.objects
    tell = None if progress is None else lambda count: progress(count, len(objects))
    scene = build_scene(sky, conditions, objects, workers, tell)
    truth = truth_table(conditions, objects, scene)
    flags, widths, psfs = _observe_bands(field, folder, scene)
    truth["flags"] |= flags.flags(truth)
    writing.write_segmentation(folder / "segmentation.fits", conditions.grid, scene.segmentation)
    writing.write_truth(folder / "truth.parquet", truth, [band.name for band in conditions.bands])
    writing.write_outlines(folder / "outlines.parquet", amodal_table(scene.outlines))
    if field.convergence is not None:
        writing.write_lensing(folder / "lensing.fits", conditions.grid, field.convergence)
    writing.write_psfs(folder / writing.PSF_FILE, psfs)
    writing.write_mosaic(folder / "mosaic.yaml", conditions, widths, sky.effects is not None)
    faint = int((truth["flags"] & FLAGS["FAINT"].value > 0).sum())
    return Made(writing.describe(conditions), len(objects), len(truth) - faint, faint)


def _observe_bands(field: Drawn, folder: Path, scene: Scene) -> tuple[PixelFlags, list[float], list[BelievedPSF]]:
    """Observe and write all bands; returns the flags, and the PSF widths (arcsec) and PSFs that the files state."""
    flags, widths, psfs, conditions = PixelFlags(scene.segmentation), [], [], field.conditions
    table = None
    if field.sky.exposures is not None:
        table = draw_exposures(field.sky.exposures, conditions, field.random(EXPOSURES))
        writing.write_exposures(folder / "exposures.parquet", table)
    for index, band in enumerate(conditions.bands):
        if table is None:
            observed = observe_band(field, index, scene.light[index])
            fwhm, depth = float(conditions.psf_fwhm_arcsec[index]), float(conditions.depth_5sigma[index])
            smears = ()
        else:
            mine = table[table.band == band.name]
            observed, fwhm, depth, smears = _exposed(field, folder, index, scene.light[index], mine)
        stated = fwhm * field.stated_psf(index)
        widths.append(stated)
        psfs.append(BelievedPSF(conditions, index, field.stated_psf(index), smears))
        if observed.mask is not None:
            flags.add(observed.mask, field.sky.effects.masked_bits)
            observed.mask &= np.uint8(field.sky.effects.masked_bits)
        gain = conditions.electrons_per_njy()[index]
        cards = {
            "FILTER": (band.name, "band"),
            "PSFFWHM": (round(float(stated), 5), "[arcsec] PSF without the pixel"),
            "DEPTH5": (round(float(depth), 5), "[mag] 5 sigma, point source, AB"),
            "GAIN": (round(float(gain), 7), "electrons per nJy"),
            **_saturation(field, index),
        }
        writing.write_image(folder / f"{band.name}.fits", conditions.grid, observed, cards, "nJy")
    return flags, widths, psfs


def _saturation(field: Drawn, band: int) -> dict[str, tuple[float, str]]:
    """What a header says of full pixels; nothing where they never are, or at another level in each exposure."""
    if field.sky.effects is None or not field.sky.effects.saturation or field.sky.exposures is not None:
        return {}
    return {"SATURATE": (float(np.float32(camera_of(field.conditions, band).full_njy)), "[nJy] of a full pixel")}


def observe_band(field: Drawn, band: int, light: np.ndarray) -> Observed:
    """A band as one image; (H, W) `light` is overwritten."""
    conditions, effects = field.conditions, field.sky.effects
    trails = 0.0 if effects is None else effects.satellite_trails / len(conditions.bands)
    camera = camera_of(conditions, band, trails=trails)
    stars = stars_of(field.objects, conditions.bands[band].name)
    rngs = field.random(NOISE, band), field.random(EFFECTS, band)
    return observe(light, camera, effects, field.effects, stars, *rngs)


def _exposed(
    field: Drawn, folder: Path, band: int, light: np.ndarray, table: pd.DataFrame
) -> tuple[Observed, float, float, list[Smear]]:
    """Take and write a band's exposures; returns their mean, the width of its PSF (arcsec), about its depth, and what
    makes its PSF.
    """
    conditions, effects, one = field.conditions, field.sky.effects, field.conditions.bands[band]
    stars = stars_of(field.objects, one.name)
    best, scale = float(conditions.psf_fwhm_arcsec[band]), conditions.instrument.pixel_scale_arcsec
    trails = 0.0 if effects is None else effects.satellite_trails / len(conditions.bands) / len(table)
    mean, weights, always = WeightedMean(light.shape), [], np.full(light.shape, MASK_BITS["saturated"], np.uint8)
    smears = []
    for exposure in table.itertuples():
        blur = math.sqrt(max(exposure.seeing_arcsec**2 - best**2, 0)) / 2.3548 / scale
        shift = exposure.shift_y_pix, exposure.shift_x_pix
        smears.append((blur, shift))
        seen = displaced(blurred(light, blur), shift)
        camera = camera_of(
            conditions,
            band,
            images=len(table),
            transparency=10 ** (0.4 * (exposure.zero_point - one.electrons_zero_point)),
            trails=trails,
            chip_offset=(exposure.dither_y_pix, exposure.dither_x_pix),
        )
        rngs = (field.random(stream, band, exposure.exposure) for stream in (NOISE, EFFECTS))
        observed = observe(seen, camera, effects, field.effects, stars, *rngs)
        # What the header's zero point makes of the electrons that were counted with the true one.
        factor = np.float32(10 ** (0.4 * (exposure.zero_point - exposure.zero_point_header)))
        weights.append(1 / (camera.sigma_njy * factor) ** 2)
        marked = None
        if effects is not None:
            always &= observed.mask
            marked = observed.mask & np.uint8(effects.masked_bits)
        mean.add(observed.image * factor, observed.variance * factor**2, marked, weights[-1])
        _write_exposure(field, folder, exposure, Observed(observed.image, observed.variance, marked))
    share = np.array(weights) / sum(weights)
    fwhm = float(np.sqrt((share * table.seeing_arcsec.to_numpy() ** 2).sum()))
    noise = 1 / math.sqrt(sum(weights)) / conditions.sky_sigma_njy()[band]
    depth = float(conditions.depth_5sigma[band]) - 2.5 * math.log10(noise * fwhm / best)
    image, variance, mask = mean.result()
    observed = Observed(image, variance, None if mask is None else mask | always)
    return observed, fwhm, depth, [Smear(float(one), *smear) for one, smear in zip(share, smears, strict=True)]


def _write_exposure(field: Drawn, folder: Path, exposure: Any, observed: Observed) -> None:
    """Write one exposure in electrons per second, with what its header would know."""
    njy = np.float32(njy_per_count(exposure.zero_point))
    counts = Observed(observed.image / njy, observed.variance / njy**2, observed.mask)
    cards = {
        "FILTER": (exposure.band, "band"),
        "EXPTIME": (round(exposure.exposure_s, 5), "[s] exposure time"),
        "MJD-OBS": (round(exposure.mjd_obs, 8), "[d] modified Julian date"),
        "MAGZERO": (round(exposure.zero_point_header, 6), "[mag] AB zero point of 1 electron per second"),
        "AIRMASS": (round(exposure.airmass, 5), "1 / sin(altitude)"),
        "TEMP": (round(exposure.temperature_c, 3), "[deg_C] temperature of the air"),
        "HUMIDITY": (round(exposure.humidity_percent, 3), "[%] relative humidity"),
        "WIND": (round(exposure.wind_m_s, 3), "[m/s] speed of the wind"),
        "SEEING": (round(exposure.seeing_arcsec, 4), "[arcsec] full width at half maximum of the PSF"),
    }
    writing.write_image(folder / exposure.file, field.conditions.grid, counts, cards, "electron/s")


# ------------------------------------------------------------------------------------------------------------ progress
class _Bar:
    """A progress bar on standard error, if that is a terminal: objects of one field, or fields; objects per second."""

    def __init__(self, fields: int):
        console = Console(stderr=True)
        self._one, self._objects = fields == 1, 0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("objects" if self._one else "fields", total=fields, rate="")

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._progress.stop()

    def objects(self, done: int, total: int) -> None:
        """So many more objects of one field, of so many, are painted."""
        self._progress.update(self._task, total=total)
        self._count(done, done)

    def field(self, made: Made) -> Made:
        """One more field is made."""
        self._count(1, made.objects)
        return made

    def _count(self, steps: int, objects: int) -> None:
        self._objects += objects
        elapsed = self._progress.tasks[0].elapsed
        rate = f"{self._objects / elapsed:.0f} objects/s" if elapsed else ""
        self._progress.update(self._task, advance=steps, rate=rate)
