"""Where the objects of a field are, and how much light each has.

Objects are a DataFrame, one row each: the population's columns, and x, y (0-based pixel centres, may lie outside the
field), angle_rad (position angle of the major axis, from +x to +y), population_row, flux_<band> (nJy, reddened),
mag_<band>.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from deepdisc.photometry import mag_from_njy, njy_from_mag
from deepdisc.simulate.conditions import Conditions
from deepdisc.simulate.population import GALAXY, STAR, Population
from deepdisc.simulate.settings import Sky

MARGIN_ARCSEC = 40.0  # objects centred this far outside still shine into the field


def draw_objects(sky: Sky, conditions: Conditions, population: Population, rng: np.random.Generator) -> pd.DataFrame:
    """Draw the field's galaxies and stars, with positions, orientations and fluxes; too faint ones are left out."""
    scale = conditions.instrument.pixel_scale_arcsec
    height, width = conditions.grid.shape
    margin = MARGIN_ARCSEC / scale
    area_deg2 = (height + 2 * margin) * (width + 2 * margin) * (scale / 3600) ** 2
    galaxies = population.draw(GALAXY, area_deg2, conditions.galaxy_density, rng)
    stars = population.draw(STAR, area_deg2, conditions.star_density, rng)
    low, high = np.array([-margin, -margin]) - 0.5, np.array([width + margin, height + margin]) - 0.5
    xy = np.concatenate(
        [clustered_positions(sky, len(galaxies), low, high, scale, rng), rng.uniform(low, high, (len(stars), 2))]
    )
    objects = pd.concat([galaxies, stars])
    objects["population_row"] = objects.index
    objects = objects.reset_index(drop=True).assign(x=xy[:, 0], y=xy[:, 1])
    objects["angle_rad"] = rng.uniform(0, np.pi, len(objects))
    for band in conditions.bands:
        # Extinction dims: A_b = R_b E(B-V) is added to the magnitude.
        flux = njy_from_mag(objects[band.filter[-1]].to_numpy(np.float64) + band.reddening * conditions.ebv)
        objects[f"flux_{band.name}"] = flux
        objects[f"mag_{band.name}"] = mag_from_njy(flux)
    objects["snr_estimate"] = estimate_snr(objects, conditions)
    objects = objects[objects.snr_estimate >= sky.draw_snr].reset_index(drop=True)
    move_into_pairs(sky, objects, conditions, rng)
    return objects


def clustered_positions(
    sky: Sky, number: int, low: np.ndarray, high: np.ndarray, pixel_scale_arcsec: float, rng: np.random.Generator
) -> np.ndarray:
    """(number, 2) x, y between the corners `low` and `high`: uniform, but for a share that follows a Thomas process.

    The centres of a Thomas process are uniform, members Gaussian about them (Thomas 1949, Biometrika 36, 18). Members
    that leave the rectangle return on the other side, so that the density stays the same everywhere.
    """
    xy = rng.uniform(low, high, (number, 2))
    gathered = np.flatnonzero(rng.uniform(size=number) < sky.clustered_fraction)
    centers = rng.uniform(low, high, (max(1, round(len(gathered) / sky.cluster_members)), 2))
    sigma = sky.cluster_radius_arcsec / pixel_scale_arcsec
    offset = rng.normal(scale=sigma, size=(len(gathered), 2))
    members = centers[rng.integers(len(centers), size=len(gathered))] + offset
    xy[gathered] = low + (members - low) % (high - low)
    return xy


def effective_hlr_arcsec(objects: pd.DataFrame) -> np.ndarray:
    """(N,) flux-weighted mean of disc and bulge half-light radius; 0 for stars."""
    share = objects.bulge_fraction.fillna(0).to_numpy(np.float64)
    disk = objects.disk_hlr_arcsec.fillna(0).to_numpy(np.float64)
    bulge = objects.bulge_hlr_arcsec.fillna(0).to_numpy(np.float64)
    return share * bulge + (1 - share) * disk


def estimate_snr(objects: pd.DataFrame, conditions: Conditions) -> np.ndarray:
    """(N,) total signal-to-noise of a Gaussian of the object's size, good enough to sort out what need not be drawn."""
    galaxy_sigma = effective_hlr_arcsec(objects) / 1.1774
    total = np.zeros(len(objects))
    for band, fwhm, noise in zip(conditions.bands, conditions.psf_fwhm_arcsec, conditions.sky_sigma_njy(), strict=True):
        pixels = 4 * np.pi * ((fwhm / 2.3548) ** 2 + galaxy_sigma**2) / conditions.instrument.pixel_scale_arcsec**2
        total += (objects[f"flux_{band.name}"].to_numpy() / noise) ** 2 / pixels
    return np.sqrt(total)


def move_into_pairs(sky: Sky, objects: pd.DataFrame, conditions: Conditions, rng: np.random.Generator) -> None:
    """Move detectable galaxies, in place, to a few PSF widths from another detectable galaxy."""
    bright = np.flatnonzero((objects.class_id == GALAXY) & (objects.snr_estimate >= sky.label_snr))
    number = round(sky.pair_fraction * len(bright) / 2)
    order = rng.permutation(bright)
    stay, move = order[:number], order[number : 2 * number]
    fwhm_pix = conditions.psf_fwhm_arcsec.mean() / conditions.instrument.pixel_scale_arcsec
    distance = rng.uniform(*sky.pair_separation_fwhm, number) * fwhm_pix
    direction = rng.uniform(0, 2 * np.pi, number)
    objects.loc[move, "x"] = objects.loc[stay, "x"].to_numpy() + distance * np.cos(direction)
    objects.loc[move, "y"] = objects.loc[stay, "y"].to_numpy() + distance * np.sin(direction)
