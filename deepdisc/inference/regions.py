"""DS9 region files: one ellipse per object, from the second moments of its outline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from deepdisc.inference.merge import Merged
from deepdisc.sky import PixelGrid

COLORS = ("green", "cyan", "magenta", "yellow", "red", "blue")
SIGMAS = 2.0  # a uniformly filled ellipse has semi-axes of twice its standard deviations
STEP_ARCSEC = 1.0  # of the finite difference that finds north


class RegionWriter:
    """Writes regions as they come: sky coordinates with a WCS (ICRS), else image pixels, which DS9 counts from 1.

    Args:
        path: text file to write.
        grid: the mosaic's pixels on the sky.
    """

    def __init__(self, path: Path, grid: PixelGrid):
        self.grid = grid
        self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115 - closed by __exit__
        frame = "image" if grid.wcs is None else "icrs"
        self._file.write(f"# Region file format: DS9 version 4.1\nglobal color=green width=1 move=0\n{frame}\n")

    def __enter__(self) -> RegionWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def add(self, objects: Sequence[Merged], table: pd.DataFrame) -> None:
        """Write objects and their catalogue rows."""
        if not objects:
            return
        major, minor, angle = np.array([ellipse(item) for item in objects]).T
        if self.grid.wcs is None:
            positions, unit = table[["x", "y"]].to_numpy() + 1, ""
        else:
            positions, unit = table[["ra", "dec"]].to_numpy(), '"'
            angle = angle - (self._north(table) - 90)
            major, minor = major * self.grid.pixel_scale_arcsec, minor * self.grid.pixel_scale_arcsec
        for i, row in enumerate(table.itertuples(index=False)):
            place = f"{positions[i, 0]:.7f},{positions[i, 1]:.7f}"
            size = f"{major[i]:.3f}{unit},{minor[i]:.3f}{unit},{angle[i] % 180:.2f}"
            color = COLORS[row.class_id % len(COLORS)]
            self._file.write(f"ellipse({place},{size}) # color={color} tag={{{row.class_name}}} tag={{id {row.id}}}\n")

    def _north(self, table: pd.DataFrame) -> np.ndarray:
        """Direction of north at each object: degrees from the x axis towards the y axis of the image."""
        x, y = self.grid.to_pixel(table["ra"], table["dec"] + STEP_ARCSEC / 3600)
        return np.degrees(np.arctan2(y - table["y"].to_numpy(), x - table["x"].to_numpy()))


def ellipse(item: Merged) -> tuple[float, float, float]:
    """Semi-axes in pixels and position angle (degrees from x towards y) of an outline; of the box where it is empty."""
    rows, columns = np.nonzero(item.crop)
    if len(rows) == 0:
        width, height = item.box[2:] - item.box[:2]
        return float(width / 2), float(height / 2), 0.0
    # 1/12 is the variance of a pixel's own extent.
    xx, yy, xy = columns.var() + 1 / 12, rows.var() + 1 / 12, ((columns - columns.mean()) * (rows - rows.mean())).mean()
    spread, middle = np.hypot((xx - yy) / 2, xy), (xx + yy) / 2
    angle = np.degrees(np.arctan2(2 * xy, xx - yy)) / 2
    return SIGMAS * float(np.sqrt(middle + spread)), SIGMAS * float(np.sqrt(max(middle - spread, 1 / 12))), float(angle)
