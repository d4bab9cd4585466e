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

SPLITS = ("train", "val", "test")
# Two fields show the same sky when more than this share of the objects where they overlap coincide to this distance.
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


def plan_areas(fields: Sequence[HasTruth], fractions: Mapping[str, float], guard_pix: int, seed: int) -> list[Area]:
    """Divide the sky among the splits.

    Args:
        fields: with the splits of the recipe, or None to have them chosen.
        fractions: share of the sky for each split; normalised here.
        guard_pix: gap between areas of one field.
        seed: order in which fields are dealt out.

    Raises:
        InputError: fractions that make no sense, or a field too small to be cut.
    """
    fractions = _checked(fractions)
    if fields[0].split is not None:
        return [_whole(i, item, item.split) for i, item in enumerate(fields)]
    groups = same_sky(fields)
    if len(groups) < len(fractions):
        if len(groups) < len(fields):
            names = [fields[i].name for group in groups if len(group) > 1 for i in group]
            raise InputError(
                f"fields {', '.join(names)} show the same sky and too few others are left for {len(fractions)} splits; "
                "give every field a `split` in the recipe, or add fields"
            )
        return [area for i, item in enumerate(fields) for area in _strips(i, item, fractions, guard_pix)]
    sizes = [sum(math.prod(fields[i].shape) for i in group) for group in groups]
    splits = _deal(sizes, fractions, seed)
    areas = [_whole(i, fields[i], split) for group, split in zip(groups, splits, strict=True) for i in group]
    return sorted(areas, key=lambda area: area.field)


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


def _strips(index: int, item: HasTruth, fractions: Mapping[str, float], guard: int) -> list[Area]:
    """Cut one field across its longer side, one strip per split, with `guard` pixels left out between them."""
    height, width = item.shape
    length = max(height, width)
    usable = length - guard * (len(fractions) - 1)
    areas, start, done = [], 0, 0.0
    for number, (split, share) in enumerate(fractions.items()):
        done += share
        stop = round(usable * done) + guard * number
        if stop - start < MIN_AREA_SIDE:
            raise InputError(
                f"field {item.name!r} ({width} x {height}) is too small to give {share:.0%} of it to {split!r}: that "
                f"is {stop - start} pixels, at least {MIN_AREA_SIDE} are needed; change the fractions or add fields"
            )
        window = (start, 0, stop, width) if height >= width else (0, start, height, stop)
        areas.append(Area(index, split, *window))
        start = stop + guard
    return areas


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
        close = cKDTree(np.concatenate(positions)).query_pairs(
            np.radians(SAME_OBJECT_ARCSEC / 3600), output_type="ndarray"
        )
        pairs, counts = np.unique(np.sort(owner[close], axis=1), axis=0, return_counts=True)
        for (i, j), count in zip(pairs.tolist(), counts.tolist(), strict=True):
            if i != j and count > SAME_SKY_SHARE * _objects_in_common_area(positions[i], positions[j]):
                linked.append((i, j))
    rows, columns = zip(*linked, strict=True) if linked else ((), ())
    graph = coo_array((np.ones(len(linked)), (rows, columns)), shape=(len(fields),) * 2)
    count, labels = connected_components(graph, directed=False)
    return [np.flatnonzero(labels == label).tolist() for label in range(count)]


def _sky(truth: pd.DataFrame) -> np.ndarray:
    """Unit vectors (N, 3) of the finite sky positions."""
    if not {"ra", "dec"} <= set(truth):
        return np.zeros((0, 3))
    ra, dec = np.radians(truth[["ra", "dec"]].dropna().to_numpy(dtype=float)).T
    return np.stack((np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)), axis=1)


def _objects_in_common_area(first: np.ndarray, second: np.ndarray) -> int:
    """How many objects the poorer of two fields has where their bounding boxes overlap."""
    low = np.maximum(first.min(axis=0), second.min(axis=0))
    high = np.minimum(first.max(axis=0), second.max(axis=0))
    return min(int(((part >= low) & (part <= high)).all(axis=1).sum()) for part in (first, second))


def tile_edges(start: int, stop: int, tile_size: int) -> list[tuple[int, int]]:
    """Cut start..stop into the fewest pieces of at most `tile_size`, equal to within a pixel."""
    count = math.ceil((stop - start) / tile_size)
    edges = [start + round(i * (stop - start) / count) for i in range(count + 1)]
    return list(zip(edges[:-1], edges[1:], strict=True))
