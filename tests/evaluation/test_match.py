"""Matching against brute force over all assignments, and against distances computed independently."""

import itertools

import numpy as np
import pandas as pd
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from hypothesis import given, settings
from hypothesis import strategies as st

from deepdisc import matching
from deepdisc.errors import InputError
from deepdisc.evaluation import overlaps
from deepdisc.evaluation.conventions import check_overlap
from deepdisc.evaluation.ellipses import ellipse_iou, ellipse_overlaps
from deepdisc.evaluation.match import Criterion, choose_criterion, match_rows
from deepdisc.evaluation.overlaps import box_overlaps, segmentation_overlaps
from deepdisc.matching import Pairs, assign, close_pairs
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


# ---------------------------------------------------------------------------------------------------------- assignment
def graph_of(rng, n, m, density):
    """Random candidates between n and m objects; qualities with ties and zeros among them."""
    pred, truth = np.nonzero(rng.random((n, m)) < density)
    quality = rng.choice([0.0, 0.25, 0.5, 0.5, 0.75, 1.0], len(pred)) if rng.random() < 0.5 else rng.random(len(pred))
    return Pairs(pred.astype(np.int64), truth.astype(np.int64), quality)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 100_000), n=st.integers(1, 6), m=st.integers(1, 6), density=st.sampled_from([0.2, 0.5, 1.0]))
def test_any_graph_of_candidates_is_solved_like_brute_force(seed, n, m, density):
    rng = np.random.default_rng(seed)
    candidates = graph_of(rng, n, m, density)
    table = np.zeros((n, m))
    table[candidates.pred, candidates.truth] = candidates.quality
    pairs = assign(candidates)
    assert len(set(pairs.pred)) == len(set(pairs.truth)) == len(pairs)
    assert np.all(np.diff(pairs.truth) > 0)
    assert pairs.quality.sum() == pytest.approx(best_total(table), abs=1e-7)
    # Among the best, none could be given one more pair.
    free = ~np.isin(candidates.pred, pairs.pred) & ~np.isin(candidates.truth, pairs.truth)
    assert not free.any()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 100_000))
def test_sparse_and_dense_solutions_are_equally_good(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0, 12, (120, 2)), rng.uniform(0, 12, (100, 2))
    candidates = close_pairs(a, b, 2.0)  # one component, some nine candidates per object
    totals = []
    for limit in (matching._DENSE, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(matching, "_DENSE", limit)
            pairs = assign(candidates)
        assert len(set(pairs.pred)) == len(set(pairs.truth)) == len(pairs)
        totals.append(pairs.quality.sum())
    assert totals[0] == pytest.approx(totals[1], abs=1e-9)


def test_certain_pairs_and_the_solver_together_equal_one_big_table():
    from scipy.optimize import linear_sum_assignment

    rng = np.random.default_rng(3)
    a, b = rng.uniform(0, 40, (600, 2)), rng.uniform(0, 40, (500, 2))
    pairs = assign(close_pairs(a, b, 1.5))
    gain = np.clip(1 - np.linalg.norm(a[:, None] - b[None], axis=2) / 1.5, 0, None)
    assert pairs.quality.sum() == pytest.approx(gain[linear_sum_assignment(gain, maximize=True)].sum(), abs=1e-6)


def test_a_distance_that_joins_everything_is_refused(monkeypatch):
    monkeypatch.setattr(matching, "MOST_PAIRS", 1000)
    crowd = points(*np.zeros((100, 2)))
    with pytest.raises(InputError, match="have 10,000 pairs within reach of each other.*choose a smaller distance"):
        Criterion("pixels", 2.0).match(crowd, crowd)


# ------------------------------------------------------------------------------------------------------------ ellipses
def polygon(ellipse, n=720):
    x, y, a, b, theta = ellipse
    t, turn = np.arange(n) / n * 2 * np.pi, np.radians(theta)
    u, v = a * np.cos(t), b * np.sin(t)
    return np.stack((x + u * np.cos(turn) - v * np.sin(turn), y + u * np.sin(turn) + v * np.cos(turn)), axis=1)


def area(corners):
    x, y = corners.T
    return 0.5 * abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) if len(corners) > 2 else 0.0


def clipped(subject, window):
    """The part of one convex polygon inside another, both counter-clockwise (Sutherland & Hodgman 1974)."""
    for start, stop in zip(window, np.roll(window, -1, axis=0), strict=True):
        if not len(subject):
            return subject
        edge = stop - start
        side = edge[0] * (subject[:, 1] - start[1]) - edge[1] * (subject[:, 0] - start[0])
        if (side >= 0).all():
            continue
        after, side_after = np.roll(subject, -1, axis=0), np.roll(side, -1)
        with np.errstate(divide="ignore", invalid="ignore"):
            crossing = subject + (side / (side - side_after))[:, None] * (after - subject)
        crosses = (side >= 0) != (side_after >= 0)
        order = np.argsort(np.concatenate((np.arange(len(side))[side >= 0], np.flatnonzero(crosses) + 0.5)))
        subject = np.concatenate((subject[side >= 0], crossing[crosses]))[order]
    return subject


ellipse = st.tuples(
    st.floats(-4, 4), st.floats(-4, 4), st.floats(0.5, 8), st.floats(0.05, 1.0), st.floats(-180, 360)
).map(lambda e: (e[0], e[1], e[2], e[2] * e[3], e[4]))


@settings(max_examples=25, deadline=None)
@given(first=ellipse, second=ellipse)
def test_overlap_of_ellipses_equals_that_of_fine_polygons(first, second):
    a, b = polygon(first), polygon(second)
    shared = area(clipped(a, b))
    found = ellipse_iou(np.array([first]), np.array([second]))[0]
    assert found == pytest.approx(shared / (area(a) + area(b) - shared), abs=2e-4)
    assert ellipse_iou(np.array([second]), np.array([first]))[0] == pytest.approx(found, abs=2e-4)


def test_overlap_of_ellipses_in_closed_form():
    circle = [0, 0, 2, 2, 0]
    # Two circles of radius 2 at distance 2: the lens has the area 2 r^2 acos(d/2r) - d/2 sqrt(4 r^2 - d^2).
    lens = 8 * np.arccos(0.5) - np.sqrt(12)
    cases = [
        (circle, circle, 1.0),
        (circle, [2, 0, 2, 2, 33], lens / (8 * np.pi - lens)),
        (circle, [0, 0, 4, 1, 20], None),
        (circle, [0.5, 0, 1, 0.5, 70], 0.5 / 4),  # inside: ratio of the areas
        (circle, [4.001, 0, 2, 2, 0], 0.0),
        ([0, 0, 3, 1, 30], [0, 0, 3, 1, 210], 1.0),
        ([0, 0, 2, 1, 90], [0, 0, 1, 2, 0], 1.0),
    ]
    for first, second, expected in cases:
        found = ellipse_iou(np.array([first], float), np.array([second], float))[0]
        assert expected is None or found == pytest.approx(expected, abs=1e-4), (first, second)


def test_candidate_ellipses_are_all_that_overlap():
    rng = np.random.default_rng(8)
    a, b = (
        np.column_stack(
            (rng.uniform(0, 60, (n, 2)), rng.uniform(1, 9, n), rng.uniform(0.2, 1, n), rng.uniform(0, 180, n))
        )
        for n in (80, 70)
    )
    for part in (a, b):
        part[:, 3] *= part[:, 2]
    pairs = ellipse_overlaps(a, b)
    table = np.zeros((80, 70))
    table[pairs.pred, pairs.truth] = pairs.quality
    every = ellipse_iou(np.repeat(a, 70, axis=0), np.tile(b, (80, 1))).reshape(80, 70)
    np.testing.assert_allclose(table, every, atol=1e-12)


def test_ellipses_match_by_their_columns():
    names = ["x", "y", "a_pix", "b_pix", "theta_deg"]
    a = pd.DataFrame([[5, 5, 4, 2, 10.0], [np.nan, 5, 4, 2, 0]], columns=names)
    b = pd.DataFrame([[5.2, 5, 4.2, 2, 12.0], [30, 5, 4, 0, 0]], columns=names)
    pairs = Criterion("ellipses", 0.5).match(a, b)
    assert (pairs.pred.tolist(), pairs.truth.tolist()) == ([0], [0])


# -------------------------------------------------------------------------------------------------- outlines and both
def test_matching_by_masks_uses_the_maps():
    maps = np.zeros((2, 8, 12), np.int32)
    maps[0, 1:5, 1:5], maps[0, 1:5, 7:9] = 7, 5
    maps[1, 1:5, 1:5], maps[1, 1:5, 7:11] = 3, 9
    a, b = pd.DataFrame({"id": [5, 7, 8]}), pd.DataFrame({"id": [3, 9]})
    pairs = Criterion("masks", 0.5, maps=tuple(maps)).match(a, b)
    assert (pairs.pred.tolist(), pairs.truth.tolist(), pairs.quality.tolist()) == ([1, 0], [0, 1], [1.0, 0.5])
    with pytest.raises(InputError, match="give the segmentation maps of both"):
        Criterion("masks", 0.5).match(a, b)
    with pytest.raises(InputError, match="predicted catalogue has id 7 more than once"):
        Criterion("masks", 0.5, maps=tuple(maps)).match(pd.DataFrame({"id": [7, 7]}), b)


def test_maps_larger_than_a_strip_count_like_small_ones(monkeypatch):
    rng = np.random.default_rng(1)
    maps = rng.integers(0, 6, (2, 50, 30))
    whole = segmentation_overlaps(*maps, np.arange(1, 6), np.arange(1, 6))
    monkeypatch.setattr(overlaps, "_PIXELS_AT_ONCE", 100)
    strips = segmentation_overlaps(*maps, np.arange(1, 6), np.arange(1, 6))
    np.testing.assert_array_equal(whole.quality, strips.quality)
    for pred, truth, quality in zip(whole.pred, whole.truth, whole.quality, strict=True):
        first, second = maps[0] == pred + 1, maps[1] == truth + 1
        assert quality == (first & second).sum() / (first | second).sum()


def test_outlines_decide_where_both_have_one_and_positions_elsewhere():
    a = frame([[0, 0, 10, 10], [np.nan] * 4, [40, 0, 50, 10]]).assign(x=[5, 25.0, 45], y=5.0)
    b = frame([[0, 0, 9, 10], [20, 0, 30, 10], [40, 6, 50, 40]]).assign(x=[5.5, 25.5, 45], y=5.0)
    criterion = Criterion("iou", 0.5, otherwise=Criterion("pixels", 2.0))
    pairs = criterion.match(a, b)
    # The third pair lies at the same position, but its boxes disagree.
    assert list(zip(pairs.pred, pairs.truth, strict=True)) == [(0, 0), (1, 1)]
    np.testing.assert_allclose(pairs.quality, [0.9, 0.75])
    assert "or, where one has no outline, positions within 2 pixels" in str(criterion)
    without_boxes = criterion.match(a[["x", "y"]], b)
    assert len(without_boxes) == 3
    for wrong in (("pixels", "sky"), ("iou", "iou")):
        with pytest.raises(InputError, match="the first is one of iou, ellipses, masks, the second pixels or sky"):
            Criterion(wrong[0], 0.5, otherwise=Criterion(wrong[1], 0.5))


def test_the_criterion_follows_what_is_asked_for_then_limits_then_columns():
    both = frame([[0, 0, 4, 4]]).assign(x=2.0, y=2.0, ra=1.0, dec=1.0)

    def chosen(*args, **kw):
        return choose_criterion([both], both, *args, **kw)

    assert (chosen().kind, chosen().limit) == ("iou", 0.5)
    assert (chosen(max_distance_arcsec=0.4).kind, chosen(max_distance_arcsec=0.4).limit) == ("sky", 0.4)
    combined = chosen("iou+sky", iou_threshold=0.3, max_distance_arcsec=0.7)
    assert (combined.kind, combined.limit, combined.otherwise) == ("iou", 0.3, Criterion("sky", 0.7))
    assert combined.name == "iou+sky"
    assert choose_criterion([both, both[["ra", "dec"]]], both).kind == "sky"
    with pytest.raises(InputError, match="unknown way of matching 'mask'.*did you mean 'masks'"):
        chosen("mask")
    with pytest.raises(InputError, match="no column a_pix"):
        chosen("ellipses")
    with pytest.raises(InputError, match="no columns in common to match by.*Predicted: x, y. True: ra, dec"):
        choose_criterion([both[["x", "y"]]], both[["ra", "dec"]])


# -------------------------------------------------------------------------------------------------- what is left over
def test_unmatched_ambiguous_and_blended_are_told():
    # One detection on a pair of true objects, a lone pair, a lone detection, a lost object.
    pred = points((10, 10), (30, 30), (60, 60))
    truth = points((9, 10), (11.5, 10), (30.2, 30), (90, 90))
    result = match_rows(pred, truth, Criterion("pixels", 2.0))
    assert result.partner_of_pred.tolist() == [0, 2, -1]
    assert result.partner_of_truth.tolist() == [0, -1, 1, -1]
    assert result.ambiguous_pred.tolist() == [True, False, False]
    assert result.ambiguous_truth.tolist() == [False, True, False, False]
    assert result.groups.counts() == {"0-1": 1, "1-0": 1, "1-1": 1, "1-2": 1}
    assert result.groups.pred[0] == result.groups.truth[0] == result.groups.truth[1]
    matrix = result.groups.matrix(most=2)
    assert (matrix[1][2], matrix[1][1], matrix[1][0], matrix[0][1], sum(map(sum, matrix))) == (1, 1, 1, 1, 4)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(0, 30), m=st.integers(0, 30))
def test_groups_cover_every_object_once(seed, n, m):
    rng = np.random.default_rng(seed)
    result = match_rows(
        points(*rng.uniform(0, 12, (n, 2))), points(*rng.uniform(0, 12, (m, 2))), Criterion("pixels", 1.5)
    )
    table = result.groups.table
    assert (table.n_pred.sum(), table.n_truth.sum()) == (n, m)
    assert sum(result.groups.counts().values()) == len(table)
    np.testing.assert_array_equal(
        result.groups.pred[result.candidates.pred], result.groups.truth[result.candidates.truth]
    )
    assert (result.groups.pred[result.pairs.pred] == result.groups.truth[result.pairs.truth]).all()


# ------------------------------------------------------------------------------------------------ agreement with others
@pytest.mark.parametrize("dec", [-60.0, 0.0, 89.99])
def test_unambiguous_sets_match_as_with_astropy(dec):
    """Objects farther apart than twice the limit, shuffled and displaced by less: nearest = one-to-one = ours."""
    rng = np.random.default_rng(5)
    grid = SkyCoord(30.0, dec, unit="deg")
    step = np.stack(np.meshgrid(np.arange(20), np.arange(20)), -1).reshape(-1, 2) * 5.0
    here = grid.spherical_offsets_by(*(step.T * u.arcsec))
    order = rng.permutation(400)[:330]
    there = here[order].directional_offset_by(rng.uniform(0, 360, 330) * u.deg, rng.uniform(0, 1.4, 330) * u.arcsec)
    a, b = (pd.DataFrame({"ra": part.ra.deg, "dec": part.dec.deg}) for part in (there, here))
    nearest, separation, _ = there.match_to_catalog_sky(here)
    pairs = Criterion("sky", 1.5).match(a, b)
    assert len(pairs) == 330
    np.testing.assert_array_equal(pairs.truth[np.argsort(pairs.pred)], nearest)
    np.testing.assert_allclose(np.sort(1 - pairs.quality) * 1.5, np.sort(separation.arcsec), atol=1e-6)


def test_catalogues_of_the_same_detections_match_by_id():
    truth = pd.DataFrame({"id": [4, 7, 9], "x": [0.0, 50, 90], "y": 0.0})
    pred = pd.DataFrame({"id": [9, 5, 4], "z_mode": 0.5})
    by_id = choose_criterion([pred], truth, "id")
    pairs = by_id.match(pred, truth)
    assert sorted(zip(pairs.pred, pairs.truth, strict=True)) == [(0, 2), (2, 0)]
    named = [frame.assign(id=frame["id"].astype(str)) for frame in (pred, truth)]
    assert len(by_id.match(*named)) == len(by_id.match(pred, named[1])) == 2
    fields = [frame.assign(field=name) for frame, name in ((pred, "a"), (truth, "b"))]
    assert len(by_id.match(*fields)) == 0
    check_overlap(pred, truth, by_id)
    with pytest.raises(InputError, match="no id of the predicted catalogue is one of the true"):
        check_overlap(pred.assign(id=[1, 2, 3]), truth, by_id)
