"""Weak lensing of a field's galaxies: constant shear, shear of a random convergence field, and ring pairs.

gamma is the shear, kappa the convergence, g = gamma / (1 - kappa) the reduced shear, mu the magnification. Only shapes,
sizes and fluxes are lensed: galaxies stay where they were drawn, and as many as were drawn (no displacement, no
magnification bias of the counts).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.fft
from scipy import ndimage

from deepdisc.errors import InputError
from deepdisc.photometry import mag_from_njy
from deepdisc.simulate.checks import Range, check_choice, check_numbers, check_ranges
from deepdisc.simulate.population import GALAXY
from deepdisc.sky import PixelGrid

if TYPE_CHECKING:
    from deepdisc.simulate.conditions import Conditions

DISTRIBUTIONS = ("gaussian", "lognormal")
STRONGEST = 0.7  # a reduced shear beyond this, or a convergence, is no weak lensing
CELLS_PER_SMOOTHING = 2  # with a Gaussian of this many cells nothing is left of the power at the cells' own frequency
BOX = 2.0  # side of the periodic box in units of the field's: what leaves on one side must not come back in the field
MOST_CELLS = 2048
PAIRS_PER_FIELD = 10**8  # more than a field has objects: numbers of pairs are unique in a sky


@dataclass(frozen=True)
class Lensing:
    """How a field's galaxies are lensed: a constant part plus a random field. Ranges are (low, high), drawn per field.

    Attributes:
        g1: range of the constant reduced shear's first component, sky orientation: positive is stretched North-South.
        g2: range of the second: positive is stretched from South-West to North-East.
        kappa: range of the constant convergence.
        kappa_rms: standard deviation of the random convergence field, for sources at `source_redshift`; 0: no field.
        distribution: of the random field, "gaussian" or "lognormal" (shifted, kappa > -kappa_floor; the power spectrum
            is that of the Gaussian field: Hilbert, Hartlap & Schneider 2011, A&A 536, A85).
        kappa_floor: see there.
        slope: the field's angular power spectrum goes as l^slope, from the box (twice the field) on.
        smoothing_arcsec: standard deviation of the Gaussian by which the field is smoothed.
        lens_redshift: None: every galaxy is lensed alike. Otherwise all mass is at this redshift, and a galaxy is
            lensed in proportion to D_ls / D_s (Planck 2018 cosmology); galaxies in front are not lensed.
        source_redshift: with a lens_redshift, the redshift for which shear and convergence are stated.
        ring_pairs: fields 2k and 2k + 1 are the same sky under the same conditions, but for the noise and for galaxies
            that are turned by 90 degrees before they are lensed, so that their own shapes cancel (Nakajima & Bernstein
            2007, AJ 133, 1763).
    """

    g1: Range = (0.0, 0.0)
    g2: Range = (0.0, 0.0)
    kappa: Range = (0.0, 0.0)
    kappa_rms: float = 0.0
    distribution: str = "gaussian"
    kappa_floor: float = 0.05
    slope: float = -1.5
    smoothing_arcsec: float = 20.0
    lens_redshift: float | None = None
    source_redshift: float = 1.0
    ring_pairs: bool = False

    def __post_init__(self):
        check_ranges(self, "sky.lensing", {"g1": (-0.5, 0.5), "g2": (-0.5, 0.5), "kappa": (-0.5, 0.5)})
        check_numbers(self, "sky.lensing", _NUMBERS)
        check_choice(self, "sky.lensing", "distribution", DISTRIBUTIONS)
        if self.lens_redshift is not None and self.lens_redshift >= self.source_redshift:
            raise InputError(
                f"sky.lensing.lens_redshift is {self.lens_redshift}; it must be below source_redshift, "
                f"{self.source_redshift}"
            )


_NUMBERS = {
    "kappa_rms": (0, 0.3),
    "kappa_floor": (0.001, 1),
    "slope": (-6, 2),
    "smoothing_arcsec": (0.1, 3600),
    "lens_redshift": (0.001, 20),
    "source_redshift": (0.01, 100),
}


@dataclass(frozen=True)
class ConvergenceMap:
    """Convergence and shear on square cells of a periodic box around the field.

    Attributes:
        kappa: (n, n) float64.
        gamma: (n, n) complex128, gamma1 + i gamma2 along the pixel axes.
        cell_pix: side of a cell, pixels.
        origin: (x, y), 0-based pixel centres, of the first cell's centre.
    """

    kappa: np.ndarray
    gamma: np.ndarray
    cell_pix: float
    origin: tuple[float, float]

    def at(self, x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        """Convergence and complex shear (pixel axes) at 0-based pixel centres, by cubic splines."""
        places = np.array([(y - self.origin[1]) / self.cell_pix, (x - self.origin[0]) / self.cell_pix])
        parts = (self.kappa, self.gamma.real, self.gamma.imag)
        kappa, g1, g2 = (ndimage.map_coordinates(part, places, order=3, mode="grid-wrap") for part in parts)
        return kappa, g1 + 1j * g2


def lens_objects(
    lensing: Lensing | None, conditions: Conditions, objects: pd.DataFrame, rng: np.random.Generator
) -> tuple[pd.DataFrame, ConvergenceMap | None]:
    """Add g1, g2 (reduced, sky orientation) and kappa to the objects and magnify their fluxes.

    Args:
        lensing: settings; None: all three columns are 0.
        conditions: of the field.
        objects: see `deepdisc.simulate.objects`; not changed.
        rng: source of randomness.

    Returns:
        The lensed objects, and the random field where there is one.

    Raises:
        InputError: the shear is not weak, or the smoothing too fine for the field.
    """
    if lensing is None:
        return objects.assign(g1=0.0, g2=0.0, kappa=0.0), None
    constant = complex(rng.uniform(*lensing.g1), rng.uniform(*lensing.g2))
    kappa = np.full(len(objects), rng.uniform(*lensing.kappa))
    gamma = constant * (1 - kappa)
    field = None
    if lensing.kappa_rms > 0:
        field = draw_convergence(lensing, conditions.grid, rng)
        x, y = objects.x.to_numpy(), objects.y.to_numpy()
        more_kappa, more_gamma = field.at(x, y)
        g1, g2 = conditions.grid.shear_to_sky(x, y, more_gamma.real, more_gamma.imag)
        kappa, gamma = kappa + more_kappa, gamma + g1 + 1j * g2
    strength = lensing_strength(lensing, objects)
    kappa, gamma = kappa * strength, gamma * strength
    reduced = gamma / (1 - kappa)
    strongest = max(abs(kappa).max(initial=0), abs(reduced).max(initial=0))
    if strongest > STRONGEST:
        raise InputError(
            f"sky.lensing: convergence or shear reaches {strongest:.2f}, and only weak lensing is simulated "
            f"(up to {STRONGEST}); lower kappa_rms, kappa, g1 or g2"
        )
    return _magnify(objects.assign(g1=reduced.real, g2=reduced.imag, kappa=kappa), conditions), field


def _magnify(objects: pd.DataFrame, conditions: Conditions) -> pd.DataFrame:
    mu = magnification(objects.g1, objects.g2, objects.kappa)
    changed = {"estimated_snr": objects.estimated_snr * mu}
    for band in conditions.bands:
        changed[f"flux_{band.name}"] = objects[f"flux_{band.name}"] * mu
        changed[f"mag_{band.name}"] = mag_from_njy(changed[f"flux_{band.name}"])
    return objects.assign(**changed)


def magnification(g1: Any, g2: Any, kappa: Any) -> Any:
    """mu = 1 / ((1 - kappa)^2 (1 - |g|^2)), g reduced (Bartelmann & Schneider 2001, Phys. Rep. 340, 291)."""
    return 1 / ((1 - kappa) ** 2 * (1 - g1**2 - g2**2))


def lensing_strength(lensing: Lensing, objects: pd.DataFrame) -> np.ndarray:
    """(N,) factor on shear and convergence of each object: 0 for stars and what is in front of the lens."""
    galaxy = (objects.class_id == GALAXY).to_numpy()
    if lensing.lens_redshift is None:
        return galaxy.astype(np.float64)
    from astropy.cosmology import Planck18  # here, because it takes a second to import

    def efficiency(redshift: np.ndarray) -> np.ndarray:
        """D_ls / D_s of a flat universe, from comoving distances."""
        behind = np.maximum(redshift, lensing.lens_redshift)
        return 1 - Planck18.comoving_distance(lensing.lens_redshift) / Planck18.comoving_distance(behind)

    redshift = np.where(galaxy, objects.redshift.fillna(0), 0).astype(np.float64)
    reference = efficiency(np.array([lensing.source_redshift]))
    return np.where(galaxy, np.asarray(efficiency(redshift) / reference, dtype=np.float64), 0.0)


def turn_for_ring(objects: pd.DataFrame, number: int) -> pd.DataFrame:
    """The objects of field `number` of a ring: every second field has them turned by 90 degrees.

    The column `pair_id` is the same for an object of one field and its twin in the other.
    """
    pair_id = number // 2 * PAIRS_PER_FIELD + np.arange(len(objects))
    return objects.assign(angle_rad=objects.angle_rad + np.pi / 2 * (number % 2), pair_id=pair_id)


# -------------------------------------------------------------------------------------------------- random field
def draw_convergence(lensing: Lensing, grid: PixelGrid, rng: np.random.Generator) -> ConvergenceMap:
    """Draw the random convergence field of a field of view.

    Raises:
        InputError: the smoothing length needs more cells than MOST_CELLS.
    """
    side = BOX * max(grid.shape) * grid.pixel_scale_arcsec
    count = scipy.fft.next_fast_len(max(32, round(CELLS_PER_SMOOTHING * side / lensing.smoothing_arcsec)))
    if count > MOST_CELLS:
        finest = CELLS_PER_SMOOTHING * side / MOST_CELLS
        raise InputError(
            f"sky.lensing.smoothing_arcsec is {lensing.smoothing_arcsec}; for fields of this size give at least "
            f"{finest:.2g}"
        )
    kappa = random_field(lensing, count, side / count, rng)
    cell_pix = side / count / grid.pixel_scale_arcsec
    height, width = grid.shape
    origin = ((width - count * cell_pix) / 2, (height - count * cell_pix) / 2)
    return ConvergenceMap(kappa, shear_of(kappa), cell_pix, origin)


def random_field(lensing: Lensing, count: int, cell_arcsec: float, rng: np.random.Generator) -> np.ndarray:
    """(count, count) periodic random field of zero mean, standard deviation kappa_rms and the stated power spectrum."""
    frequency = np.hypot(*_frequencies(count)) / cell_arcsec  # radians per arcsec
    with np.errstate(divide="ignore"):
        power = frequency**lensing.slope * np.exp(-((frequency * lensing.smoothing_arcsec) ** 2))
    power[0, 0] = 0
    correlation = scipy.fft.irfft2(power, s=(count, count))
    correlation *= lensing.kappa_rms**2 / correlation[0, 0]
    if lensing.distribution == "lognormal":
        correlation = np.log1p(correlation / lensing.kappa_floor**2)
    power = np.maximum(scipy.fft.rfft2(correlation).real, 0)
    white = scipy.fft.rfft2(rng.standard_normal((count, count)))
    field = scipy.fft.irfft2(white * np.sqrt(power), s=(count, count))
    if lensing.distribution == "lognormal":
        field = lensing.kappa_floor * np.expm1(field - correlation[0, 0] / 2)
    return field


def shear_of(kappa: np.ndarray) -> np.ndarray:
    """Complex shear gamma1 + i gamma2 along the axes (x, y) of a periodic convergence map (y, x).

    gamma~ = (l_x + i l_y)^2 / |l|^2 kappa~ (Kaiser & Squires 1993, ApJ 404, 441); the mean convergence has no shear.
    """
    l_y, l_x = np.meshgrid(*(2 * np.pi * scipy.fft.fftfreq(side) for side in kappa.shape), indexing="ij")
    square = l_x**2 + l_y**2
    square[0, 0] = 1
    return scipy.fft.ifft2((l_x + 1j * l_y) ** 2 / square * scipy.fft.fft2(kappa))


def _frequencies(count: int) -> tuple[np.ndarray, np.ndarray]:
    """(l_y, l_x) of `rfft2` of a square, radians per cell."""
    return np.meshgrid(2 * np.pi * scipy.fft.fftfreq(count), 2 * np.pi * scipy.fft.rfftfreq(count), indexing="ij")
