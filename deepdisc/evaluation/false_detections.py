"""What false detections are, and whether bright stars and the field's edges have more than their share of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from astropy.stats import poisson_conf_interval
from scipy.spatial import cKDTree

from deepdisc.evaluation.assessment import Assessment, column
from deepdisc.evaluation.bootstrap import named_fraction
from deepdisc.evaluation.classes import is_star
from deepdisc.evaluation.match import common_groups
from deepdisc.matching import Pairs

BRIGHT_STAR_MAG = 18.0
NEAR_PIX = (0.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
_RANDOM = 20_000  # random points in each field: the expected share of the narrowest ring is known to a few per cent
_LEAST_RANDOM, _ALL_RANDOM = 1000, 1_000_000  # in each of very many fields, and in all


def anatomy(assessment: Assessment, overlaps: Pairs | None) -> dict:
    """Of the false detections: how many overlap a true object (fragments, doubles, bad boxes), how many lie on sky.

    Args:
        assessment: which detections are false.
        overlaps: of all boxes, or None where a catalogue has no boxes.
    """
    false = ~assessment.correct & ~assessment.excused
    if overlaps is None:
        return {"n": int(false.sum())}
    touching = np.zeros(len(false), bool)
    touching[overlaps.pred] = True
    return {
        "n": int(false.sum()),
        "on_an_object": int((false & touching).sum()),
        "on_sky": int((false & ~touching).sum()),
        **named_fraction(touching[false], "share_on_an_object"),
    }


def excess(
    pred: pd.DataFrame,
    truth: pd.DataFrame,
    assessment: Assessment,
    *,
    magnitude: str | None = None,
    shape: tuple[int, int] | None = None,
    brighter_than: float = BRIGHT_STAR_MAG,
    seed: int = 0,
) -> dict:
    """False detections by distance from the nearest bright star and from the nearest edge, against random places.

    Args:
        pred: catalogue with `x`, `y` in pixels (0-based centres).
        truth: likewise, with classes and magnitudes for the stars.
        assessment: which detections are false.
        magnitude: the truth's column that makes a star bright.
        shape: (height, width) of the field in pixels; default: as far as the positions of both catalogues reach.
        brighter_than: bright stars, magnitudes.
        seed: of the random places.

    Returns:
        `near_stars` and `near_edges`: rows of `from`, `to` (pixels), `n`, `expected` (as many false detections at
        random places) and `excess` = n / expected with its 68 % Poisson interval; 1 where a place does not matter.
        Masked parts are not known here: where much is masked, the expectation is too high there.
    """
    if not ({"x", "y"} <= set(pred.columns) and {"x", "y"} <= set(truth.columns)):
        return {"available": False, "reason": "one of the catalogues has no x, y"}
    fields = common_groups(pred, truth)
    places = [frame[["x", "y"]].to_numpy(np.float64) for frame in (pred, truth)]
    false = ~assessment.correct & ~assessment.excused & np.isfinite(places[0]).all(1)
    if not false.any():
        return {"available": False, "reason": "no detection is false"}
    stars, reason = _bright_stars(truth, magnitude, brighter_than)
    stars = stars & np.isfinite(places[1]).all(1)
    rng = np.random.default_rng(seed)
    counts = {"stars": np.zeros((2, len(NEAR_PIX) - 1)), "edges": np.zeros((2, len(NEAR_PIX) - 1))}
    labels = np.unique(fields[0][false])
    number = int(np.clip(_ALL_RANDOM // len(labels), _LEAST_RANDOM, _RANDOM))
    for label in labels:
        here, there = (part[group == label] for part, group in zip(places, fields, strict=True))
        chosen = places[0][false & (fields[0] == label)]
        low, high = _extent(np.concatenate((here, there)), shape)
        random = rng.uniform(low, high, (number, 2))
        tree = cKDTree(places[1][stars & (fields[1] == label)])
        for row, points in enumerate((chosen, random)):
            weight = 1.0 if row == 0 else len(chosen) / number
            edge = np.minimum(points - low, high - points).min(1)
            counts["edges"][row] += weight * np.histogram(edge, NEAR_PIX)[0]
            if tree.n:
                counts["stars"][row] += weight * np.histogram(tree.query(points)[0], NEAR_PIX)[0]
    result = {"available": True, "n": int(false.sum()), "near_edges": _rows(*counts["edges"])}
    if reason is None and not stars.any():
        reason = f"no star is brighter than {brighter_than:g}"
    if reason:
        return {**result, "near_stars": [], "near_stars_reason": reason}
    return {
        **result,
        "near_stars": _rows(*counts["stars"]),
        "n_bright_stars": int(stars.sum()),
        "brighter_than": brighter_than,
    }


def _bright_stars(truth: pd.DataFrame, magnitude: str | None, limit: float) -> tuple[np.ndarray, str | None]:
    star, values = is_star(truth), column(truth, magnitude)
    if star is None or values is None:
        missing = "classes" if star is None else "magnitudes"
        return np.zeros(len(truth), bool), f"the truth has no {missing}"
    return star & (values < limit), None


def _extent(points: np.ndarray, shape: tuple[int, int] | None) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest x, y of the field, in 0-based pixel centres."""
    if shape is not None:
        return np.array([-0.5, -0.5]), np.array([shape[1] - 0.5, shape[0] - 0.5])
    return np.nanmin(points, axis=0), np.nanmax(points, axis=0)


def _rows(found: np.ndarray, expected: np.ndarray) -> list[dict]:
    rows = []
    for low, high, n, chance in zip(NEAR_PIX[:-1], NEAR_PIX[1:], found, expected, strict=True):
        if chance > 0:
            ends = poisson_conf_interval(n, "frequentist-confidence") / chance
            rows.append(
                {
                    "from": low,
                    "to": high,
                    "n": int(n),
                    "expected": float(chance),
                    "excess": float(n / chance),
                    "excess_low": float(ends[0]),
                    "excess_high": float(ends[1]),
                }
            )
    return rows
