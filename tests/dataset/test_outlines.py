"""Outlines as COCO writes them, from masks and back."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco_mask
from scipy import ndimage

from deepdisc.data.outlines import draw, to_polygons, to_rle
from deepdisc.errors import InputError

# several parts, single pixels, corners that only touch, and the image's border are all common in such masks
MASKS = array_shapes(min_dims=2, max_dims=2, max_side=11).flatmap(lambda shape: arrays(bool, shape))
ONE = np.ones((1, 1), bool)
DIAGONAL = np.eye(4, dtype=bool)
RING = np.pad(np.zeros((1, 1), bool), 1, constant_values=True)


def drawn(segmentation, shape):
    [mask] = draw(segmentation, shape, "object").to_dense().numpy()
    return mask


@settings(deadline=None)
@given(MASKS)
@example(ONE)
@example(~ONE)
def test_run_length_codes_are_exact(mask):
    code = to_rle(mask)
    assert isinstance(code["counts"], str) and code["size"] == list(mask.shape)
    assert np.array_equal(coco_mask.decode(code), mask), "pycocotools draws the same"
    assert np.array_equal(drawn(code, mask.shape), mask)
    # column by column, beginning with zeros
    changes = np.flatnonzero(np.diff(np.concatenate(([False], mask.T.ravel()))))
    runs = np.diff(np.concatenate(([0], changes, [mask.size]))).tolist()
    assert np.array_equal(drawn({"size": list(mask.shape), "counts": runs}, mask.shape), mask)


def test_a_large_run_length_code_is_exact():
    mask = np.zeros((900, 1000), bool)
    mask[100:800, 300:700] = np.random.default_rng(0).random((700, 400)) < 0.5
    assert np.array_equal(drawn(to_rle(mask), mask.shape), mask)


@settings(deadline=None, max_examples=300)
@given(MASKS)
@example(ONE)
@example(DIAGONAL)
@example(RING)
def test_polygons_are_exact_and_refused_exactly_for_holes(mask):
    polygons = to_polygons(mask)
    with_hole = (ndimage.binary_fill_holes(mask) != mask).any()
    assert (polygons is None) == (with_hole or not mask.any())
    if polygons is not None:
        assert np.array_equal(drawn(polygons, mask.shape), mask)
        assert len(polygons) == ndimage.label(mask, np.ones((3, 3)))[1], "one polygon for each part"


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        # tenths fall between the fifths of a pixel on which pycocotools draws; outside the image it cuts
        st.lists(st.integers(-70, 190).map(lambda tenths: tenths / 10) | st.floats(-7, 19), min_size=6, max_size=14),
        min_size=1,
        max_size=3,
    ),
    st.tuples(st.integers(10, 13), st.integers(10, 17)),
)
def test_polygons_are_drawn_as_pycocotools_draws_them(parts, shape):
    """United, crossing themselves, and partly or wholly outside the image."""
    parts = [part[: len(part) // 2 * 2] for part in parts]
    expected = coco_mask.decode(coco_mask.frPyObjects(parts, *shape)).any(axis=2)
    found = draw(parts, shape, "object")
    assert np.array_equal(found.to_dense()[0].numpy(), expected)
    assert_tight(found)


def assert_tight(masks):
    [crop], box = masks.crops, masks.boxes()[0].tolist()
    assert crop.dtype == torch.bool and crop.is_contiguous() and crop.untyped_storage().nbytes() == crop.numel()
    assert masks.regions[0].tolist() == box


@settings(deadline=None, max_examples=300)
@given(MASKS)
@example(np.zeros((3, 4), bool))
@example(np.array([[0, 1, 0], [0, 1, 1], [1, 0, 1]], bool))
def test_only_the_pixels_of_the_object_are_kept(mask):
    assert_tight(draw(to_rle(mask), mask.shape, "object"))


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_runs_of_length_zero_are_runs(runs):
    shape = (sum(runs), 2)
    runs = [*runs, sum(runs)]
    code = {"size": list(shape), "counts": runs}
    expected = coco_mask.decode(coco_mask.frPyObjects(code, *shape)) if shape[0] else np.zeros(shape)
    assert np.array_equal(drawn(code, shape), expected)


def test_a_small_object_costs_no_more_in_a_large_image():
    """Peaks of numpy's allocations, which include those that are freed at once."""
    peaks = []
    star = [[20, 20, 30, 20, 25, 30]]
    for side in (40, 20_000):
        code = coco_mask.merge(coco_mask.frPyObjects(star, side, side))
        tracemalloc.start()
        for outline in (star, {"size": [side, side], "counts": code["counts"].decode()}):
            draw(outline, (side, side), "object")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100_000


def test_polygons_run_along_pixel_edges():
    mask = np.zeros((6, 8), bool)
    mask[1:3, 2:5] = True
    [polygon] = to_polygons(mask)
    assert {tuple(point) for point in np.reshape(polygon, (-1, 2))} == {(2, 1), (2, 3), (5, 3), (5, 1)}


@settings(deadline=None)
@given(
    st.floats(2, 17),
    st.floats(2, 13),
    st.lists(st.floats(0.6, 6.0), min_size=5, max_size=12),
)
def test_other_programs_polygons_come_out_within_their_rasterisation(x, y, radii):
    """A star-shaped polygon with fractional corners: its mask, written as polygons and drawn again, stays the same."""
    angles = np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    corners = np.stack((x + radii * np.cos(angles), y + radii * np.sin(angles)), axis=1).ravel().tolist()
    mask = drawn([corners], (15, 19))
    assert np.array_equal(mask, coco_mask.decode(coco_mask.frPyObjects([corners], 15, 19))[..., 0])
    polygons = to_polygons(mask)
    if polygons is not None:
        assert np.array_equal(drawn(polygons, mask.shape), mask)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "its segmentation is None; give polygons"),
        ([], r"its segmentation is \[\]"),
        ("abc", "its segmentation is 'abc'"),
        ([[1, 2, 3, 4]], r"polygon \[1, 2, 3, 4\] is malformed"),
        ([[1, 2, 3, 4, 5, 6, 7]], "is malformed"),
        ([1, 2, 3, 4, 5, 6], "polygon 1 is malformed"),
        ([[0, 0, 4, 0, 4, float("nan")]], "is malformed"),
        ([[0, 0, 4, 0, 4, "x"]], "is malformed"),
        ([[0, 0, 4, 0, 1e9, 4]], "leaves its image of 7 x 5 pixels"),
        ({"size": [7, 5], "counts": [35]}, r"is of size \[7, 5\], its image of \[5, 7\] \(height, width\)"),
        ({"counts": [35]}, "is of size None"),
        ({"size": 5, "counts": [35]}, "is of size 5, its image"),
        ({"size": {"5": 7}, "counts": [35]}, "is of size {'5': 7}, its image"),
        ({"size": [5, 7], "counts": [10**400]}, "malformed"),
        ({"size": [5, 7], "counts": [35.0]}, r"counts is \[35.0\]"),
        ({"size": [5, 7], "counts": "oooooooooooo0"}, "counts is 'oooo"),
        ([[0, 0, 4, 0, 10**400, 4]], "is malformed"),
        ({"size": [5, 7]}, "counts is None"),
        ({"size": [5, 7], "counts": [34]}, "must add up to 35 pixels, but these add up to 34"),
        ({"size": [5, 7], "counts": [-1, 36]}, "malformed"),
        ({"size": [5, 7], "counts": ";2300"}, "these add up to 2"),
        ({"size": [5, 7], "counts": "; 230009"}, "counts is '; 230009'"),
        ({"size": [5, 7], "counts": "o"}, "counts is 'o'"),
        ({"size": [5, 7], "counts": "é"}, "counts is 'é'"),
        ({"size": [5, 7], "counts": "\ud800"}, "counts is "),
        ({"size": [5, 7], "counts": ""}, "these add up to 0"),
    ],
)
def test_malformed_outlines_are_named(segmentation, message):
    with pytest.raises(InputError, match=f"object: .*{message}"):
        draw(segmentation, (5, 7), "object")


def test_runs_that_are_missing_are_refused_which_pycocotools_leaves_uninitialised():
    code = to_rle(np.pad(np.ones((2, 3), bool), 2))
    shorter = {**code, "counts": code["counts"][:-1]}
    with pytest.raises(InputError, match="must add up to 42 pixels"):
        draw(shorter, (6, 7), "object")
