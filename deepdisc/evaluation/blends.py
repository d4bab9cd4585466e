"""Blends: close pairs of which both members are found, and how many objects are made of how many."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from deepdisc.evaluation.assessment import Assessment, column
from deepdisc.evaluation.bins import binned_fraction
from deepdisc.evaluation.bootstrap import named_fraction
from deepdisc.evaluation.match import common_groups

SNR_MIN = 10.0  # both members of a pair are brighter
PAIR_EDGES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)  # separations of blended pairs, in units of the PSF's FWHM
MOST_MEMBERS = 6  # of a blend, in the matrix; larger ones are counted there
_FAR = 1e9  # pixels of one field must never be near another's


def blended_pairs(
    truth: pd.DataFrame, assessment: Assessment, fwhm_pix: float, *, closer_than: float = 2.0, snr_min: float = SNR_MIN
) -> dict:
    """The share of close pairs of bright objects of which both are found, one-to-one.

    Args:
        truth: true catalogue with `x`, `y` and `snr`.
        assessment: which of them were found.
        fwhm_pix: full width at half maximum of the PSF, pixels.
        closer_than: the headline counts pairs closer than this many FWHM.
        snr_min: the signal-to-noise of both members must be higher.
    """
    snr = column(truth, "snr")
    if snr is None or not {"x", "y"} <= set(truth.columns):
        return {"available": False, "reason": "the truth has no column snr (or no x, y)"}
    points = _points(truth, common_groups(truth, truth)[1])
    rows = np.flatnonzero(assessment.required & (snr > snr_min) & np.isfinite(points).all(1))
    points = points[rows]
    reach = max(closer_than, PAIR_EDGES[-1]) * fwhm_pix
    pairs = cKDTree(points).query_pairs(reach, output_type="ndarray") if len(rows) > 1 else np.zeros((0, 2), int)
    separation = np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1) / fwhm_pix
    both = assessment.found[rows[pairs]].all(1)
    either = assessment.found[rows[pairs]].any(1)
    close = separation < closer_than
    return {
        "available": True,
        "closer_than_fwhm": closer_than,
        "fwhm_pix": float(fwhm_pix),
        "snr_min": snr_min,
        **named_fraction(both[close], "recovered"),
        "n": int(close.sum()),
        "n_recovered": int(both[close].sum()),
        **named_fraction((either & ~both)[close], "one_found"),
        "by_separation": binned_fraction(separation, both, np.array(PAIR_EDGES)),
        "members": np.sort(rows[pairs[close]], axis=1),
    }


def _points(catalog: pd.DataFrame, field: np.ndarray) -> np.ndarray:
    """Positions (N, 3): x, y in pixels, and the field, so far apart that no two fields are near each other."""
    return np.column_stack((catalog[["x", "y"]].to_numpy(np.float64), _FAR * field))


def blend_members(
    pred: pd.DataFrame, truth: pd.DataFrame, assessment: Assessment, length_pix: float
) -> tuple[np.ndarray, np.ndarray]:
    """How many true objects and how many detections each blend has.

    A blend is a set of required true objects, each closer than `length_pix` to another of them (friends of friends); a
    detection belongs to the blend of the nearest true object, required or not, within that length. Detections that are
    excused or nearest to an object that is not required count in no blend; a detection near nothing is a blend of its
    own, of no true object.

    Args:
        pred: catalogue with `x`, `y`, pixels.
        truth: likewise.
        assessment: of the two.
        length_pix: the linking length, pixels; twice the width of the PSF is customary.

    Returns:
        n_truth (G,) and n_pred (G,).
    """
    field_pred, field_truth = common_groups(pred, truth)
    here, there = _points(pred, field_pred), _points(truth, field_truth)
    known = np.flatnonzero(np.isfinite(there).all(1))
    required = known[assessment.required[known]]
    links = cKDTree(there[required]).query_pairs(length_pix, output_type="ndarray") if len(required) else []
    i, j = np.reshape(links, (-1, 2)).T.astype(np.int64)
    graph = coo_matrix((np.ones(len(i), np.int8), (i, j)), shape=(len(required),) * 2)
    number, label = connected_components(graph, directed=False) if len(required) else (0, np.zeros(0, np.int64))
    blend = np.full(len(truth), -1)
    blend[required] = label
    counted = np.flatnonzero(~assessment.excused & np.isfinite(here).all(1))
    nearest = np.full(len(counted), len(known))
    if len(known) and len(counted):
        _, nearest = cKDTree(there[known]).query(here[counted], distance_upper_bound=length_pix)
    alone = nearest == len(known)
    of_blend = blend[known[nearest[~alone]]]
    n_pred = np.bincount(of_blend[of_blend >= 0], minlength=number)
    n_truth = np.bincount(label, minlength=number)
    lone = int(alone.sum())
    return np.concatenate((n_truth, np.zeros(lone, int))), np.concatenate((n_pred, np.ones(lone, int)))


def deblending_matrix(n_truth: np.ndarray, n_pred: np.ndarray, most: int = MOST_MEMBERS) -> dict:
    """The number of blends by true and detected number of members.

    Args:
        n_truth: (G,) true objects of each blend; 0 for detections of nothing.
        n_pred: (G,) detections of each.
        most: blends with more members are counted with those of this many.

    Returns:
        `counts[t][p]` blends of t true objects seen as p detections, t and p from 0 to `most`; `rows`, for each t of at
        least 1 that occurs: `n_truth`, the share with the right number (`right`, with its interval), with fewer
        (`merged`, or missed) and with more (`shredded`).
    """
    true, seen = np.minimum(n_truth, most), np.minimum(n_pred, most)
    counts = np.zeros((most + 1, most + 1), int)
    np.add.at(counts, (true, seen), 1)
    rows = []
    for members in np.unique(true[true > 0]):
        chosen = true == members
        rows.append(
            {
                "n_truth": int(members),
                "n": int(chosen.sum()),
                **named_fraction((n_pred == n_truth)[chosen], "right"),
                **named_fraction((n_pred < n_truth)[chosen], "merged"),
                **named_fraction((n_pred > n_truth)[chosen], "shredded"),
            }
        )
    return {"most": most, "counts": counts.tolist(), "rows": rows}


def deblending(
    pred: pd.DataFrame, truth: pd.DataFrame, assessment: Assessment, fwhm_pix: float | None, *, closer_than: float = 2.0
) -> dict:
    """`deblending_matrix` of blends linked over `closer_than` times the width of the PSF; see `blend_members`."""
    if fwhm_pix is None:
        return {"available": False, "reason": "the width of the PSF is not known"}
    if not ({"x", "y"} <= set(truth.columns) and {"x", "y"} <= set(pred.columns)):
        return {"available": False, "reason": "one of the catalogues has no x, y"}
    members = blend_members(pred, truth, assessment, closer_than * fwhm_pix)
    return {"available": True, "closer_than_fwhm": closer_than, **deblending_matrix(*members)}
