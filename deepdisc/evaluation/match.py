"""Which objects of two catalogues are the same: by overlap of boxes, ellipses or outlines, by distance, or by id.

Legend: P predicted objects, T true objects (or any two catalogues), E pairs. What makes two objects candidates, and how
good a pair they are, is a `Criterion`; `match_rows` turns candidates into the best one-to-one matching and keeps the
rest: what is unmatched, what is ambiguous, and which objects are blended n to m.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from deepdisc.catalog import BOX_COLUMNS
from deepdisc.errors import InputError, nearest
from deepdisc.evaluation.ellipses import ELLIPSE_COLUMNS, ellipse_overlaps, finite_ellipses
from deepdisc.evaluation.groups import Groups, blend_groups
from deepdisc.evaluation.overlaps import box_overlaps, finite_boxes, labels_present, segmentation_overlaps
from deepdisc.matching import Pairs, assign, chord, close_pairs, sky_vectors

IOU_THRESHOLD = 0.5
MAX_DISTANCE_PIX = 2.0
MAX_DISTANCE_ARCSEC = 1.0

_NEEDS = {
    "iou": BOX_COLUMNS,
    "ellipses": ELLIPSE_COLUMNS,
    "masks": ("id",),
    "pixels": ("x", "y"),
    "sky": ("ra", "dec"),
    "id": ("id",),
}
OUTLINES, POSITIONS = ("iou", "ellipses", "masks"), ("pixels", "sky")
_FAR = 1e9  # pixels between fields: none of one may be near any of another


@dataclass(frozen=True)
class Criterion:
    """What makes a detection and a true object the same object, and the quality of such a pair.

    Attributes:
        kind: "iou" (boxes), "ellipses" (x, y, a_pix, b_pix, theta_deg), "masks" (labels of segmentation maps), "pixels"
            (distance of the positions x, y), "sky" (distance of ra, dec) or "id" (equal ids: photometry or redshifts of
            the same detections).
        limit: smallest intersection over union, or largest distance in pixels or in arcsec; 1 for ids.
        otherwise: for outlines: the criterion by position for pairs of which one object has no outline. An outline
            decides wherever both have one.
        maps: for "masks": the predicted and the true segmentation map, (h, w) integers, labels = column `id`.

    The quality of a pair by outlines is the intersection over union, by position 1 - distance / limit; both lie in
    [0, 1], and a matching has the largest sum of them.
    """

    kind: str
    limit: float
    otherwise: Criterion | None = None
    maps: tuple[Any, Any] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.kind not in _NEEDS:
            raise InputError(f"unknown way of matching {self.kind!r}; choose one of {', '.join(_NEEDS)}")
        if not self.limit > 0 or (self.kind in OUTLINES and self.limit > 1):
            raise InputError(
                f"the limit for matching by {self.kind} is {self.limit}; an intersection over union must lie in (0, 1] "
                "and a distance must be positive"
            )
        if self.otherwise is not None and (self.kind not in OUTLINES or self.otherwise.kind not in POSITIONS):
            raise InputError(
                f"cannot match by {self.kind} and otherwise by {self.otherwise.kind}; the first is one of "
                f"{', '.join(OUTLINES)}, the second pixels or sky"
            )

    @property
    def name(self) -> str:
        """As `choose_criterion` takes it: "iou", "masks+sky"."""
        return self.kind + (f"+{self.otherwise.kind}" if self.otherwise else "")

    def __str__(self) -> str:
        text = {
            "iou": f"boxes with an intersection over union of at least {self.limit:g}",
            "ellipses": f"ellipses with an intersection over union of at least {self.limit:g}",
            "masks": f"outlines with an intersection over union of at least {self.limit:g}",
            "pixels": f"positions within {self.limit:g} pixels",
            "sky": f"positions within {self.limit:g} arcsec",
            "id": "equal ids",
        }[self.kind]
        return text + (f", or, where one has no outline, {self.otherwise}" if self.otherwise else "")

    def usable(self, *catalogs: pd.DataFrame) -> bool:
        """Whether all catalogues have the columns, with at least one finite row (or no rows at all)."""
        if self.otherwise is not None and self.otherwise.usable(*catalogs):
            return True
        names = list(_NEEDS[self.kind])
        if self.kind == "id":
            return all("id" in catalog.columns for catalog in catalogs)
        return (self.kind != "masks" or self.maps is not None) and all(
            set(names) <= set(catalog.columns)
            and (len(catalog) == 0 or bool(np.isfinite(catalog[names].to_numpy(float)).all(1).any()))
            for catalog in catalogs
        )

    def with_maps(self, pred_map, truth_map) -> Criterion:
        """The same for these segmentation maps."""
        return replace(self, maps=(pred_map, truth_map)) if self.kind == "masks" else self

    def candidates(self, pred: pd.DataFrame, truth: pd.DataFrame) -> Pairs:
        """All pairs that fulfil the criterion, not yet one-to-one.

        Raises:
            InputError: a catalogue lacks the columns, or the segmentation map, that the criterion needs.
        """
        if self.otherwise is None:
            return self._alone(pred, truth)
        near = self.otherwise.candidates(pred, truth)
        outlined = [self._has_outline(side, which) for which, side in enumerate((pred, truth))]
        near = near.select(~(outlined[0][near.pred] & outlined[1][near.truth]))
        if not outlined[0].any() or not outlined[1].any():
            return near
        pairs = self._alone(pred, truth)
        both = (np.concatenate(parts) for parts in zip(_arrays(pairs), _arrays(near), strict=True))
        return Pairs(*both)

    def _alone(self, pred: pd.DataFrame, truth: pd.DataFrame) -> Pairs:
        """Candidates by this kind only."""
        names = list(_NEEDS[self.kind])
        for label, catalog in (("predicted", pred), ("true", truth)):
            missing = [name for name in names if name not in catalog.columns]
            if missing:
                raise InputError(
                    f"the {label} catalogue has no column {', '.join(missing)}, needed to match by {self.kind}; add it "
                    "or match in another way"
                )
        if self.kind == "masks":
            if self.maps is None:
                raise InputError("to match by masks, give the segmentation maps of both catalogues (--segmentation)")
            pairs = segmentation_overlaps(*self.maps, pred["id"].to_numpy(), truth["id"].to_numpy())
            return pairs.select(pairs.quality >= self.limit)
        if self.kind == "id":
            return _equal_ids(pred, truth)
        a, b = pred[names].to_numpy(np.float64), truth[names].to_numpy(np.float64)
        if self.kind == "sky":
            # Groups do not matter: one position on the sky is one object in any field.
            return close_pairs(sky_vectors(*a.T), sky_vectors(*b.T), chord(self.limit))
        groups = common_groups(pred, truth)
        if self.kind == "pixels":
            a, b = (np.column_stack((part, _FAR * group)) for part, group in zip((a, b), groups, strict=True))
            return close_pairs(a, b, self.limit)
        pairs = (box_overlaps if self.kind == "iou" else ellipse_overlaps)(a, b, groups)
        return pairs.select(pairs.quality >= self.limit)

    def _has_outline(self, catalog: pd.DataFrame, which: int) -> np.ndarray:
        """Bool (N,): rows with an outline; `which` is 0 for the prediction, 1 for the truth."""
        names = list(_NEEDS[self.kind])
        if not set(names) <= set(catalog.columns) or (self.kind == "masks" and self.maps is None):
            return np.zeros(len(catalog), bool)
        if self.kind == "masks":
            return labels_present(self.maps[which], catalog["id"].to_numpy())
        values = catalog[names].to_numpy(np.float64)
        return finite_boxes(values) if self.kind == "iou" else finite_ellipses(values)

    def match(self, pred: pd.DataFrame, truth: pd.DataFrame) -> Pairs:
        """The best one-to-one matching of two catalogues."""
        return assign(self.candidates(pred, truth))


def _equal_ids(pred: pd.DataFrame, truth: pd.DataFrame) -> Pairs:
    """All pairs with the same id, in the same field where both catalogues have fields."""
    sides = [pred["id"], truth["id"]]
    if any(side.dtype.kind not in "iuf" for side in sides):
        sides = [side.astype(str) for side in sides]
    keys = [
        pd.DataFrame({"field": group, "id": side.to_numpy(), "row": np.arange(len(side))}).dropna()
        for group, side in zip(common_groups(pred, truth), sides, strict=True)
    ]
    both = keys[0].merge(keys[1], on=["field", "id"], suffixes=("_pred", "_truth"))
    rows = (both[name].to_numpy(np.int64) for name in ("row_pred", "row_truth"))
    return Pairs(*rows, np.ones(len(both)))


def _arrays(pairs: Pairs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return pairs.pred, pairs.truth, pairs.quality


def common_groups(pred: pd.DataFrame, truth: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Integer labels of the field (or tile) of every row: pixel coordinates compare only within the same one."""
    for name in ("field", "tile"):
        if name in pred.columns and name in truth.columns:
            codes, _ = pd.factorize(pd.concat((pred[name], truth[name]), ignore_index=True))
            return codes[: len(pred)].astype(np.int64), codes[len(pred) :].astype(np.int64)
    return np.zeros(len(pred), np.int64), np.zeros(len(truth), np.int64)


# ------------------------------------------------------------------------------------------------------------ choosing
def choose_criterion(
    preds: Sequence[pd.DataFrame],
    truth: pd.DataFrame,
    match_by: str | None = None,
    *,
    iou_threshold: float | None = None,
    max_distance_pix: float | None = None,
    max_distance_arcsec: float | None = None,
    maps: tuple[Any, Any] | None = None,
) -> Criterion:
    """The way of matching asked for, else by the limits given, else the first that all catalogues allow.

    Args:
        preds: predicted catalogues, for the columns they have.
        truth: true catalogue likewise.
        match_by: one of iou, ellipses, masks, pixels, sky, id, or an outline and a position such as "iou+sky".
        iou_threshold: smallest intersection over union, default 0.5.
        max_distance_pix: default 2.
        max_distance_arcsec: default 1.
        maps: for "masks": the predicted and the true segmentation map.

    Raises:
        InputError: unknown way or wrong limit; no columns in common.
    """
    limits = {
        **dict.fromkeys(OUTLINES, (iou_threshold, IOU_THRESHOLD)),
        "pixels": (max_distance_pix, MAX_DISTANCE_PIX),
        "sky": (max_distance_arcsec, MAX_DISTANCE_ARCSEC),
        "id": (None, 1.0),
    }

    def named(name: str) -> Criterion:
        kind, _, other = name.partition("+")
        for part in (kind, other or kind):
            if part not in limits:
                close = nearest(part, limits)
                raise InputError(
                    f"unknown way of matching {part!r}; choose one of {', '.join(limits)}, or an outline and a "
                    "position, such as iou+sky" + (f"; did you mean {close!r}?" if close else "")
                )
        one, two = (default if given is None else given for given, default in (limits[kind], limits[other or kind]))
        return Criterion(kind, one, Criterion(other, two) if other else None, maps if kind == "masks" else None)

    ways = ("iou", *POSITIONS)
    kinds = [match_by] if match_by else [kind for kind in ways if limits[kind][0] is not None] or ways
    for kind in kinds:
        criterion = named(kind)
        if len(kinds) == 1:
            for pred in preds:
                criterion.candidates(pred.iloc[:0], truth.iloc[:0])  # names the missing column
            return criterion
        if criterion.usable(*preds, truth):
            return criterion
    had = [f"{which}: {', '.join(map(str, catalog.columns))}" for which, catalog in _labelled(preds, truth)]
    raise InputError(
        "the catalogues have no columns in common to match by; all need x_min, y_min, x_max, y_max, or x, y, or "
        "ra, dec; with a column map (--columns) they may have other names; catalogues of the same detections match "
        f"by --match-by id. {'. '.join(had)}"
    )


def _labelled(preds: Sequence[pd.DataFrame], truth: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [*(("Predicted", pred) for pred in preds), ("True", truth)]


# ------------------------------------------------------------------------------------------------------------ matching
@dataclass(frozen=True)
class Matching:
    """Two catalogues matched one-to-one, and what is left.

    Attributes:
        pairs: the best one-to-one matching, ordered by row of the truth.
        candidates: all pairs that fulfil the criterion.
        n_pred: rows of the predicted catalogue; `n_truth` of the true one.
    """

    pairs: Pairs
    candidates: Pairs
    n_pred: int
    n_truth: int

    @cached_property
    def partner_of_pred(self) -> np.ndarray:
        """(P,) row of the partner in the truth, -1 for none."""
        return _partner(self.pairs.pred, self.pairs.truth, self.n_pred)

    @cached_property
    def partner_of_truth(self) -> np.ndarray:
        """(T,) row of the partner in the prediction, -1 for none."""
        return _partner(self.pairs.truth, self.pairs.pred, self.n_truth)

    @cached_property
    def ambiguous_pred(self) -> np.ndarray:
        """(P,) bool: there is a candidate within the limit other than the partner."""
        return np.bincount(self.candidates.pred, minlength=self.n_pred) > (self.partner_of_pred >= 0)

    @cached_property
    def ambiguous_truth(self) -> np.ndarray:
        """(T,) bool, likewise."""
        return np.bincount(self.candidates.truth, minlength=self.n_truth) > (self.partner_of_truth >= 0)

    @cached_property
    def groups(self) -> Groups:
        """The blends, n to m."""
        return blend_groups(self.candidates, self.n_pred, self.n_truth)


def _partner(rows: np.ndarray, partners: np.ndarray, n: int) -> np.ndarray:
    result = np.full(n, -1, np.int64)
    result[rows] = partners
    return result


def match_rows(pred: pd.DataFrame, truth: pd.DataFrame, criterion: Criterion) -> Matching:
    """Match two catalogues one-to-one, with the largest total quality."""
    candidates = criterion.candidates(pred, truth)
    return Matching(assign(candidates), candidates, len(pred), len(truth))
