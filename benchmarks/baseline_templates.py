"""What fluxes can say of a redshift: a template fit that knows the simulation's spectra and how common they are.

Needs the extra `sim`. The templates are the spectra of the population's galaxies (sums of template spectra behind dust,
absorbed by the intergalactic medium), each at its own redshift and somewhat before and behind it; so the prior in
redshift, magnitude and spectral type is the population's own, as n(z, m, T) of Benitez 2000, ApJ 536, 571.

Legend: N objects, B bands, J galaxies, S shifts of each, M = J S templates; fluxes in nJy, without Galactic dust.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import sparse

from deepdisc.evaluation.pdfs import GriddedPDFs
from deepdisc.simulate.population import ATOM_COLUMNS, GALAXY, LIGHT_COLUMNS, Population
from deepdisc.simulate.spectra import flux_table

_CELLS = 4_000_000  # numbers N x M that are held at a time
_STEP = 0.004  # of the grid of redshifts, in ln(1 + z)


class TemplateFit:
    """Posterior redshifts of galaxies with given fluxes.

    Args:
        population: the galaxies; those that are looked for must not be among them (part "train" for a sky of "test").
        filters: names of the B bands' filters.
        galaxies: J, drawn at random as often as their weights say; None: all.
        spread: standard deviation of a template's shifts, in ln(1 + z); a smooth prior between the galaxies.
        shifts: S, within two standard deviations.
        brightness: standard deviation of the factor on a template's flux.
        floor: error of the templates, as a share of the flux: the galaxies are a finite sample of all spectra.
        seed: of the draw.
    """

    def __init__(
        self,
        population: Population,
        filters: Sequence[str],
        galaxies: int | None = None,
        spread: float = 0.02,
        shifts: int = 9,
        brightness: float = 0.3,
        floor: float = 0.02,
        seed: int = 0,
    ):
        rows = population.rows[population.rows.class_id == GALAXY]
        weight = rows.weight.to_numpy(np.float64)
        if galaxies is not None and galaxies < len(rows):
            rng = np.random.default_rng(seed)
            chosen = rng.choice(len(rows), galaxies, p=weight / weight.sum())
            rows, weight = rows.iloc[chosen], np.ones(galaxies)
        offsets = np.linspace(-2, 2, shifts) if shifts > 1 else np.zeros(1)
        place = np.log1p(rows.redshift.to_numpy(np.float64))[:, None] + spread * offsets
        self._flux = _template_fluxes(population, rows, tuple(filters), np.expm1(np.maximum(place, 0)))
        prior = weight[:, None] * np.exp(-(offsets**2) / 2) * (place > 0)
        self._prior = np.log(np.maximum(prior.ravel(), 1e-300))
        self._place = np.maximum(place, 0).ravel()
        self._brightness, self._floor = brightness, floor

    def posterior(self, flux: np.ndarray, error: np.ndarray) -> GriddedPDFs:
        """Redshift PDFs of N objects.

        A template of fluxes t times a factor A ~ Normal(1, s^2), s = `brightness`, has, integrated over A, the
        likelihood `(1 + a s^2)^(-1/2) exp(-chi^2_0 / 2 + (b + 1/s^2)^2 / (2 (a + 1/s^2)) - 1 / (2 s^2))` with
        `a = sum t^2 / e^2`, `b = sum f t / e^2`, `chi^2_0 = sum f^2 / e^2`.

        Args:
            flux: (N, B) nJy, without Galactic dust; NaN: not measured.
            error: (N, B) 1 sigma.
        """
        edges = np.arange(0, self._place.max() + 2 * _STEP, _STEP)
        cell = np.minimum((self._place / _STEP + 0.5).astype(int), len(edges) - 1)
        sums = sparse.csr_matrix((np.ones(len(cell)), (np.arange(len(cell)), cell)), (len(cell), len(edges)))
        size = max(1, _CELLS // len(cell))
        mass = [
            self._weights(flux[start : start + size], error[start : start + size]) @ sums
            for start in range(0, len(flux), size)
        ]
        # Mass in cells of ln(1 + z) as a density in z, straight lines between the cells' middles.
        grid = np.expm1(edges)
        density = np.concatenate(mass) / (1 + grid)
        area = (density[:, 1:] + density[:, :-1]) @ np.diff(grid) / 2
        return GriddedPDFs(grid, density / area[:, None])

    def _weights(self, flux: np.ndarray, error: np.ndarray) -> np.ndarray:
        """(N, M) posterior weights of the templates, the largest of an object 1."""
        known = np.isfinite(flux) & np.isfinite(error) & (error > 0)
        flux = np.where(known, flux, 0)
        inverse = np.where(known, 1 / (np.where(known, error, 1) ** 2 + (self._floor * flux) ** 2), 0)
        a, b = inverse @ self._flux.T**2, (inverse * flux) @ self._flux.T
        precision = 1 / self._brightness**2
        log = (b + precision) ** 2 / (2 * (a + precision)) - np.log(1 + a / precision) / 2 + self._prior
        return np.exp(log - log.max(axis=1, keepdims=True))


def _template_fluxes(
    population: Population, rows: pd.DataFrame, filters: tuple[str, ...], redshift: np.ndarray
) -> np.ndarray:
    """(M, B) fluxes of the rows' spectra at (J, S) redshifts, galaxy by galaxy."""
    table = flux_table(population.atoms, filters, population.templates)
    atom = rows[list(ATOM_COLUMNS)].to_numpy(np.int64)
    light = np.where(atom >= 0, rows[list(LIGHT_COLUMNS)].to_numpy(np.float64), 0.0)
    total = np.zeros((*redshift.shape, len(filters)))
    for number in range(atom.shape[1]):
        total += light[:, number, None, None] * table(redshift, np.maximum(atom[:, number], 0)[:, None])
    return total.reshape(-1, len(filters))
