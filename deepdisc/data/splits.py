"""Which piece of sky belongs to which split: no object, and no neighbour of one, in two of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from deepdisc.errors import InputError
from deepdisc.matching import chord, sky_vectors

SPLITS = ("train", "val", "test")
# Two fields show the same sky when more than this share of the objects where they overlap coincide to this distance,
# and more than chance explains.
SAME_SKY_SHARE = 0.2
SAME_OBJECT_ARCSEC = 0.3
MIN_AREA_SIDE = 64


@dataclass(frozen=True)
class Area:
    """Rows y0..y1 and columns x0..x1 of field number `field`, all in one split."""

    field: int
    split: str
    y0: int
    x0: int
    y1: int
    x1: int


class HasTruth(Protocol):
    """What is asked of a field here."""

    name: str
    shape: tuple[int, int]
    split: str | None
    truth: pd.DataFrame


def plan_areas(
    fields: Sequence[HasTruth],
    fractions: Mapping[str, float],
    guard_pix: int,
    seed: int,
    block_pix: int | None = None,
    largest_block_pix: int = 512,
) -> list[Area]:
    """Divide the sky among the splits.

    Whole fields are dealt out where there are enough of them; otherwise, and where a size of blocks is given, each is
    cut into a chequerboard of blocks, and the blocks are dealt out.

    Args:
        fields: with the splits of the recipe, or None to have them chosen.
        fractions: share of the sky for each split; normalised here.
        guard_pix: gap between blocks of different splits, also across corners.
        seed: order in which fields and blocks are dealt out.
        block_pix: side of the blocks, about; None: whole fields if possible, else the largest that give enough blocks.
        largest_block_pix: limit of that choice.

    Raises:
        InputError: fractions that make no sense, a field too small to be cut, or fields of the same sky that cannot be
            kept together.
    """
    fractions = _checked(fractions)
    groups = same_sky(fields)
    if fields[0].split is not None:
        _check_given(fields, groups)
        return [_whole(i, item, item.split) for i, item in enumerate(fields)]
    if block_pix is not None or len(groups) < len(fractions):
        if len(groups) < len(fields):
            names = [fields[i].name for group in groups if len(group) > 1 for i in group]
            raise InputError(
                f"fields {', '.join(names)} show the same sky and too few others are left for {len(fractions)} splits, "
                "or blocks are asked for; give every field a `split` in the recipe, or add fields"
            )
        return _blocks(fields, fractions, guard_pix, seed, block_pix or largest_block_pix, block_pix is None)
    sizes = [sum(math.prod(fields[i].shape) for i in group) for group in groups]
    splits = _deal(sizes, fractions, seed)
    areas = [_whole(i, fields[i], split) for group, split in zip(groups, splits, strict=True) for i in group]
    return sorted(areas, key=lambda area: area.field)


def _check_given(fields: Sequence[HasTruth], groups: list[list[int]]) -> None:
    for group in groups:
        splits = {fields[i].split: fields[i].name for i in group}
        if len(splits) > 1:
            named = ", ".join(f"{name} ({split})" for split, name in splits.items())
            raise InputError(
                f"fields {named} show the same sky but are in different splits: what is tested would have been trained "
                "on; give them the same split"
            )


def _checked(fractions: Mapping[str, float]) -> dict[str, float]:
    for name, value in fractions.items():
        if name not in SPLITS:
            raise InputError(f"split fraction {name!r}: the splits are {', '.join(SPLITS)}")
        if not value >= 0:
            raise InputError(f"split fraction {name}={value} must not be negative")
    total = sum(fractions.values())
    if not fractions.get("train"):
        raise InputError("split fractions: train must be larger than 0")
    return {name: fractions[name] / total for name in SPLITS if fractions.get(name)}


def _whole(index: int, item: HasTruth, split: str) -> Area:
    return Area(index, split, 0, 0, *item.shape)


def _blocks(
    fields: Sequence[HasTruth], fractions: Mapping[str, float], guard: int, seed: int, side: int, may_shrink: bool
) -> list[Area]:
    """Cut fields into blocks of about `side` pixels, smaller ones if there are too few and it may be; deal them out."""
    fewest = math.ceil(1 / min(fractions.values()) - 1e-9)
    while may_shrink and _count(fields, side) < fewest and side * 0.9 >= MIN_AREA_SIDE:
        side = int(side * 0.9)
    edges = [[_even(length, side) for length in item.shape] for item in fields]
    shapes = [(len(rows) - 1, len(columns) - 1) for rows, columns in edges]
    sizes = [np.outer(np.diff(rows), np.diff(columns)).ravel() for rows, columns in edges]
    if sum(map(len, sizes)) < len(fractions) or (may_shrink and _count(fields, side) < fewest):
        height, width = fields[0].shape
        share, split = min((share, split) for split, share in fractions.items())
        raise InputError(
            f"field {fields[0].name!r} ({width} x {height}) is too small to give {share:.0%} of it to {split!r}: "
            f"{fewest} blocks of at least {MIN_AREA_SIDE} pixels are needed; change the fractions or add fields"
        )
    dealt = np.array(_deal(np.concatenate(sizes).tolist(), fractions, seed))
    areas, start = [], 0
    for index, (shape, (rows, columns)) in enumerate(zip(shapes, edges, strict=True)):
        splits = dealt[start : start + math.prod(shape)].reshape(shape)
        start += math.prod(shape)
        for row, column in np.ndindex(shape):
            y0, x0, y1, x1 = _guarded(splits, row, column, rows, columns, guard)
            if min(y1 - y0, x1 - x0) < MIN_AREA_SIDE:
                raise InputError(
                    f"field {fields[index].name!r}: a block is {x1 - x0} x {y1 - y0} pixels after its guard band of "
                    f"{guard}, at least {MIN_AREA_SIDE} are needed; take larger blocks, a narrower band, or add fields"
                )
            areas.append(Area(index, str(splits[row, column]), y0, x0, y1, x1))
    return areas


def _count(fields: Sequence[HasTruth], side: int) -> int:
    return sum(math.prod(len(_even(length, side)) - 1 for length in item.shape) for item in fields)


def _even(length: int, side: int) -> np.ndarray:
    """Edges of the pieces of about `side` pixels, equal to within a pixel."""
    count = max(1, round(length / side))
    return np.round(np.linspace(0, length, count + 1)).astype(int)


def _guarded(
    splits: np.ndarray, row: int, column: int, rows: np.ndarray, columns: np.ndarray, guard: int
) -> tuple[int, int, int, int]:
    """A block without its half of the guard band towards blocks of other splits.

    Neighbours across a corner give up rows, not columns: then the gap to them is whole in y.
    """
    height, width = splits.shape
    own = splits[row, column]
    nearby = slice(max(0, column - 1), column + 2)
    half, rest = guard // 2, guard - guard // 2
    below = row > 0 and (splits[row - 1, nearby] != own).any()
    above = row + 1 < height and (splits[row + 1, nearby] != own).any()
    before = column > 0 and splits[row, column - 1] != own
    after = column + 1 < width and splits[row, column + 1] != own
    return (
        int(rows[row]) + rest * below,
        int(columns[column]) + rest * before,
        int(rows[row + 1]) - half * above,
        int(columns[column + 1]) - half * after,
    )


def _deal(sizes: Sequence[int], fractions: Mapping[str, float], seed: int) -> list[str]:
    """Give groups of fields to splits: each gets one, then whichever lacks most of its share gets the next."""
    total = sum(sizes)
    given = dict.fromkeys(fractions, 0.0)
    result = [""] * len(sizes)
    for number in np.random.default_rng(seed).permutation(len(sizes)):
        empty = [split for split in fractions if given[split] == 0]
        candidates = empty if result.count("") <= len(empty) else list(fractions)
        split = max(candidates, key=lambda name: fractions[name] - given[name] / total)
        given[split] += sizes[number]
        result[number] = split
    return result


def same_sky(fields: Sequence[HasTruth]) -> list[list[int]]:
    """Group fields that show the same objects. Fields without sky positions are all taken to be different."""
    positions = [_sky(item.truth) for item in fields]
    owner = np.repeat(np.arange(len(fields)), [len(part) for part in positions])
    linked: list[tuple[int, int]] = []
    if len(owner):
        # One tree for all: hundreds of fields make too many pairs to be matched one by one.
        close = cKDTree(np.concatenate(positions)).query_pairs(chord(SAME_OBJECT_ARCSEC), output_type="ndarray")
        pairs, counts = np.unique(np.sort(owner[close], axis=1), axis=0, return_counts=True)
        for (i, j), count in zip(pairs.tolist(), counts.tolist(), strict=True):
            if i != j and _are_same(positions[i], positions[j], count):
                linked.append((i, j))
    rows, columns = zip(*linked, strict=True) if linked else ((), ())
    graph = coo_array((np.ones(len(linked)), (rows, columns)), shape=(len(fields),) * 2)
    count, labels = connected_components(graph, directed=False)
    return [np.flatnonzero(labels == label).tolist() for label in range(count)]


def _sky(truth: pd.DataFrame) -> np.ndarray:
    """Unit vectors (N, 3) of the finite sky positions."""
    if not {"ra", "dec"} <= set(truth):
        return np.zeros((0, 3))
    return sky_vectors(*truth[["ra", "dec"]].dropna().to_numpy(dtype=float).T)


def leaks(truth: pd.DataFrame, tiles: pd.DataFrame) -> dict[str, int]:
    """What a data set's splits share, which must be nothing.

    Args:
        truth: one row per object and tile, with `tile`, `field`, `id` and perhaps `ra`, `dec`.
        tiles: with `tile` and `split`.

    Returns:
        `objects`: ids of a field in more than one split; `positions`: pairs of objects of different splits that are
        less than `SAME_OBJECT_ARCSEC` apart on the sky.
    """
    rows = truth.merge(tiles[["tile", "split"]], on="tile")
    objects = int((rows.groupby(["field", "id"]).split.nunique() > 1).sum())
    if not {"ra", "dec"} <= set(rows):
        return {"objects": objects, "positions": 0}
    placed = rows.dropna(subset=["ra", "dec"]).drop_duplicates(["field", "id", "split"])
    tree = cKDTree(sky_vectors(placed.ra, placed.dec))
    pairs = tree.query_pairs(chord(SAME_OBJECT_ARCSEC), output_type="ndarray").reshape(-1, 2)
    codes = pd.factorize(placed.split)[0]
    return {"objects": objects, "positions": int((codes[pairs[:, 0]] != codes[pairs[:, 1]]).sum())}


def _are_same(first: np.ndarray, second: np.ndarray, close: int) -> bool:
    """Whether two fields (unit vectors) with this many close pairs show the same objects, and not others by chance."""
    low = np.maximum(first.min(axis=0), second.min(axis=0))
    high = np.minimum(first.max(axis=0), second.max(axis=0))
    counts = [int(((part >= low) & (part <= high)).all(axis=1).sum()) for part in (first, second)]
    area = np.prod(
        np.sort(np.clip(high - low, 0, None))[1:]
    )  # a box around a small piece of the sphere has one short side
    by_chance = counts[0] * counts[1] * np.pi * chord(SAME_OBJECT_ARCSEC) ** 2 / max(area, 1e-30)
    return close > SAME_SKY_SHARE * min(counts) + by_chance + 3 * np.sqrt(by_chance)


def tile_edges(start: int, stop: int, tile_size: int) -> list[tuple[int, int]]:
    """Cut start..stop into the fewest pieces of at most `tile_size`, equal to within a pixel."""
    count = math.ceil((stop - start) / tile_size)
    edges = [start + round(i * (stop - start) / count) for i in range(count + 1)]
    return list(zip(edges[:-1], edges[1:], strict=True))
