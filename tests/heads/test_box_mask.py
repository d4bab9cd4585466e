"""Box and mask head: detections from given outputs, mask targets and pasted masks, on cases done by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_align

from deepdisc.detector.box_coder import BoxCoder
from deepdisc.detector.pooling import ROIPooler
from deepdisc.heads.box import BoxHead, BoxPredictor
from deepdisc.heads.mask import MaskHead, mask_targets, paste_masks
from deepdisc.structures import Instances, RegionMasks

SIZE = (40, 60)


def predictor(**options) -> BoxPredictor:
    return BoxPredictor(4, 2, BoxCoder((10, 10, 5, 5)), **options)


def logits_of(*probabilities) -> torch.Tensor:
    return torch.tensor(probabilities).log()


def detect(predictor, logits, deltas, boxes) -> Instances:
    """Detections from the outputs for regions `boxes`."""
    return predictor.detect(logits.softmax(dim=1), predictor.box_coder.decode(deltas, boxes), SIZE)


# ----------------------------------------------------------------------------------------------------------- boxes
def test_every_class_above_the_threshold_is_a_detection():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [30.0, 10.0, 50.0, 30.0]])
    found = detect(
        predictor(test_score_thresh=0.25), logits_of([0.3, 0.6, 0.1], [0.25, 0.05, 0.7]), torch.zeros(2, 8), boxes
    )
    assert found.pred_classes.tolist() == [1, 0]
    torch.testing.assert_close(found.scores, torch.tensor([0.6, 0.3]))
    torch.testing.assert_close(found.pred_boxes, boxes[[0, 0]])


def test_suppression_is_within_a_class():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 1.0, 10.0, 11.0], [0.0, 2.0, 10.0, 12.0]])
    logits = logits_of([0.8, 0.1, 0.1], [0.7, 0.1, 0.2], [0.1, 0.6, 0.3])
    found = detect(predictor(test_score_thresh=0.5), logits, torch.zeros(3, 8), boxes)
    assert found.pred_classes.tolist() == [0, 1]
    torch.testing.assert_close(found.pred_boxes, boxes[[0, 2]])
    # IoU 9/11: kept by a laxer threshold
    found = detect(predictor(test_score_thresh=0.5, test_nms_thresh=0.85), logits, torch.zeros(3, 8), boxes)
    assert len(found) == 3


def test_boxes_are_clipped_and_empty_or_broken_ones_dropped():
    boxes = torch.tensor([[-5.0, -5.0, 8.0, 8.0], [70.0, 10.0, 80.0, 20.0], [20.0, 20.0, 30.0, 30.0]])
    deltas = torch.zeros(3, 8)
    deltas[2, 0] = float("nan")
    found = detect(predictor(test_score_thresh=0.5), logits_of(*[[0.9, 0.05, 0.05]] * 3), deltas, boxes)
    torch.testing.assert_close(found.pred_boxes, torch.tensor([[0.0, 0.0, 8.0, 8.0]]))
    nothing = detect(predictor(), torch.zeros(0, 3), torch.zeros(0, 8), torch.zeros(0, 4))
    assert len(nothing) == 0 and nothing.pred_boxes.shape == (0, 4) and nothing.pred_classes.dtype == torch.int64


def test_an_object_between_two_classes_is_listed_once_with_their_probabilities_together():
    boxes = torch.tensor([[2.0, 2, 10, 10], [2, 2, 10, 11], [20, 20, 30, 30]])
    logits = torch.tensor([[0.45, 0.5, 0.05], [0.4, 0.3, 0.3], [0.1, 0.02, 0.88]]).log()
    settings = {"test_score_thresh": 0.2, "test_nms_thresh": 0.5}
    found = detect(predictor(**settings, one_class_per_object=True), logits, torch.zeros(3, 8), boxes)
    assert found.scores.tolist() == pytest.approx([0.95]) and found.pred_classes.tolist() == [1]
    assert found.pred_boxes.tolist() == [[2, 2, 10, 10]]
    both = detect(predictor(**settings), logits, torch.zeros(3, 8), boxes)
    assert sorted(both.pred_classes.tolist()) == [0, 1]


def test_offsets_of_the_detected_class_are_used():
    box = torch.tensor([[10.0, 10.0, 20.0, 20.0]])
    deltas = torch.tensor([[0.0, 0, 0, 0, 10.0, 0, 0, 0]])  # class 1: one width to the right
    found = detect(predictor(test_score_thresh=0.3), logits_of([0.35, 0.6, 0.05]), deltas, box)
    torch.testing.assert_close(found.pred_boxes, torch.tensor([[20.0, 10.0, 30.0, 20.0], [10.0, 10.0, 20.0, 20.0]]))


def test_one_box_for_all_classes_serves_every_class():
    box = torch.tensor([[10.0, 10.0, 20.0, 20.0]])
    agnostic = predictor(test_score_thresh=0.3, cls_agnostic_bbox_reg=True)
    assert agnostic.bbox_pred.out_features == 4
    found = detect(agnostic, logits_of([0.35, 0.6, 0.05]), torch.tensor([[10.0, 0, 0, 0]]), box)
    torch.testing.assert_close(found.pred_boxes, torch.tensor([[20.0, 10.0, 30.0, 20.0]] * 2))
    assert found.pred_classes.tolist() == [1, 0]


def test_more_objects_than_are_kept_are_told_once(caplog):
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [30.0, 10.0, 50.0, 30.0]])
    few = predictor(test_score_thresh=0.25, test_topk_per_image=1)
    for _ in range(2):
        assert len(detect(few, logits_of([0.6, 0.1, 0.3], [0.5, 0.1, 0.4]), torch.zeros(2, 8), boxes)) == 1
    (record,) = caplog.records
    assert "2 objects in one image score above 0.25, but only the best 1 are kept" in record.getMessage()
    assert "test_topk_per_image" in record.getMessage()


def test_box_losses_by_hand():
    regions = Instances(
        SIZE,
        proposal_boxes=torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 10.0]]),
        gt_boxes=torch.tensor([[1.0, 0.0, 11.0, 10.0], [0.0, 0.0, 1.0, 1.0]]),
        gt_classes=torch.tensor([1, 2]),
    )
    logits = logits_of([0.2, 0.5, 0.3], [0.1, 0.1, 0.8])
    deltas = torch.tensor([[9.0, 9, 9, 9, 0.25, 0, 0, 0.5], [7.0] * 8])
    losses = predictor().losses(logits, deltas, [regions])
    # dx of the object is 10 * 0.1 = 1; offsets of the other class and of background regions do not count
    assert losses["loss_cls"].item() == pytest.approx(-(math.log(0.5) + math.log(0.8)) / 2)
    assert losses["loss_box_reg"].item() == pytest.approx((0.75 + 0.5) / 2)


def test_no_regions_cost_nothing():
    empty = Instances(SIZE, proposal_boxes=torch.zeros(0, 4), gt_classes=torch.zeros(0, dtype=torch.int64))
    head, predict = BoxHead(2, 3, 5, 2), BoxPredictor(5, 2, BoxCoder())
    losses = predict.losses(*predict(head(torch.zeros(0, 2, 3, 3))), [empty])
    assert all(value == 0 and value.requires_grad for value in losses.values())


# ----------------------------------------------------------------------------------------------------------- masks
@settings(max_examples=60, deadline=None)
@given(
    rows=st.tuples(st.integers(0, 39), st.integers(1, 12)),
    columns=st.tuples(st.integers(0, 59), st.integers(1, 12)),
    corner=st.tuples(st.floats(-6, 58, width=16), st.floats(-6, 38, width=16)),
    side=st.tuples(st.floats(0.5, 30, width=16), st.floats(0.5, 30, width=16)),
    seed=st.integers(0, 99),
)
def test_targets_from_a_region_equal_those_from_the_full_image(rows, columns, corner, side, seed):
    """Masks anywhere, on the image's edges too; boxes partly outside the region and the image."""
    mask = torch.zeros(1, *SIZE, dtype=torch.bool)
    patch = mask[0, rows[0] : rows[0] + rows[1], columns[0] : columns[0] + columns[1]]
    patch.copy_(torch.rand(patch.shape, generator=torch.Generator().manual_seed(seed)) > 0.3)
    box = torch.tensor([[corner[0], corner[1], corner[0] + side[0], corner[1] + side[1]]])
    full = roi_align(mask[None].float(), [box], 14, aligned=True)[0, 0]
    given_target = mask_targets(RegionMasks.from_dense(mask), box, 14)[0]
    clear = (full - 0.5).abs() > 1e-4  # a value of one half exactly may round either way
    assert torch.equal(given_target[clear], (full >= 0.5)[clear])


def test_target_of_a_mask_that_fills_half_its_box():
    masks = RegionMasks(torch.tensor([[10, 5, 15, 25]]), [torch.ones(20, 5, dtype=torch.bool)], SIZE)
    target = mask_targets(masks, torch.tensor([[10.0, 10.0, 20.0, 20.0]]), 28)
    assert target[0, :, :14].all() and not target[0, :, 14:].any()
    nothing = mask_targets(RegionMasks.from_dense(torch.zeros(1, *SIZE)), torch.tensor([[1.0, 1.0, 9.0, 9.0]]), 28)
    assert nothing.shape == (1, 28, 28) and not nothing.any()


def test_a_mask_pasted_into_its_box_fills_it():
    boxes = torch.tensor([[10.0, 5.0, 18.0, 11.0], [3.2, 4.6, 7.4, 6.4], [-3.0, 30.0, 5.0, 44.0]])
    masks = paste_masks(torch.ones(3, 28, 28), boxes, SIZE)
    # a pixel belongs to the mask if its centre is inside the box
    y, x = torch.meshgrid(torch.arange(40) + 0.5, torch.arange(60) + 0.5, indexing="ij")
    x0, y0, x1, y1 = boxes[..., None, None].unbind(dim=1)
    inside = (x > x0) & (x < x1) & (y > y0) & (y < y1)
    assert torch.equal(masks.to_dense(), inside)
    assert masks.regions[2].tolist() == [0, 30, 5, 40]


def test_pasting_resamples_the_probabilities():
    halves = torch.zeros(1, 28, 28)
    halves[0, :, :14] = 1.0
    mask = paste_masks(halves, torch.tensor([[10.0, 10.0, 30.0, 20.0]]), SIZE)
    assert mask.boxes().tolist() == [[10.0, 10.0, 20.0, 20.0]]
    assert mask.areas().tolist() == [100]
    assert len(paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), SIZE)) == 0


def test_mask_loss_by_hand_and_without_objects():
    head = MaskHead(ROIPooler(14, ["p2"]), num_classes=2, in_channels=3, conv_dim=4)
    torch.nn.init.zeros_(head.predictor.weight)
    with torch.no_grad():
        head.predictor.bias.copy_(torch.tensor([50.0, 2.0]))
    objects = Instances(
        SIZE,
        proposal_boxes=torch.tensor([[10.0, 10.0, 20.0, 20.0]]),
        gt_classes=torch.tensor([1]),
        gt_masks=RegionMasks(torch.tensor([[10, 5, 15, 25]]), [torch.ones(20, 5, dtype=torch.bool)], SIZE),
    )
    features = {"p2": torch.randn(1, 3, 10, 15)}
    probability = 1 / (1 + math.exp(-2.0))
    wanted = -(math.log(probability) + math.log(1 - probability)) / 2
    assert head.losses(features, [objects])["loss_mask"].item() == pytest.approx(wanted, rel=1e-5)
    nothing = head.losses(features, [Instances(SIZE, proposal_boxes=torch.zeros(0, 4))])["loss_mask"]
    assert nothing == 0 and nothing.requires_grad


def test_masks_are_those_of_the_predicted_class_in_any_chunk():
    torch.manual_seed(0)
    head = MaskHead(ROIPooler(14, ["p2"]), num_classes=2, in_channels=3, conv_dim=4)
    torch.nn.init.normal_(head.predictor.weight)
    features = {"p2": torch.randn(2, 3, 10, 15)}
    corner = torch.rand(7, 2) * 20
    boxes = torch.cat((corner, corner + 5 + torch.rand(7, 2) * 10), dim=1)
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0])
    with torch.no_grad():
        logits = head(head.pooler(features, [boxes[:0], boxes]))
    for chunk in (1, 3, 100):
        head.chunk_size = chunk
        first, second = head.probabilities(features, [boxes[:0], boxes], [labels[:0], labels])
        assert first.shape == (0, 28, 28)
        torch.testing.assert_close(second, logits[torch.arange(7), labels].sigmoid())
