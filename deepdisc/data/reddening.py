"""Milky Way reddening E(B-V) over a mosaic: one number, a FITS map, or a map of the whole sky."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from deepdisc.data.band import FileShelf, celestial_wcs
from deepdisc.data.dust import open_sky_map
from deepdisc.data.fits_plane import Plane, split_extension
from deepdisc.errors import InputError
from deepdisc.sky import PixelGrid

CELL_PIX = 64


class Reddening:
    """E(B-V) in magnitudes at the pixels of a mosaic.

    Args:
        value: one number; the path of a FITS map (with a WCS; without one it must have the mosaic's pixels); or a map
            of the sky, {sfd: folder} or {healpix: file}, see `deepdisc.data.dust`.
        grid: the mosaic's pixel grid.
        shelf: opens the map.

    Raises:
        InputError: a negative number, a map that cannot be placed on the sky or that does not cover the mosaic.

    Attributes:
        value: the one number, or None.
        origin: where the values come from, in words.
    """

    def __init__(self, value: float | str | Mapping[str, Any], grid: PixelGrid, shelf: FileShelf):
        self._grid = grid
        self.value: float | None = None
        self._sky_map = None
        if isinstance(value, Mapping):
            if grid.wcs is None:
                raise InputError("ebv: a map of the sky needs a mosaic with a WCS; give one number")
            self._sky_map = open_sky_map(value)
            self.origin = self._sky_map.origin
            return
        if not isinstance(value, str):
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"ebv is {value!r}; E(B-V) is a number of magnitudes, 0 or more, or a FITS map")
            self.value = float(value)
            self.origin = f"{value:g}, stated"
            return
        self.origin = f"map {value}"
        path, extension = split_extension(value)
        self._plane = Plane(shelf.get(path, "E(B-V) map"), extension)
        wcs = celestial_wcs(self._plane.header)
        self._map_grid = None
        if wcs is not None and grid.wcs is not None:
            self._map_grid = PixelGrid.from_wcs(wcs, self._plane.shape)
        elif self._plane.shape != grid.shape:
            raise InputError(
                f"{self._plane.name}: without a WCS in both, the map must have the mosaic's shape {grid.shape}, "
                f"not {self._plane.shape}; give a map with a WCS, or one number"
            )
        height, width = grid.shape
        if not np.isfinite(self.at(0, 0, height, width)).all():
            raise InputError(f"{self._plane.name} does not cover the mosaic; give a map that does, or one number")

    def at(self, y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
        """E(B-V) of a rectangle: shape () for a single number, else (rows, columns) of even cells, float32."""
        if self.value is not None:
            return np.float32(self.value).reshape(())
        rows, columns = (min(256, math.ceil(length / CELL_PIX)) for length in (y1 - y0, x1 - x0))
        height, width = self._grid.shape
        # Cells of a tile that runs past the mosaic take the edge's value: nothing there is a detection.
        y = np.clip(y0 + (np.arange(rows) + 0.5) * (y1 - y0) / rows - 0.5, 0, height - 1)
        x = np.clip(x0 + (np.arange(columns) + 0.5) * (x1 - x0) / columns - 0.5, 0, width - 1)
        grid_y, grid_x = (part.ravel() for part in np.meshgrid(y, x, indexing="ij"))
        if self._sky_map is not None:
            values = self._sky_map.at(*self._grid.to_sky(grid_x, grid_y))
            return np.maximum(values, 0).reshape(rows, columns).astype(np.float32)
        if self._map_grid is not None:
            grid_x, grid_y = self._map_grid.to_pixel(*self._grid.to_sky(grid_x, grid_y))
        return self._interpolate(grid_y, grid_x).reshape(rows, columns).astype(np.float32)

    def _interpolate(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Bilinear values of the map at 0-based pixel centres; NaN outside it."""
        height, width = self._plane.shape
        with np.errstate(invalid="ignore"):
            inside = (y > -0.5) & (y < height - 0.5) & (x > -0.5) & (x < width - 0.5)
        if not inside.all():
            return np.full(y.shape, np.nan)
        y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
        top, left = int(y.min()), int(x.min())
        bottom, right = min(height, int(y.max()) + 2), min(width, int(x.max()) + 2)
        pixels = self._plane.read(top, left, bottom, right).astype(np.float64)
        below, before = (y - top).astype(int), (x - left).astype(int)
        above, after = np.minimum(below + 1, bottom - top - 1), np.minimum(before + 1, right - left - 1)
        dy, dx = y - top - below, x - left - before
        lower = pixels[below, before] * (1 - dx) + pixels[below, after] * dx
        upper = pixels[above, before] * (1 - dx) + pixels[above, after] * dx
        return lower * (1 - dy) + upper * dy
