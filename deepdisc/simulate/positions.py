"""Where the objects of a field are: uniform, clustered, as in a catalogue, in pairs. Pixels, 0-based centres."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from deepdisc.errors import InputError
from deepdisc.simulate.conditions import Conditions
from deepdisc.simulate.population import GALAXY, LIGHT_COLUMNS, POSITION_COLUMNS, Population
from deepdisc.simulate.settings import Sky

GAP_ARCSEC = 20.0  # where the nearest galaxy of a catalogue is further away than this, the catalogue does not reach
TRIES = 300
COVERED = 0.95  # share of the window that must lie where the catalogue reaches


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


def catalogue_window(
    population: Population, low: np.ndarray, high: np.ndarray, conditions: Conditions, rng: np.random.Generator
) -> tuple[pd.DataFrame, np.ndarray]:
    """The galaxies of a rectangle of the real sky, turned and mirrored at random.

    Where a galaxy is not of the population's part, the place is taken by one of the part that is like it in brightness
    and redshift: the part then is as dense, and as clustered, as the whole.

    Args:
        population: with positions.
        low: corner of the rectangle, pixels.
        high: the opposite corner.
        conditions: of the field.
        rng: source of randomness.

    Returns:
        The galaxies' rows, index = population row; (N, 2) x, y.

    Raises:
        InputError: the population has no positions, or the rectangle is larger than the sky that they cover.
    """
    every = population.everything
    placed = every[(every.class_id == GALAXY) & np.isfinite(every[POSITION_COLUMNS[0]])]
    if not len(placed):
        raise InputError("sky.positions is 'catalogue', but the population has no positions; make it 'clustered'")
    sky_xy = placed[list(POSITION_COLUMNS)].to_numpy(np.float64)
    scale = conditions.instrument.pixel_scale_arcsec
    matrix, center = _choose_window(sky_xy, (high - low) * scale, rng)
    xy = (sky_xy - center) @ matrix.T / scale + (low + high) / 2
    inside = ((xy >= low) & (xy < high)).all(axis=1)
    return _of_the_part(population, placed[inside], rng), xy[inside]


def _choose_window(
    sky_xy: np.ndarray, size_arcsec: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(2, 2) turn, perhaps with a reflection, and the centre (arcsec) of a window that the catalogue covers."""
    tree = cKDTree(sky_xy)
    steps = np.linspace(-0.5, 0.5, 9)
    lattice = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2) * size_arcsec
    best, chosen = -1.0, None
    for _ in range(TRIES):
        angle, parity = rng.uniform(0, 2 * np.pi), rng.choice([-1.0, 1.0])
        cos, sin = np.cos(angle), np.sin(angle)
        matrix = np.array([[cos, -sin], [sin, cos]]) * [[parity], [1.0]]
        center = sky_xy[rng.integers(len(sky_xy))]
        covered = float((tree.query(lattice @ matrix + center)[0] < GAP_ARCSEC).mean())
        if covered > best:
            best, chosen = covered, (matrix, center)
        if best == 1:
            break
    if best < COVERED:
        wide, high = size_arcsec / 60
        extent = np.ptp(sky_xy, axis=0) / 60
        raise InputError(
            f"sky.shape with its margin is {wide:.1f} x {high:.1f} arcmin, more than the population's positions cover "
            f"(within {extent[0]:.1f} x {extent[1]:.1f}); make it smaller, or sky.positions 'clustered'"
        )
    return chosen


def _of_the_part(population: Population, placed: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """The rows, those that are not of the part replaced by rows of it that are similar."""
    foreign = ~placed.index.isin(population.rows.index)
    if not foreign.any():
        return placed
    own = population.rows[population.rows.class_id == GALAXY]

    def place(rows: pd.DataFrame) -> np.ndarray:
        light = rows[list(LIGHT_COLUMNS)].sum(axis=1).to_numpy(np.float64)
        return np.column_stack([2.5 * np.log10(np.maximum(light, 1e-3)), 4.0 * rows.redshift.to_numpy(np.float64)])

    nearest = cKDTree(place(own)).query(place(placed[foreign]), k=min(5, len(own)))[1].reshape(foreign.sum(), -1)
    numbers = placed.index.to_numpy().copy()
    numbers[foreign] = own.index.to_numpy()[nearest[np.arange(len(nearest)), rng.integers(nearest.shape[1])]]
    return population.rows.loc[numbers]


def move_into_pairs(sky: Sky, objects: pd.DataFrame, conditions: Conditions, rng: np.random.Generator) -> None:
    """Move detectable galaxies, in place, to a few PSF widths from another detectable galaxy."""
    bright = np.flatnonzero((objects.class_id == GALAXY) & (objects.estimated_snr >= sky.label_snr))
    number = round(sky.pair_fraction * len(bright) / 2)
    order = rng.permutation(bright)
    stay, move = order[:number], order[number : 2 * number]
    fwhm_pix = conditions.psf_fwhm_arcsec.mean() / conditions.instrument.pixel_scale_arcsec
    distance = rng.uniform(*sky.pair_separation_fwhm, number) * fwhm_pix
    direction = rng.uniform(0, 2 * np.pi, number)
    objects.loc[move, "x"] = objects.loc[stay, "x"].to_numpy() + distance * np.cos(direction)
    objects.loc[move, "y"] = objects.loc[stay, "y"].to_numpy() + distance * np.sin(direction)
