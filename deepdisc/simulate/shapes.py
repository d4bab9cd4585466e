"""What drawing needs to know of the objects of a field: where, how large, how much light in which part and band.

N = number of objects, B = number of bands. Lengths are in pixels. The parts of a galaxy are a disc and a bulge (Sersic
profiles), knots (points that lie as the disc's light does), or the picture of a real galaxy in place of all of these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd

from deepdisc.simulate import sersic
from deepdisc.simulate.conditions import Conditions
from deepdisc.simulate.population import GALAXY

STAMP_LEVEL = 0.1  # a stamp ends where the light falls below this signal-to-noise per pixel
HALF_SIZES = (6, 512)  # smallest and largest half side of a stamp, pixels
NEGLIGIBLE = 0.01  # a part with a smaller share of the light in every band is left out, the other takes it over
KNOTS_WITHIN = 2.5  # knots lie within this many half-light radii of the disc
BRIGHTEST_KNOT = 30.0  # in units of the faintest
# Columns that a table of objects may leave out.
DEFAULTS = {"g1": 0.0, "g2": 0.0, "kappa": 0.0, "knots": 0, "knot_share": 0.0, "stamp": -1}


@dataclass(frozen=True)
class Shapes:
    """The objects as arrays.

    Attributes:
        x, y: (N,) 0-based pixel centres.
        is_galaxy: (N,) bool; the others are points.
        flux: (N, B) nJy.
        bulge_share: (N, B) share of the light in the bulge; 0 for stamps and points.
        knot_share: (N,) share of the disc's light in knots.
        knots: (N,) how many.
        seed: (N,) of where the knots lie in the disc: the population row, so that one galaxy looks the same wherever
            and however turned it is drawn.
        stamp: (N,) row of the catalogue of real galaxies, -1 for none.
        disk_n, bulge_n: (N,) Sersic indices.
        disk_map, bulge_map: (N, 2, 2) linear map (x, y) that takes a round profile of half-light radius 1 to the
            picture: size, axis ratio, angle, then lensing. Stamps: half-light radius, angle and lensing.
        estimated_snr: (N,) for the accuracy of drawing.
        half: (N,) int, half side of the stamp: its centre is the pixel nearest to (x, y), its side 2 half + 1.
        cell: (N,) int, which of the field's PSFs it is seen with.
    """

    x: np.ndarray
    y: np.ndarray
    is_galaxy: np.ndarray
    flux: np.ndarray
    bulge_share: np.ndarray
    knot_share: np.ndarray
    knots: np.ndarray
    seed: np.ndarray
    stamp: np.ndarray
    disk_n: np.ndarray
    bulge_n: np.ndarray
    disk_map: np.ndarray
    bulge_map: np.ndarray
    estimated_snr: np.ndarray
    half: np.ndarray
    cell: np.ndarray

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: np.ndarray | slice) -> Shapes:
        """Some of the objects."""
        return Shapes(**{one.name: getattr(self, one.name)[rows] for one in fields(self)})

    @property
    def corner(self) -> tuple[np.ndarray, np.ndarray]:
        """(N,) y0, x0: the field's pixels where the stamps begin, may be negative."""
        return np.floor(self.y + 0.5).astype(int) - self.half, np.floor(self.x + 0.5).astype(int) - self.half

    def reach_into(self, shape: tuple[int, int]) -> np.ndarray:
        """(N,) bool: the stamp holds pixels of a field of this (height, width)."""
        y0, x0 = self.corner
        side = 2 * self.half + 1
        return (y0 < shape[0]) & (x0 < shape[1]) & (y0 + side > 0) & (x0 + side > 0)

    @classmethod
    def of(cls, objects: pd.DataFrame, conditions: Conditions) -> Shapes:
        """Read a table of objects (its columns: see `objects`).

        Args:
            objects: one row per object.
            conditions: of the field.
        """

        def column(name: str, kind: type = np.float64) -> np.ndarray:
            if name in objects or name not in DEFAULTS:
                return objects[name].to_numpy(kind)
            return np.full(len(objects), DEFAULTS[name], dtype=kind)

        x, y = column("x"), column("y")
        is_galaxy, stamp = column("class_id") == GALAXY, column("stamp", np.int64)
        flux = np.stack([column(f"flux_{band.name}") for band in conditions.bands], axis=1)
        share = np.stack([column(f"bulge_share_{band.name}") for band in conditions.bands], axis=1)
        share = _without_negligible(np.where((is_galaxy & (stamp < 0))[:, None], share, 0.0))
        lens = lensing_maps(*conditions.grid.shear_to_pixel(x, y, column("g1"), column("g2")), column("kappa"))
        scale, angle = conditions.instrument.pixel_scale_arcsec, column("angle_rad")
        maps = [
            lens @ ellipse_maps(column(f"{part}_hlr_arcsec") / scale, column(f"{part}_axis_ratio"), angle)
            for part in ("disk", "bulge")
        ]
        shapes = cls(
            x=x,
            y=y,
            is_galaxy=is_galaxy,
            flux=flux,
            bulge_share=share,
            knot_share=np.where(is_galaxy & (stamp < 0) & (column("knots") > 0), column("knot_share"), 0.0),
            knots=column("knots", np.int64),
            seed=column("population_row", np.int64),
            stamp=np.where(is_galaxy, stamp, -1),
            disk_n=column("disk_n"),
            bulge_n=column("bulge_n"),
            disk_map=maps[0],
            bulge_map=maps[1],
            estimated_snr=column("estimated_snr"),
            half=np.zeros(len(objects), dtype=int),
            cell=np.asarray(conditions.psf_cell(x, y), dtype=int),
        )
        shapes.half[:] = half_sizes(shapes, conditions)
        return shapes


def _without_negligible(share: np.ndarray) -> np.ndarray:
    """Bulge shares with 0 or 1 in all bands where the bulge, or all else, is negligible in every band."""
    bulge, rest = (share > NEGLIGIBLE).any(axis=1), (share < 1 - NEGLIGIBLE).any(axis=1)
    share = np.where(bulge[:, None], share, 0.0)
    return np.where(rest[:, None], share, 1.0)


def ellipse_maps(hlr: np.ndarray, axis_ratio: np.ndarray, angle_rad: np.ndarray) -> np.ndarray:
    """(N, 2, 2) maps from the unit circle to ellipses of major axis hlr / sqrt(q), minor axis hlr sqrt(q)."""
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    major, minor = hlr / np.sqrt(axis_ratio), hlr * np.sqrt(axis_ratio)
    return np.stack([cos * major, -sin * minor, sin * major, cos * minor], axis=-1).reshape(-1, 2, 2)


def lensing_maps(g1: np.ndarray, g2: np.ndarray, kappa: np.ndarray) -> np.ndarray:
    """(N, 2, 2) maps from the source to its lensed picture, for reduced shear along the pixel axes.

    The inverse of A = (1 - kappa) (1 - g1, -g2; -g2, 1 + g1), e.g. Bartelmann & Schneider 2001, Phys. Rep. 340, 291,
    eq. 4.4.
    """
    factor = 1 / ((1 - kappa) * (1 - g1**2 - g2**2))
    return factor[:, None, None] * np.stack([1 + g1, g2, g2, 1 - g1], axis=-1).reshape(-1, 2, 2)


def lensed_ellipticity(objects: pd.DataFrame, conditions: Conditions) -> tuple[np.ndarray, np.ndarray]:
    """Ellipticity (a - b) / (a + b) of lensed galaxies without PSF, the mean of disc and bulge weighted by their light.

    With M the map from a circle to the picture, Q = M M^T and e = (Qxx - Qyy + 2i Qxy) / (Qxx + Qyy + 2 sqrt(det Q)):
    Bartelmann & Schneider 2001, Phys. Rep. 340, 291, section 4.2, whose second moments are proportional to Q.

    Args:
        objects: lensed, one row each (columns: see `objects`).
        conditions: of the field.

    Returns:
        (N,) components in sky orientation, as those of shear; NaN for stars and pictures of real galaxies.
    """
    shapes = Shapes.of(objects, conditions)
    bulge = (shapes.flux * shapes.bulge_share).sum(axis=1)
    weight = np.stack([shapes.flux.sum(axis=1) - bulge, bulge])
    drawn = shapes.is_galaxy & (shapes.stamp < 0) & (weight.sum(axis=0) > 0)
    parts = np.stack([_ellipticity(shapes.disk_map), _ellipticity(shapes.bulge_map)])
    light = np.where(weight > 0, weight * parts, 0).sum(axis=0)
    mean = np.divide(light, weight.sum(axis=0), out=np.full(len(shapes), np.nan + 0j), where=drawn)
    return conditions.grid.shear_to_sky(shapes.x, shapes.y, mean.real, mean.imag)


def _ellipticity(maps: np.ndarray) -> np.ndarray:
    """(N,) complex ellipticity of what (N, 2, 2) maps make of a circle, along the pixel axes; 0 without a map."""
    q = maps @ maps.transpose(0, 2, 1)
    xx, xy, yy = q[:, 0, 0], q[:, 0, 1], q[:, 1, 1]
    size = xx + yy + 2 * np.sqrt(np.maximum(xx * yy - xy**2, 0))
    return np.divide(xx - yy + 2j * xy, size, out=np.zeros(len(maps), complex), where=size > 0)


def draw_knots(seed: int, number: int, n: float) -> tuple[np.ndarray, np.ndarray]:
    """(number, 2) x, y of an object's knots in a round disc of half-light radius 1 and Sersic index n, and their shares
    of the knots' light: a power law L^-2 as that of H II regions (Kennicutt, Edgar & Hodge 1989, ApJ 337, 761).
    """
    rng = np.random.default_rng(seed)
    positions = sersic.draw_positions(rng, number, n, KNOTS_WITHIN)
    light = 1 / (1 - rng.uniform(0, 1 - 1 / BRIGHTEST_KNOT, number))
    return positions, light / light.sum()


# -------------------------------------------------------------------------------------------------- sizes of stamps
def half_sizes(shapes: Shapes, conditions: Conditions) -> np.ndarray:
    """(N,) half sides: where disc, bulge, knots and PSF fall below STAMP_LEVEL, plus one PSF width."""
    amplitude = np.maximum(shapes.flux, 0) / conditions.sky_sigma_njy()  # total light over the noise of one pixel
    galaxy = shapes.is_galaxy

    def reach(part: str, share: np.ndarray) -> np.ndarray:
        total = np.sqrt(((share * amplitude) ** 2).sum(axis=1)) / STAMP_LEVEL
        seen = galaxy & (total > 0)
        radius = np.zeros(len(shapes))
        n, matrix = getattr(shapes, f"{part}_n"), getattr(shapes, f"{part}_map")
        radius[seen] = sersic.radius_of_level(total[seen], n[seen], matrix[seen])
        return radius

    of_point = _point_reach(amplitude, conditions)
    brightest = shapes.knot_share * BRIGHTEST_KNOT / (BRIGHTEST_KNOT + np.maximum(shapes.knots, 1) - 1)
    of_knots = _point_reach(amplitude * brightest[:, None], conditions)
    major = np.linalg.norm(np.nan_to_num(shapes.disk_map), ord=2, axis=(1, 2))
    radius = np.max(
        [
            of_point,
            reach("disk", 1 - shapes.bulge_share),
            reach("bulge", shapes.bulge_share),
            np.where(shapes.knot_share > 0, KNOTS_WITHIN * major + of_knots, 0),
        ],
        axis=0,
    )
    width = conditions.psf_fwhm_arcsec.max() / conditions.instrument.pixel_scale_arcsec
    return np.clip(np.ceil(radius + width), *HALF_SIZES).astype(int)


def _point_reach(amplitude: np.ndarray, conditions: Conditions) -> np.ndarray:
    """(N,) radius in pixels within which a point's light exceeds STAMP_LEVEL.

    Args:
        amplitude: (N, B) total light over the noise of one pixel.
        conditions: of the field.
    """
    scale, bands = conditions.instrument.pixel_scale_arcsec, amplitude.shape[1]
    level = STAMP_LEVEL / math.sqrt(bands) / np.maximum(amplitude, 1e-30) / scale**2  # of flux 1, per square arcsec
    return np.max([conditions.psf_radius_arcsec(band, level[:, band]) for band in range(bands)], axis=0) / scale
