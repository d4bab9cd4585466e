"""The objects of a field: what they are, where, and how much light each part of them has in each band.

Objects are a DataFrame, one row each:

    class_id (0 galaxy, 1 star), redshift (NaN for stars), population_row
    x, y (0-based pixel centres, may lie outside the field), angle_rad (of the major axis, from +x to +y)
    flux_<band> (nJy, total, reddened), mag_<band>, bulge_share_<band> (of the flux), ebv, estimated_snr
    disk_hlr_arcsec, disk_n, disk_axis_ratio, bulge_... (NaN where the part is absent; circularised half-light radii)
    knots, knot_share (number of knots, and their share of the disc's light)
    stamp (row of the catalogue of real galaxies that is drawn in place of disc and bulge, -1 for none)
"""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
from scipy.special import gammainc

from deepdisc.errors import InputError, require_extra
from deepdisc.photometry import mag_from_njy
from deepdisc.simulate.conditions import Conditions
from deepdisc.simulate.population import GALAXY, SHAPE_COLUMNS, STAR, Population
from deepdisc.simulate.positions import catalogue_window, clustered_positions, move_into_pairs
from deepdisc.simulate.sersic import sersic_b
from deepdisc.simulate.settings import Sky
from deepdisc.simulate.shapes import HALF_SIZES

MARGIN_ARCSEC = 40.0  # objects centred this far outside still shine into the field
MEAN_KNOTS = 6.0
SMALLEST_STAMP_ARCSEC = 0.15  # pictures of real galaxies, PSF removed, do not show what is smaller


def draw_objects(sky: Sky, conditions: Conditions, population: Population, rng: np.random.Generator) -> pd.DataFrame:
    """Draw the field's galaxies and stars, with positions, orientations and fluxes; too faint ones are left out.

    Raises:
        InputError: `sky.positions` is "catalogue" and the population cannot serve it.
    """
    scale = conditions.instrument.pixel_scale_arcsec
    height, width = conditions.grid.shape
    margin = min(MARGIN_ARCSEC / scale, HALF_SIZES[1])
    area_deg2 = (height + 2 * margin) * (width + 2 * margin) * (scale / 3600) ** 2
    low, high = np.array([-margin, -margin]) - 0.5, np.array([width + margin, height + margin]) - 0.5
    galaxies, xy = _draw_galaxies(sky, conditions, population, area_deg2, low, high, rng)
    stars = population.draw(STAR, area_deg2, conditions.star_density, rng)
    xy = np.concatenate([xy, rng.uniform(low, high, (len(stars), 2))])
    rows = pd.concat([galaxies, stars]).assign(x=xy[:, 0], y=xy[:, 1])
    angle = rng.uniform(0, np.pi, len(rows))
    objects = lit_objects(population, rows, conditions).assign(angle_rad=angle)
    add_knots(sky, objects, population, rows, rng)
    add_stamps(sky, objects, rng)
    objects = objects[objects.estimated_snr >= sky.draw_snr].reset_index(drop=True)
    move_into_pairs(sky, objects, conditions, rng)
    return objects


def _draw_galaxies(
    sky: Sky,
    conditions: Conditions,
    population: Population,
    area_deg2: float,
    low: np.ndarray,
    high: np.ndarray,
    rng: np.random.Generator,
) -> tuple[pd.DataFrame, np.ndarray]:
    """Rows of galaxies and their (N, 2) x, y between the corners `low` and `high` (pixels)."""
    galaxies = population.draw(GALAXY, area_deg2, conditions.galaxy_density, rng)
    xy = clustered_positions(sky, len(galaxies), low, high, conditions.instrument.pixel_scale_arcsec, rng)
    if sky.positions == "clustered":
        return galaxies, xy
    # What has a place of its own is drawn once and there; the others, too faint for the catalogue, anywhere.
    placed, there = catalogue_window(population, low, high, conditions, rng)
    copies = int(conditions.galaxy_density) + (rng.uniform(size=len(placed)) < conditions.galaxy_density % 1)
    first = np.flatnonzero(copies > 0)
    again = np.repeat(np.arange(len(placed)), np.maximum(copies - 1, 0))
    faint = ~np.isfinite(galaxies.x_arcsec.to_numpy())
    rows = pd.concat([placed.iloc[first], placed.iloc[again], galaxies[faint]])
    return rows, np.concatenate([there[first], rng.uniform(low, high, (len(again), 2)), xy[faint]])


def lit_objects(population: Population, rows: pd.DataFrame, conditions: Conditions) -> pd.DataFrame:
    """Rows of a population as objects under a field's conditions.

    Args:
        population: the rows are of.
        rows: index = population row; with columns x, y E(B-V) is that of the place, without them the field's mean.
        conditions: of the field.

    Returns:
        The columns named above, but for angle_rad, knots and stamps; x, y if the rows have them. No row is left out.
    """
    total, share = population.light(rows, [band.filter for band in conditions.bands])
    here = {name: rows[name].to_numpy() for name in ("x", "y") if name in rows}
    ebv = conditions.ebv_at(**here) if here else np.full(len(rows), conditions.ebv)
    columns = {
        "class_id": rows.class_id.to_numpy(),
        "redshift": rows.redshift.to_numpy(),
        "population_row": rows.index.to_numpy(),
        **here,
        **{name: rows[name].to_numpy(np.float64) for name in SHAPE_COLUMNS},
        "ebv": ebv,
    }
    for number, band in enumerate(conditions.bands):
        # Extinction dims: A_b = R_b E(B-V) is added to the magnitude.
        flux = total[:, number] * 10 ** (-0.4 * band.reddening * ebv)
        columns |= {f"flux_{band.name}": flux, f"mag_{band.name}": mag_from_njy(flux)}
    columns |= {f"bulge_share_{band.name}": share[:, number] for number, band in enumerate(conditions.bands)}
    objects = pd.DataFrame(columns)
    objects["estimated_snr"] = estimate_snr(objects, conditions)
    return objects


def add_knots(
    sky: Sky, objects: pd.DataFrame, population: Population, rows: pd.DataFrame, rng: np.random.Generator
) -> None:
    """Add the columns knots and knot_share: more in blue galaxies, whose discs form stars.

    Blueness is the share of the light at 5500 Angstrom (rest) that comes from the bluer half of the atoms.
    """
    share = rng.uniform(*sky.knot_fraction, len(objects)) * population.blueness(rows)
    number = 1 + rng.poisson(MEAN_KNOTS, len(objects))
    has = (share > 0.01) & np.isfinite(objects.disk_hlr_arcsec)
    objects["knots"], objects["knot_share"] = np.where(has, number, 0), np.where(has, share, 0.0)


def add_stamps(sky: Sky, objects: pd.DataFrame, rng: np.random.Generator) -> None:
    """Add the column stamp: which picture of a real galaxy, scaled to the object's size, stands for its shape.

    Raises:
        InputError: `sky.real_galaxies` is no catalogue of real galaxies.
    """
    objects["stamp"] = -1
    if sky.real_galaxies is None:
        return
    count = _real_galaxies(sky.real_galaxies)
    size = effective_hlr_arcsec(objects)
    chosen = np.flatnonzero((objects.class_id == GALAXY) & (size >= SMALLEST_STAMP_ARCSEC))
    objects.loc[chosen, "stamp"] = rng.integers(count, size=len(chosen))
    objects.loc[chosen, "disk_hlr_arcsec"] = size[chosen]
    objects.loc[chosen, ["disk_axis_ratio", "disk_n"]] = 1.0
    objects.loc[chosen, [name for name in objects if name.startswith("bulge_share_")]] = 0.0
    objects.loc[chosen, [name for name in SHAPE_COLUMNS if name.startswith("bulge_")]] = np.nan
    objects.loc[chosen, ["knots", "knot_share"]] = 0


@functools.cache
def _real_galaxies(path: str) -> int:
    galsim = require_extra("galsim", "sim")
    try:
        return int(galsim.RealGalaxyCatalog(path).nobjects)
    except (OSError, KeyError, ValueError, galsim.GalSimError) as error:
        raise InputError(f"sky.real_galaxies is {path}: no RealGalaxyCatalog of GalSim ({error}); check it") from error


def effective_hlr_arcsec(objects: pd.DataFrame) -> np.ndarray:
    """(N,) circularised half-light radius of disc and bulge together, by their mean shares over the bands; 0: stars."""
    share = objects[[name for name in objects if name.startswith("bulge_share_")]].mean(axis=1).to_numpy(np.float64)
    galaxy = objects.class_id.to_numpy() == GALAXY
    parts = {name: objects[name].to_numpy(np.float64) for name in SHAPE_COLUMNS}
    disk = galaxy & np.isfinite(parts["disk_hlr_arcsec"]) & (share < 1)
    bulge = galaxy & np.isfinite(parts["bulge_hlr_arcsec"]) & (share > 0)
    radius = np.where(disk, parts["disk_hlr_arcsec"], np.where(bulge, parts["bulge_hlr_arcsec"], 0.0))
    both = np.flatnonzero(disk & bulge)
    radius[both] = _half_light_radius(share[both], *(parts[name][both] for name in _SIZES))
    return radius


_SIZES = ("disk_hlr_arcsec", "disk_n", "bulge_hlr_arcsec", "bulge_n")


def _half_light_radius(
    share: np.ndarray, disk: np.ndarray, disk_n: np.ndarray, bulge: np.ndarray, bulge_n: np.ndarray
) -> np.ndarray:
    """(N,) radius that holds half of the light of two Sersic profiles, by bisection between their own."""
    low, high = np.minimum(disk, bulge), np.maximum(disk, bulge)
    disk_b, bulge_b = sersic_b(disk_n), sersic_b(bulge_n)
    for _ in range(20):
        radius = (low + high) / 2
        within = (1 - share) * gammainc(2 * disk_n, disk_b * (radius / disk) ** (1 / disk_n))
        within += share * gammainc(2 * bulge_n, bulge_b * (radius / bulge) ** (1 / bulge_n))
        low, high = np.where(within < 0.5, radius, low), np.where(within < 0.5, high, radius)
    return (low + high) / 2


def estimate_snr(objects: pd.DataFrame, conditions: Conditions) -> np.ndarray:
    """(N,) total signal-to-noise of a Gaussian of the object's size, good enough to sort out what need not be drawn."""
    galaxy_sigma = effective_hlr_arcsec(objects) / 1.1774
    total = np.zeros(len(objects))
    for band, fwhm, noise in zip(conditions.bands, conditions.psf_fwhm_arcsec, conditions.sky_sigma_njy(), strict=True):
        pixels = 4 * np.pi * ((fwhm / 2.3548) ** 2 + galaxy_sigma**2) / conditions.instrument.pixel_scale_arcsec**2
        total += (objects[f"flux_{band.name}"].to_numpy() / noise) ** 2 / np.maximum(pixels, 1)
    return np.sqrt(total)
