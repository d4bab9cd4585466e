"""Tiles cover a mosaic; their cores partition it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepdisc.data.tiling import grid
from deepdisc.errors import InputError


@st.composite
def layouts(draw):
    tile = draw(st.integers(2, 40))
    overlap = draw(st.integers(0, tile - 1))
    offset = (draw(st.integers(0, tile - overlap - 1)), draw(st.integers(0, tile - overlap - 1)))
    shape = (draw(st.integers(1, 90)), draw(st.integers(1, 90)))
    return shape, tile, overlap, offset


@given(layouts())
@settings(max_examples=150, deadline=None)
def test_cores_partition_the_mosaic_and_tiles_reach_half_the_overlap_beyond_them(layout):
    shape, tile, overlap, offset = layout
    owners = np.zeros(shape, dtype=int)
    tiles = grid(shape, tile, overlap, offset)
    assert [item.index for item in tiles] == list(range(len(tiles)))
    for item in tiles:
        owners[item.cy0 : item.cy1, item.cx0 : item.cx1] += 1
        assert (item.y1 - item.y0, item.x1 - item.x0) == (tile, tile)
        assert item.cy1 > item.cy0 and item.cx1 > item.cx0
        assert item.y0 == -offset[0] or item.cy0 - item.y0 >= overlap // 2
        assert item.y1 >= shape[0] or item.y1 - item.cy1 >= overlap // 2
        assert item.x0 == -offset[1] or item.cx0 - item.x0 >= overlap // 2
        assert item.x1 >= shape[1] or item.x1 - item.cx1 >= overlap // 2
    assert (owners == 1).all()


@pytest.mark.parametrize(("width", "count"), [(63, 1), (64, 1), (65, 2), (112, 2), (113, 3)])
def test_a_mosaic_one_pixel_wider_than_the_tiles_gets_one_more(width, count):
    assert len(grid((64, width), 64, 16)) == count


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0), "tile=0"),
        ((10**8, 0), "tile=100000000"),
        ((8, 8), "overlap=8"),
        ((8, -1), "overlap=-1"),
        ((8, 2, (6, 0)), r"offset=\(6, 0\)"),
    ],
)
def test_impossible_layouts_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        grid((20, 20), *arguments)
