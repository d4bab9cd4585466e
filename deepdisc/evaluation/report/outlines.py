"""Outlines of objects in as few numbers as the page needs: loops around the pixels of a label, or boxes."""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd
from scipy.ndimage import find_objects

from deepdisc.catalog import BOX_COLUMNS
from deepdisc.evaluation.ellipses import ELLIPSE_COLUMNS
from deepdisc.evaluation.report.images import Window


def shapes(frame: pd.DataFrame, labels: np.ndarray | None, window: Window) -> list[list]:
    """The outline of each row.

    Args:
        frame: N rows with `id` = label, box columns, or ellipse columns; what is missing is not used.
        labels: (H, W) segmentation map of the mosaic, or None.
        window: what is shown.

    Returns:
        N lists: loops (lists of x, y of the first vertex and the steps to the next ones, in half pixels from the
        window's corner; vertex i stands at (2 i + 1) / 4 pixels); a box `x0, y0, x1, y1` in pixel edges of the mosaic;
        or nothing, where neither is known.
    """
    result = _boxes(frame)
    if labels is not None and "id" in frame:
        part = labels[window.y0 : window.y0 + window.height, window.x0 : window.x0 + window.width]
        row_of = {int(label): row for row, label in enumerate(frame["id"])}
        for label, found in loops(np.asarray(part)).items():
            if label in row_of:
                result[row_of[label]] = found
    elif set(ELLIPSE_COLUMNS) <= set(frame.columns):
        for row, ellipse in enumerate(frame[list(ELLIPSE_COLUMNS)].to_numpy(float)):
            if np.isfinite(ellipse).all():
                result[row] = [_deltas(_ellipse(ellipse, window))]
    return result


def _boxes(frame: pd.DataFrame) -> list[list]:
    if not set(BOX_COLUMNS) <= set(frame.columns):
        return [[] for _ in range(len(frame))]
    boxes = frame[list(BOX_COLUMNS)].to_numpy(float)
    return [box.round(2).tolist() if np.isfinite(box).all() else [] for box in boxes]


def _ellipse(ellipse: np.ndarray, window: Window) -> np.ndarray:
    """24 vertices (24, 2) of an ellipse `x, y, a, b, theta`, in half pixels of the window."""
    x, y, a, b, theta = ellipse
    t = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    angle = np.radians(theta)
    along, across = a * np.cos(t), b * np.sin(t)
    px = x + 0.5 + along * np.cos(angle) - across * np.sin(angle) - window.x0
    py = y + 0.5 + along * np.sin(angle) + across * np.cos(angle) - window.y0
    return np.rint(np.stack((px, py), axis=1) * 2 - 0.5).astype(int)


def loops(labels: np.ndarray) -> dict[int, list[list[int]]]:
    """The loops around each label's pixels (outer ones and holes): label -> lists as `shapes` describes them.

    Every pixel is split in 2 x 2, so that a loop runs a quarter of a pixel inside the object's edge: outlines of
    neighbours do not cover each other, and objects one pixel wide have an outline.
    """
    names, numbers = np.unique(labels, return_inverse=True)
    numbers = numbers.reshape(labels.shape).astype(np.int32) + (names[0] != 0)
    names = names if names[0] == 0 else np.concatenate(([0], names))
    result = {}
    for number, place in enumerate(find_objects(numbers), start=1):
        if place is None:
            continue
        mask = (numbers[place] == number).astype(np.uint8)
        fine = np.repeat(np.repeat(mask, 2, axis=0), 2, axis=1)
        found, _ = cv2.findContours(fine, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
        corner = np.array([2 * place[1].start, 2 * place[0].start])
        result[int(names[number])] = [_deltas(loop[:, 0] + corner) for loop in found]
    return result


def _deltas(points: np.ndarray) -> list[int]:
    return np.diff(points, axis=0, prepend=0).ravel().tolist()
