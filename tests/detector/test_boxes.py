"""Anchors, box coder, matcher, sampling and pooler: what must hold for any input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepdisc.detector.anchors import AnchorGenerator
from deepdisc.detector.box_coder import MAX_LOG_SCALE, BoxCoder
from deepdisc.detector.matcher import Matcher, sample_labels
from deepdisc.detector.pooling import ROIPooler, feature_stride
from deepdisc.errors import InputError
from deepdisc.structures import box_centers

coordinate = st.floats(-50, 500, width=32)
side = st.floats(0.5, 300, width=32)
box = st.tuples(coordinate, coordinate, side, side).map(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]])


# ------------------------------------------------------------------------------------------------------- box coder
@settings(max_examples=100, deadline=None)
@given(source=box, target=box, weights=st.sampled_from([(1, 1, 1, 1), (10, 10, 5, 5)]))
def test_decoding_undoes_encoding(source, target, weights):
    source, target = torch.tensor([source]), torch.tensor([target])
    coder = BoxCoder(weights)
    deltas = coder.encode(source, target)
    log_scale = deltas[:, 2:] / torch.tensor(weights[2:])
    if (log_scale > MAX_LOG_SCALE).any():
        return  # growth is limited on purpose; see below
    tolerance = 1e-4 * float(target.abs().max() + source.abs().max()) + 1e-3
    torch.testing.assert_close(coder.decode(deltas, source), target, rtol=1e-4, atol=tolerance)


def test_offsets_by_hand():
    source, target = torch.tensor([[10.0, 20.0, 30.0, 60.0]]), torch.tensor([[15.0, 20.0, 25.0, 100.0]])
    # centres (20, 40) -> (20, 60), sizes (20, 40) -> (10, 80)
    wanted = torch.tensor([[0.0, 20 / 40, math.log(0.5), math.log(2.0)]])
    torch.testing.assert_close(BoxCoder().encode(source, target), wanted)
    torch.testing.assert_close(BoxCoder((10, 10, 5, 5)).encode(source, target), wanted * torch.tensor([10, 10, 5, 5]))


def test_growth_is_limited_and_shrinking_is_not():
    source = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    huge = BoxCoder().decode(torch.tensor([[0.0, 0.0, 1e4, -1e4]]), source)
    torch.testing.assert_close(huge, torch.tensor([[8 - 500.0, 8.0, 8 + 500.0, 8.0]]))


def test_one_box_per_class_is_decoded_from_the_same_source():
    source = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
    deltas = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0, 0.5, 0.0, 0.0]])
    torch.testing.assert_close(BoxCoder().decode(deltas, source), torch.tensor([[0.0, 0, 10, 20, 10, 10, 20, 30]]))
    assert BoxCoder().decode(torch.zeros(0, 8), torch.zeros(0, 4)).shape == (0, 8)


# --------------------------------------------------------------------------------------------------------- anchors
def test_anchors_have_their_area_shape_and_place():
    generator = AnchorGenerator([[8.0, 12.0], [16.0, 24.0]], [0.5, 1.0, 2.0])
    assert generator.num_anchors == [6, 6]
    assert not generator.state_dict()
    fine, coarse = generator([(3, 5), (2, 3)], [2, 4])
    assert fine.shape == (3 * 5 * 6, 4) and coarse.shape == (2 * 3 * 6, 4)
    anchors = fine.view(3, 5, 6, 4)
    size = anchors[..., 2:] - anchors[..., :2]
    area = torch.tensor([64.0] * 3 + [144.0] * 3).expand(3, 5, 6)
    torch.testing.assert_close(size.prod(dim=-1), area)
    torch.testing.assert_close(size[..., 1] / size[..., 0], torch.tensor([0.5, 1.0, 2.0] * 2).expand(3, 5, 6))
    centers = box_centers(fine).view(3, 5, 6, 2)
    torch.testing.assert_close(centers[2, 3], torch.tensor([3 * 2.0, 2 * 2.0]).expand(6, 2))


# --------------------------------------------------------------------------------------------------------- matcher
def overlaps_of(*rows):
    return [torch.tensor(rows)]


def test_without_objects_everything_is_background():
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [1.0, 1.0, 3.0, 3.0]])
    index, labels = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True)(torch.zeros(0, 4), boxes)
    assert index.tolist() == [0, 0] and labels.tolist() == [0, 0]
    index, labels = Matcher([0.5], [0, 1])(boxes, torch.zeros(0, 4))
    assert len(index) == len(labels) == 0


def test_a_threshold_belongs_to_the_upper_interval():
    index, labels = Matcher([0.25, 0.75], [0, -1, 1]).assign(overlaps_of([0.25, 0.75, 0.2499]), 3)
    assert labels.tolist() == [-1, 1, 0]


def test_every_object_gets_its_best_boxes_even_when_tied():
    matcher = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True)
    index, labels = matcher.assign(overlaps_of([0.2, 0.2, 0.1, 0.8], [0.1, 0.0, 0.15, 0.9]), 4)
    # the first object's best box is taken by the second, which overlaps it more
    assert index.tolist() == [0, 0, 1, 1]
    assert labels.tolist() == [0, 0, 0, 1]
    index, labels = matcher.assign(overlaps_of([0.2, 0.2, 0.1], [0.1, 0.0, 0.15]), 3)
    assert index.tolist() == [0, 0, 1]
    assert labels.tolist() == [1, 1, 1]


def test_an_object_without_area_claims_no_box():
    matcher = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True)
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [8.0, 8.0, 12.0, 12.0]])
    _, labels = matcher(torch.tensor([[2.0, 2.0, 2.0, 3.0]]), boxes)
    assert labels.tolist() == [0, 0]


def test_matching_in_blocks_equals_matching_at_once(monkeypatch):
    torch.manual_seed(3)
    corner = torch.rand(60, 2) * 50
    boxes = torch.cat((corner, corner + 3 + torch.rand(60, 2) * 20), dim=1).round()
    matcher = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True)
    index, labels = matcher(boxes[:20], boxes)
    monkeypatch.setattr("deepdisc.detector.matcher.BLOCK_ELEMENTS", 3 * len(boxes))
    index_blocks, labels_blocks = matcher(boxes[:20], boxes)
    assert torch.equal(index, index_blocks) and torch.equal(labels, labels_blocks)
    assert set(labels.tolist()) == {-1, 0, 1}


# -------------------------------------------------------------------------------------------------------- sampling
@settings(max_examples=50, deadline=None)
@given(
    labels=st.lists(st.integers(-1, 3), max_size=40),
    count=st.integers(0, 30),
    fraction=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)
def test_samples_are_of_their_kind_distinct_and_as_many_as_possible(labels, count, fraction):
    labels = torch.tensor(labels, dtype=torch.int64)
    positive, negative = sample_labels(labels, count, fraction, background=3)
    assert ((labels[positive] != -1) & (labels[positive] != 3)).all()
    assert (labels[negative] == 3).all()
    assert len(set(positive.tolist())) == len(positive) and len(set(negative.tolist())) == len(negative)
    assert len(positive) == min(int(count * fraction), int(((labels != -1) & (labels != 3)).sum()))
    assert len(negative) == min(count - len(positive), int((labels == 3).sum()))


def test_sampling_follows_the_global_generator():
    labels = torch.tensor([0, 1] * 50)
    torch.manual_seed(5)
    first = sample_labels(labels, 20, 0.5, background=0)
    torch.manual_seed(5)
    again = sample_labels(labels, 20, 0.5, background=0)
    other = sample_labels(labels, 20, 0.5, background=0)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


# ---------------------------------------------------------------------------------------------------------- pooler
def test_canonical_size_chooses_the_level():
    pooler = ROIPooler(7, ["p1", "p2", "p3", "p4"], canonical_box_size=56, canonical_level=3)
    sides = torch.tensor([0.0, 1.0, 27.9, 28.1, 55.9, 56.1, 111.9, 112.1, 4000.0])
    boxes = torch.stack((torch.zeros(9), torch.zeros(9), sides, sides), dim=1)
    assert (pooler.levels(boxes) + 1).tolist() == [1, 1, 1, 2, 2, 3, 3, 4, 4]


def test_a_pooled_ramp_is_the_ramp():
    """Pixel values x + 0.5 (edge coordinates): the mean over an output cell is its centre, whatever the level."""
    ramp = (torch.arange(64) + 0.5).expand(1, 1, 64, 64)
    maps = {"image": ramp, "p1": torch.nn.functional.avg_pool2d(ramp, 2), "p2": torch.nn.functional.avg_pool2d(ramp, 4)}
    region = torch.tensor([[12.0, 20.0, 40.0, 48.0]])
    wanted = 12 + (torch.arange(7) + 0.5) * 4
    for name in maps:
        pooled = ROIPooler(7, [name])(maps, [region])
        torch.testing.assert_close(pooled[0, 0, 0], wanted)


def test_regions_of_all_images_come_in_order():
    maps = {"p2": torch.stack((torch.zeros(1, 8, 8), torch.ones(1, 8, 8), torch.full((1, 8, 8), 2.0)))}
    region = torch.tensor([[4.0, 4.0, 20.0, 20.0]])
    pooled = ROIPooler(2, ["p2"])(maps, [region, region[:0], region.expand(2, 4)])
    assert pooled[:, 0, 0, 0].tolist() == [0.0, 2.0, 2.0]
    several = ROIPooler(2, ["p2", "p3"])({**maps, "p3": torch.zeros(3, 1, 4, 4)}, [region[:0]] * 3)
    assert several.shape == (0, 1, 2, 2)


def test_names_of_maps_give_their_stride():
    assert [feature_stride(name) for name in ("image", "p1", "p6")] == [1, 2, 64]
    with pytest.raises(InputError, match="unknown feature map 'res4'"):
        feature_stride("res4")
    with pytest.raises(InputError, match="successive levels"):
        ROIPooler(7, ["p2", "p4"])
