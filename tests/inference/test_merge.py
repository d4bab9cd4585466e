"""Seams: a detector that knows the truth must give exactly the truth, however the mosaic is cut."""

import os

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from deepdisc.data.tiling import grid
from deepdisc.inference.merge import SeamMerger, TileDetections

MANY = settings(max_examples=int(os.environ.get("DEEPDISC_EXAMPLES", "60")), deadline=None)


def outline(box):
    """All pixels of an integer box."""
    x0, y0, x1, y1 = np.array(box, dtype=int).tolist()
    return (x0, y0, x1, y1), np.ones((y1 - y0, x1 - x0), dtype=bool)


def found_in(tile, boxes, shape):
    """What a perfect detector finds in a tile: every box that reaches into it, cut at its border."""
    low = np.maximum([tile.x0, tile.y0], 0)
    high = np.minimum([tile.x1, tile.y1], [shape[1], shape[0]])
    cut = np.concatenate((np.clip(boxes[:, :2], low, high), np.clip(boxes[:, 2:], low, high)), axis=1)
    seen = np.flatnonzero((cut[:, 2:] > cut[:, :2]).all(1))
    cut = cut[seen]
    scores = np.linspace(1, 0.5, max(len(boxes), 1))[seen]
    regions = np.concatenate((np.floor(cut[:, :2]), np.ceil(cut[:, 2:])), axis=1).astype(np.int64)
    crops = [outline(region)[1] for region in regions]
    return TileDetections(tile, cut, scores, regions, crops, {"truth": seen})


def merge(shape, tiles, detect, absent=()):
    """Run all tiles through a merger, settling after every row as the prediction does."""
    merger, objects = SeamMerger(shape), []
    for number, tile in enumerate(tiles):
        if tile.index in absent:
            merger.add_absent(tile)
        else:
            merger.add(detect(tile))
        following = tiles[number + 1].y0 if number + 1 < len(tiles) else np.inf
        if following != tile.y0:
            objects += merger.settle(following)
    assert len(merger.open_reach()) == 0
    return objects


def truth_of(objects):
    return sorted(int(item.source.columns["truth"][item.row]) for item in objects)


@st.composite
def skies(draw, largest_share=1.0, min_overlap=2):
    """A mosaic, its tiles, and boxes no larger than `largest_share` of the overlap; many lie in heaps."""
    overlap = draw(st.integers(min_overlap, 28))
    step = draw(st.integers(1, 40))
    tile = overlap + step
    offset = (draw(st.integers(0, step - 1)), draw(st.integers(0, step - 1)))
    shape = (tile + draw(st.integers(1 - tile, 6 * step)), tile + draw(st.integers(1 - tile, 4 * step)))
    largest = max(int(overlap * largest_share), 1)
    heaps = draw(st.lists(st.tuples(st.integers(0, shape[1]), st.integers(0, shape[0])), min_size=1, max_size=4))
    boxes = []
    for _ in range(draw(st.integers(0, 14))):
        x, y = draw(st.sampled_from(heaps))
        width, height = draw(st.integers(1, largest)), draw(st.integers(1, largest))
        x0, y0 = x + draw(st.integers(-5, 5)) - width // 2, y + draw(st.integers(-5, 5)) - height // 2
        x0, y0 = min(max(x0, 0), shape[1] - 1), min(max(y0, 0), shape[0] - 1)
        boxes.append((x0, y0, min(x0 + width, shape[1]), min(y0 + height, shape[0])))
    return shape, grid(shape, tile, overlap, offset), np.array(boxes, dtype=np.float64).reshape(-1, 4)


@given(skies())
@MANY
def test_a_perfect_detector_gives_exactly_the_truth(sky):
    shape, tiles, boxes = sky
    objects = merge(shape, tiles, lambda tile: found_in(tile, boxes, shape))
    assert truth_of(objects) == list(range(len(boxes)))
    for item in objects:
        truth = boxes[item.source.columns["truth"][item.row]]
        np.testing.assert_array_equal(item.box, truth)
        region, crop = outline(truth)
        assert item.region == region and np.array_equal(item.crop, crop)


@given(skies(), st.integers(0, 2**32 - 1))
@MANY
def test_fractional_boxes_give_the_truth_too(sky, seed):
    shape, tiles, boxes = sky
    inside = np.random.default_rng(seed).uniform(0, 0.45, boxes.shape) * [1, 1, -1, -1]
    boxes = boxes + inside
    objects = merge(shape, tiles, lambda tile: found_in(tile, boxes, shape))
    assert truth_of(objects) == list(range(len(boxes)))
    for item in objects:
        np.testing.assert_allclose(item.box, boxes[item.source.columns["truth"][item.row]])


@given(skies(largest_share=0.7, min_overlap=10), st.integers(0, 2**32 - 1))
@MANY
def test_with_jitter_every_object_still_appears_once(sky, seed):
    """Every tile sees every object shifted by up to a pixel in x and y; boxes that differ by 5 px can be told apart."""
    shape, tiles, boxes = sky
    assume(len(boxes) > 0)
    apart = np.abs(boxes[:, None] - boxes[None]).max(-1) + 99 * np.eye(len(boxes))
    kept = []
    for i in range(len(boxes)):
        if all(apart[i, j] > 5 for j in kept) and (boxes[i, 2:] - boxes[i, :2] >= 3).all():
            kept.append(i)
    boxes = boxes[kept]
    random = np.random.default_rng(seed)

    def detect(tile):
        shift = random.uniform(-1, 1, (len(boxes), 2))
        moved = boxes + np.concatenate((shift, shift), axis=1)
        return found_in(tile, moved, shape)

    objects = merge(shape, tiles, detect)
    assert len(objects) == len(boxes)
    assert truth_of(objects) == list(range(len(boxes)))
    for item in objects:
        assert np.abs(item.box - boxes[item.source.columns["truth"][item.row]]).max() <= 1


@given(skies(), st.integers(1, 60), st.integers(1, 60))
@MANY
def test_an_object_larger_than_the_overlap_is_put_together(sky, width, height):
    shape, tiles, _ = sky
    box = np.array([[shape[1] // 3, shape[0] // 3, shape[1] // 3 + width, shape[0] // 3 + height]], dtype=np.float64)
    box[:, 2:] = np.minimum(box[:, 2:], [shape[1], shape[0]])
    [item] = merge(shape, tiles, lambda tile: found_in(tile, box, shape))
    np.testing.assert_array_equal(item.box, box[0])
    assert item.crop.all() and item.crop.shape == (box[0, 3] - box[0, 1], box[0, 2] - box[0, 0])


def test_seam_is_flagged_only_where_an_object_exceeds_the_overlap():
    shape, tiles = (64, 200), grid((64, 200), 64, 16)
    boxes = np.array([[50.0, 20, 62, 30], [90, 20, 120, 40]])  # the borders are at 48..64, 96..112, ...
    objects = merge(shape, tiles, lambda tile: found_in(tile, boxes, shape))
    assert [(int(item.source.columns["truth"][item.row]), item.seam) for item in objects] == [(0, False), (1, True)]


@pytest.mark.parametrize("center", [(56, 56), (55.5, 56.5), (56, 20), (0.5, 63.5), (199, 119)])
def test_corner_of_four_tiles_seam_and_edges(center):
    shape, tiles = (120, 200), grid((120, 200), 64, 16)
    box = np.array([[*center, *center]]) + [-3.0, -3, 3, 3]
    box = np.clip(box, 0, [shape[1], shape[0], shape[1], shape[0]])
    [item] = merge(shape, tiles, lambda tile: found_in(tile, box, shape))
    np.testing.assert_array_equal(item.box, box[0])
    assert not item.seam


def test_each_tile_attributing_an_object_to_the_other_does_not_lose_it():
    """Left tile: centre right of the border at 48; right tile: left of it; the boxes agree poorly (IoU 0.44)."""
    shape, tiles = (64, 96), grid((64, 96), 64, 32)
    boxes = {0: np.array([[42.0, 20, 56, 30]]), 1: np.array([[39.0, 23, 55, 33]])}
    [item] = merge(shape, tiles, lambda tile: found_in(tile, boxes[tile.index], shape))
    assert not item.seam


def test_what_only_the_other_tile_sees_is_left_to_the_owner():
    """A detection whose centre lies in the core of a tile that did not find it is dropped; its own tile's is kept."""
    shape, tiles = (64, 112), grid((64, 112), 64, 16)
    box = np.array([[57.0, 20, 61, 30]])

    def detect(tile):
        return found_in(tile, box if tile.index == seeing else box[:0], shape)

    seeing = 0
    assert merge(shape, tiles, detect) == []
    seeing = 1
    assert len(merge(shape, tiles, detect)) == 1


def test_what_lies_in_the_core_of_an_unreadable_tile_is_kept_by_its_neighbour():
    shape, tiles = (64, 112), grid((64, 112), 64, 16)
    box = np.array([[57.0, 20, 61, 30]])
    assert len(merge(shape, tiles, lambda tile: found_in(tile, box, shape), absent={1})) == 1
    piece = box + [0, 0, 10, 0]
    assert merge(shape, tiles, lambda tile: found_in(tile, piece, shape), absent={1}) == []


def test_two_detections_of_one_tile_stay_two_objects():
    shape, tiles = (64, 112), grid((64, 112), 64, 16)
    twins = np.array([[50.0, 20, 60, 30], [50, 20, 60, 31]])
    objects = merge(shape, tiles, lambda tile: found_in(tile, twins, shape))
    assert truth_of(objects) == [0, 1]
    np.testing.assert_array_equal(np.array([item.box for item in objects]), twins)
