"""The objects of simulated fields as every method measured them: the same object in the same row of all tables.

A sky is a folder that `deepdisc simulate` wrote, with one field or several; predictions are a folder with
catalog.parquet or, for several fields, with one folder for each, of the field's name, that has it.

Legend: T true objects that must be found (not FAINT), B bands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from baseline_profiles import has_uneven_sky, optimal_fluxes, read_recipe, redraw, star_share
from baselines import SepSettings, aperture_fluxes, brightness_features, detect_with_sep, read_pixels, training_rows
from scipy.spatial import cKDTree

from deepdisc.catalog import FLAGS, read
from deepdisc.data.mosaic import Mosaic
from deepdisc.errors import InputError
from deepdisc.evaluation.assessment import Assessor
from deepdisc.evaluation.scoring import mosaic_fwhm_pix, prepare
from deepdisc.simulate.fields import Drawn
from deepdisc.simulate.instruments import Band

OURS, OPTIMAL, KRON, APERTURE, TRUE_APERTURE = (
    "deepdisc", "optimal weights, true profile", "SEP Kron", "SEP aperture", "SEP aperture, true position",
)  # fmt: skip
FEATURES, WITHOUT_FLUXES = "features", "deepdisc without fluxes"
APERTURE_RADIUS = 1.5  # FWHM
BACKGROUND_MESH = 128  # pixels, of SEP's background, where the sky is uneven
SPOILT = sum(FLAGS[name].value for name in ("EDGE", "MASKED", "NO_COVERAGE", "SATURATED"))
ISOLATED = 0.01  # largest blendedness
BLEND_RATIO = 2.0  # brightness of two objects that are equally bright
BLEND_REACH = 2.0  # distance of a blend's neighbour in half-light radii

Report = Callable[[str], None]


@dataclass(frozen=True)
class Field:
    """One field of a sky.

    Attributes:
        folder: of the sky.
        entry: of its recipe.
        number: of the field.
        recipe: of the sky.
    """

    folder: Path
    entry: Mapping
    number: int
    recipe: Mapping

    def open(self) -> Mosaic:
        """Its pixels."""
        return Mosaic.open(self.folder / self.entry["mosaic"])

    def truth(self) -> Path:
        """The file of its true catalogue."""
        return self.folder / self.entry["truth"]

    def prediction(self, folder: Path) -> Path:
        """The catalogue of this field in a folder of predictions.

        Raises:
            InputError: there is none.
        """
        name = self.entry["name"] if len(self.recipe["fields"]) > 1 else ""
        path = folder / name / "catalog.parquet"
        if not path.is_file():
            raise InputError(
                f"no catalogue at {path}; run `deepdisc predict {self.entry['mosaic']}` with --output there"
            )
        return path


def fields_of(sky: Path) -> list[Field]:
    """The fields of a sky."""
    recipe = read_recipe(sky / "recipe.yaml")
    return [Field(sky, entry, number, recipe) for number, entry in enumerate(recipe["fields"])]


@dataclass(frozen=True)
class Objects:
    """True objects and what each method made of them.

    Attributes:
        simulated_bands: with their filters and reddening.
        truth: (T) with `field`, `isolated` and, for each band, `blend_<band>`: see `with_surroundings`.
        found: method -> (T) catalogue rows; NaN where a method has not found the object.
        population: name and folder of templates of the population that the sky was drawn from.
    """

    simulated_bands: tuple[Band, ...]
    truth: pd.DataFrame
    found: dict[str, pd.DataFrame]
    population: tuple[str, str | None]

    @property
    def bands(self) -> list[str]:
        """Their names."""
        return [band.name for band in self.simulated_bands]


def read_objects(
    sky: Path, predictions: Path, without_fluxes: Path | None, max_distance_pix: float, report: Report
) -> Objects:
    """Measure all fields of a sky by all methods, and match everything to the truth."""
    truths, found, drawn = [], {}, None
    for field in fields_of(sky):
        report(f"{field.folder.name}/{field.entry['name']}: SEP, optimal weights")
        drawn = redraw(field.recipe, field.number)
        with field.open() as mosaic:
            catalogs = {OURS: read(field.prediction(predictions))}
            if without_fluxes is not None:
                catalogs[WITHOUT_FLUXES] = read(field.prediction(without_fluxes))
            mesh = BACKGROUND_MESH if has_uneven_sky(field.recipe) else None
            sep = measure_with_sep(mosaic, mesh, drawn)
            catalogs |= {KRON: sep[KRON]}
            truth, matched = match_to_truth(catalogs, field.truth(), mosaic, max_distance_pix)
            rows = matched.pop("rows")
            matched |= {name: aligned(sep[name], rows[KRON]) for name in (APERTURE, FEATURES)}
            pixels = read_pixels(mosaic, mesh)
            matched[OPTIMAL] = optimal_fluxes(drawn, truth, pixels.image, pixels.mask)
            matched[TRUE_APERTURE] = corrected_apertures(pixels, mosaic, drawn, truth.x.to_numpy(), truth.y.to_numpy())
        truths.append(with_surroundings(truth, drawn).assign(field=field.number))
        for name, frame in matched.items():
            found.setdefault(name, []).append(frame)
    return Objects(
        drawn.conditions.bands,
        pd.concat(truths, ignore_index=True),
        {name: pd.concat(frames, ignore_index=True) for name, frames in found.items()},
        (drawn.sky.population, drawn.sky.templates),
    )


def match_to_truth(
    catalogs: Mapping[str, pd.DataFrame], truth: Path, mosaic: Mosaic, max_distance_pix: float
) -> tuple[pd.DataFrame, dict]:
    """The true objects (T) that must be found, and what catalogues have of them.

    Returns:
        The truth, and method -> rows of its catalogue (T, NaN where it has none); under "rows" method -> their (T)
        numbers, -1 for none.
    """
    sides, setting = prepare(
        list(catalogs.values()), truth, mosaic=mosaic, match_by="pixels", max_distance_pix=max_distance_pix
    )
    required = np.flatnonzero(setting.required)
    found: dict = {"rows": {}}
    for name, side in zip(catalogs, sides, strict=True):
        pairs = Assessor(side.frame, setting.truth, setting.criterion, **setting.options).assess().pairs
        rows = np.full(len(setting.truth), -1)
        rows[pairs.truth] = pairs.pred
        found["rows"][name] = rows[required]
        found[name] = aligned(side.frame, rows[required])
    return setting.truth.iloc[required].reset_index(drop=True), found


def aligned(frame: pd.DataFrame, rows: np.ndarray) -> pd.DataFrame:
    """These rows of a frame, NaN where the number is -1."""
    frame = frame.reset_index(drop=True)
    return frame.reindex(np.where(rows < 0, len(frame), rows)).reset_index(drop=True)


def with_surroundings(truth: pd.DataFrame, drawn: Drawn) -> pd.DataFrame:
    """The truth with bool columns that say what is near.

    `spoilt`: cut by the field's edge, saturated or masked. `isolated`: not spoilt, its outline touches no other and the
    light in it is its own (blendedness below 1 %). `blend_<band>`: not spoilt, and another labelled object, between
    half and twice as bright in the band, is closer than 2 r50; r50 is the half-light radius behind the PSF, taken as
    sqrt(hlr^2 + (FWHM / 2)^2).
    """
    spoilt = (truth["flags"].to_numpy(np.int64) & SPOILT) > 0
    alone = (truth["neighbours"] == 0) & (truth["blendedness"] < ISOLATED)
    columns = {"spoilt": spoilt, "isolated": alone.to_numpy() & ~spoilt}
    scale = drawn.conditions.instrument.pixel_scale_arcsec
    xy, hlr = truth[["x", "y"]].to_numpy(float), truth["hlr_arcsec"].to_numpy(float)
    for band, fwhm in zip(drawn.conditions.bands, drawn.conditions.psf_fwhm_arcsec, strict=True):
        reach = BLEND_REACH * np.hypot(hlr, fwhm / 2) / scale
        pairs = cKDTree(xy).query_pairs(float(reach.max(initial=1e-9)), output_type="ndarray")
        pairs = np.concatenate((pairs, pairs[:, ::-1]))
        distance = np.linalg.norm(xy[pairs[:, 0]] - xy[pairs[:, 1]], axis=1)
        flux = truth[f"flux_{band.name}"].to_numpy(float)
        ratio = np.abs(np.log(flux[pairs[:, 1]] / flux[pairs[:, 0]]))
        close = pairs[(distance < reach[pairs[:, 0]]) & (ratio <= np.log(BLEND_RATIO)), 0]
        columns[f"blend_{band.name}"] = np.isin(np.arange(len(truth)), close) & ~spoilt
    return truth.assign(**columns)


# ----------------------------------------------------------------------------------------------------------------- SEP
def measure_with_sep(mosaic: Mosaic, mesh: int | None, drawn: Drawn | None = None) -> dict[str, pd.DataFrame]:
    """SEP's detections with Kron fluxes, the features for trees (Kron and two apertures) and, for a field that is
    known, apertures corrected for the PSF; row i is the same detection.
    """
    catalog, _ = detect_with_sep(mosaic, SepSettings(background_mesh=mesh))
    pixels, fwhm = read_pixels(mosaic, mesh), mosaic_fwhm_pix(mosaic) or 3.0
    x, y = catalog["x"].to_numpy(), catalog["y"].to_numpy()
    fluxes = {f"{factor}fwhm": aperture_fluxes(pixels, x, y, factor * fwhm) for factor in (0.75, APERTURE_RADIUS)}
    fluxes["kron"] = tuple(
        catalog[[f"{kind}_{band}" for band in mosaic.bands]].to_numpy() for kind in ("flux", "fluxerr")
    )
    found = {KRON: catalog, FEATURES: brightness_features(fluxes, mosaic.bands, mosaic.ebv)}
    if drawn is not None:
        found[APERTURE] = corrected_apertures(pixels, mosaic, drawn, x, y)
    return found


def corrected_apertures(pixels, mosaic: Mosaic, drawn: Drawn, x: np.ndarray, y: np.ndarray) -> pd.DataFrame:
    """Fluxes and errors in circles of three FWHM across, divided by the share of a star's light in them."""
    radius = APERTURE_RADIUS * (mosaic_fwhm_pix(mosaic) or 3.0)
    share = star_share(drawn, radius)
    flux, error = (part / share for part in aperture_fluxes(pixels, x, y, radius))
    columns = {f"flux_{band}": flux[:, i] for i, band in enumerate(mosaic.bands)}
    return pd.DataFrame(columns | {f"fluxerr_{band}": error[:, i] for i, band in enumerate(mosaic.bands)})


def training_features(
    sky: Path, max_fields: int | None, max_distance_pix: float, report: Report
) -> tuple[pd.DataFrame, np.ndarray]:
    """Features and redshifts of the galaxies that SEP finds on training fields."""
    features, redshifts = [], []
    for field in fields_of(sky)[:max_fields]:
        report(f"{field.folder.name}/{field.entry['name']}: SEP, for training")
        mesh = BACKGROUND_MESH if has_uneven_sky(field.recipe) else None
        with field.open() as mosaic:
            sep = measure_with_sep(mosaic, mesh)
            truth, found = match_to_truth({KRON: sep[KRON]}, field.truth(), mosaic, max_distance_pix)
        used = training_rows(truth) & (found["rows"][KRON] >= 0)
        features.append(sep[FEATURES].iloc[found["rows"][KRON][used]])
        redshifts.append(truth["redshift"].to_numpy(float)[used])
    return pd.concat(features, ignore_index=True), np.concatenate(redshifts)


def iterate_shear_fields(
    sky: Path, predictions: Path, max_distance_pix: float
) -> Iterator[tuple[Field, Mosaic, pd.DataFrame, pd.DataFrame]]:
    """Of each field of a sheared sky: the field, its pixels, true objects and our rows of them."""
    for field in fields_of(sky):
        with field.open() as mosaic:
            catalogs = {OURS: read(field.prediction(predictions))}
            truth, found = match_to_truth(catalogs, field.truth(), mosaic, max_distance_pix)
            yield field, mosaic, truth, found[OURS]
