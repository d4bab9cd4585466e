"""COCO average precision of a whole field: pycocotools' rules, without its limit of 100 detections per image.

Legend: P detections, T true objects, D detections within one group, G true objects within one group, I the ten IoU
thresholds .50:.05:.95.

A field is one image with thousands of objects. COCOeval compares all D x G pairs of an image in Python, hours for a
field; so the field is cut into groups of objects that overlap by at least the lowest threshold (connected components),
and each group is handed to COCOeval as an "image". The result is the same, because COCO's greedy matching never joins
others, and the precision-recall curve is made from all images together, by score. (Ties of scores keep the catalogue's
order.)
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from deepdisc.evaluation.bootstrap import DEFAULT, Resampling, described_differences, summarize
from deepdisc.matching import Pairs

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0.0, 1.0, 101)
_ANY_AREA = (0.0, 1e12)  # COCO's "all" ends at 1e10 square pixels
# COCO's ranges of area, square pixels; both ends belong to a range.
AREA_RANGES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e12)}


class GroupedEval(COCOeval):
    """COCOeval on given overlaps, with detections and true objects that may be ignored.

    Args:
        gt: true objects.
        dt: detections.
        overlaps: image id -> (D, G) intersection over union.
    """

    def __init__(self, gt: COCO, dt: COCO, overlaps: dict[int, np.ndarray], largest: int):
        super().__init__(gt, dt, "bbox")
        self.overlaps = overlaps
        self.params.maxDets = [largest]
        self.params.areaRng = [list(_ANY_AREA)]
        self.params.areaRngLbl = ["all"]
        self.params.iouThrs = IOU_THRESHOLDS

    def _prepare(self) -> None:
        super()._prepare()
        # COCOeval overwrites `ignore` by `iscrowd`, whose other rules (one crowd excuses any number) are not wanted.
        for objects in self._gts.values():
            for item in objects:
                item["ignore"] = item["ignore_truth"]

    def computeIoU(self, imgId, catId):  # noqa: N802, the parent's name
        detections = self._dts[imgId, catId]
        if len(detections) == 0 or len(self._gts[imgId, catId]) == 0:
            return []
        # evaluateImg expects the rows by decreasing score, as the parent's computeIoU returns them.
        order = np.argsort([-item["score"] for item in detections], kind="mergesort")
        return self.overlaps[imgId][order]


@dataclass(frozen=True)
class MatchedDetections:
    """COCO's greedy matching at each threshold.

    Attributes:
        rank: (P,) place of each detection by decreasing score.
        correct: (I, P) bool, matched to a true object that counts.
        ignored: (I, P) bool, counts neither way.
        group: (P,) label of its group; `truth_group` (T',) the same for the true objects that count.
    """

    rank: np.ndarray
    correct: np.ndarray
    ignored: np.ndarray
    group: np.ndarray
    truth_group: np.ndarray

    def average_precision(self, weight: np.ndarray | None = None) -> np.ndarray:
        """AP (I,) at each IoU threshold: precision, made monotonic, averaged over 101 recalls (COCO's definition).

        Args:
            weight: how often each group is counted (bootstrap), default once.
        """
        if weight is None:
            weight = np.ones(max(self.group.max(initial=0), self.truth_group.max(initial=0)) + 1)
        n_truth = weight[self.truth_group].sum()
        if n_truth == 0:
            return np.full(len(IOU_THRESHOLDS), np.nan)
        order = np.argsort(self.rank)
        w = weight[self.group[order]]
        result = []
        for correct, ignored in zip(self.correct[:, order], self.ignored[:, order], strict=True):
            hits, misses = np.cumsum(w * (correct & ~ignored)), np.cumsum(w * (~correct & ~ignored))
            # COCO counts the first detections that are ignored as precision 0/eps = 0; the envelope removes that.
            precision = hits / (hits + misses + np.spacing(1))
            envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
            place = np.searchsorted(hits / n_truth, RECALL_POINTS, side="left")
            result.append(envelope[place].mean())
        return np.array(result)


def match_detections(
    score: np.ndarray, overlaps: Pairs, excused: np.ndarray, required: np.ndarray
) -> MatchedDetections:
    """Match by COCO's rules.

    Args:
        score: (P,) finite.
        overlaps: all pairs that overlap by half or more, quality = intersection over union; others may be among them.
        excused: (P,) bool, detections that do not count as false when they match nothing.
        required: (T,) bool, true objects that must be found; the others are ignored, and so is what matches them.
    """
    n_pred, n_truth = len(score), len(required)
    overlaps = overlaps.select(overlaps.quality >= IOU_THRESHOLDS[0] - 1e-9)
    order = np.argsort(-score, kind="stable")
    rank = np.empty(n_pred, np.int64)
    rank[order] = np.arange(n_pred)
    nodes = n_pred + n_truth
    graph = coo_matrix((np.ones(len(overlaps)), (overlaps.pred, overlaps.truth + n_pred)), shape=(nodes, nodes))
    group = connected_components(graph, directed=False)[1] if nodes else np.zeros(0, np.int64)
    evaluation = _run(rank, group, overlaps, required)
    correct = np.zeros((len(IOU_THRESHOLDS), n_pred), bool)
    ignored = np.zeros_like(correct)
    for result in evaluation.evalImgs:
        if result is not None and len(result["dtIds"]):
            columns = np.array(result["dtIds"]) - 1
            correct[:, columns] = (result["dtMatches"] > 0) & ~result["dtIgnore"].astype(bool)
            ignored[:, columns] = result["dtIgnore"]
    ignored |= ~correct & excused[None, :]
    return MatchedDetections(rank, correct, ignored, group[:n_pred], group[n_pred:][required])


def _run(rank: np.ndarray, group: np.ndarray, overlaps: Pairs, required: np.ndarray) -> GroupedEval:
    """COCOeval.evaluate with each group as an image; ids count from 1 because COCO takes 0 for "no match"."""
    n_pred, n_truth = len(rank), len(required)
    groups, members = np.unique(group, return_inverse=True)
    box = {"bbox": [0.0, 0.0, 1.0, 1.0], "area": 1.0, "category_id": 1}  # the overlaps are given, boxes are not used
    truth = [
        {**box, "id": j + 1, "image_id": int(members[n_pred + j]), "iscrowd": 0, "ignore_truth": int(not required[j])}
        for j in range(n_truth)
    ]
    found = [
        {**box, "id": i + 1, "image_id": int(members[i]), "iscrowd": 0, "score": float(n_pred - rank[i])}
        for i in range(n_pred)
    ]
    place_pred, count_pred = _places(members[:n_pred], len(groups))
    place_truth, count_truth = _places(members[n_pred:], len(groups))
    tables = {
        g: np.zeros((count_pred[g], count_truth[g])) for g in range(len(groups)) if count_pred[g] and count_truth[g]
    }
    for i, j, quality in zip(overlaps.pred, overlaps.truth, overlaps.quality, strict=True):
        tables[members[i]][place_pred[i], place_truth[j]] = quality
    images = [{"id": g} for g in range(len(groups))]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        coco = [_coco(images, annotations) for annotations in (truth, found)]
        evaluation = GroupedEval(*coco, tables, largest=max(1, n_pred))
        evaluation.evaluate()
    return evaluation


def _places(group: np.ndarray, n_groups: int) -> tuple[np.ndarray, np.ndarray]:
    """The place of each row within its group (rows in order), and the groups' sizes."""
    count = np.bincount(group, minlength=n_groups)
    order = np.argsort(group, kind="stable")
    place = np.empty(len(group), np.int64)
    place[order] = np.arange(len(group)) - np.repeat(np.cumsum(count) - count, count)
    return place, count


def _coco(images: list[dict], annotations: list[dict]) -> COCO:
    coco = COCO()
    coco.dataset = {"images": images, "categories": [{"id": 1, "name": "object"}], "annotations": annotations}
    coco.createIndex()
    return coco


def average_precision(
    pred: pd.DataFrame,
    overlaps: Pairs,
    excused: np.ndarray,
    required: np.ndarray,
    *,
    areas: tuple[np.ndarray, np.ndarray] | None = None,
    resampling: Resampling = DEFAULT,
) -> dict:
    """`ap`, `ap50`, `ap75` with errors (bootstrap over groups of overlapping objects), the counts, and AP by size.

    Args:
        pred: predicted catalogue; the column `score` ranks the detections.
        overlaps: from `overlaps.box_overlaps` or `overlaps.segmentation_overlaps`.
        excused: (P,) bool, detections that do not count as false when they match nothing.
        required: (T,) bool, true objects that must be found.
        areas: (P,) and (T,) square pixels, for `by_size`: AP of the true objects in each of `AREA_RANGES`; as COCO has
            it, a detection outside of the range that matches none of them counts neither way.
        resampling: how the errors are drawn.
    """
    if "score" not in pred.columns or not np.isfinite(pred["score"].to_numpy(float)).all():
        return {
            "available": False,
            "reason": "the predicted catalogue has no finite column 'score' to rank detections by",
        }
    score = pred["score"].to_numpy(float)
    matched = match_detections(score, overlaps, excused, required)
    result: dict = {
        "available": True,
        "n_truth": int(required.sum()),
        "n_pred": len(pred),
        **_figures(matched, resampling),
    }
    if areas is not None:
        result["by_size"] = {}
        for name, (low, high) in AREA_RANGES.items():
            inside = [(area >= low) & (area <= high) for area in areas]
            part = match_detections(score, overlaps, excused | ~inside[0], required & inside[1])
            result["by_size"][name] = {
                "area_pix": [low, high],
                "n_truth": int((required & inside[1]).sum()),
                **_figures(part, resampling),
            }
    return result


def _figures(matched: MatchedDetections, resampling: Resampling) -> dict[str, float]:
    n_groups = max(matched.group.max(initial=0), matched.truth_group.max(initial=0)) + 1
    samples = [_summary(matched.average_precision(draw)) for draw in _draws(n_groups, resampling)]
    return summarize(_summary(matched.average_precision()), _columns(samples))


def _draws(n_groups: int, resampling: Resampling) -> Iterator[np.ndarray]:
    """How often each group is counted, (n_groups,), for each resampling."""
    rng = np.random.default_rng(resampling.seed)
    return (rng.poisson(1.0, n_groups).astype(float) for _ in range(resampling.replicates))


def _columns(samples: Sequence[dict[str, float]]) -> dict[str, np.ndarray]:
    return {name: np.array([sample[name] for sample in samples]) for name in samples[0]}


def _summary(ap: np.ndarray) -> dict[str, float]:
    return {"ap": float(ap.mean()), "ap50": float(ap[0]), "ap75": float(ap[5])}


def paired_precision(a: MatchedDetections, b: MatchedDetections, resampling: Resampling = DEFAULT) -> dict[str, dict]:
    """What sets the APs of two catalogues of the same true objects apart; see `bootstrap.paired_differences`.

    Groups of either side that share a true object are drawn together.
    """
    sizes = [max(side.group.max(initial=-1), side.truth_group.max(initial=-1)) + 1 for side in (a, b)]
    edges = (a.truth_group, b.truth_group + sizes[0])
    graph = coo_matrix((np.ones(len(edges[0]), np.int8), edges), shape=(sum(sizes),) * 2)
    n_groups, label = connected_components(graph, directed=False)
    labels = label[: sizes[0]], label[sizes[0] :]
    draws = list(_draws(n_groups, resampling))
    sides = [
        (_summary(side.average_precision()), _columns([_summary(side.average_precision(draw[own])) for draw in draws]))
        for side, own in zip((a, b), labels, strict=True)
    ]
    return described_differences(*sides, n=len(a.truth_group))
