"""COCO AP against pycocotools itself, run in the ordinary way on one image."""

import contextlib
import io

import numpy as np
import pandas as pd
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from deepdisc.evaluation.average_precision import average_precision, match_detections
from deepdisc.evaluation.bootstrap import Resampling
from deepdisc.evaluation.overlaps import box_overlaps


def field(n, seed, size=400.0, n_extra=10):
    """True boxes, and detections = jittered copies of most of them plus some that match nothing; unique scores."""
    rng = np.random.default_rng(seed)
    corner, side = rng.uniform(0, size, (n, 2)), rng.uniform(4, 40, (n, 2))
    truth = np.concatenate((corner, corner + side), axis=1)
    found = rng.random(n) < 0.85
    pred = truth[found] + rng.normal(0, 1.5, (found.sum(), 4))
    corner = rng.uniform(0, size, (n_extra, 2))
    pred = np.concatenate((pred, np.concatenate((corner, corner + 15), axis=1)))
    keep = (pred[:, 2] > pred[:, 0] + 1) & (pred[:, 3] > pred[:, 1] + 1)
    pred = pred[keep]
    return pred, rng.permutation(len(pred)) / len(pred), truth


def pycocotools_stats(pred, score, truth, cap=100, area="all"):
    def as_coco(boxes, **extra):
        coco = COCO()
        annotations = [
            {
                "id": i + 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]],
                "area": (b[2] - b[0]) * (b[3] - b[1]),
                "iscrowd": 0,
                **{key: float(value[i]) for key, value in extra.items()},
            }
            for i, b in enumerate(boxes)
        ]
        coco.dataset = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "x"}], "annotations": annotations}
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(as_coco(truth), as_coco(pred, score=score), "bbox")
        run.params.maxDets = [1, 10, cap]
        run.evaluate()
        run.accumulate()
    precision = run.eval["precision"][:, :, 0, run.params.areaRngLbl.index(area), -1]
    return precision.mean(), precision[0].mean(), precision[5].mean()


def area_of(boxes):
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def ours(pred, score, truth, excused=None, required=None):
    excused = np.zeros(len(pred), bool) if excused is None else excused
    required = np.ones(len(truth), bool) if required is None else required
    frame = pd.DataFrame({"score": score})
    areas = area_of(pred), area_of(truth)
    return average_precision(frame, box_overlaps(pred, truth), excused, required, areas=areas, resampling=Resampling(5))


@pytest.mark.parametrize("seed", range(4))
def test_equals_pycocotools_below_its_cap(seed):
    pred, score, truth = field(70, seed)
    result = ours(pred, score, truth)
    np.testing.assert_allclose([result["ap"], result["ap50"], result["ap75"]], pycocotools_stats(pred, score, truth))


@pytest.mark.parametrize("area", ["small", "medium", "large"])
@pytest.mark.parametrize("seed", range(2))
def test_by_size_equals_pycocotools_below_its_cap(seed, area):
    pred, score, truth = field(70, seed)
    pred, truth = pred * 3, truth * 3  # sides of 12 to 120 pixels: all three sizes occur
    result = ours(pred, score, truth)["by_size"][area]
    assert result["n_truth"] >= 2
    expected = pycocotools_stats(pred, score, truth, area=area)
    np.testing.assert_allclose([result["ap"], result["ap50"], result["ap75"]], expected)


def test_sizes_without_true_objects_have_no_precision():
    result = ours(*field(20, 0))["by_size"]["large"]
    assert result["n_truth"] == 0 and np.isnan(result["ap"]) and np.isnan(result["ap_err"])


def test_a_field_of_one_percolating_blend_takes_no_dense_table():
    # 4,000 boxes that all hang together by small overlaps: a table of all pairs would take seconds and 128 MB.
    x = np.arange(4000) * 8.0
    truth = np.stack((x, np.zeros(4000), x + 10, np.full(4000, 10.0)), axis=1)
    assert ours(truth, np.linspace(1, 0.1, 4000), truth)["ap"] == pytest.approx(1.0)


def test_crowded_field_is_not_capped_at_100_detections():
    pred, score, truth = field(160, 5, size=1000.0)
    result = ours(pred, score, truth)
    assert len(pred) > 130
    np.testing.assert_allclose(
        [result["ap"], result["ap50"], result["ap75"]], pycocotools_stats(pred, score, truth, cap=10_000)
    )
    assert result["ap50"] > 0.6
    assert pycocotools_stats(pred, score, truth, cap=100)[1] < 0.8 * result["ap50"]


def test_hand_computed_precision_recall():
    # Two true objects; hits at ranks 1 and 3, a false one at rank 2. Precision is 1 up to recall 0.5 (51 of the 101
    # points) and 2/3 above (50 points), at every threshold.
    truth = np.array([[0, 0, 10, 10], [50, 50, 60, 60]], float)
    pred = np.array([[0, 0, 10, 10], [200, 200, 210, 210], [50, 50, 60, 60]], float)
    result = ours(pred, np.array([0.9, 0.8, 0.7]), truth)
    expected = (51 * 1 + 50 * 2 / 3) / 101
    assert result["ap"] == pytest.approx(expected)
    assert result["ap75"] == pytest.approx(expected)


def test_faint_truth_neither_required_nor_its_detection_false():
    truth = np.array([[0, 0, 10, 10], [50, 50, 60, 60]], float)
    pred = np.array([[0, 0, 10, 10], [50, 50, 60, 60]], float)
    score = np.array([0.5, 0.9])
    assert ours(pred, score, truth, required=np.array([True, False]))["ap"] == pytest.approx(1.0)
    assert ours(pred, score, truth[:1])["ap"] == pytest.approx(0.5)  # the same detection without that truth is false
    assert ours(pred, score, truth[:1], excused=np.array([False, True]))["ap"] == pytest.approx(1.0)


def test_empty_sides():
    none = np.zeros((0, 4))
    box = np.array([[0, 0, 10, 10]], float)
    assert ours(none, np.zeros(0), box)["ap"] == 0
    assert np.isnan(ours(box, np.ones(1), none)["ap"])


def test_no_score_says_so():
    result = average_precision(
        pd.DataFrame({"x": [1.0]}), box_overlaps(np.zeros((1, 4)), np.zeros((0, 4))), [False], []
    )
    assert not result["available"] and "score" in result["reason"]


def test_greedy_by_score_not_by_overlap():
    # COCO lets the higher score choose first, even where an optimal matching would differ.
    truth = np.array([[0, 0, 10, 10]], float)
    pred = np.array([[0, 0, 10, 8], [0, 0, 10, 10]], float)
    matched = match_detections(np.array([0.9, 0.8]), box_overlaps(pred, truth), np.zeros(2, bool), np.ones(1, bool))
    assert matched.correct[0].tolist() == [True, False]
    assert matched.correct[-1].tolist() == [False, True]
