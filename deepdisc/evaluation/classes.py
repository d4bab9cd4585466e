"""Are stars called stars: the confusion matrix of the classes, with what was missed and what is no object at all."""

from __future__ import annotations

import numpy as np
import pandas as pd

from deepdisc.evaluation.assessment import Assessment, column
from deepdisc.evaluation.bins import binned_fraction, even_edges
from deepdisc.evaluation.bootstrap import named_fraction

MISSED, FALSE = "not detected", "false detection"
# The other programs' words for the same.
_SYNONYMS = {
    "stars": "star", "stellar": "star", "galaxies": "galaxy", "gal": "galaxy", "qso": "quasar", "agn": "quasar",
    "quasars": "quasar",
}  # fmt: skip
_BY_NUMBER = {"0": "galaxy", "1": "star", "2": "quasar"}  # what class_id means where no name says otherwise


def class_names(catalog: pd.DataFrame, column_name: str | None = None) -> np.ndarray | None:
    """The class of every row as text, or None: `class_name` in the common words, else the number `class_id`."""
    for name in ("class_name", "class_id") if column_name is None else (column_name,):
        if name in catalog.columns:
            names = catalog[name].astype(str).str.strip()
            return (names.str.lower().replace(_SYNONYMS) if name == "class_name" else names).to_numpy(str)
    return None


def is_star(catalog: pd.DataFrame) -> np.ndarray | None:
    """Bool (N,), or None where the catalogue has no classes; `class_id` 1 is a star where there is no name."""
    names = class_names(catalog)
    return None if names is None else np.isin(names, ("star", "1"))


def classification(pred: pd.DataFrame, truth: pd.DataFrame, assessment: Assessment, magnitude: str | None) -> dict:
    """How the classes of detections and of true objects agree.

    Args:
        pred: predicted catalogue.
        truth: true catalogue.
        assessment: of the two.
        magnitude: the truth's column, for the accuracy by magnitude.

    Returns:
        `accuracy` of matched objects with its interval; `counts` of these, {true class: {predicted class: n}};
        `missed` {true class: n}, `false` {predicted class: n}; `classes`: for each, `n_truth` and `n_pred`,
        `completeness` (found *and* called so / required), `recall` (called so / found), `purity` (rightly called so /
        called so and not excused), each with its interval; `by_magnitude`: the accuracy in bins.
    """
    sides = _names_of_both(pred, truth)
    if sides is None:
        return {"available": False, "reason": "one of the catalogues has no classes"}
    predicted, true = sides
    pairs = assessment.pairs
    a, b = predicted[pairs.pred], true[pairs.truth]
    names = sorted({*true[assessment.required], *predicted[~assessment.excused]})
    right_truth, right_pred = np.zeros(len(truth), bool), np.zeros(len(pred), bool)
    right_truth[pairs.truth], right_pred[pairs.pred] = a == b, a == b
    counted = ~assessment.excused
    rows = {}
    for name in names:
        asked, called, found = assessment.required & (true == name), counted & (predicted == name), b == name
        rows[name] = {
            "n_truth": int(asked.sum()),
            "n_pred": int(called.sum()),
            **named_fraction(right_truth[asked], "completeness"),
            **named_fraction((a == b)[found], "recall"),
            **named_fraction(right_pred[called], "purity"),
        }
    values = column(truth, magnitude)
    values = np.full(len(truth), np.nan) if values is None else values
    return {
        "available": True,
        **named_fraction(a == b, "accuracy"),
        "n": len(pairs),
        "counts": {t: {p: int(((b == t) & (a == p)).sum()) for p in np.unique(a)} for t in np.unique(b)},
        "missed": {t: int((assessment.required & ~assessment.found & (true == t)).sum()) for t in names},
        "false": {p: int((counted & ~assessment.correct & (predicted == p)).sum()) for p in names},
        "classes": rows,
        "by_magnitude": binned_fraction(values[pairs.truth], a == b, even_edges(values[pairs.truth])),
    }


def _names_of_both(pred: pd.DataFrame, truth: pd.DataFrame) -> tuple[np.ndarray, np.ndarray] | None:
    """Classes in the same words on both sides: names where both have them, else numbers, else numbers made names."""
    for name in ("class_name", "class_id"):
        if name in pred.columns and name in truth.columns:
            return class_names(pred, name), class_names(truth, name)
    sides = [class_names(side) for side in (pred, truth)]
    if sides[0] is None or sides[1] is None:
        return None
    return tuple(np.array([_BY_NUMBER.get(name, name) for name in side], dtype=str) for side in sides)
