"""Spectra of galaxies and stars, and their fluxes in any filters at any redshift.

A galaxy is a sum of *atoms*: a template spectrum seen through dust. Its amount is the flux density (nJy) that the atom
has, as observed, at the rest wavelength 5500 Angstrom; so neither a distance nor a K correction is needed. The
intergalactic medium absorbs what lies blueward of Lyman alpha.

K = number of atoms, B = of filters, N = of objects. Flux densities are f_nu (AB: constant f_nu has the same magnitude
everywhere), band fluxes are means over the photons that a filter lets through: int f_nu T dl / l over int T dl / l.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from deepdisc.errors import InputError, first_line
from deepdisc.simulate.filters import load_filter

DATA = Path(__file__).parent / "data"
REFERENCE = 5500.0  # Angstrom, rest: where an atom's amount is stated
STEP = 5e-4  # of the grid in ln(wavelength)
BLUEST, REDDEST = 90.0, 60_000.0  # Angstrom
REDSHIFT_STEPS = 5  # of the grid, between two redshifts of the tables
HIGHEST_REDSHIFT = 15.0

Atom = tuple[str, float]  # template, E(B-V) of the dust in front of it


# ------------------------------------------------------------------------------------------------------- ingredients
@functools.cache
def load_templates(source: str | None = None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Template spectra by name: wavelength (Angstrom, increasing) and f_nu.

    Args:
        source: None for those that ship with the package, or a folder of text files of two columns, wavelength
            (Angstrom) and flux per Angstrom, with .sed, .dat, .txt or .spec at the end of their names.

    Raises:
        InputError: there is no such file, or one is no such table.
    """
    if source is None:
        table = pq.read_table(DATA / "templates.parquet").to_pandas()
        return {
            str(name): (rows.wavelength_angstrom.to_numpy(np.float64), rows.f_nu.to_numpy(np.float64))
            for name, rows in table.groupby("template", sort=False)
        }
    paths = sorted(path for path in Path(source).glob("*") if path.suffix in (".sed", ".dat", ".txt", ".spec"))
    if not paths:
        raise InputError(f"no template in {source}: give a folder of .sed, .dat, .txt or .spec files of two columns")
    return {path.stem: _read_template(path) for path in paths}


def _read_template(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        wavelength, flux = np.loadtxt(path, unpack=True, usecols=(0, 1), ndmin=2)
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not a template ({first_line(error)}); it needs two columns of numbers") from error
    if len(wavelength) < 2 or (np.diff(wavelength) < 0).any() or not (wavelength[0] < REFERENCE < wavelength[-1]):
        raise InputError(f"{path}: not a template; wavelengths (Angstrom) must increase and enclose {REFERENCE:g}")
    return wavelength, np.clip(flux, 0, None) * wavelength**2


def calzetti(wavelength_angstrom: np.ndarray) -> np.ndarray:
    """k(wavelength) = A / E(B-V) of starburst galaxies: Calzetti et al. 2000, ApJ 533, 682, eq. 4, R_V = 4.05.

    Used down to the Lyman limit, beyond the 1200 Angstrom it was measured to, and 0 where it would be negative.
    """
    um = np.maximum(np.asarray(wavelength_angstrom, dtype=np.float64) * 1e-4, 0.0912)
    blue = 2.659 * (-2.156 + 1.509 / um - 0.198 / um**2 + 0.011 / um**3) + 4.05
    red = 2.659 * (-1.857 + 1.040 / um) + 4.05
    return np.maximum(np.where(um < 0.63, blue, red), 0)


@functools.cache
def _lyman_series() -> np.ndarray:
    """(39, 6): wavelength, three coefficients of the forest, two of the damped systems."""
    return np.loadtxt(DATA / "igm_inoue2014.csv", delimiter=",", skiprows=3)


LYMAN_ALPHA, LYMAN_LIMIT = 1215.67, 911.8  # Angstrom


def igm_optical_depth(wavelength_angstrom: np.ndarray, redshift: float) -> np.ndarray:
    """Mean optical depth of the intergalactic medium at observed wavelengths, to a source.

    Inoue et al. 2014, MNRAS 442, 1805: Lyman series of the forest (eq. 21) and of the damped systems (eq. 22), Lyman
    continuum of the forest (eqs 25-27) and of the damped systems (eqs 28, 29).
    """
    wavelength = np.asarray(wavelength_angstrom, dtype=np.float64)
    return _optical_depth(wavelength, _summed_series(wavelength), redshift)


def _optical_depth(wavelength: np.ndarray, series: np.ndarray, redshift: float) -> np.ndarray:
    """As `igm_optical_depth`, with the sums of `_summed_series`, which do not depend on the redshift."""
    lines = _lyman_series()[:, 0]
    # Lines fall in wavelength: as many as lie redward of the emitted wavelength absorb.
    number = np.searchsorted(-lines, -wavelength / (1 + redshift))
    depth = series[number, np.arange(len(wavelength))]
    beyond = wavelength < LYMAN_LIMIT * (1 + redshift)
    ratio = wavelength[beyond] / LYMAN_LIMIT
    depth[beyond] += np.maximum(_forest_continuum(ratio, redshift) + _damped_continuum(ratio, redshift), 0)
    return depth


def _summed_series(wavelength: np.ndarray) -> np.ndarray:
    """(40, n) optical depths of none, the first, the first two ... lines, if the source is behind all absorbers."""
    line, laf1, laf2, laf3, dla1, dla2 = _lyman_series().T[:, :, None]
    x = wavelength / line
    forest = np.select([x < 1, x < 2.2, x < 5.7], [0, laf1 * x**1.2, laf2 * x**3.7], laf3 * x**5.5)
    damped = np.select([x < 1, x < 3.0], [0, dla1 * x**2.0], dla2 * x**3.0)
    return np.concatenate([np.zeros((1, len(wavelength))), np.cumsum(forest + damped, axis=0)])


def _forest_continuum(x: np.ndarray, z: float) -> np.ndarray:
    if z < 1.2:
        return 0.325 * (x**1.2 - (1 + z) ** -0.9 * x**2.1)
    if z < 4.7:
        high = 2.55e-2 * ((1 + z) ** 1.6 * x**2.1 - x**3.7)
        low = 2.55e-2 * (1 + z) ** 1.6 * x**2.1 + 0.325 * x**1.2 - 0.250 * x**2.1
        return np.where(x < 2.2, low, high)
    high = 5.22e-4 * ((1 + z) ** 3.4 * x**2.1 - x**5.5)
    middle = 5.22e-4 * (1 + z) ** 3.4 * x**2.1 + 0.218 * x**2.1 - 2.55e-2 * x**3.7
    low = 5.22e-4 * (1 + z) ** 3.4 * x**2.1 + 0.325 * x**1.2 - 3.14e-2 * x**2.1
    return np.select([x < 2.2, x < 5.7], [low, middle], high)


def _damped_continuum(x: np.ndarray, z: float) -> np.ndarray:
    if z < 2.0:
        return 0.211 * (1 + z) ** 2 - 7.66e-2 * (1 + z) ** 2.3 * x**-0.3 - 0.135 * x**2
    low = 0.634 + 4.70e-2 * (1 + z) ** 3 - 1.78e-2 * (1 + z) ** 3.3 * x**-0.3 - 0.135 * x**2 - 0.291 * x**-0.3
    high = 4.70e-2 * (1 + z) ** 3 - 1.78e-2 * (1 + z) ** 3.3 * x**-0.3 - 2.92e-2 * x**3
    return np.where(x < 3.0, low, high)


# ------------------------------------------------------------------------------------------------------- band fluxes
def _grid(first: float, last: float) -> tuple[int, np.ndarray]:
    """Number of the first cell and the centres (Angstrom) of the cells of the grid between two wavelengths."""
    numbers = np.arange(math.floor(math.log(first) / STEP), math.ceil(math.log(last) / STEP) + 1)
    return int(numbers[0]), np.exp(numbers * STEP)


def _cell_means(centers: np.ndarray, wavelength: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Means over the cells (in ln wavelength) of straight lines between points; 0 outside, so that none is lost."""
    edges = np.concatenate([centers * math.exp(-STEP / 2), centers[-1:] * math.exp(STEP / 2)])
    x = np.union1d(wavelength, edges)
    y = np.interp(x, wavelength, values, left=0, right=0)
    integral = np.concatenate([[0], np.cumsum(np.diff(np.log(x)) * (y[1:] + y[:-1]) / 2)])
    return np.diff(np.interp(edges, x, integral)) / STEP


def atom_spectra(atoms: Sequence[Atom], templates: str | None = None) -> tuple[int, np.ndarray, np.ndarray]:
    """Number of the grid's first cell, (n,) rest wavelengths (Angstrom), (K, n) f_nu, which is 1 at 5500 Angstrom.

    Raises:
        InputError: no template of that name.
    """
    first, centers = _grid(BLUEST, REDDEST)
    available, k = load_templates(templates), calzetti(centers)
    spectra = np.zeros((len(atoms), len(centers)))
    for spectrum, (name, ebv) in zip(spectra, atoms, strict=True):
        if name not in available:
            where = templates or "the package"
            raise InputError(f"no template {name!r} in {where}, which has {', '.join(available)}; give sky.templates")
        spectrum[:] = _cell_means(centers, *available[name]) * 10 ** (-0.4 * ebv * k)
        # An emission line may lie at the reference: the mean over 100 Angstrom is meant.
        spectrum /= spectrum[np.abs(centers - REFERENCE) < 50].mean()
    return first, centers, spectra


@dataclass(frozen=True)
class FluxTable:
    """Fluxes of atoms in filters, by redshift.

    Attributes:
        step: of ln(1 + z) between the rows.
        fluxes: (Z, K, B) band flux of an atom whose amount is 1.
    """

    step: float
    fluxes: np.ndarray

    def __call__(self, redshift: np.ndarray, atom: np.ndarray) -> np.ndarray:
        """Band fluxes, (..., B), of atoms at redshifts (both broadcast), straight lines between the table's rows."""
        place = np.log1p(np.asarray(redshift, dtype=np.float64)) / self.step
        below = np.clip(place.astype(int), 0, len(self.fluxes) - 2)
        share = (place - below)[..., None]
        return (1 - share) * self.fluxes[below, atom] + share * self.fluxes[below + 1, atom]


@functools.cache
def flux_table(atoms: tuple[Atom, ...], filters: tuple[str, ...], templates: str | None = None) -> FluxTable:
    """The fluxes of atoms in filters (names or paths, see filters.py) at redshifts from 0 to HIGHEST_REDSHIFT."""
    first, _, spectra = atom_spectra(atoms, templates)
    step = REDSHIFT_STEPS * STEP
    redshifts = np.expm1(step * np.arange(math.ceil(math.log1p(HIGHEST_REDSHIFT) / step) + 1))
    fluxes = np.zeros((len(redshifts), len(atoms), len(filters)))
    for band, name in enumerate(filters):
        curve = load_filter(name)
        start, centers = _grid(curve.wavelength_angstrom[0], curve.wavelength_angstrom[-1])
        weights = _cell_means(centers, curve.wavelength_angstrom, curve.throughput)
        weights /= weights.sum()
        transmission = _transmissions(centers, redshifts)
        for row in range(len(redshifts)):
            # Redshift moves the spectrum by whole cells: the wavelength of cell i is emitted in cell i - moved.
            emitted = start - first - row * REDSHIFT_STEPS
            inside = slice(max(emitted, 0), max(emitted + len(centers), 0))
            seen = weights[inside.start - emitted :] * transmission[row, inside.start - emitted :]
            part = spectra[:, inside]
            fluxes[row, :, band] = part @ seen[: part.shape[1]]
    return FluxTable(step, fluxes)


def _transmissions(wavelength: np.ndarray, redshifts: np.ndarray) -> np.ndarray:
    """(Z, n) exp(-tau) of the intergalactic medium; wavelengths increase."""
    out, series = np.ones((len(redshifts), len(wavelength))), _summed_series(wavelength)
    for row, redshift in enumerate(redshifts):
        blue = slice(0, np.searchsorted(wavelength, LYMAN_ALPHA * (1 + redshift)))
        if blue.stop:
            out[row, blue] = np.exp(-_optical_depth(wavelength[blue], series[:, blue], float(redshift)))
    return out
