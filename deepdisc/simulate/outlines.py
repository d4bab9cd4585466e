"""Where each object is in the picture: outlines, who owns a pixel, and how much the objects overlap.

B = number of bands. An object's *significance* in a pixel is sqrt(sum over bands (light / sky sigma)^2): what all bands
together say about the pixel if the spectrum is known. Its *outline* is where this exceeds `sky.isophote`, or the share
`sky.peak_fraction` of its own peak if that is lower (a faint object is outlined as wide as the PSF shows it, not as the
one pixel that happens to exceed a level), and at least the 3 x 3 pixels around its centre. Outlines are whole
("amodal"): what lies in front or behind does not matter. A pixel that several outlines hold belongs to the most
significant object.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pycocotools import mask as run_lengths
from scipy import ndimage

from deepdisc.simulate.settings import Sky

Slices = tuple[slice, slice]
CORE = 1  # the outline holds at least the pixels within this of the central one: 3 x 3
FEWEST_VISIBLE = 5  # an object with fewer pixels of its own in the segmentation is hidden, and not labelled
CELL_PIX = 32  # outlines are looked up by cells of this size


@dataclass
class Outline:
    """An object's outline inside the field.

    Attributes:
        row: row of the object in the table of objects.
        where: the field's pixels of the arrays below, a tight box.
        inside: (h, w) bool, the outline.
        significance: (h, w) float32.
        detection: (h, w) float32, the object's part of the detection image (see `detection_weights`).
    """

    row: int
    where: Slices
    inside: np.ndarray
    significance: np.ndarray
    detection: np.ndarray


def detection_weights(sigma: np.ndarray) -> np.ndarray:
    """(B,) weights that add the bands to one detection image with unit noise: inverse variances, normalised."""
    inverse = 1 / np.asarray(sigma, dtype=np.float64) ** 2
    return inverse / np.sqrt(inverse.sum())


def draw_outline(
    sky: Sky, row: int, light: np.ndarray, sigma: np.ndarray, in_field: Slices, in_stamp: Slices
) -> tuple[float, Outline | None]:
    """Total signal-to-noise and outline of one object; the outline is None where none of it lies in the field.

    Args:
        sky: settings.
        row: the object's row.
        light: (B, n, n) nJy, on the object's stamp.
        sigma: (B,) the sky's noise per pixel, nJy.
        in_field: the field's pixels that the stamp covers.
        in_stamp: the same pixels of the stamp.
    """
    power = np.einsum("bij,bij,b->ij", light, light, (1 / sigma**2).astype(np.float32))
    snr = float(np.sqrt(power.sum(dtype=np.float64)))
    significance = np.sqrt(power)
    inside = significance > min(sky.isophote, sky.peak_fraction * significance.max())
    middle = slice(len(inside) // 2 - CORE, len(inside) // 2 + CORE + 1)
    inside[middle, middle] = True
    found = ndimage.find_objects(inside[in_stamp].astype(np.uint8))
    if not found:
        return snr, None
    crop = tuple(slice(a.start + b.start, a.start + b.stop) for a, b in zip(in_stamp, found[0], strict=True))
    where = tuple(slice(a.start + b.start, a.start + b.stop) for a, b in zip(in_field, found[0], strict=True))
    detection = np.einsum("bij,b->ij", light[:, *crop], detection_weights(sigma).astype(np.float32))
    return snr, Outline(row, where, inside[crop].copy(), significance[crop].copy(), detection)


def segment(outlines: Sequence[Outline], shape: tuple[int, int]) -> tuple[list[Outline], np.ndarray]:
    """Give every pixel to one object; objects that others outshine nearly everywhere are left out.

    Returns:
        The outlines that are left, and (H, W) int32: place in that list + 1, 0 where there is none.
    """
    kept = list(outlines)
    while True:
        segmentation = _segment(kept, shape)
        visible = np.bincount(segmentation.ravel(), minlength=len(kept) + 1)[1:]
        if (visible >= FEWEST_VISIBLE).all():
            return kept, segmentation
        kept = [one for one, pixels in zip(kept, visible, strict=True) if pixels >= FEWEST_VISIBLE]


def _segment(outlines: Sequence[Outline], shape: tuple[int, int]) -> np.ndarray:
    best = np.zeros(shape, dtype=np.float32)
    segmentation = np.zeros(shape, dtype=np.int32)
    for label, outline in enumerate(outlines, start=1):
        level = best[outline.where]
        wins = outline.inside & (outline.significance > level)
        level[wins] = outline.significance[wins]
        segmentation[outline.where][wins] = label
    return segmentation


# ---------------------------------------------------------------------------------------------------------- overlap
def blendedness(outlines: Sequence[Outline], light: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """(number of outlines,) float32: 1 - sum(own^2) / sum(own * all) over the outline in the detection image.

    One minus the purity of Sanchez et al. 2021, arXiv 2103.02078: 0 alone, towards 1 where others outshine it.

    Args:
        outlines: of the labelled objects.
        light: (B, H, W) of all objects, nJy.
        sigma: (B,) the sky's noise per pixel, nJy.
    """
    weights = detection_weights(sigma).astype(np.float32)
    result = np.zeros(len(outlines), dtype=np.float32)
    for number, outline in enumerate(outlines):
        own = np.where(outline.inside, outline.detection, 0)
        everything = np.einsum("bij,b->ij", light[:, *outline.where], weights)
        result[number] = max(0.0, 1 - (own * own).sum() / (own * everything).sum())
    return result


def count_neighbours(outlines: Sequence[Outline]) -> np.ndarray:
    """(number of outlines,) int32: how many other outlines overlap or touch (diagonals included) each one."""
    counts = np.zeros(len(outlines), dtype=np.int32)
    for one, other in _close_pairs(outlines):
        if _touch(outlines[one], outlines[other]):
            counts[[one, other]] += 1
    return counts


def _close_pairs(outlines: Sequence[Outline]) -> Iterator[tuple[int, int]]:
    """Pairs of outlines, each once, whose boxes overlap or touch."""
    cells: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, outline in enumerate(outlines):
        rows, columns = outline.where
        met = set()
        for row in range((rows.start - 1) // CELL_PIX, rows.stop // CELL_PIX + 1):
            for column in range((columns.start - 1) // CELL_PIX, columns.stop // CELL_PIX + 1):
                met.update(cells[row, column])
                cells[row, column].append(number)
        for other in sorted(met):
            there = outlines[other].where
            if all(a.start <= b.stop and b.start <= a.stop for a, b in zip(outline.where, there, strict=True)):
                yield other, number


def _touch(one: Outline, other: Outline) -> bool:
    """Whether the outlines share a pixel or have pixels beside each other."""
    # Only where the boxes, one of them a pixel wider, overlap.
    first = [max(a.start - 1, b.start) for a, b in zip(one.where, other.where, strict=True)]
    last = [min(a.stop + 1, b.stop) for a, b in zip(one.where, other.where, strict=True)]
    if any(b <= a for a, b in zip(first, last, strict=True)):
        return False
    grown = np.zeros([b - a for a, b in zip(first, last, strict=True)], dtype=bool)
    own = np.pad(one.inside, 2)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            y, x = (f - side.start + 2 + d for f, side, d in zip(first, one.where, (dy, dx), strict=True))
            grown |= own[y : y + grown.shape[0], x : x + grown.shape[1]]
    there = tuple(slice(a - side.start, b - side.start) for a, b, side in zip(first, last, other.where, strict=True))
    return bool((grown & other.inside[there]).any())


def amodal_table(outlines: Sequence[Outline]) -> pd.DataFrame:
    """The whole outlines, also where brighter objects cover them.

    Returns:
        id (label in the segmentation), y0, x0, height, width (the box of the outline, pixels of the field) and rle, the
        `counts` of pycocotools' run-length code of the box: `mask.decode({"size": [height, width], "counts": rle})`.
    """
    boxes = np.array([[s.start for s in one.where] + list(one.inside.shape) for one in outlines]).reshape(-1, 4)
    codes = [run_lengths.encode(np.asfortranarray(one.inside, dtype=np.uint8))["counts"] for one in outlines]
    columns = dict(zip(("y0", "x0", "height", "width"), boxes.astype(np.int32).T, strict=True))
    return pd.DataFrame({"id": np.arange(1, len(codes) + 1), **columns, "rle": pd.Series(codes, dtype=object)})
