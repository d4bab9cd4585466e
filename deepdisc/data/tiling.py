"""Cut a mosaic into overlapping tiles of one shape, each of which owns a rectangular core.

The cores partition the mosaic exactly, so that every position belongs to one tile. A tile reaches beyond its core by
half the overlap on every inner side: an object no larger than the overlap (`overlap >= 2 x` the largest object's
half-size) whose centre lies in the core is therefore seen whole by the tile that owns it.
"""

from __future__ import annotations

from dataclasses import dataclass

from deepdisc.errors import InputError


@dataclass(frozen=True)
class Tile:
    """A tile and its core, in mosaic pixels; ranges are half-open.

    Attributes:
        index: place in row-major order.
        y0, x0, y1, x1: extent; may run past the mosaic's edge, where there is no data.
        cy0, cx0, cy1, cx1: core, inside the mosaic.
    """

    index: int
    y0: int
    x0: int
    y1: int
    x1: int
    cy0: int
    cx0: int
    cy1: int
    cx1: int

    @property
    def core(self) -> tuple[int, int, int, int]:
        """The core as a box `x0, y0, x1, y1` in edge coordinates."""
        return self.cx0, self.cy0, self.cx1, self.cy1

    def overlaps(self, other: Tile) -> bool:
        """Whether the two extents share pixels."""
        return self.x0 < other.x1 and other.x0 < self.x1 and self.y0 < other.y1 and other.y0 < self.y1

    def inner_box(self, shape: tuple[int, int]) -> tuple[float, float, float, float]:
        """Positions `x0, y0, x1, y1` (edge coordinates) of the sides beyond which the mosaic goes on; else infinite."""
        infinity = float("inf")
        return (
            self.x0 if self.x0 > 0 else -infinity,
            self.y0 if self.y0 > 0 else -infinity,
            self.x1 if self.x1 < shape[1] else infinity,
            self.y1 if self.y1 < shape[0] else infinity,
        )


LARGEST_TILE = 32768  # nine such bands with their variances take 80 GB: what lies above is a slip of the finger


def grid(shape: tuple[int, int], tile: int, overlap: int, offset: tuple[int, int] = (0, 0)) -> list[Tile]:
    """Tiles of `tile` x `tile` pixels that cover a mosaic, in row-major order.

    Args:
        shape: (height, width) of the mosaic.
        tile: side of a tile.
        overlap: pixels shared by neighbouring tiles, less than `tile`.
        offset: (y, x) pixels by which the first tile begins before the mosaic, each less than `tile - overlap`.

    Raises:
        InputError: a number is out of range.
    """
    if not 1 <= tile <= LARGEST_TILE:
        raise InputError(f"tile={tile}: a tile has 1 to {LARGEST_TILE} pixels on a side; 512 is usual")
    if not 0 <= overlap < tile:
        raise InputError(f"overlap={overlap}: must be at least 0 and less than tile={tile}; {tile // 4} is usual")
    for value in offset:
        if not 0 <= value < tile - overlap:
            raise InputError(f"offset={offset}: each must be in 0..{tile - overlap - 1} (tile - overlap - 1)")
    rows = _ranges(shape[0], tile, overlap, offset[0])
    columns = _ranges(shape[1], tile, overlap, offset[1])
    return [
        Tile(i * len(columns) + j, y0, x0, y0 + tile, x0 + tile, cy0, cx0, cy1, cx1)
        for i, (y0, cy0, cy1) in enumerate(rows)
        for j, (x0, cx0, cx1) in enumerate(columns)
    ]


def _ranges(length: int, tile: int, overlap: int, offset: int) -> list[tuple[int, int, int]]:
    """(start, core start, core end) of the tiles along one axis."""
    step = tile - overlap
    starts = [-offset]
    while starts[-1] + tile < length:
        starts.append(starts[-1] + step)
    borders = [0, *(start + overlap // 2 for start in starts[1:]), length]
    return list(zip(starts, borders[:-1], borders[1:], strict=True))
