"""Merge the detections of overlapping tiles, so that every object appears exactly once.

Every detection of a tile takes part, whole or cut off by the tile's border:

1. *Pairs.* A detection of one tile and one of an overlapping tile may be the same object if their boxes agree. Where
   one of them is cut off by its tile's border the other is cut there too before they are compared, so that a part is
   compared with the same part. They agree if the largest difference of an edge is at most `shift_pix`, or the IoU is
   at least `iou`; or if each tile finds the centre in the other's core (neither would keep it) and they overlap.
2. *Groups.* Pairs are joined best first: identical boxes, then boxes within `shift_pix`, then the rest; uncut ones
   before cut ones; the smaller difference first. Two detections of one tile never join a group: they are two objects.
3. *Ownership.* A group is kept if one of its members has its centre in its own tile's core, or if the tile that owns
   the group's centre is among its members. A detection without partner is kept only by the tile that owns its centre
   (by the neighbour that saw it whole if that tile was not searched: it could not be read, or has no data).
4. *Choice.* The member kept is one that no inner border cuts, and of those the one deepest inside its tile's core as
   seen from the group's centre. If all are cut (the object is larger than the overlap) the pieces are united.

Everything is streamed: a component of linked detections is resolved as soon as no later tile can reach it.

Legend: N detections of a tile; boxes are float64 `x0, y0, x1, y1`, mosaic pixels, edge coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from deepdisc.data.tiling import Tile

SAME_PIX = 1 / 16  # boxes that differ by less are the same box
CUT_PIX = 1.0  # a box that ends this near to a tile's inner border is taken as cut off by it
CROSSED_IOU = 0.1  # overlap that suffices where each tile attributes the object to the other


@dataclass
class TileDetections:
    """What one tile found.

    Attributes:
        tile: the tile.
        boxes: (N, 4), clipped to the mosaic.
        scores: (N,).
        regions: (N, 4) int64, `x0, y0, x1, y1` of each outline's region, mosaic pixels.
        crops: N bool arrays (y1 - y0, x1 - x0), the outlines.
        columns: catalogue columns by name, each of length N.
    """

    tile: Tile
    boxes: np.ndarray
    scores: np.ndarray
    regions: np.ndarray
    crops: list[np.ndarray]
    columns: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass
class Merged:
    """One object of the mosaic: the detection it stems from, and its extent after merging.

    Attributes:
        source, row: the tile's detections and the row in them from which the measurements are taken.
        box: (4,).
        region, crop: the outline, see `TileDetections`.
        seam: put together from the pieces of several tiles, or cut off by a tile's border.
        blended: its outline touches another's; found out later.
    """

    source: TileDetections
    row: int
    box: np.ndarray
    region: tuple[int, int, int, int]
    crop: np.ndarray
    seam: bool
    blended: bool = False

    @property
    def score(self) -> float:
        """Detection score."""
        return float(self.source.scores[self.row])

    @property
    def reach(self) -> tuple[int, int, int, int]:
        """The pixels `x0, y0, x1, y1` that hold both box and outline."""
        return _reach(self.box, self.region)


def _reach(box: np.ndarray, region: Sequence[int]) -> tuple[int, int, int, int]:
    low, high = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
    if region[2] <= region[0]:
        return int(low[0]), int(low[1]), int(high[0]), int(high[1])
    return (
        int(min(low[0], region[0])),
        int(min(low[1], region[1])),
        int(max(high[0], region[2])),
        int(max(high[1], region[3])),
    )


@dataclass
class _Open:
    """The detections of one tile that are not settled yet."""

    found: TileDetections
    inner: np.ndarray  # (4,) the sides beyond which the mosaic goes on
    cut: np.ndarray  # (N, 4) bool: the box ends at that side
    first: int  # number of the tile's first detection among all
    owned: np.ndarray = field(init=False)  # (N,) bool: the centre lies in the tile's core
    alive: np.ndarray = field(init=False)  # (N,) bool: not settled yet

    def __post_init__(self) -> None:
        self.owned = _inside(self.found.boxes, self.found.tile.core)
        self.alive = np.ones(len(self.found), dtype=bool)


class SeamMerger:
    """Takes the detections of tiles in row-major order and gives back finished objects.

    Args:
        shape: (height, width) of the mosaic.
        iou: intersection over union from which two boxes are the same object.
        shift_pix: difference of box edges up to which two boxes are the same object, however small they are.
    """

    def __init__(self, shape: tuple[int, int], iou: float = 0.5, shift_pix: float = 2.5):
        self.shape = shape
        self.iou = iou
        self.shift_pix = shift_pix
        self._tiles: list[_Open] = []
        self._pairs = np.zeros((0, 6))
        self._absent = np.zeros((0, 4))
        self._count = 0

    def add_absent(self, tile: Tile) -> None:
        """Note a tile that was not searched: what its neighbours see in its core is then theirs."""
        self._absent = np.vstack((self._absent, tile.core))

    def add(self, found: TileDetections) -> None:
        """Take a tile's detections and pair them with those of the tiles before it."""
        inner = np.array(found.tile.inner_box(self.shape), dtype=np.float64)
        new = _Open(found, inner, np.abs(found.boxes - inner) <= CUT_PIX, self._count)
        self._count += len(found)
        if len(found) == 0:
            return
        pairs = [self._compare(old, new) for old in self._tiles if old.found.tile.overlaps(found.tile)]
        self._pairs = np.vstack((self._pairs, *pairs))
        self._tiles.append(new)

    def _compare(self, old: _Open, new: _Open) -> np.ndarray:
        """Possible identities as rows: detection, detection, grade, how many are cut, difference, score difference."""
        a = np.flatnonzero(old.alive & _within(old.found.boxes, new.found.tile, self.shift_pix))
        b = np.flatnonzero(_within(new.found.boxes, old.found.tile, self.shift_pix))
        boxes_a = _cut_like(old.found.boxes[a][:, None], new.cut[b][None], new.inner)
        boxes_b = _cut_like(new.found.boxes[b][None], old.cut[a][:, None], old.inner)
        difference, iou = _differences(boxes_a, boxes_b)
        to_new = _inside(old.found.boxes[a], new.found.tile.core)
        to_old = _inside(new.found.boxes[b], old.found.tile.core)
        crossed = to_new[:, None] & to_old[None] & (iou > CROSSED_IOU)
        i, j = np.nonzero((difference <= self.shift_pix) | (iou >= self.iou) | crossed)
        difference = difference[i, j]
        grade = np.searchsorted([SAME_PIX, self.shift_pix], difference)
        cuts = old.cut[a].any(1)[i].astype(int) + new.cut[b].any(1)[j]
        score = np.abs(old.found.scores[a][i] - new.found.scores[b][j])
        return np.stack((old.first + a[i], new.first + b[j], grade, cuts, difference, score), axis=1)

    def open_reach(self) -> np.ndarray:
        """(M, 4) int: the pixels that detections not yet settled may cover."""
        reach = [
            _reach(tile.found.boxes[k], tile.found.regions[k])
            for tile in self._tiles
            for k in np.flatnonzero(tile.alive).tolist()
        ]
        return np.array(reach, dtype=np.int64).reshape(-1, 4)

    def settle(self, next_y: float) -> list[Merged]:
        """Resolve what no later tile can reach.

        Args:
            next_y: where the tiles still to come begin in y; infinity after the last.

        Returns:
            The finished objects, from top to bottom of the array and left to right.
        """
        if not self._tiles:
            return []
        numbers = np.concatenate([tile.first + np.flatnonzero(tile.alive) for tile in self._tiles])
        bottom = np.concatenate([tile.found.boxes[tile.alive, 3] for tile in self._tiles])
        edges = np.searchsorted(numbers, self._pairs[:, :2].astype(np.int64))
        links = coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(len(numbers), len(numbers)))
        count, component = connected_components(links, directed=False)
        reachable = np.zeros(count, dtype=bool)
        reachable[component[bottom + self.shift_pix > next_y]] = True
        merged = self._resolve(numbers, component, ~reachable)
        self._forget(numbers[~reachable[component]])
        return sorted(merged, key=lambda item: (item.box[1] + item.box[3], item.box[0] + item.box[2], -item.score))

    def _resolve(self, numbers: np.ndarray, component: np.ndarray, closed: np.ndarray) -> list[Merged]:
        where = {}
        for tile in self._tiles:
            where.update({tile.first + k: (tile, k) for k in np.flatnonzero(tile.alive).tolist()})
        groups = {number: [number] for number in numbers[closed[component]].tolist()}
        order = np.lexsort(self._pairs.T[[1, 0, 5, 4, 3, 2]])
        for a, b in self._pairs[order, :2].astype(np.int64).tolist():
            if a in groups and groups[a] is not groups[b]:
                tiles = {where[n][0].found.tile.index for n in groups[a]}
                if tiles.isdisjoint(where[n][0].found.tile.index for n in groups[b]):
                    groups[a].extend(groups[b])
                    groups.update(dict.fromkeys(groups[b], groups[a]))
        unique = {id(group): group for group in groups.values()}.values()
        merged = (self._unite([where[n] for n in sorted(group)]) for group in unique)
        return [item for item in merged if item is not None]

    def _forget(self, numbers: np.ndarray) -> None:
        """Drop settled detections and the pairs and tiles that only they needed."""
        for tile in self._tiles:
            mine = numbers[(numbers >= tile.first) & (numbers < tile.first + len(tile.found))]
            tile.alive[mine - tile.first] = False
        self._tiles = [tile for tile in self._tiles if tile.alive.any()]
        self._pairs = self._pairs[~np.isin(self._pairs[:, 0], numbers)]

    def _unite(self, members: list[tuple[_Open, int]]) -> Merged | None:
        """The object that a group stands for; None where another tile is responsible."""
        owned = any(tile.owned[k] for tile, k in members)
        if not owned and len(members) == 1 and len(self._absent) == 0:
            return None
        boxes = np.array([tile.found.boxes[k] for tile, k in members])
        cut = np.array([tile.cut[k].any() for tile, k in members])
        whole = boxes[~cut] if not cut.all() else _hull(boxes)[None]
        center = ((whole[:, :2] + whole[:, 2:]) / 2).mean(0)
        if not owned:
            # Beside a tile that was not searched, pieces are not worth keeping.
            missing = self._absent[:0] if cut.all() else self._absent
            cores = np.vstack(([tile.found.tile.core for tile, _ in members], missing))
            if not ((center >= cores[:, :2]) & (center < cores[:, 2:])).all(1).any():
                return None
        # Sides of the core at the mosaic's edge do not count: no other tile knows more there.
        depth = [_depth(center, tile) for tile, _ in members]
        best = min(range(len(members)), key=lambda i: (cut[i], -depth[i], members[i][0].found.tile.index))
        tile, k = members[best]
        region = tuple(tile.found.regions[k].tolist())
        merged = Merged(tile.found, k, boxes[best], region, tile.found.crops[k], bool(cut[best]))
        if cut[best] and len(members) > 1:
            merged.box = _hull(boxes)
            merged.region, merged.crop = _union([(t.found.regions[k], t.found.crops[k]) for t, k in members])
        return merged


def _within(boxes: np.ndarray, tile: Tile, margin: float) -> np.ndarray:
    """Bool (N,): boxes that come within `margin` of a tile's extent."""
    low, high = np.array([tile.x0, tile.y0]) - margin, np.array([tile.x1, tile.y1]) + margin
    return ((boxes[:, :2] < high) & (boxes[:, 2:] > low)).all(1)


def _inside(boxes: np.ndarray, core: Sequence[float]) -> np.ndarray:
    """Bool (N,): boxes whose centre lies in a half-open core."""
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((center >= core[:2]) & (center < core[2:])).all(1)


def _cut_like(boxes: np.ndarray, cut: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Boxes cut at those sides of another tile at which its detections are cut; broadcasts to (A, B, 4)."""
    low = np.where(cut[..., :2], np.maximum(boxes[..., :2], inner[:2]), boxes[..., :2])
    high = np.where(cut[..., 2:], np.minimum(boxes[..., 2:], inner[2:]), boxes[..., 2:])
    return np.concatenate((low, high), axis=-1)


def _differences(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Largest difference of an edge (infinite if cutting left nothing) and IoU of boxes (..., 4)."""
    difference = np.abs(a - b).max(-1)
    empty = ((a[..., 2:] <= a[..., :2]) | (b[..., 2:] <= b[..., :2])).any(-1)
    size = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    overlap = np.where(empty, 0.0, size.prod(-1))
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - overlap
    iou = np.divide(overlap, union, out=np.zeros_like(overlap), where=overlap > 0)
    return np.where(empty, np.inf, difference), iou


def _depth(center: np.ndarray, tile: _Open) -> float:
    """How far a position lies inside a tile's core (negative: outside), counting inner sides only."""
    core = np.array(tile.found.tile.core, dtype=np.float64)
    distance = np.concatenate((center - core[:2], core[2:] - center))
    return float(distance[np.isfinite(tile.inner)].min(initial=np.inf))


def _hull(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate((boxes[:, :2].min(0), boxes[:, 2:].max(0)))


def _union(outlines: list[tuple[np.ndarray, np.ndarray]]) -> tuple[tuple[int, int, int, int], np.ndarray]:
    """The union of outlines (region, crop)."""
    outlines = [(region, crop) for region, crop in outlines if crop.size]
    if not outlines:
        return (0, 0, 0, 0), np.zeros((0, 0), dtype=bool)
    x0, y0, x1, y1 = _hull(np.array([region for region, _ in outlines])).tolist()
    joined = np.zeros((y1 - y0, x1 - x0), dtype=bool)
    for (u0, v0, u1, v1), crop in outlines:
        joined[v0 - y0 : v1 - y0, u0 - x0 : u1 - x0] |= crop
    return (x0, y0, x1, y1), joined
