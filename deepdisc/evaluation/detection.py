"""How good detections are: completeness, purity, average precision, positions, classes, blends, false ones.

Legend: P detections, T true objects; required, ignored and excused as in `assessment`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from deepdisc.catalog import BOX_COLUMNS
from deepdisc.evaluation import false_detections
from deepdisc.evaluation.assessment import Assessment, column
from deepdisc.evaluation.average_precision import average_precision
from deepdisc.evaluation.bins import binned_fraction, even_edges, quantile_edges
from deepdisc.evaluation.blends import SNR_MIN, blended_pairs, deblending, deblending_matrix
from deepdisc.evaluation.bootstrap import DEFAULT, Resampling, fraction, named_fraction, quantiles, with_errors
from deepdisc.evaluation.classes import class_names, classification
from deepdisc.evaluation.match import Criterion, common_groups
from deepdisc.evaluation.overlaps import box_overlaps
from deepdisc.matching import Pairs

SNR_EDGES = (0.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0, 100.0, np.inf)
BLENDEDNESS_EDGES = (0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.001)
SIZES = ("hlr_arcsec", "area_pix")
SIZE_BINS = 8
IOU_BINS = 20
_NO_BOXES = "one of the catalogues has no boxes (x_min, y_min, x_max, y_max)"
_NO_MAPS = "no segmentation maps of both sides were given"


def score_detections(
    pred: pd.DataFrame,
    truth: pd.DataFrame,
    assessment: Assessment,
    *,
    magnitude: str | None = None,
    fwhm_pix: float | None = None,
    shape: tuple[int, int] | None = None,
    outline_overlaps: Pairs | None = None,
    groups: tuple[np.ndarray, np.ndarray] | None = None,
    resampling: Resampling = DEFAULT,
) -> dict:
    """The `detection` part of metrics.json.

    Args:
        pred: predicted catalogue.
        truth: true catalogue.
        assessment: from `Assessor`.
        magnitude: column (`mag_r`) for the tables by magnitude, in whichever catalogue has it.
        fwhm_pix: of the PSF, for blends.
        shape: (height, width) of the field in pixels, for false detections near its edges; default from the positions.
        outline_overlaps: from `match.segmentation_overlaps`, for the AP of outlines.
        groups: numbers (G,) of true objects and of detections in each group of overlapping outlines, for a deblending
            matrix of these.
        resampling: how the errors are drawn.
    """
    required, counted = assessment.required, ~assessment.excused
    found, correct = assessment.found[required], assessment.correct[counted]
    overlaps = boxes_overlap(pred, truth)
    result: dict = {
        "n_truth": int(required.sum()),
        "n_truth_ignored": int((~required).sum()),
        "n_pred": len(pred),
        "n_matched": len(assessment.pairs),
        "n_excused": int(assessment.excused.sum()),
        "n_false": int((~correct).sum()),
        **named_fraction(found, "completeness"),
        **named_fraction(correct, "purity"),
        **_tables(pred, truth, assessment, magnitude),
        "by_class": _by_class(truth, assessment),
        "classification": classification(pred, truth, assessment, magnitude),
        "position": _positions(pred, truth, assessment, resampling),
        "false": {
            **false_detections.anatomy(assessment, overlaps),
            "excess": false_detections.excess(
                pred, truth, assessment, magnitude=magnitude, shape=shape, seed=resampling.seed
            ),
        },
        "iou": {
            "boxes": _iou_distribution(assessment, overlaps, resampling),
            "outlines": _iou_distribution(assessment, outline_overlaps, resampling),
        },
        "boxes": _precision(pred, truth, assessment, overlaps, _box_areas, _NO_BOXES, resampling),
        "outlines": _precision(pred, truth, assessment, outline_overlaps, _outline_areas, _NO_MAPS, resampling),
    }
    for name in ("ap", "ap50", "ap75"):
        for figure in (name, *(f"{name}_{end}" for end in ("err", "low", "high"))):
            result[figure] = result["boxes"].get(figure, float("nan"))
    if fwhm_pix is None:
        result["blended_pairs"] = {"available": False, "reason": "the width of the PSF is not known"}
    else:
        result["blended_pairs"] = blended_pairs(truth, assessment, fwhm_pix)
        result["blended_pairs"].pop("members", None)
    result["deblending"] = deblending(pred, truth, assessment, fwhm_pix)
    if groups is not None:
        result["deblending"]["by_overlap"] = deblending_matrix(*groups)
    return result


def _tables(pred: pd.DataFrame, truth: pd.DataFrame, assessment: Assessment, magnitude: str | None) -> dict:
    """Completeness and purity by magnitude, signal-to-noise, size and blendedness; and of all bright objects."""
    snr = column(truth, "snr")
    bright = assessment.required & (snr > SNR_MIN) if snr is not None else np.zeros(len(truth), bool)
    size = next((name for name in SIZES if column(truth, name) is not None), None)
    return {
        **named_fraction(assessment.found[bright], "completeness_snr10"),
        "by_magnitude": _by(pred, truth, assessment, magnitude, even_edges),
        "by_snr": _by(pred, truth, assessment, "snr", lambda values: np.array(SNR_EDGES)),
        "by_size": _by(pred, truth, assessment, size, lambda values: quantile_edges(values, SIZE_BINS)),
        "by_blendedness": _by(pred, truth, assessment, "blendedness", lambda values: np.array(BLENDEDNESS_EDGES)),
    }


def _by(pred: pd.DataFrame, truth: pd.DataFrame, assessment: Assessment, name: str | None, edges_of) -> dict:
    """Completeness by the truth's column, purity by the prediction's own; `edges_of` makes bins of finite values."""
    result: dict = {"column": name, "completeness": [], "purity": []}
    sides = (
        ("completeness", column(truth, name), assessment.found, assessment.required),
        ("purity", column(pred, name), assessment.correct, ~assessment.excused),
    )
    for kind, values, success, chosen in sides:
        if values is not None:
            values = values[chosen]
            if np.isfinite(values).any():
                result[kind] = binned_fraction(values, success[chosen], edges_of(values))
            result[f"n_{kind}_without"] = int((~np.isfinite(values)).sum())
    return result


def _by_class(truth: pd.DataFrame, assessment: Assessment) -> dict[str, dict]:
    names = class_names(truth)
    if names is None:
        return {}
    return {str(name): fraction(assessment.found[assessment.required & (names == name)]) for name in np.unique(names)}


def _positions(pred: pd.DataFrame, truth: pd.DataFrame, assessment: Assessment, resampling: Resampling) -> dict:
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

    return {"available": True, "n": len(offset), **with_errors(summary, *offset.T, resampling=resampling)}


def boxes_overlap(pred: pd.DataFrame, truth: pd.DataFrame) -> Pairs | None:
    """All pairs of overlapping boxes; None where a catalogue has no boxes."""
    if not Criterion("iou", 0.5).usable(pred, truth):
        return None
    boxes = (catalog[list(BOX_COLUMNS)].to_numpy(np.float64) for catalog in (pred, truth))
    return box_overlaps(*boxes, common_groups(pred, truth))


def _iou_distribution(assessment: Assessment, overlaps: Pairs | None, resampling: Resampling) -> dict:
    """Intersection over union of the matched pairs: median with its error, quantiles, histogram; 0 where they miss."""
    if overlaps is None:
        return {"available": False, "reason": "not both sides have outlines of this kind"}
    partner = np.full(len(assessment.correct), -1)
    partner[assessment.pairs.pred] = assessment.pairs.truth
    iou = np.zeros(len(assessment.correct))
    matched = partner[overlaps.pred] == overlaps.truth
    iou[overlaps.pred[matched]] = overlaps.quality[matched]
    iou = iou[assessment.pairs.pred]
    counts, edges = np.histogram(iou, IOU_BINS, (0.0, 1.0))
    return {
        "available": True,
        "n": len(iou),
        **with_errors(_iou_summary, iou, resampling=resampling),
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def _iou_summary(iou: np.ndarray) -> dict[str, float]:
    return dict(zip(("median", "q16", "q84"), quantiles(iou, (0.5, 0.16, 0.84)), strict=True))


def _precision(
    pred: pd.DataFrame,
    truth: pd.DataFrame,
    assessment: Assessment,
    overlaps: Pairs | None,
    area_of: Callable[[pd.DataFrame], np.ndarray | None],
    reason: str,
    resampling: Resampling,
) -> dict:
    """COCO's AP, over all and by size where both sides have sizes."""
    if overlaps is None:
        return {"available": False, "reason": reason}
    areas = tuple(area_of(side) for side in (pred, truth))
    return average_precision(
        pred, overlaps, assessment.excused, assessment.required,
        areas=None if areas[0] is None or areas[1] is None else areas, resampling=resampling,
    )  # fmt: skip


def _box_areas(catalog: pd.DataFrame) -> np.ndarray:
    x0, y0, x1, y1 = catalog[list(BOX_COLUMNS)].to_numpy(np.float64).T
    return (x1 - x0) * (y1 - y0)


def _outline_areas(catalog: pd.DataFrame) -> np.ndarray | None:
    return column(catalog, "area_pix")
