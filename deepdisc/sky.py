"""Pixels and sky. This is the only module that knows the half pixel, and how shear turns from pixels to sky.

Inside the program pixel i covers [i, i + 1): positions and boxes are *edge* coordinates, the centre of pixel i is
i + 0.5. Catalogues and the FITS WCS count pixel *centres*: 0-based, the centre of pixel i is i. (FITS headers and DS9
count centres from 1.) Sky positions are ICRS degrees.

Shear (spin 2) has two frames. *Pixel*: (g1, g2) = |g| (cos 2a, sin 2a), a the angle of the stretched axis from +x to
+y, as the stamps show it. *Sky*, as in catalogues: the same with the position angle, from North through East (the
IAU's polarisation convention, Hamaker & Bregman 1996, A&AS 117, 161): +g1 is stretched North-South, +g2 from the
South-West to the North-East. On a picture with North up and East left, sky = -pixel in both components.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales


def edges_to_centers(position: Any) -> Any:
    """Edge coordinates (pixel i's centre at i + 0.5) -> 0-based centre coordinates (at i)."""
    return position - 0.5


def centers_to_edges(position: Any) -> Any:
    """0-based centre coordinates (pixel i's centre at i) -> edge coordinates (at i + 0.5)."""
    return position + 0.5


def rotate_shear(g1: Any, g2: Any, angle_rad: Any) -> tuple[Any, Any]:
    """Components of a spin-2 quantity after the picture is rotated counter-clockwise by `angle_rad`.

    A rotation by 90 degrees flips both signs; by 45 degrees (g1, g2) -> (-g2, g1).
    """
    cos, sin = np.cos(2 * angle_rad), np.sin(2 * angle_rad)
    return g1 * cos - g2 * sin, g1 * sin + g2 * cos


def _east_north(ra0: Any, dec0: Any, ra1: Any, dec1: Any) -> tuple[np.ndarray, np.ndarray]:
    """Direction (not normalised) from one sky position, degrees, to a near one, as (East, North)."""
    ra0, dec0, ra1, dec1 = np.radians([ra0, dec0, ra1, dec1])
    step = ra1 - ra0
    # sin(dec1 - dec0) and not cos sin - sin cos: the difference of the two products would lose what small steps need.
    north = np.sin(dec1 - dec0) + 2 * np.sin(dec0) * np.cos(dec1) * np.sin(step / 2) ** 2
    return np.sin(step) * np.cos(dec1), north


GRID_TOLERANCE_PIX = 0.05  # grids that put every pixel this close to each other are the same


@dataclass(frozen=True)
class PixelGrid:
    """A pixel grid on the sky, or without sky positions.

    Attributes:
        shape: (height, width) in pixels.
        pixel_scale_arcsec: side of a pixel, arcsec.
        wcs: celestial WCS, or None when the header has none.
    """

    shape: tuple[int, int]
    pixel_scale_arcsec: float
    wcs: WCS | None = None

    @classmethod
    def from_wcs(cls, wcs: WCS, shape: tuple[int, int]) -> PixelGrid:
        """Take the pixel scale from the WCS (geometric mean of the two axes)."""
        scales = proj_plane_pixel_scales(wcs.celestial) * 3600
        return cls(tuple(shape), float(np.sqrt(scales[0] * scales[1])), wcs.celestial)

    def to_sky(self, x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        """ICRS (RA, Dec) in degrees of 0-based pixel-centre coordinates; NaN without a WCS."""
        x, y = np.atleast_1d(np.asarray(x, dtype=np.float64)), np.atleast_1d(np.asarray(y, dtype=np.float64))
        if self.wcs is None or x.size == 0:
            return np.full(x.shape, np.nan), np.full(y.shape, np.nan)
        sky = self.wcs.pixel_to_world(x, y).icrs
        return sky.ra.deg, sky.dec.deg

    def to_pixel(self, ra: Any, dec: Any) -> tuple[np.ndarray, np.ndarray]:
        """0-based pixel-centre coordinates of ICRS degrees; NaN without a WCS."""
        ra, dec = np.atleast_1d(np.asarray(ra, dtype=np.float64)), np.atleast_1d(np.asarray(dec, dtype=np.float64))
        if self.wcs is None or ra.size == 0:
            return np.full(ra.shape, np.nan), np.full(dec.shape, np.nan)
        x, y = self.wcs.world_to_pixel(SkyCoord(ra, dec, unit="deg", frame="icrs"))
        return np.asarray(x), np.asarray(y)

    def shear_to_sky(self, x: Any, y: Any, g1: Any, g2: Any) -> tuple[np.ndarray, np.ndarray]:
        """Sky components of a shear given along the pixel axes.

        Args:
            x: (N,) where it is, 0-based pixel centres.
            y: (N,) the same.
            g1: (N,) component along the pixel axes.
            g2: (N,) component along the diagonal.

        Returns:
            (N,) components from North through East, ICRS; NaN without a WCS.
        """
        north, parity = self.orientation(x, y)
        g1, g2 = np.asarray(g1, dtype=np.float64), np.asarray(g2, dtype=np.float64)
        return rotate_shear(g1, parity * g2, -parity * north)

    def shear_to_pixel(self, x: Any, y: Any, g1: Any, g2: Any) -> tuple[np.ndarray, np.ndarray]:
        """Components along the pixel axes of a sky shear: the inverse of `shear_to_sky`."""
        north, parity = self.orientation(x, y)
        turned = rotate_shear(np.asarray(g1, dtype=np.float64), np.asarray(g2, dtype=np.float64), parity * north)
        return turned[0], parity * turned[1]

    def orientation(self, x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        """Where North is in the picture, and whether the picture is seen from inside the sphere.

        Skewed pixels are taken as the rotation (and reflection) nearest to them, the polar decomposition.

        Args:
            x: (N,) 0-based pixel centres.
            y: (N,) 0-based pixel centres.

        Returns:
            (N,) angle of North from +x to +y, radians; (N,) parity: 1 where East lies counter-clockwise of North, as on
            the sky, -1 where the picture is mirrored. Both NaN without a WCS.
        """
        x, y = np.atleast_1d(np.asarray(x, dtype=np.float64)), np.atleast_1d(np.asarray(y, dtype=np.float64))
        along_x = _east_north(*self.to_sky(x - 0.5, y), *self.to_sky(x + 0.5, y))
        along_y = _east_north(*self.to_sky(x, y - 0.5), *self.to_sky(x, y + 0.5))
        parity = -np.sign(along_x[0] * along_y[1] - along_x[1] * along_y[0])
        return np.arctan2(along_y[1] - parity * along_x[0], along_x[1] + parity * along_y[0]), parity

    def cutout(self, y0: int, x0: int, shape: tuple[int, int]) -> PixelGrid:
        """The grid of a rectangle that begins at pixel (y0, x0), both >= 0."""
        wcs = None if self.wcs is None else self.wcs.slice((slice(y0, None), slice(x0, None)))
        return PixelGrid(tuple(shape), self.pixel_scale_arcsec, wcs)

    def same_grid(self, other: PixelGrid, tolerance_pix: float = GRID_TOLERANCE_PIX) -> bool:
        """Whether both have the same shape and put a 5 x 5 lattice of points within `tolerance_pix` of each other."""
        return self.shape == other.shape and self.offset_pix(other) <= tolerance_pix

    def offset_pix(self, other: PixelGrid) -> float:
        """Largest distance (pixels of this grid) between points with equal pixel coordinates in both grids.

        0 if either has no WCS: without one, equal shapes are all there is to compare. Infinite where a point of one
        grid is nowhere in the other's projection; points off the sky in both, as in the corners of all-sky maps, agree.
        """
        if self.wcs is None or other.wcs is None:
            return 0.0
        height, width = self.shape
        y, x = (part.ravel() for part in np.meshgrid(np.linspace(0, height - 1, 5), np.linspace(0, width - 1, 5)))
        sky = other.to_sky(x, y)
        on_sky = np.isfinite(sky[0]) | np.isfinite(self.to_sky(x, y)[0])
        back_x, back_y = self.to_pixel(*sky)
        distance = np.hypot(back_x - x, back_y - y)[on_sky]
        return float(np.nan_to_num(distance, nan=np.inf, posinf=np.inf).max(initial=0.0))

    def header(self) -> dict[str, Any]:
        """WCS keywords for a FITS header; empty without a WCS."""
        return {} if self.wcs is None else dict(self.wcs.to_header(relax=True))
