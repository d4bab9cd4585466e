"""How much ellipses overlap: semi-axes a, b and the angle theta of the major axis, as most programs state outlines.

Legend: P predicted objects, T true objects, E pairs. An ellipse is a row `x, y, a, b, theta`: centre and semi-axes in
pixels, theta in degrees from +x to +y.
"""

from __future__ import annotations

import numpy as np

from deepdisc.evaluation.overlaps import touching_boxes
from deepdisc.matching import Pairs

ELLIPSE_COLUMNS = ("x", "y", "a_pix", "b_pix", "theta_deg")
_NODES = 128  # chords per pair; the error of an intersection over union is then below 2e-4
_CHUNK = 50_000


def finite_ellipses(ellipses: np.ndarray) -> np.ndarray:
    """Bool (N,): ellipses (N, 5) that are finite and have an area."""
    return np.isfinite(ellipses).all(1) & (ellipses[:, 2:4] > 0).all(1)


def bounding_boxes(ellipses: np.ndarray) -> np.ndarray:
    """The boxes (N, 4) `x0, y0, x1, y1` around ellipses (N, 5); NaN where an ellipse is not finite or has no area."""
    x, y, a, b, theta = np.where(finite_ellipses(ellipses)[:, None], ellipses, np.nan).T
    cos, sin = np.cos(np.radians(theta)), np.sin(np.radians(theta))
    half_x, half_y = np.hypot(a * cos, b * sin), np.hypot(a * sin, b * cos)
    return np.stack((x - half_x, y - half_y, x + half_x, y + half_y), axis=1)


def ellipse_overlaps(pred: np.ndarray, truth: np.ndarray, groups: tuple[np.ndarray, np.ndarray] | None = None) -> Pairs:
    """All pairs of ellipses that overlap, with their intersection over union, without the P x T table.

    Args:
        pred: (P, 5); rows that are not finite overlap nothing.
        truth: (T, 5) likewise.
        groups: integer labels (P,) and (T,); only ellipses with the same label (same field) can overlap.
    """
    pred, truth = np.asarray(pred, np.float64).reshape(-1, 5), np.asarray(truth, np.float64).reshape(-1, 5)
    i, j = touching_boxes(bounding_boxes(pred), bounding_boxes(truth), groups)
    iou = np.empty(len(i))
    for start in range(0, len(i), _CHUNK):
        part = slice(start, start + _CHUNK)
        iou[part] = ellipse_iou(pred[i[part]], truth[j[part]])
    return Pairs(i, j, iou).select(iou > 0)


def ellipse_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union (E,) of ellipses (E, 5) and (E, 5), row by row.

    The plane is stretched until the first ellipse is the unit circle, which changes no ratio of areas, and turned until
    the axes of the second lie along x and y. A horizontal line then cuts both in intervals whose overlap is known; the
    overlaps are integrated over the height by the midpoint rule in the angle t of y = middle + half sin t, which is
    smooth where a figure ends.
    """
    h, k, a, b = _relative(first, second)
    low, high = np.maximum(-1.0, k - b), np.minimum(1.0, k + b)
    half = np.clip((high - low) / 2, 0, None)[:, None]
    t = (np.arange(_NODES) + 0.5) / _NODES * np.pi - np.pi / 2
    y = ((high + low) / 2)[:, None] + half * np.sin(t)
    width_circle = np.sqrt(np.clip(1 - y**2, 0, None))
    width_ellipse = a[:, None] * np.sqrt(np.clip(1 - ((y - k[:, None]) / b[:, None]) ** 2, 0, None))
    right = np.minimum(width_circle, h[:, None] + width_ellipse)
    left = np.maximum(-width_circle, h[:, None] - width_ellipse)
    intersection = (np.clip(right - left, 0, None) * half * np.cos(t)).sum(1) * (np.pi / _NODES)
    union = np.pi * (1 + a * b) - intersection
    return np.clip(intersection / union, 0.0, 1.0)


def _relative(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, ...]:
    """Centre h, k and semi-axes a, b of the second ellipse, along x and y, where the first is the unit circle."""
    x, y, a, b, theta = first.T
    cos, sin = np.cos(np.radians(theta)), np.sin(np.radians(theta))
    # Rows of the matrix that makes the first ellipse the unit circle.
    to_circle = np.stack((np.stack((cos / a, sin / a), -1), np.stack((-sin / b, cos / b), -1)), -2)
    cos2, sin2 = np.cos(np.radians(second[:, 4])), np.sin(np.radians(second[:, 4]))
    # Columns: the half-axes of the second.
    axes = np.stack(
        (
            np.stack((second[:, 2] * cos2, -second[:, 3] * sin2), -1),
            np.stack((second[:, 2] * sin2, second[:, 3] * cos2), -1),
        ),
        -2,
    )
    turn, size, _ = np.linalg.svd(to_circle @ axes)
    offset = to_circle @ (second[:, :2] - first[:, :2])[..., None]
    h, k = np.swapaxes(np.swapaxes(turn, -1, -2) @ offset, 0, 1)[..., 0]
    return h, k, size[:, 0], size[:, 1]
