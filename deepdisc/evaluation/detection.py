"""How good detections are: completeness, purity, blended pairs, average precision, positions, classes.

Legend: P detections, T true objects. A true object is *required* (must be found) or *ignored* (flagged FAINT, or
fainter than the magnitude limit): neither is missing an ignored object a loss, nor is a detection of it false (it is
*excused*). completeness = required objects found / required objects; purity = correct / detections not excused.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from deepdisc.catalog import BOX_COLUMNS, FLAGS
from deepdisc.evaluation.average_precision import average_precision
from deepdisc.evaluation.bootstrap import fraction, with_errors
from deepdisc.evaluation.match import Criterion, Pairs, assign, box_overlaps, common_groups

SNR_MIN = 10.0
SNR_EDGES = (0.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0, 100.0, np.inf)
PAIR_EDGES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)  # separations of blended pairs, in units of the PSF's FWHM


@dataclass(frozen=True)
class Assessment:
    """Which detections are right and which true objects were found.

    Attributes:
        pairs: the one-to-one matching of detections and required objects.
        required: (T,) bool.
        found: (T,) bool, required and matched.
        correct: (P,) bool, matched to a required object.
        excused: (P,) bool, matched to nothing required, but to an ignored object, or fainter than the limit.
    """

    pairs: Pairs
    required: np.ndarray
    found: np.ndarray
    correct: np.ndarray
    excused: np.ndarray

    @property
    def completeness(self) -> float:
        """Required objects found / required objects; NaN without any."""
        return float(self.found[self.required].mean()) if self.required.any() else float("nan")

    @property
    def purity(self) -> float:
        """Correct detections / detections not excused; NaN without any."""
        counted = ~self.excused
        return float(self.correct[counted].mean()) if counted.any() else float("nan")


class Assessor:
    """Assesses a catalogue at any score threshold; the candidate pairs are found once.

    Args:
        pred: predicted catalogue.
        truth: true catalogue.
        criterion: what makes a match.
        required: (T,) bool; default: all that are not flagged FAINT.
        excuse: a second criterion by which a detection may be excused, for ignored objects without a sensible outline.
        mag_limit: (column, limit); detections that match nothing and are themselves fainter are excused, since no true
            object of that brightness is asked for.
    """

    def __init__(
        self,
        pred: pd.DataFrame,
        truth: pd.DataFrame,
        criterion: Criterion,
        required: np.ndarray | None = None,
        excuse: Criterion | None = None,
        mag_limit: tuple[str, float] | None = None,
    ):
        self.required = ~is_faint(truth) if required is None else np.asarray(required, bool)
        self.shape = len(pred), len(truth)
        magnitude = column(pred, mag_limit[0]) if mag_limit else None
        self._faint = np.zeros(len(pred), bool) if magnitude is None else ~(magnitude < mag_limit[1])
        candidates = criterion.candidates(pred, truth)
        counts = self.required[candidates.truth]
        self._required_pairs = candidates.select(counts)
        self._ignored_pairs = [candidates.select(~counts)]
        if excuse is not None and excuse.usable(pred, truth):
            near = excuse.candidates(pred, truth)
            self._ignored_pairs.append(near.select(~self.required[near.truth]))

    def assess(self, keep: np.ndarray | None = None) -> Assessment:
        """Assess the detections where `keep` (P,) is True (default all)."""
        n_pred, n_truth = self.shape
        keep = np.ones(n_pred, bool) if keep is None else keep
        pairs = assign(self._required_pairs.select(keep[self._required_pairs.pred]))
        found, correct, excused = np.zeros(n_truth, bool), np.zeros(n_pred, bool), np.zeros(n_pred, bool)
        found[pairs.truth], correct[pairs.pred] = True, True
        excused_by = np.zeros(n_truth, bool)
        for candidates in self._ignored_pairs:
            free = keep & ~correct & ~excused
            extra = assign(candidates.select(free[candidates.pred] & ~excused_by[candidates.truth]))
            excused[extra.pred], excused_by[extra.truth] = True, True
        excused |= self._faint & ~correct
        excused |= ~keep  # what is cut counts neither way
        return Assessment(pairs, self.required, found, correct, excused)


def is_faint(truth: pd.DataFrame) -> np.ndarray:
    """Bool (T,): flagged FAINT, below the signal-to-noise that training labels require."""
    if "flags" not in truth.columns:
        return np.zeros(len(truth), bool)
    return (truth["flags"].to_numpy(np.int64) & FLAGS["FAINT"].value) > 0


def column(catalog: pd.DataFrame, name: str | None) -> np.ndarray | None:
    """A column as float64, or None if there is none or nothing in it is finite."""
    if name is None or name not in catalog.columns:
        return None
    values = catalog[name].to_numpy(np.float64)
    return values if np.isfinite(values).any() else None


# ----------------------------------------------------------------------------------------------------------- fractions
def binned_fraction(values: np.ndarray, success: np.ndarray, edges: np.ndarray) -> list[dict[str, float]]:
    """`success` (N,) per bin of `values`; bins without objects are left out. The 68 % Wilson interval is the error."""
    rows = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (values >= low) & (values < high)
        if inside.any():
            result = fraction(success[inside])
            rows.append({"from": float(low), "to": float(high), "median": float(np.median(values[inside])), **result})
    return rows


def magnitude_edges(values: np.ndarray, width: float = 0.5, least: int = 10) -> np.ndarray:
    """Bin edges at multiples of `width` that hold all finite magnitudes, joined until each bin has `least` objects."""
    finite = np.sort(values[np.isfinite(values)])
    low, high = np.floor(finite[0] / width) * width, (np.floor(finite[-1] / width) + 1) * width
    if (high - low) / width > 1000:  # not magnitudes
        low, high = np.quantile(finite, [0.01, 0.99])
        width = (high - low) / 20
    edges = np.arange(low, high + width / 2, width)
    kept = [edges[0]]
    for edge in edges[1:]:
        if np.searchsorted(finite, edge) - np.searchsorted(finite, kept[-1]) >= least:
            kept.append(edge)
    if kept[-1] != edges[-1]:  # too few beyond the last edge: they join the last bin
        kept[-1 if len(kept) > 1 else len(kept) :] = [edges[-1]]
    return np.array(kept)


def blended_pairs(
    truth: pd.DataFrame, assessment: Assessment, fwhm_pix: float, *, closer_than: float = 2.0, snr_min: float = SNR_MIN
) -> dict:
    """The share of close pairs of bright objects of which both are found, one-to-one.

    Args:
        truth: true catalogue with `x`, `y` and `snr`.
        assessment: which of them were found.
        fwhm_pix: full width at half maximum of the PSF, pixels.
        closer_than: the headline counts pairs closer than this many FWHM.
        snr_min: both members must be brighter than this.
    """
    snr = column(truth, "snr")
    if snr is None or not {"x", "y"} <= set(truth.columns):
        return {"available": False, "reason": "the truth has no column snr (or no x, y)"}
    rows = np.flatnonzero(assessment.required & (snr > snr_min))
    _, group = common_groups(truth, truth)
    points = np.column_stack((truth[["x", "y"]].to_numpy(np.float64)[rows], 1e9 * group[rows]))
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
        **_renamed(fraction(both[close]), "recovered"),
        "one_found": float(np.mean(either[close] & ~both[close])) if close.any() else float("nan"),
        "by_separation": binned_fraction(separation, both, np.array(PAIR_EDGES)),
        "members": np.sort(rows[pairs[close]], axis=1),
    }


def _renamed(result: dict[str, float], name: str) -> dict[str, float]:
    return {
        name: result["value"],
        f"{name}_err": result["err"],
        f"{name}_low": result["low"],
        f"{name}_high": result["high"],
        "n": result["n"],
        "n_recovered": result["n_found"],
    }


# --------------------------------------------------------------------------------------------------------- equal purity
def purity_curve(
    pred: pd.DataFrame, truth: pd.DataFrame, criterion: Criterion, *, thresholds: np.ndarray | None = None, **options
) -> pd.DataFrame:
    """Purity and completeness when only detections with a score of at least each threshold are kept.

    Args:
        pred: predicted catalogue with `score`.
        truth: true catalogue.
        criterion: what makes a match.
        thresholds: scores; default 60 of equal steps in rank, from no cut at all.
        options: of `Assessor`.

    Returns:
        One row per threshold: threshold, n, purity, completeness, completeness_snr10 (NaN without `snr`).
    """
    score = pred["score"].to_numpy(np.float64)
    if thresholds is None:
        thresholds = np.unique(np.quantile(score, np.linspace(0, 0.98, 60), method="nearest")) if len(score) else [0.0]
    assessor = Assessor(pred, truth, criterion, **options)
    snr = column(truth, "snr")
    bright = assessor.required & (snr > SNR_MIN) if snr is not None else np.zeros(len(truth), bool)
    rows = []
    for threshold in thresholds:
        keep = score >= threshold
        result = assessor.assess(keep)
        rows.append(
            {
                "threshold": float(threshold),
                "n": int(keep.sum()),
                "purity": result.purity,
                "completeness": result.completeness,
                "completeness_snr10": float(result.found[bright].mean()) if bright.any() else float("nan"),
            }
        )
    return pd.DataFrame(rows)


def threshold_for_purity(
    pred: pd.DataFrame, truth: pd.DataFrame, criterion: Criterion, purity: float, **options
) -> float | None:
    """The lowest score threshold at which the purity is at least `purity`; None if none reaches it."""
    coarse = purity_curve(pred, truth, criterion, **options)
    enough = np.flatnonzero(coarse["purity"].to_numpy() >= purity)
    if len(enough) == 0:
        return None
    first = int(enough[0])
    if first == 0:
        return float(coarse["threshold"][0])
    score = np.unique(pred["score"].to_numpy(np.float64))
    between = score[(score > coarse["threshold"][first - 1]) & (score <= coarse["threshold"][first])]
    between = between[np.unique(np.linspace(0, len(between) - 1, 40).astype(int))]
    fine = purity_curve(pred, truth, criterion, thresholds=between, **options)
    return float(fine["threshold"][int(np.flatnonzero(fine["purity"].to_numpy() >= purity)[0])])


def at_equal_purity(
    pred_a: pd.DataFrame, pred_b: pd.DataFrame, truth: pd.DataFrame, criterion: Criterion, **options
) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    """Cut catalogue A by score until it is as pure as B; if A is purer already without a cut, cut B instead.

    Args:
        pred_a: the catalogue whose score threshold is free; needs `score`.
        pred_b: the catalogue to compare with, as its program made it; needs `score` only if it is the one to be cut.
        truth: true catalogue.
        criterion: what makes a match.
        options: of `Assessor`.

    Returns:
        A and B after the cut, and a statement: `purity_a`, `purity_b`, `threshold_a`, `threshold_b` (None = not cut),
        `equal` (False if neither can reach the other's purity) and `note` in words.
    """
    purity_a, purity_b = (Assessor(pred, truth, criterion, **options).assess().purity for pred in (pred_a, pred_b))
    cut_b = purity_a >= purity_b
    loose, target = (pred_b, purity_a) if cut_b else (pred_a, purity_b)
    threshold = threshold_for_purity(loose, truth, criterion, target, **options) if "score" in loose.columns else None
    if threshold is not None:
        loose = loose[loose["score"].to_numpy(np.float64) >= threshold].reset_index(drop=True)
    a, b = (pred_a, loose) if cut_b else (loose, pred_b)
    purity_a, purity_b = (Assessor(pred, truth, criterion, **options).assess().purity for pred in (a, b))
    which = "second" if cut_b else "first"
    note = (
        f"the {which} catalogue is cut at score >= {threshold:.4g} to reach the other's purity"
        if threshold is not None
        else f"no score threshold brings the {which} catalogue to the other's purity: compared uncut"
    )
    statement = {
        "equal": threshold is not None,
        "purity_a": purity_a,
        "purity_b": purity_b,
        "threshold_a": None if cut_b else threshold,
        "threshold_b": threshold if cut_b else None,
        "note": note,
    }
    return a, b, statement


# ------------------------------------------------------------------------------------------------------------- summary
def score_detections(
    pred: pd.DataFrame,
    truth: pd.DataFrame,
    assessment: Assessment,
    *,
    magnitude: str | None = None,
    fwhm_pix: float | None = None,
    outline_overlaps: Pairs | None = None,
    replicates: int = 200,
    seed: int = 0,
) -> dict:
    """The `detection` part of metrics.json.

    Args:
        pred: predicted catalogue.
        truth: true catalogue.
        assessment: from `Assessor`.
        magnitude: column (`mag_r`) for the tables by magnitude, in whichever catalogue has it.
        fwhm_pix: of the PSF, for blended pairs.
        outline_overlaps: from `match.segmentation_overlaps`, for the AP of outlines.
        replicates: bootstrap resamplings.
        seed: of the resampling.
    """
    required, counted = assessment.required, ~assessment.excused
    found, correct = assessment.found[required], assessment.correct[counted]
    result: dict = {
        "n_truth": int(required.sum()),
        "n_truth_ignored": int((~required).sum()),
        "n_pred": len(pred),
        "n_matched": len(assessment.pairs),
        "n_excused": int(assessment.excused.sum()),
        "n_false": int((~correct).sum()),
    }
    for name, success in (("completeness", found), ("purity", correct)):
        interval = fraction(success)
        result[name], result[f"{name}_n"] = interval["value"], interval["n"]
        result[f"{name}_low"], result[f"{name}_high"] = interval["low"], interval["high"]
        result[f"{name}_err"] = interval["err"]
    result.update(_bright(truth, assessment))
    result["by_magnitude"] = _by(pred, truth, assessment, magnitude, None)
    result["by_snr"] = _by(pred, truth, assessment, "snr", np.array(SNR_EDGES))
    result["by_class"] = _by_class(truth, assessment)
    result["classification"] = _classification(pred, truth, assessment)
    result["position"] = _positions(pred, truth, assessment, replicates, seed)
    result["false"] = _anatomy_of_false(pred, truth, assessment)
    result["boxes"] = _box_precision(pred, truth, assessment, replicates, seed)
    for name in ("ap", "ap50", "ap75"):
        result[name], result[f"{name}_err"] = (
            result["boxes"].get(name, np.nan),
            result["boxes"].get(f"{name}_err", np.nan),
        )
    if outline_overlaps is None:
        result["outlines"] = {"available": False, "reason": "no segmentation maps of both sides were given"}
    else:
        result["outlines"] = average_precision(
            pred, outline_overlaps, assessment.excused, required, replicates=replicates, seed=seed
        )
    if fwhm_pix is None:
        result["blended_pairs"] = {"available": False, "reason": "the width of the PSF is not known"}
    else:
        result["blended_pairs"] = blended_pairs(truth, assessment, fwhm_pix)
        result["blended_pairs"].pop("members", None)
    return result


def _bright(truth: pd.DataFrame, assessment: Assessment) -> dict:
    snr = column(truth, "snr")
    success = assessment.found[assessment.required & (snr > SNR_MIN)] if snr is not None else np.zeros(0, bool)
    interval = fraction(success)
    return {
        "completeness_snr10": interval["value"],
        "completeness_snr10_n": interval["n"],
        "completeness_snr10_low": interval["low"],
        "completeness_snr10_high": interval["high"],
        "completeness_snr10_err": interval["err"],
    }


def _by(pred: pd.DataFrame, truth: pd.DataFrame, assessment: Assessment, name: str | None, edges) -> dict:
    """Completeness by the truth's column, purity by the prediction's own."""
    true, predicted = column(truth, name), column(pred, name)
    result: dict = {"column": name, "completeness": [], "purity": []}
    if true is not None:
        chosen = assessment.required
        bins = magnitude_edges(true[chosen]) if edges is None and np.isfinite(true[chosen]).any() else edges
        if bins is not None:
            result["completeness"] = binned_fraction(true[chosen], assessment.found[chosen], bins)
        result["n_completeness_without"] = int((~np.isfinite(true[chosen])).sum())
    if predicted is not None:
        chosen = ~assessment.excused
        bins = magnitude_edges(predicted[chosen]) if edges is None and np.isfinite(predicted[chosen]).any() else edges
        if bins is not None:
            result["purity"] = binned_fraction(predicted[chosen], assessment.correct[chosen], bins)
        result["n_purity_without"] = int((~np.isfinite(predicted[chosen])).sum())
    return result


def _by_class(truth: pd.DataFrame, assessment: Assessment) -> dict[str, dict]:
    names = _class_names(truth)
    if names is None:
        return {}
    return {name: fraction(assessment.found[assessment.required & (names == name)]) for name in np.unique(names)}


def _class_names(catalog: pd.DataFrame) -> np.ndarray | None:
    for name in ("class_name", "class_id"):
        if name in catalog.columns:
            return catalog[name].astype(str).to_numpy()
    return None


def _classification(pred: pd.DataFrame, truth: pd.DataFrame, assessment: Assessment) -> dict:
    """Share of matched objects whose class is right, and all counts as {true class: {predicted class: n}}."""
    for name in ("class_name", "class_id"):
        if name in pred.columns and name in truth.columns:
            a = pred[name].astype(str).to_numpy()[assessment.pairs.pred]
            b = truth[name].astype(str).to_numpy()[assessment.pairs.truth]
            counts = {t: {p: int(((b == t) & (a == p)).sum()) for p in np.unique(a)} for t in np.unique(b)}
            return {"available": True, **_renamed(fraction(a == b), "accuracy"), "counts": counts}
    return {"available": False, "reason": "one of the catalogues has no classes"}


def _positions(pred: pd.DataFrame, truth: pd.DataFrame, assessment: Assessment, replicates: int, seed: int) -> dict:
    """Median offset and scatter (1.4826 MAD) of matched positions, detection minus truth, pixels."""
    if not Criterion("pixels", 1.0).usable(pred, truth):
        return {"available": False, "reason": "one of the catalogues has no x, y"}
    pairs = assessment.pairs
    offset = pred[["x", "y"]].to_numpy(float)[pairs.pred] - truth[["x", "y"]].to_numpy(float)[pairs.truth]
    offset = offset[np.isfinite(offset).all(1)]

    def summary(dx: np.ndarray, dy: np.ndarray) -> dict[str, float]:
        if len(dx) == 0:
            return dict.fromkeys(("dx", "dy", "scatter"), float("nan"))
        spread = np.median(np.abs(np.concatenate((dx - np.median(dx), dy - np.median(dy)))))
        return {"dx": np.median(dx), "dy": np.median(dy), "scatter": 1.4826 * spread}

    return {"available": True, "n": len(offset), **with_errors(summary, *offset.T, replicates=replicates, seed=seed)}


def _anatomy_of_false(pred: pd.DataFrame, truth: pd.DataFrame, assessment: Assessment) -> dict[str, int]:
    """Of the false detections: how many overlap a true object (fragments, doubles, bad boxes), how many lie on sky."""
    false = ~assessment.correct & ~assessment.excused
    if not Criterion("iou", 0.5).usable(pred, truth):
        return {"n": int(false.sum())}
    overlaps = _boxes_overlap(pred, truth)
    touching = np.zeros(len(pred), bool)
    touching[overlaps.pred] = True
    return {
        "n": int(false.sum()),
        "on_an_object": int((false & touching).sum()),
        "on_sky": int((false & ~touching).sum()),
    }


def _boxes_overlap(pred: pd.DataFrame, truth: pd.DataFrame) -> Pairs:
    boxes = (catalog[list(BOX_COLUMNS)].to_numpy(np.float64) for catalog in (pred, truth))
    return box_overlaps(*boxes, common_groups(pred, truth))


def _box_precision(pred: pd.DataFrame, truth: pd.DataFrame, assessment: Assessment, replicates: int, seed: int) -> dict:
    if not Criterion("iou", 0.5).usable(pred, truth):
        return {"available": False, "reason": "one of the catalogues has no boxes (x_min, y_min, x_max, y_max)"}
    overlaps = _boxes_overlap(pred, truth)
    return average_precision(pred, overlaps, assessment.excused, assessment.required, replicates=replicates, seed=seed)
