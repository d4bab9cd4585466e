"""The noiseless field and what is true of each object in it: outline, box, signal-to-noise, blending.

B = number of bands. An object's *significance* in a pixel is sqrt(sum over bands (light / sky sigma)^2): what all bands
together say about the pixel if the spectrum is known. Its *outline* is where this exceeds `sky.isophote`, or the share
`sky.peak_fraction` of its own peak if that is lower (a faint object is outlined as wide as the PSF shows it, not as the
one pixel that happens to exceed a level), and at least the 3 x 3 pixels around its centre. A pixel that several
outlines hold belongs to the most significant object.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy import ndimage

from deepdisc.catalog import FLAGS
from deepdisc.simulate.conditions import Conditions
from deepdisc.simulate.objects import effective_hlr_arcsec
from deepdisc.simulate.painter import Painter
from deepdisc.simulate.population import CLASS_NAMES
from deepdisc.simulate.settings import Sky

Slices = tuple[slice, slice]
CORE = 1  # the outline holds at least the pixels within this of the central one: 3 x 3
FEWEST_VISIBLE = 5  # an object with fewer pixels of its own in the segmentation is hidden, and not labelled


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


@dataclass
class Scene:
    """The field without noise.

    Attributes:
        light: (B, H, W) float32, nJy.
        snr: (N,) total signal-to-noise of every object, sqrt(sum over bands and pixels of (light / sky sigma)^2).
        outlines: those of objects bright enough to be labelled.
        segmentation: (H, W) int32, label = place in `outlines` + 1; 0 background.
        boxes: (N, 4) float32 x0, y0, x1, y1, pixel edges, of the outline inside the field; NaN where it has none.
        area_pix: (N,) int32, pixels of the outline inside the field.
        edge: (N,) bool, the outline touches the field's edge.
    """

    light: np.ndarray
    snr: np.ndarray
    boxes: np.ndarray
    area_pix: np.ndarray
    edge: np.ndarray
    outlines: list[Outline] = field(default_factory=list)
    segmentation: np.ndarray | None = None


def build_scene(sky: Sky, conditions: Conditions, objects: pd.DataFrame) -> Scene:
    """Draw all objects of a field and outline them."""
    shape, count = conditions.grid.shape, len(objects)
    scene = Scene(
        light=np.zeros((len(conditions.bands), *shape), dtype=np.float32),
        snr=np.zeros(count),
        boxes=np.full((count, 4), np.nan, dtype=np.float32),
        area_pix=np.zeros(count, dtype=np.int32),
        edge=np.zeros(count, dtype=bool),
    )
    painter, sigma = Painter(conditions), conditions.sky_sigma_njy().astype(np.float32)
    weights = detection_weights(sigma)
    for row, source in enumerate(objects.itertuples(index=False)):
        stamp = painter.paint(source)
        if stamp is None:
            continue
        in_field, in_stamp = stamp.clip(shape)
        scene.light[:, *in_field] += stamp.light[:, *in_stamp]
        per_sigma = stamp.light / sigma[:, None, None]
        power = np.einsum("bij,bij->ij", per_sigma, per_sigma)
        scene.snr[row] = np.sqrt(power.sum(dtype=np.float64))
        outline = _outline(sky, row, np.sqrt(power), stamp.light, in_field, in_stamp, weights)
        if outline is None:
            continue
        rows, columns = outline.where
        scene.boxes[row] = columns.start, rows.start, columns.stop, rows.stop
        scene.area_pix[row] = np.count_nonzero(outline.inside)
        scene.edge[row] = rows.start == 0 or columns.start == 0 or rows.stop == shape[0] or columns.stop == shape[1]
        if scene.snr[row] >= sky.label_snr:
            scene.outlines.append(outline)
    scene.segmentation = _segment(scene.outlines, shape)
    _drop_hidden(scene)
    return scene


def _outline(
    sky: Sky,
    row: int,
    significance: np.ndarray,
    light: np.ndarray,
    in_field: Slices,
    in_stamp: Slices,
    weights: np.ndarray,
) -> Outline | None:
    """The outline of one object; None where none of it lies in the field.

    Args:
        sky: settings.
        row: the object's row.
        significance: (n, n), on the stamp.
        light: (B, n, n), nJy, on the stamp.
        in_field: the field's pixels that the stamp covers.
        in_stamp: the same pixels of the stamp.
        weights: (B,) weights of the detection image.
    """
    inside = significance > min(sky.isophote, sky.peak_fraction * significance.max())
    middle = slice(len(inside) // 2 - CORE, len(inside) // 2 + CORE + 1)
    inside[middle, middle] = True
    found = ndimage.find_objects(inside[in_stamp].astype(np.uint8))
    if not found:
        return None
    tight = found[0]
    crop = tuple(slice(a.start + b.start, a.start + b.stop) for a, b in zip(in_stamp, tight, strict=True))
    where = tuple(slice(a.start + b.start, a.start + b.stop) for a, b in zip(in_field, tight, strict=True))
    detection = np.tensordot(weights, light[:, *crop], axes=1)
    return Outline(row, where, inside[crop].copy(), significance[crop].copy(), detection.astype(np.float32))


def detection_weights(sigma: np.ndarray) -> np.ndarray:
    """(B,) weights that add the bands to one detection image with unit noise: inverse variances, normalised."""
    inverse = 1 / np.asarray(sigma, dtype=np.float64) ** 2
    return inverse / np.sqrt(inverse.sum())


def _segment(outlines: list[Outline], shape: tuple[int, int]) -> np.ndarray:
    """(H, W) int32: each pixel's most significant object, as place in the list + 1."""
    best = np.zeros(shape, dtype=np.float32)
    segmentation = np.zeros(shape, dtype=np.int32)
    for label, outline in enumerate(outlines, start=1):
        level = best[outline.where]
        wins = outline.inside & (outline.significance > level)
        level[wins] = outline.significance[wins]
        segmentation[outline.where][wins] = label
    return segmentation


def _drop_hidden(scene: Scene) -> None:
    """Take the label from objects whose light other objects outshine nearly everywhere, until none is left."""
    while True:
        visible = np.bincount(scene.segmentation.ravel(), minlength=len(scene.outlines) + 1)[1:]
        if (visible >= FEWEST_VISIBLE).all():
            return
        scene.outlines = [one for one, pixels in zip(scene.outlines, visible, strict=True) if pixels >= FEWEST_VISIBLE]
        scene.segmentation = _segment(scene.outlines, scene.segmentation.shape)


def measure_blending(scene: Scene, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much the labelled objects overlap.

    Blendedness is 1 - sum(own^2) / sum(own * all) over the outline in the detection image (one minus the purity of
    Sanchez et al. 2021, arXiv 2103.02078): 0 alone, towards 1 where others outshine it.

    Returns:
        (N,) float32 blendedness, NaN for objects without a label; (N,) bool, the outline overlaps or touches another's.
    """
    blendedness = np.full(len(scene.snr), np.nan, dtype=np.float32)
    blended = np.zeros(len(scene.snr), dtype=bool)
    weights = detection_weights(sigma).astype(np.float32)
    covers = np.zeros(scene.segmentation.shape, dtype=np.uint8)
    for outline in scene.outlines:
        # 255 outlines on one pixel would be no sky: the count may stop there.
        covers[outline.where] += outline.inside & (covers[outline.where] < 255)
    for outline in scene.outlines:
        own = np.where(outline.inside, outline.detection, 0)
        everything = np.tensordot(weights, scene.light[:, *outline.where], axes=1)
        blendedness[outline.row] = max(0.0, 1 - (own * own).sum() / (own * everything).sum())
        blended[outline.row] = _touches(outline, covers)
    return blendedness, blended


def _touches(outline: Outline, covers: np.ndarray) -> bool:
    """Whether another outline holds a pixel of this one or one beside it (diagonals included)."""
    before = [min(1, side.start) for side in outline.where]
    wider = tuple(slice(side.start - less, side.stop + 1) for side, less in zip(outline.where, before, strict=True))
    around = covers[wider]
    own = np.zeros(around.shape, dtype=bool)
    own[tuple(slice(less, less + n) for less, n in zip(before, outline.inside.shape, strict=True))] = outline.inside
    grown = ndimage.binary_dilation(own, np.ones((3, 3), dtype=bool))
    return bool((around[grown] > own[grown]).any())


def truth_table(conditions: Conditions, objects: pd.DataFrame, scene: Scene) -> pd.DataFrame:
    """The truth catalogue: labelled objects first, ids as in the segmentation, then the FAINT ones centred inside."""
    blendedness, blended = measure_blending(scene, conditions.sky_sigma_njy())
    labelled = np.array([outline.row for outline in scene.outlines], dtype=int)
    height, width = conditions.grid.shape
    centred = objects.x.between(-0.5, width - 0.5, "left") & objects.y.between(-0.5, height - 0.5, "left")
    faint = np.setdiff1d(np.flatnonzero(centred & np.isfinite(scene.boxes[:, 0])), labelled)
    rows = np.concatenate([labelled, faint])
    chosen = objects.iloc[rows]
    ra, dec = conditions.grid.to_sky(chosen.x, chosen.y)
    is_faint = np.arange(len(rows)) >= len(labelled)
    flags = (
        FLAGS["EDGE"].value * scene.edge[rows]
        | FLAGS["BLENDED"].value * blended[rows]
        | FLAGS["FAINT"].value * is_faint
    )
    table = {
        "id": np.arange(1, len(rows) + 1),
        "x": chosen.x.to_numpy(),
        "y": chosen.y.to_numpy(),
        "ra": ra,
        "dec": dec,
        **{name: scene.boxes[rows, i] for i, name in enumerate(("x_min", "y_min", "x_max", "y_max"))},
        "class_id": chosen.class_id.to_numpy(np.int16),
        "class_name": np.array(CLASS_NAMES, dtype=object)[chosen.class_id.to_numpy()],
        "redshift": chosen.redshift.to_numpy(np.float32),
        **{name: chosen[name].to_numpy() for name in chosen.columns if name.startswith(("flux_", "mag_"))},
        "snr": scene.snr[rows].astype(np.float32),
        "area_pix": scene.area_pix[rows],
        "hlr_arcsec": effective_hlr_arcsec(chosen).astype(np.float32),
        "blendedness": blendedness[rows],
        "ebv": np.full(len(rows), conditions.ebv, dtype=np.float32),
        "flags": flags.astype(np.int32),
        "population_row": chosen.population_row.to_numpy(),
    }
    return pd.DataFrame(table)
