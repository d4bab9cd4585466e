"""Which detections are right and which true objects were found, at any score threshold.

Legend: P detections, T true objects. A true object is *required* (must be found) or *ignored* (flagged FAINT, or
fainter than the magnitude limit): neither is missing an ignored object a loss, nor is a detection of it false (it is
*excused*). completeness = required objects found / required objects; purity = correct / detections not excused.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from deepdisc.catalog import FLAGS
from deepdisc.evaluation.match import Criterion
from deepdisc.matching import Pairs, assign


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
