"""Matching against brute force over all assignments, and against distances computed independently."""

import itertools

import numpy as np
import pandas as pd
import pytest
from astropy.coordinates import SkyCoord
from hypothesis import given, settings
from hypothesis import strategies as st

from deepdisc.errors import InputError
from deepdisc.evaluation.match import Criterion
from deepdisc.evaluation.overlaps import box_overlaps, segmentation_overlaps
from deepdisc.matching import Pairs, assign
from deepdisc.structures import box_iou


def best_total(gain):
    """The largest total over all one-to-one assignments, by trying every one."""
    n, m = gain.shape
    if n > m:
        return best_total(gain.T)
    return max(sum(gain[i, c] for i, c in enumerate(columns)) for columns in itertools.permutations(range(m), n))


def boxes_of(rng, n, size=25.0):
    corner = rng.uniform(0, size, (n, 2))
    return np.concatenate((corner, corner + rng.uniform(1, 14, (n, 2))), axis=1)


def frame(boxes):
    return pd.DataFrame(np.asarray(boxes, float).reshape(-1, 4), columns=["x_min", "y_min", "x_max", "y_max"])


def points(*xy):
    return pd.DataFrame(np.array(xy, float).reshape(-1, 2), columns=["x", "y"])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(0, 6), m=st.integers(0, 6), limit=st.sampled_from([0.01, 0.2, 0.5]))
def test_matching_by_overlap_is_one_to_one_and_optimal(seed, n, m, limit):
    import torch

    rng = np.random.default_rng(seed)
    a, b = boxes_of(rng, n), boxes_of(rng, m)
    pairs = Criterion("iou", limit).match(frame(a), frame(b))
    assert len(set(pairs.pred)) == len(set(pairs.truth)) == len(pairs)
    iou = box_iou(torch.tensor(a).reshape(-1, 4), torch.tensor(b).reshape(-1, 4)).numpy()
    np.testing.assert_allclose(pairs.quality, iou[pairs.pred, pairs.truth])
    allowed = np.where(iou >= limit, iou, 0.0)
    assert (pairs.quality >= limit).all()
    assert pairs.quality.sum() == pytest.approx(best_total(allowed) if n and m else 0.0)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 6), m=st.integers(1, 6))
def test_matching_by_distance_is_one_to_one_and_optimal(seed, n, m):
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0, 6, (n, 2)), rng.uniform(0, 6, (m, 2))
    pairs = Criterion("pixels", 2.0).match(points(*a), points(*b))
    assert len(set(pairs.pred)) == len(set(pairs.truth)) == len(pairs)
    distance = np.linalg.norm(a[:, None] - b[None], axis=2)
    assert pairs.quality.sum() == pytest.approx(best_total(np.clip(1 - distance / 2, 0, None)))
    assert (distance[pairs.pred, pairs.truth] <= 2).all()


def test_two_detections_cannot_claim_one_object():
    pairs = Criterion("pixels", 2.0).match(points((0, 0), (0.5, 0)), points((0.1, 0)))
    assert pairs.pred.tolist() == [0] and pairs.truth.tolist() == [0]


def test_greedy_choice_would_lose_a_pair():
    # Nearest first takes detection 1 for object 0 and leaves detection 0 alone.
    pred, truth = points((0, 0), (1.1, 0)), points((1.0, 0), (2.2, 0))
    pairs = Criterion("pixels", 2.0).match(pred, truth)
    assert sorted(zip(pairs.pred, pairs.truth, strict=True)) == [(0, 0), (1, 1)]


def test_distance_exactly_at_the_limit_matches():
    assert len(Criterion("pixels", 1.0).match(points((0, 0)), points((1, 0)))) == 1
    assert len(Criterion("pixels", 1.0).match(points((0, 0)), points((1.0001, 0)))) == 0


def test_candidate_boxes_equal_all_pairs_with_sizes_from_tiny_to_huge():
    import torch

    rng = np.random.default_rng(4)
    a, b = boxes_of(rng, 200, 300.0), boxes_of(rng, 150, 300.0)
    a[:3, 2:] += 250
    b[0] = [-20, -20, 400, 400]
    pairs = box_overlaps(a, b)
    table = np.zeros((200, 150))
    table[pairs.pred, pairs.truth] = pairs.quality
    np.testing.assert_allclose(table, box_iou(torch.tensor(a), torch.tensor(b)).numpy(), atol=1e-12)
    assert len(pairs) == (table > 0).sum()


def test_iou_of_a_hand_computed_pair():
    pairs = box_overlaps([[0, 0, 10, 10]], [[5, 0, 15, 10]])
    assert pairs.quality[0] == pytest.approx(50 / 150)


@pytest.mark.parametrize(("ra", "dec"), [(359.99995, 0.0), (120.0, 89.9999), (10.0, -45.0)])
def test_sky_distances_across_zero_and_at_the_pole(ra, dec):
    here = SkyCoord(ra, dec, unit="deg")
    there = here.directional_offset_by(np.radians(37) * 57.29578 * here.ra.unit, 0.9 / 3600 * here.ra.unit)
    a = pd.DataFrame({"ra": [here.ra.deg], "dec": [here.dec.deg]})
    b = pd.DataFrame({"ra": [there.ra.deg], "dec": [there.dec.deg]})
    assert len(Criterion("sky", 1.0).match(a, b)) == 1
    assert len(Criterion("sky", 0.8).match(a, b)) == 0
    assert Criterion("sky", 1.0).match(a, b).quality[0] == pytest.approx(0.1, abs=1e-4)


def test_same_pixels_of_different_fields_do_not_match():
    a, b = points((5, 5), (5, 5)).assign(field=["one", "two"]), points((5, 5)).assign(field=["two"])
    pairs = Criterion("pixels", 1.0).match(a, b)
    assert pairs.pred.tolist() == [1]
    box = [[0, 0, 4, 4]]
    assert len(Criterion("iou", 0.5).match(frame(box).assign(field="one"), frame(box).assign(field="two"))) == 0
    assert len(Criterion("iou", 0.5).match(frame(box).assign(field="one"), frame(box).assign(field="one"))) == 1


def test_unknown_positions_match_nothing():
    a = points((np.nan, 1), (3, 3))
    pairs = Criterion("pixels", 1.0).match(a, points((3, 3), (np.nan, np.nan)))
    assert pairs.pred.tolist() == [1] and pairs.truth.tolist() == [0]


def test_empty_catalogues():
    for a, b in ((points(), points((1, 1))), (points((1, 1)), points()), (points(), points())):
        assert len(Criterion("pixels", 1.0).match(a, b)) == 0
    assert len(assign(Pairs(np.zeros(0, int), np.zeros(0, int), np.zeros(0)))) == 0


def test_outlines_overlap_by_counting_pixels():
    pred, truth = np.zeros((6, 8), np.int32), np.zeros((6, 8), np.int32)
    pred[0:4, 0:4] = 7  # 16 pixels
    truth[0:4, 2:5] = 3  # 12 pixels, 8 shared
    truth[5, 7] = 9
    pairs = segmentation_overlaps(pred, truth, np.array([5, 7]), np.array([9, 3]))
    assert (pairs.pred.tolist(), pairs.truth.tolist()) == ([1], [1])
    assert pairs.quality[0] == pytest.approx(8 / (16 + 12 - 8))


def test_maps_of_different_shape_are_named():
    with pytest.raises(InputError, match=r"\(4, 4\) predicted and \(5, 4\) true"):
        segmentation_overlaps(np.zeros((4, 4), int), np.zeros((5, 4), int), np.zeros(0), np.zeros(0))


@pytest.mark.parametrize(
    ("kind", "limit", "message"),
    [
        ("overlap", 0.5, "choose one of iou, ellipses, masks, pixels, sky"),
        ("iou", 1.5, "1.5"),
        ("pixels", -1, "must be positive"),
    ],
)
def test_wrong_criterion(kind, limit, message):
    with pytest.raises(InputError, match=message):
        Criterion(kind, limit)


def test_missing_columns_are_named():
    with pytest.raises(InputError, match="true catalogue has no column y"):
        Criterion("pixels", 1.0).match(points((1, 1)), points((1, 1)).drop(columns="y"))
