"""Fluxes in Kron apertures (Kron 1980, ApJS 43, 305), measured with sep for objects whose fluxes no catalogue says.

The aperture is the ellipse of the light's second moments in the stack, scaled to 2.5 Kron radii, but at least 3.5, as
SExtractor's AUTO fluxes are (Bertin & Arnouts 1996); the same in every band. Neighbours' pixels are left out. Such an
aperture holds about 94 % of a galaxy's light.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from deepdisc.data.mosaic import Mosaic
from deepdisc.errors import require_extra
from deepdisc.photometry import mag_from_njy

_KRON_FACTOR, _SMALLEST, _REACH = 2.5, 3.5, 6.0
_PIXEL_VARIANCE = 1 / 12  # second moment of a pixel's square, and thus the least of an object's


def kron_fluxes(mosaic: Mosaic, segmentation: np.ndarray, count: int, stack: np.ndarray) -> pd.DataFrame:
    """Measure objects 1 to `count` of a segmentation map.

    Args:
        mosaic: the bands; each is read as a whole.
        segmentation: (height, width) int32; other ids than 1 to `count` are not measured, but left out as neighbours.
        count: number of objects.
        stack: (height, width) float32 light that decides the apertures.

    Returns:
        (count rows) flux_<band>, fluxerr_<band> (nJy), mag_<band> (AB); NaN for objects without pixels.
    """
    sep = require_extra("sep", "classical")
    ids = np.arange(1, count + 1, dtype=np.int32)
    ids = ids[np.isin(ids, segmentation)]
    columns = {f"{kind}_{band}": np.full(count, np.nan) for band in mosaic.bands for kind in ("flux", "fluxerr")}
    if len(ids):
        segmentation, stack = np.ascontiguousarray(segmentation, np.int32), np.ascontiguousarray(stack, np.float32)
        ellipse = moments(segmentation, ids, stack)
        neighbours = {"seg_id": ids, "segmap": segmentation}
        radius, _ = sep.kron_radius(stack, *ellipse, _REACH, **neighbours)
        radius = np.maximum(_KRON_FACTOR * np.nan_to_num(radius), _SMALLEST)
        for band in mosaic.bands:
            cutout = mosaic.select([band]).read(0, 0, *mosaic.shape)
            flux, error, _ = sep.sum_ellipse(
                cutout.image[0], *ellipse, radius, var=cutout.variance[0], mask=cutout.mask[0], **neighbours
            )
            columns[f"flux_{band}"][ids - 1], columns[f"fluxerr_{band}"][ids - 1] = flux, error
    columns |= {f"mag_{band}": mag_from_njy(columns[f"flux_{band}"]) for band in mosaic.bands}
    return pd.DataFrame(columns)


def moments(segmentation: np.ndarray, ids: np.ndarray, light: np.ndarray) -> tuple[np.ndarray, ...]:
    """Ellipses of the objects' second moments: x, y (0-based pixel centres), a, b (pixels), theta (from +x, radians).

    Args:
        segmentation: (height, width) int32.
        ids: (N,) increasing ids that are in the map.
        light: (height, width) weights; where not positive, no weight.
    """
    y, x = np.nonzero(np.isin(segmentation, ids))
    index = np.searchsorted(ids, segmentation[y, x])
    weight = np.clip(light[y, x].astype(np.float64), 1e-12, None)
    total = np.bincount(index, weight, len(ids))

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(index, weight * values, len(ids)) / total

    centre_x, centre_y = mean(x), mean(y)
    dx, dy = x - centre_x[index], y - centre_y[index]
    xx, yy, xy = mean(dx**2) + _PIXEL_VARIANCE, mean(dy**2) + _PIXEL_VARIANCE, mean(dx * dy)
    half_sum, half_difference = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    a, b = np.sqrt(half_sum + half_difference), np.sqrt(np.maximum(half_sum - half_difference, _PIXEL_VARIANCE))
    return centre_x, centre_y, a, b, 0.5 * np.arctan2(2 * xy, xx - yy)
