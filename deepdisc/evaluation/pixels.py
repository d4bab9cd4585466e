"""What an evaluation takes from the pixels, if the caller has them: sums in boxes, coverage.

The mosaic is anything with `bands` (names), `shape` (height, width) and `read(y0, x0, y1, x1)` that gives `image`,
`variance` (C, h, w; nJy, nJy^2) and `mask` (C, h, w; True = no data). Boxes are `x0, y0, x1, y1` in pixel-edge
coordinates of the mosaic.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from deepdisc.catalog import BOX_COLUMNS
from deepdisc.photometry import mag_from_njy

_STRIP = 512  # rows read at once


def box_sums(mosaic, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of flux and variance over valid pixels in boxes.

    Args:
        mosaic: see the module.
        boxes: (N, 4); rounded to whole pixels.

    Returns:
        flux (N, C) nJy and variance (N, C) nJy^2.
    """
    height, width = mosaic.shape
    edges = np.rint(boxes).astype(np.int64)
    x0, x1 = (np.clip(edges[:, i], 0, width) for i in (0, 2))
    sums = np.zeros((2, len(boxes), len(mosaic.bands)))
    for top in range(0, height, _STRIP):
        bottom = min(top + _STRIP, height)
        y0, y1 = (np.clip(edges[:, i], top, bottom) - top for i in (1, 3))
        rows = np.flatnonzero((y1 > y0) & (x1 > x0))
        if len(rows) == 0:
            continue
        cutout = mosaic.read(top, 0, bottom, width)
        for k, plane in enumerate((cutout.image, cutout.variance)):
            valid = np.where(np.asarray(cutout.mask), 0.0, np.asarray(plane))
            # A summed-area table: the sum over any box is four look-ups.
            table = np.zeros((valid.shape[0], valid.shape[1] + 1, valid.shape[2] + 1))
            np.cumsum(np.cumsum(valid, axis=1, dtype=np.float64), axis=2, out=table[:, 1:, 1:])
            a, b, c, d = y0[rows], y1[rows], x0[rows], x1[rows]
            sums[k, rows] += (table[:, b, d] - table[:, a, d] - table[:, b, c] + table[:, a, c]).T
    return sums[0], sums[1]


def add_brightness(pred: pd.DataFrame, mosaic, band: str | None) -> tuple[pd.DataFrame, str | None]:
    """Give detections without photometry a magnitude and signal-to-noise, so that purity can be told by them.

    Args:
        pred: predicted catalogue with boxes.
        mosaic: see the module.
        band: whose magnitude.

    Returns:
        The catalogue with `mag_<band>` and `snr` where it lacked them, from all light in each box; and a note saying
        so, or None if nothing was added.
    """
    name = f"mag_{band}"
    lacking = [column for column in ((name,) if band else ()) + ("snr",) if column not in pred.columns]
    if not lacking or not len(pred) or not set(BOX_COLUMNS) <= set(pred.columns):
        return pred, None
    flux, variance = box_sums(mosaic, pred[list(BOX_COLUMNS)].to_numpy(np.float64))
    pred = pred.copy()
    if name in lacking:
        pred[name] = mag_from_njy(flux[:, list(mosaic.bands).index(band)])
    if "snr" in lacking:
        with np.errstate(divide="ignore", invalid="ignore"):
            pred["snr"] = np.sqrt(np.nansum(np.clip(flux, 0, None) ** 2 / variance, axis=1))
    return pred, f"{' and '.join(lacking)} of the detections: all light in their boxes on this mosaic"


def without_data(mosaic, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bool (N,): the position (0-based pixel centres) is off the mosaic, or all bands are masked there."""
    height, width = mosaic.shape
    column, row = np.rint(x), np.rint(y)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    empty = ~inside
    for top in range(0, height, _STRIP):
        bottom = min(top + _STRIP, height)
        chosen = np.flatnonzero(inside & (row >= top) & (row < bottom))
        if len(chosen):
            masked = np.asarray(mosaic.read(top, 0, bottom, width).mask).all(0)
            empty[chosen] = masked[row[chosen].astype(int) - top, column[chosen].astype(int)]
    return empty
