"""Purity against completeness as the score threshold moves, and two catalogues brought to equal purity."""

from __future__ import annotations

import numpy as np
import pandas as pd

from deepdisc.evaluation.assessment import Assessor, column
from deepdisc.evaluation.blends import SNR_MIN
from deepdisc.evaluation.match import Criterion


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
    pred_a: pd.DataFrame,
    pred_b: pd.DataFrame,
    truth: pd.DataFrame,
    criterion: Criterion,
    *,
    criterion_b: Criterion | None = None,
    **options,
) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    """Cut catalogue A by score until it is as pure as B; if A is purer already without a cut, cut B instead.

    Args:
        pred_a: the catalogue whose score threshold is free; needs `score`.
        pred_b: the catalogue to compare with, as its program made it; needs `score` only if it is the one to be cut.
        truth: true catalogue.
        criterion: what makes a match.
        criterion_b: the same for B, where its own segmentation map is part of it; default: that of A.
        options: of `Assessor`.

    Returns:
        A and B after the cut, and a statement: `purity_a`, `purity_b`, `threshold_a`, `threshold_b` (None = not cut),
        `equal` (False if neither can reach the other's purity) and `note` in words.
    """
    criteria = criterion, criterion if criterion_b is None else criterion_b

    def purities(*preds: pd.DataFrame) -> list[float]:
        pairs = zip(preds, criteria, strict=True)
        return [Assessor(pred, truth, how, **options).assess().purity for pred, how in pairs]

    purity_a, purity_b = purities(pred_a, pred_b)
    cut_b = purity_a >= purity_b
    loose, how, target = (pred_b, criteria[1], purity_a) if cut_b else (pred_a, criteria[0], purity_b)
    threshold = threshold_for_purity(loose, truth, how, target, **options) if "score" in loose.columns else None
    if threshold is not None:
        loose = loose[loose["score"].to_numpy(np.float64) >= threshold].reset_index(drop=True)
    a, b = (pred_a, loose) if cut_b else (loose, pred_b)
    purity_a, purity_b = purities(a, b)
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
