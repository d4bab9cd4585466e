"""From a catalogue to a population: spectra fitted to magnitudes, Sersic fits taken apart into disc and bulge.

Used by tools/make_population.py, which makes the populations that ship with the package, or one of a user's catalogue.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.optimize import nnls
from scipy.spatial import cKDTree
from scipy.special import gammainc, gammaincinv

from deepdisc.photometry import mag_from_njy, njy_from_mag
from deepdisc.simulate.population import ATOM_COLUMNS, LIGHT_COLUMNS, MOST_ATOMS, star_fluxes
from deepdisc.simulate.spectra import Atom, atom_spectra, flux_table

# Dust in front of the templates that have none of their own to speak of; the others are those of real galaxies.
ATOMS: tuple[Atom, ...] = (
    *(("El", ebv) for ebv in (0.0, 0.2, 0.5)),
    *((name, ebv) for name in ("Sbc", "Scd") for ebv in (0.0, 0.3)),
    *((name, ebv) for name in ("Im", "SB3", "SB2", "HII") for ebv in (0.0, 0.2, 0.4)),
    *((name, ebv) for name in ("SSP25Myr", "SSP5Myr") for ebv in (0.0, 0.1, 0.2, 0.35, 0.5, 0.7)),
)
FIT_ERROR = 0.05  # relative error of every band in the fits
REDNESS = (3500.0, 8000.0)  # Angstrom: atoms are ordered by the ratio of f_nu here
SIZE_LUMINOSITY = 0.26  # R ~ L^0.26, faint late-type galaxies, Shen et al. 2003, MNRAS 343, 978, eq. 15 and table 1
BULGE_N, BULGE_SIZE = 4.0, 0.4  # index of bulges; their half-light radius in units of the disc's
DISK_N = (0.5, 0.75, 1.0)
LEAST_PART = 0.03  # a disc or bulge with less of the light is left out


def reddest_first(atoms: Sequence[Atom] = ATOMS, templates: str | None = None) -> tuple[Atom, ...]:
    """The atoms, ordered from red to blue."""
    _, centers, spectra = atom_spectra(atoms, templates)
    blue, red = (spectra[:, np.abs(centers - at) < 50].mean(axis=1) for at in REDNESS)
    return tuple(atoms[number] for number in np.argsort(blue / red, kind="stable"))


def fit_atoms(
    mags: np.ndarray,
    redshift: np.ndarray,
    filters: Sequence[str],
    atoms: tuple[Atom, ...],
    faintest_njy: float = 0.5,
    templates: str | None = None,
) -> tuple[pd.DataFrame, np.ndarray]:
    """Fit non-negative amounts of atoms to magnitudes; the largest MOST_ATOMS are kept and fitted again.

    Args:
        mags: (N, B) AB magnitudes; NaN where unknown.
        redshift: (N,).
        filters: B names (see filters.py).
        atoms: the reddest first.
        faintest_njy: error of a band that has no flux to speak of.
        templates: as in `spectra.load_templates`.

    Returns:
        Columns atom_0.. (-1: none) and light_0..; (N, B) residuals, magnitude of the model minus the given.
    """
    table = flux_table(atoms, tuple(filters), templates)
    flux = np.nan_to_num(njy_from_mag(mags), nan=0.0)
    weight = np.where(np.isfinite(mags), 1 / np.hypot(FIT_ERROR * flux, faintest_njy), 0.0)
    chosen = np.full((len(mags), MOST_ATOMS), -1)
    light = np.zeros((len(mags), MOST_ATOMS))
    model = np.zeros_like(flux)
    every = np.arange(len(atoms))
    for row in range(len(mags)):
        matrix = table(redshift[row], every).T
        design, wanted = matrix * weight[row][:, None], flux[row] * weight[row]
        amounts, _ = nnls(design, wanted)
        most = np.sort(np.argsort(-amounts, kind="stable")[:MOST_ATOMS])
        amounts, _ = nnls(design[:, most], wanted)
        model[row] = matrix[:, most] @ amounts
        some = np.flatnonzero(amounts > 0)
        chosen[row, : len(some)], light[row, : len(some)] = most[some], amounts[some]
    with np.errstate(divide="ignore"):
        residual = -2.5 * np.log10(np.maximum(model, 1e-9) / np.maximum(njy_from_mag(mags), 1e-9))
    columns = {**dict(zip(ATOM_COLUMNS, chosen.T, strict=True)), **dict(zip(LIGHT_COLUMNS, light.T, strict=True))}
    return pd.DataFrame(columns), residual


# ------------------------------------------------------------------------------------------------------------- shapes
def light_within(radius: np.ndarray, n: float) -> np.ndarray:
    """Share of a Sersic profile's light within radii in units of its half-light radius (Graham & Driver 2005)."""
    return gammainc(2 * n, gammaincinv(2 * n, 0.5) * np.asarray(radius) ** (1 / n))


def _radii_of_mixture(bulge_fraction: float, shares: Sequence[float]) -> np.ndarray:
    """Radii, in units of the disc's half-light radius, that hold these shares of disc plus bulge."""
    radius = np.geomspace(1e-3, 100, 4000)
    within = (1 - bulge_fraction) * light_within(radius, 1.0) + bulge_fraction * light_within(
        radius / BULGE_SIZE, BULGE_N
    )
    return np.interp(shares, within, radius)


def take_apart(hlr_arcsec: np.ndarray, n: np.ndarray, axis_ratio: np.ndarray) -> pd.DataFrame:
    """Disc and bulge with the half-light radius and the concentration (R80 / R20) of a Sersic fit.

    Up to n = 1 all is disc, of the nearest index of DISK_N; above it, an exponential disc and a de Vaucouleurs bulge of
    BULGE_SIZE times its size; from n = 4 on a bulge alone.

    Args:
        hlr_arcsec: (N,) circularised half-light radii.
        n: (N,) Sersic indices.
        axis_ratio: (N,) minor over major axis; the bulge is rounder than this where there is a disc.
    """
    fractions = np.linspace(0, 1, 41)
    radii = np.array([_radii_of_mixture(one, (0.2, 0.5, 0.8)) for one in fractions])
    concentration = radii[:, 2] / radii[:, 0]
    indices, r = np.linspace(1, BULGE_N, 61), np.geomspace(1e-3, 100, 4000)
    of_index = [np.divide(*np.interp((0.8, 0.2), light_within(r, index), r)) for index in indices]
    fraction = np.interp(np.interp(n, indices, of_index), concentration, fractions)
    fraction = np.select([fraction < LEAST_PART, fraction > 1 - LEAST_PART], [0.0, 1.0], fraction)
    disk = hlr_arcsec / np.interp(fraction, fractions, radii[:, 1])
    bulge = np.where(fraction == 1, hlr_arcsec, BULGE_SIZE * disk)
    steps = np.asarray(DISK_N)
    disk_n = np.where(n < 1, steps[np.abs(n[:, None] - steps).argmin(axis=1)], 1.0)
    return pd.DataFrame(
        {
            "bulge_fraction": fraction,
            "disk_hlr_arcsec": np.where(fraction < 1, disk, np.nan),
            "disk_n": np.where(fraction < 1, disk_n, np.nan),
            "disk_axis_ratio": np.where(fraction < 1, axis_ratio, np.nan),
            "bulge_hlr_arcsec": np.where(fraction > 0, bulge, np.nan),
            "bulge_n": np.where(fraction > 0, BULGE_N, np.nan),
            "bulge_axis_ratio": np.where(
                fraction == 1, axis_ratio, np.where(fraction > 0, np.sqrt(axis_ratio), np.nan)
            ),
        }
    )


def similar_rows(
    mag: np.ndarray, redshift: np.ndarray, among_mag: np.ndarray, among_redshift: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """(N,) one of the five rows of another table that are nearest in magnitude and redshift (0.25 counts as 1 mag)."""
    tree = cKDTree(np.column_stack([among_mag, 4.0 * np.asarray(among_redshift)]))
    _, index = tree.query(np.column_stack([mag, 4.0 * np.asarray(redshift)]), k=5)
    return index[np.arange(len(index)), rng.integers(5, size=len(index))]


def size_factor(fainter_mag: np.ndarray, slope: float = SIZE_LUMINOSITY) -> np.ndarray:
    """Factor on the radius of a galaxy that is made fainter by so many magnitudes, R ~ L^slope."""
    return 10 ** (-0.4 * slope * np.asarray(fainter_mag))


def held_out(source_row: np.ndarray, share: float = 0.2) -> np.ndarray:
    """Whether a source row is held out: a hash (splitmix64) of its number in the source decides."""
    x = np.asarray(source_row).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return x.astype(np.float64) / 2.0**64 < share


def rounded(values: np.ndarray, bits: int = 11) -> np.ndarray:
    """Float32 with fewer bits of mantissa (relative error 2^-bits / 2), which compress well."""
    kept = np.asarray(values, dtype=np.float32).view(np.uint32)
    half = np.uint32(1 << (22 - bits))
    return ((kept + half) & np.uint32(0xFFFFFFFF << (23 - bits) & 0xFFFFFFFF)).view(np.float32)


# -------------------------------------------------------------------------------------------------------------- stars
STAR_BANDS = ("lsst_u", "lsst_g", "lsst_r", "lsst_i", "lsst_z", "lsst_y")
STAR_ANGSTROM = (2300.0, 3716.0, 4787.0, 6208.0, 7549.0, 8674.0, 9746.0, 12500.0, 16500.0, 22000.0, 36000.0, 50000.0)
# Effective temperature (K) of main-sequence stars by their colour g - i: a rough, smooth curve.
_G_MINUS_I = (-0.5, 0.0, 0.3, 0.6, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5)
_TEMPERATURE = (11000.0, 7200.0, 6300.0, 5600.0, 4900.0, 4300.0, 3850.0, 3500.0, 3200.0, 2900.0)


def _planck_mag(angstrom: np.ndarray, temperature: np.ndarray) -> np.ndarray:
    """Magnitude (f_nu), but for a constant, of black bodies: (N, M)."""
    x = 1.438777e8 / (np.asarray(angstrom)[None] * np.asarray(temperature)[:, None])
    return 2.5 * np.log10(np.expm1(x)) + 7.5 * np.log10(np.asarray(angstrom))[None]


def star_magnitudes(ugrizy: np.ndarray) -> np.ndarray:
    """(N, 12) magnitudes of stars at STAR_ANGSTROM.

    From u to y such that the filters give the given ones; beyond them black bodies of the temperature that the colour
    g - i stands for, joined to u and y. Molecular bands in the infrared, and the metals' absorption in the ultraviolet,
    are not in them.

    Args:
        ugrizy: (N, 6) AB magnitudes, LSST filters.
    """
    temperature = np.interp(ugrizy[:, 1] - ugrizy[:, 3], _G_MINUS_I, _TEMPERATURE)
    given, body = ugrizy, _planck_mag(np.array(STAR_ANGSTROM), temperature)
    for _ in range(4):  # so that the spectrum seen through the filters, which are broad, has the magnitudes given
        seen = mag_from_njy(star_fluxes(np.array(STAR_ANGSTROM), _extended(given, body), STAR_BANDS))
        given = given + ugrizy - seen
    return _extended(given, body)


def _extended(ugrizy: np.ndarray, body: np.ndarray) -> np.ndarray:
    """(N, 12) magnitudes: six given ones, and black bodies joined to the first and the last."""
    blue = body[:, :1] - body[:, 1:2] + ugrizy[:, :1]
    red = body[:, 7:] - body[:, 6:7] + ugrizy[:, 5:]
    return np.concatenate([blue, ugrizy, red], axis=1)
