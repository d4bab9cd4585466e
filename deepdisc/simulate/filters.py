"""Transmission curves: those that ship with the package (data/filters.parquet) and two-column text files."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from deepdisc.errors import InputError, first_line, nearest, require_extra

TABLE = Path(__file__).parent / "data" / "filters.parquet"
SFD_AT_1_UM = 0.78 * 1.32  # mag per mag of E(B-V)


@dataclass(frozen=True)
class Filter:
    """A transmission curve.

    Attributes:
        name: in the shipped table, or the file's path.
        wavelength_angstrom: (N,) increasing.
        throughput: (N,) electrons per photon; only its shape matters for fluxes. Straight lines between the points.
    """

    name: str
    wavelength_angstrom: np.ndarray
    throughput: np.ndarray

    @property
    def pivot_angstrom(self) -> float:
        """Pivot wavelength sqrt(int T l dl / int T dl / l) (Tokunaga & Vacca 2005, PASP 117, 421)."""
        return float(np.sqrt(self._integral(1) / self._integral(-1)))

    def _integral(self, power: int) -> float:
        """Integral of the throughput times a power of the wavelength."""
        fine = self.sampled(np.ptp(self.wavelength_angstrom) / 2000)
        return float(np.trapezoid(fine.throughput * fine.wavelength_angstrom**power, fine.wavelength_angstrom))

    def sampled(self, step_angstrom: float) -> Filter:
        """The same curve with points no further apart than this."""
        wavelength = self.wavelength_angstrom
        counts = np.ceil(np.diff(wavelength) / step_angstrom).astype(int)
        place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        fine = np.repeat(wavelength[:-1], counts) + place * np.repeat(np.diff(wavelength) / counts, counts)
        fine = np.append(fine, wavelength[-1])
        return Filter(self.name, fine, np.interp(fine, wavelength, self.throughput))

    def electrons_zero_point(self, area_m2: float) -> float:
        """AB magnitude that gives one electron per second through this throughput and a collecting area.

        An AB magnitude of 0 is 3631 Jy (Oke & Gunn 1983, ApJ 266, 713): f_nu / (h nu) photons per second, m2 and Hz.
        """
        photons = 3631e-26 / 6.62607015e-34 * self._integral(-1)
        return float(2.5 * np.log10(photons * area_m2))


@functools.cache
def _shipped() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    table = pq.read_table(TABLE).to_pandas()
    return {
        str(name): (rows.wavelength_angstrom.to_numpy(np.float64), rows.throughput.to_numpy(np.float64))
        for name, rows in table.groupby("filter", sort=False)
    }


def shipped_filters() -> tuple[str, ...]:
    """Names of the filters that ship with the package, as instrument_filter: "nircam_F444W", "lsst_r"."""
    return tuple(_shipped())


@functools.cache
def load_filter(source: str) -> Filter:
    """Read a filter.

    Args:
        source: a name of `shipped_filters`, or the path of a text file of two columns: wavelength (Angstrom,
            increasing) and throughput (electrons per photon, of any scale); lines that begin with # are comments.

    Raises:
        InputError: no such filter, or the file is no such table.
    """
    if source in _shipped():
        return Filter(source, *_shipped()[source])
    if not Path(source).is_file():
        guess = nearest(source, _shipped())
        hint = f"; did you mean {guess!r}?" if guess else f"; shipped are {', '.join(_shipped())}"
        raise InputError(f"no filter {source!r}: give the name of a shipped one, or the path of a text file{hint}")
    try:
        wavelength, throughput = np.loadtxt(source, unpack=True, usecols=(0, 1), ndmin=2)
    except (ValueError, OSError) as error:
        raise InputError(f"{source}: not a filter ({first_line(error)}); it needs two columns of numbers") from error
    if len(wavelength) < 2 or (np.diff(wavelength) <= 0).any() or throughput.max() <= 0:
        raise InputError(
            f"{source}: not a filter; wavelengths (Angstrom) must increase and some throughput be positive"
        )
    return Filter(source, wavelength, throughput)


@functools.cache
def extinction_coefficient(source: str) -> float:
    """A_b / E(B-V) of a filter at its pivot wavelength, for R_V = 3.1 and E(B-V) as dust maps give it.

    The law is Fitzpatrick 1999, PASP 111, 63 (beyond its red end at 3.3 um Gordon et al. 2023, ApJ 950, 86), scaled so
    that E(B-V) of the map of Schlegel, Finkbeiner & Davis has 0.78 x 1.32 mag at 1 um (Schlafly & Finkbeiner 2011, ApJ
    737, 103).

    Raises:
        InputError: the package dust_extinction is missing.
    """
    laws = require_extra("dust_extinction.parameter_averages", "sim")
    inverse_um = 1e4 / load_filter(source).pivot_angstrom
    law = laws.F99(Rv=3.1) if inverse_um > laws.F99.x_range[0] else laws.G23(Rv=3.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package warns of numbers without units
        return float(SFD_AT_1_UM * law(inverse_um) / law(1.0))
