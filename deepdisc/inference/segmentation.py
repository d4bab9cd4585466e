"""The label map of a mosaic, written stripe by stripe, and which outlines touch.

An outline is a region (`x0, y0, x1, y1`, int, mosaic pixels) and a bool crop of that size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from astropy.io import fits
from scipy.ndimage import binary_dilation

from deepdisc.inference.merge import Merged
from deepdisc.sky import PixelGrid

STRIPE_ROWS = 64


class SegmentationWriter:
    """Writes a FITS image of object numbers (int32, 0 = background) from top of the array to bottom.

    Only the outlines of objects that reach into unwritten rows are held in memory, never the image. Where outlines
    overlap, the pixel goes to the object of higher score (of equal scores: of lower number).

    Args:
        path: file to write; must not exist.
        grid: the mosaic's pixels; its WCS goes into the header.
    """

    def __init__(self, path: Path, grid: PixelGrid):
        height, width = grid.shape
        header = fits.Header([("SIMPLE", True), ("BITPIX", 32), ("NAXIS", 2), ("NAXIS1", width), ("NAXIS2", height)])
        header.update(grid.header())
        header["CONTENT"] = ("SEGMENTATION", "0 = background, else id in the catalogue")
        self.shape = grid.shape
        self.rows_written = 0
        self._held: list[tuple[float, int, Merged]] = []
        self._stream = fits.StreamingHDU(path, header)

    def __enter__(self) -> SegmentationWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stream.close()

    def add(self, objects: Sequence[Merged], first_id: int) -> None:
        """Take objects, numbered from `first_id`, none of which reaches into rows already written."""
        self._held += [(item.score, -number, item) for number, item in enumerate(objects, start=first_id)]
        self._held.sort(key=lambda entry: entry[:2])

    def write_to(self, row: int) -> None:
        """Write all rows below `row`; every object that reaches into them must have been added."""
        while self.rows_written < row:
            end = min(self.rows_written + STRIPE_ROWS, row)
            stripe = np.zeros((end - self.rows_written, self.shape[1]), dtype=np.int32)
            for _, negative_id, item in self._held:
                x0, y0, x1, y1 = item.region
                low, high = max(y0, self.rows_written), min(y1, end)
                if low < high:
                    part = stripe[low - self.rows_written : high - self.rows_written, x0:x1]
                    part[item.crop[low - y0 : high - y0]] = -negative_id
            self._stream.write(stripe)
            self.rows_written = end
            self._held = [entry for entry in self._held if entry[2].region[3] > end]


def touching(first: Merged, second: Merged) -> bool:
    """Whether two outlines overlap or have neighbouring pixels (diagonals count)."""
    a, b = np.array(first.region), np.array(second.region)
    low, high = np.maximum(a[:2] - 1, b[:2]), np.minimum(a[2:] + 1, b[2:])
    if (high <= low).any():
        return False
    grown = binary_dilation(np.pad(first.crop, 1), np.ones((3, 3), dtype=bool))
    x, y = (low - a[:2] + 1).tolist()
    u, v = (low - b[:2]).tolist()
    width, height = (high - low).tolist()
    return bool((grown[y : y + height, x : x + width] & second.crop[v : v + height, u : u + width]).any())


def neighbours(reach: np.ndarray, others: np.ndarray, margin: int = 1, rows_at_once: int = 256) -> np.ndarray:
    """Pairs (P, 2) of row numbers of boxes (A, 4) and (B, 4), int pixels, that come within `margin` pixels."""
    pairs = []
    for start in range(0, len(reach) if len(others) else 0, rows_at_once):
        part = reach[start : start + rows_at_once, None]
        before = (part[..., :2] < others[None, :, 2:] + margin).all(-1)
        after = (others[None, :, :2] < part[..., 2:] + margin).all(-1)
        i, j = np.nonzero(before & after)
        pairs.append(np.stack((i + start, j), axis=1))
    return np.concatenate(pairs) if pairs else np.zeros((0, 2), dtype=np.int64)
