"""Outlines for objects without a segment, and the table of a field's objects with their boxes and signal-to-noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage

from deepdisc import catalog
from deepdisc.data.mosaic import Mosaic
from deepdisc.data.noise import blocks
from deepdisc.errors import InputError
from deepdisc.sky import PixelGrid, centers_to_edges

_POINT_HALF_PIX = 1.5  # half side of the box of an object that has neither pixels nor a shape


def draw_outlines(segmentation: np.ndarray, objects: pd.DataFrame, match: Any, mosaic: Mosaic, label: str) -> int:
    """Give the objects without a segment an ellipse or circle of background pixels, in place; small ones first.

    Args:
        segmentation: (height, width) int32, object in row i has id i + 1; changed.
        objects: with x, y, segment (0 for none) and the columns of the shape.
        match: settings, see `survey.Matching`.
        mosaic: the field.
        label: its name, for messages.

    Returns:
        Number of objects that got pixels.

    Raises:
        InputError: ellipses are asked for, and the catalogue has no shapes.
    """
    lacking = np.flatnonzero(objects.segment.to_numpy() == 0)
    if match.without_segment == "circle":
        radius = match.circle_arcsec / mosaic.pixel_scale_arcsec
        axes = np.full((len(lacking), 2), radius)
        angle = np.zeros(len(lacking))
    else:
        axes = ellipse_axes(objects.iloc[lacking], mosaic.pixel_scale_arcsec, label) * match.ellipse_scale
        angle = ellipse_angles(objects.iloc[lacking], mosaic.grid)
    drawn = 0
    for i in np.argsort(axes.prod(axis=1), kind="stable"):
        row = objects.iloc[lacking[i]]
        if np.isfinite(axes[i]).all() and np.isfinite(angle[i]) and axes[i].min() > 0:
            drawn += _draw_ellipse(segmentation, row.x, row.y, *axes[i], angle[i], lacking[i] + 1)
    return drawn


def _draw_ellipse(segmentation: np.ndarray, x: float, y: float, a: float, b: float, angle: float, number: int) -> bool:
    """Number the background pixels whose centres lie inside the ellipse; False where there are none."""
    height, width = segmentation.shape
    reach = max(a, b, 0.5)
    y0, y1 = max(0, int(np.floor(y - reach))), min(height, int(np.ceil(y + reach)) + 1)
    x0, x1 = max(0, int(np.floor(x - reach))), min(width, int(np.ceil(x + reach)) + 1)
    dy, dx = np.mgrid[y0:y1, x0:x1].astype(float)
    dy, dx = dy - y, dx - x
    along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    inside = (along / a) ** 2 + (across / b) ** 2 <= 1
    inside |= (np.abs(dx) <= 0.5) & (np.abs(dy) <= 0.5)  # a tiny object has the pixel that it is on
    inside &= segmentation[y0:y1, x0:x1] == 0
    segmentation[y0:y1, x0:x1][inside] = number
    return bool(inside.any())


def ellipse_axes(objects: pd.DataFrame, pixel_scale_arcsec: float, label: str) -> np.ndarray:
    """Semi-axes (N, 2) in pixels; b is a where the catalogue does not say it."""
    columns = []
    for name in ("a", "b"):
        if f"{name}_pix" in objects:
            columns.append(objects[f"{name}_pix"].to_numpy(float))
        elif f"{name}_arcsec" in objects:
            columns.append(objects[f"{name}_arcsec"].to_numpy(float) / pixel_scale_arcsec)
    if not columns:
        raise InputError(
            f"field {label}: `without_segment: ellipse` needs the shapes: map a, b and theta or position_angle in "
            "`columns`, or choose circle, keep or drop"
        )
    return np.stack((columns[0], columns[-1]), axis=1)


def ellipse_angles(objects: pd.DataFrame, grid: PixelGrid) -> np.ndarray:
    """Angle (N,) of the major axis from +x to +y in radians; 0 where the catalogue does not say it."""
    if "theta_deg" in objects:
        return np.radians(objects.theta_deg.to_numpy(float))
    if "position_angle_deg" not in objects or grid.wcs is None or not len(objects):
        return np.zeros(len(objects))
    north, parity = grid.orientation(objects.x.to_numpy(float), objects.y.to_numpy(float))
    return north + parity * np.radians(objects.position_angle_deg.to_numpy(float))


def outline_table(objects: pd.DataFrame, segmentation: np.ndarray, light: Light) -> pd.DataFrame:
    """The objects as a truth table: id (row + 1), box and area from the map, signal-to-noise and flags of the light."""
    count = len(objects)
    area = np.bincount(np.maximum(segmentation, 0).ravel(), minlength=count + 1)[1 : count + 1]
    truth = objects.drop(columns=[name for name in ("segment", "area_pix") if name in objects]).reset_index(drop=True)
    truth.insert(0, "id", np.arange(1, count + 1, dtype=np.int64))
    truth["area_pix"] = area.astype(np.int32)
    x, y = (centers_to_edges(truth[name].to_numpy(float)) for name in ("x", "y"))
    boxes = np.stack((x, y, x, y), axis=1) + np.array([-1, -1, 1, 1]) * _POINT_HALF_PIX
    regions = ndimage.find_objects(np.maximum(segmentation, 0), max_label=count) if count else []
    for i, region in enumerate(regions):
        if region is not None:
            boxes[i] = region[1].start, region[0].start, region[1].stop, region[0].stop
    truth[list(catalog.BOX_COLUMNS)] = boxes.astype(np.float32)
    truth["snr"] = light.snr
    given = truth.get("flags", pd.Series(0, truth.index)).fillna(0).to_numpy().astype(np.int32)
    truth["flags"] = given | light.flags
    return _with_texts(truth, ("catalogue", "catalogue_id"))


def _with_texts(truth: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Text columns are empty, not NaN, for objects that no catalogue lists."""
    for name in names:
        values = truth[name] if name in truth else pd.Series("", truth.index)
        truth[name] = values.astype(object).where(values.notna(), "")
    return truth


@dataclass(frozen=True)
class Light:
    """What lies inside the outlines; (count,) each, in the order of the ids.

    Attributes:
        snr: sqrt(sum over bands of (flux / noise)^2); NaN without a valid pixel.
        flags: MASKED where some pixels are masked in a band, NO_COVERAGE where a band has none that is valid.
        coverage: share of the field's pixels with data, by band and in "all bands".
    """

    snr: np.ndarray
    flags: np.ndarray
    coverage: dict[str, float]


def measure_light(segmentation: np.ndarray, count: int, mosaic: Mosaic) -> Light:
    """Signal-to-noise and coverage of objects 1 to `count` of a segmentation map (height, width) int32."""
    bands = len(mosaic.bands)
    flux, variance, valid = (np.zeros((bands, count + 1)) for _ in range(3))
    covered, common = np.zeros(bands), 0
    for _, _, y0, x0, y1, x1 in blocks(mosaic.shape, 1024):
        ids = np.maximum(segmentation[y0:y1, x0:x1], 0)
        cutout = mosaic.read(y0, x0, y1, x1)
        covered += (~cutout.mask).sum(axis=(1, 2))
        common += int((~cutout.mask.any(axis=0)).sum())
        for band in range(bands):
            good = (ids > 0) & ~cutout.mask[band]
            flux[band] += np.bincount(ids[good], cutout.image[band][good], count + 1)
            variance[band] += np.bincount(ids[good], cutout.variance[band][good], count + 1)
            valid[band] += np.bincount(ids[good], minlength=count + 1)
    flux, variance, valid = flux[:, 1:], variance[:, 1:], valid[:, 1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        significance = np.where(variance > 0, np.clip(flux, 0, None) / np.sqrt(variance), np.nan)
    area = np.bincount(np.maximum(segmentation, 0).ravel(), minlength=count + 1)[1 : count + 1]
    flags = np.where((valid < area).any(axis=0), catalog.FLAGS["MASKED"].value, 0)
    flags |= np.where(((valid == 0) & (area > 0)).any(axis=0), catalog.FLAGS["NO_COVERAGE"].value, 0)
    shares = dict(zip([*mosaic.bands, "all bands"], [*covered, common], strict=True))
    return Light(
        snr=np.where((valid > 0).any(axis=0), np.sqrt(np.nansum(significance**2, axis=0)), np.nan).astype(np.float32),
        flags=flags.astype(np.int32),
        coverage={name: round(float(pixels) / math.prod(mosaic.shape), 4) for name, pixels in shares.items()},
    )
