"""Containers and boxes."""

import pickle

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from deepdisc.mixture import Mixture
from deepdisc.structures import (
    ImageBatch,
    Instances,
    PolygonMasks,
    RegionMasks,
    box_iou,
    clip_boxes,
    nonempty,
    sample_map,
)


def random_boxes(n: int, seed: int) -> torch.Tensor:
    corner = torch.rand(n, 2, generator=torch.Generator().manual_seed(seed)) * 50
    size = torch.rand(n, 2, generator=torch.Generator().manual_seed(seed + 1)) * 20 + 0.1
    return torch.cat((corner, corner + size), dim=1)


def test_iou_equals_torchvision():
    a, b = random_boxes(30, 1), random_boxes(20, 3)
    assert torch.allclose(box_iou(a, b), torchvision.ops.box_iou(a, b), atol=1e-6)


def test_iou_of_boxes_that_only_touch_is_zero_and_empty_boxes_do_not_divide_by_zero():
    boxes = torch.tensor([[0.0, 0, 2, 2], [2, 0, 4, 2], [1, 1, 1, 1]])
    assert box_iou(boxes, boxes)[0, 1] == 0 and box_iou(boxes, boxes)[2, 2] == 0


def test_clipped_boxes_lie_in_the_image_and_outside_ones_become_empty():
    boxes = torch.tensor([[-5.0, -5, 3, 3], [70, 5, 80, 9]])
    clipped = clip_boxes(boxes, (40, 60))
    assert clipped.tolist() == [[0, 0, 3, 3], [60, 5, 60, 9]]
    assert nonempty(clipped).tolist() == [True, False]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(-30, 30), st.integers(-30, 30))
def test_region_masks_equal_dense_masks_under_shift_and_selection(seed, dx, dy):
    dense = torch.rand(4, 12, 17, generator=torch.Generator().manual_seed(seed)) > 0.9
    masks = RegionMasks.from_dense(dense)
    assert torch.equal(masks.to_dense(), dense)
    assert masks.areas().tolist() == dense.sum((1, 2)).tolist()
    expected = torch.zeros(4, 20, 25, dtype=torch.bool)
    for i, y, x in dense.nonzero().tolist():
        if 0 <= y + dy < 20 and 0 <= x + dx < 25:
            expected[i, y + dy, x + dx] = True
    assert torch.equal(masks.shift(dx, dy, (20, 25)).to_dense(), expected)
    keep = torch.tensor([True, False, True, False])
    assert torch.equal(masks[keep].to_dense(), dense[keep])
    assert torch.equal(RegionMasks.cat([masks[keep], masks[~keep]]).to_dense(), torch.cat((dense[keep], dense[~keep])))


def test_polygons_of_several_parts_are_filled_and_follow_an_index():
    square, far = [2, 3, 6, 3, 6, 8, 2, 8], [10, 10, 12, 10, 12, 12, 10, 12]
    masks = PolygonMasks([[square, far], [far]], (16, 16))
    dense = torch.zeros(2, 16, 16, dtype=torch.bool)
    dense[0, 3:8, 2:6] = True
    dense[:, 10:12, 10:12] = True

    def drawn(polygons):
        return polygons.rasterize_in_boxes(torch.tensor([[0.0, 0.0, 16.0, 16.0]]).expand(len(polygons), -1), 16)

    assert torch.equal(drawn(masks), dense)
    assert torch.equal(drawn(masks[torch.tensor([1])]), dense[1:])
    assert torch.equal(drawn(PolygonMasks.cat([masks, masks[:1]])), dense[[0, 1, 0]])
    assert drawn(PolygonMasks([], (16, 16))).shape == (0, 16, 16)


def test_polygons_in_a_box_are_stretched_to_it():
    masks = PolygonMasks([[[2, 3, 6, 3, 6, 8, 2, 8]]], (16, 20))
    box = torch.tensor([[0.0, 3.0, 8.0, 13.0]])
    wanted = torch.zeros(1, 28, 28, dtype=torch.bool)
    wanted[0, :14, 7:21] = True
    assert torch.equal(masks.rasterize_in_boxes(box, 28), wanted)
    nowhere = masks.rasterize_in_boxes(torch.tensor([[5.0, 5.0, 5.0, 5.0]]), 28)  # a box without area
    assert nowhere.shape == (1, 28, 28)


def test_a_polygon_of_two_points_is_refused():
    with pytest.raises(ValueError, match="three points or more, not 4 numbers"):
        PolygonMasks([[[0, 0, 1, 1]]], (8, 8))


def test_tight_boxes_of_masks():
    dense = torch.zeros(2, 10, 10, dtype=torch.bool)
    dense[0, 2:5, 3:9] = True
    assert RegionMasks.from_dense(dense).boxes().tolist() == [[3, 2, 9, 5], [0, 0, 0, 0]]


def make_instances(n: int = 3) -> Instances:
    return Instances(
        (20, 30),
        pred_boxes=random_boxes(n, 0),
        names=[f"object {i}" for i in range(n)],
        pred_masks=RegionMasks.from_dense(torch.ones(n, 20, 30, dtype=torch.bool)),
        pred_redshift=Mixture.from_raw(torch.zeros(n, 6), lower=0.0),
    )


@pytest.mark.parametrize("index", [slice(1, None), torch.tensor([1, 2]), torch.tensor([False, True, True])])
def test_every_field_follows_an_index(index):
    picked = make_instances()[index]
    assert len(picked) == 2 and picked.names == ["object 1", "object 2"]
    assert len(picked.pred_masks) == 2 and len(picked.pred_redshift) == 2
    assert torch.equal(picked.pred_boxes, random_boxes(3, 0)[1:])


def test_last_object_by_negative_index():
    assert make_instances()[-1].names == ["object 2"]


def test_instances_concatenate_pickle_and_refuse_unequal_lengths():
    both = Instances.cat([make_instances(2), make_instances(0), make_instances(3)])
    assert len(both) == 5 and both.names[2] == "object 0"
    assert len(pickle.loads(pickle.dumps(both)).pred_masks) == 5
    with pytest.raises(ValueError, match="field 'scores' has length 2, but 'pred_boxes' has 5"):
        both.scores = torch.zeros(2)
    with pytest.raises(AttributeError, match="no field 'gt_boxes'"):
        _ = both.gt_boxes


def test_batch_pads_with_zeros_to_a_multiple():
    batch = ImageBatch.from_list([torch.ones(2, 5, 7), torch.ones(2, 9, 3)], divisibility=4)
    assert batch.tensor.shape == (2, 2, 12, 8) and batch.image_sizes == [(5, 7), (9, 3)]
    assert batch.tensor[0].sum() == 70 and batch.tensor[1, :, :9, :3].min() == 1


def test_a_map_is_sampled_at_box_centres():
    grid = torch.tensor([[0.0, 1.0], [2.0, 3.0]])  # cell centres at 1/4 and 3/4 of the image
    boxes = torch.tensor([[24.0, 9, 26, 11], [74, 29, 76, 31], [49, 19, 51, 21]])
    assert sample_map(grid, boxes, (40, 100)).tolist() == pytest.approx([0, 3, 1.5], abs=1e-5)
    assert sample_map(0.05, boxes, (40, 100)).tolist() == pytest.approx([0.05] * 3)
    assert sample_map(0.05, boxes[:0], (40, 100)).shape == (0,)
