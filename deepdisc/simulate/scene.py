"""The noiseless field and what is true of each object in it.

B = number of bands, N = number of objects. Objects are painted in fixed chunks, by several processes if asked for, and
added in their order, so that every sum is the same for any number of processes. Outlines: see `outlines`.
"""

from __future__ import annotations

import collections
import concurrent.futures
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.spatial import KDTree

from deepdisc import catalog
from deepdisc.catalog import FLAGS
from deepdisc.simulate import outlines
from deepdisc.simulate.conditions import Conditions
from deepdisc.simulate.objects import effective_hlr_arcsec
from deepdisc.simulate.outlines import Outline, Slices, draw_outline
from deepdisc.simulate.painter import Painter
from deepdisc.simulate.population import CLASS_NAMES
from deepdisc.simulate.processes import process_pool
from deepdisc.simulate.settings import Sky
from deepdisc.simulate.shapes import Shapes

CHUNK = 64  # objects that a process paints at a time
AHEAD = 2  # chunks per process that may be painted before they are added: bounds the memory


@dataclass
class Scene:
    """The field without noise.

    Attributes:
        light: (B, H, W) float32, nJy.
        snr: (N,) total signal-to-noise of every object, sqrt(sum over bands and pixels of (light / sky sigma)^2).
        flux_error: (N, B) nJy, 1 sigma of a flux measured with the object's own profile as weight.
        boxes: (N, 4) float32 x0, y0, x1, y1, pixel edges, of the outline inside the field; NaN where it has none.
        area_pix: (N,) int32, pixels of the outline inside the field.
        edge: (N,) bool, the outline touches the field's edge.
        outlines: those of the objects bright enough to be labelled.
        segmentation: (H, W) int32, label = place in `outlines` + 1; 0 background.
    """

    light: np.ndarray
    snr: np.ndarray
    flux_error: np.ndarray
    boxes: np.ndarray
    area_pix: np.ndarray
    edge: np.ndarray
    outlines: list[Outline]
    segmentation: np.ndarray


@dataclass
class _Painted:
    """One object: the pixels of the field it lies on, its light there (B, h, w), and what `Scene` has of it."""

    row: int
    where: Slices
    light: np.ndarray
    snr: float
    flux_error: np.ndarray
    outline: Outline | None


def build_scene(
    sky: Sky,
    conditions: Conditions,
    objects: pd.DataFrame,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Scene:
    """Draw all objects of a field and outline them.

    Args:
        sky: settings.
        conditions: of the field.
        objects: their table, see `objects`.
        workers: processes that paint; the result does not depend on it.
        progress: told, in this process, how many objects are done since the last call.
    """
    shape, count, bands = conditions.grid.shape, len(objects), len(conditions.bands)
    scene = Scene(
        light=np.zeros((bands, *shape), dtype=np.float32),
        snr=np.zeros(count),
        flux_error=np.full((count, bands), np.nan),
        boxes=np.full((count, 4), np.nan, dtype=np.float32),
        area_pix=np.zeros(count, dtype=np.int32),
        edge=np.zeros(count, dtype=bool),
        outlines=[],
        segmentation=np.zeros(shape, dtype=np.int32),
    )
    shapes, labelled, done = Shapes.of(objects, conditions), [], 0
    for one in _paint_all(sky, conditions, shapes, workers):
        if progress is not None:
            progress(one.row + 1 - done)  # rows whose stamps lie outside the field count as well
            done = one.row + 1
        scene.light[:, *one.where] += one.light
        scene.snr[one.row], scene.flux_error[one.row] = one.snr, one.flux_error
        if one.outline is None:
            continue
        rows, columns = one.outline.where
        scene.boxes[one.row] = columns.start, rows.start, columns.stop, rows.stop
        scene.area_pix[one.row] = np.count_nonzero(one.outline.inside)
        scene.edge[one.row] = rows.start == 0 or columns.start == 0 or rows.stop == shape[0] or columns.stop == shape[1]
        if one.snr >= sky.label_snr:
            labelled.append(one.outline)
    if progress is not None:
        progress(count - done)
    scene.outlines, scene.segmentation = outlines.segment(labelled, shape)
    return scene


# ---------------------------------------------------------------------------------------------------------- painting
class _Brush:
    """Paints chunks of objects: one per process."""

    def __init__(self, sky: Sky, conditions: Conditions):
        self._sky, self._shape = sky, conditions.grid.shape
        self._painter = Painter(conditions, sky.real_galaxies)
        self._sigma = conditions.sky_sigma_njy()

    def paint(self, shapes: Shapes, rows: np.ndarray) -> list[_Painted]:
        """Paint `shapes`, whose rows in the table of objects are `rows`."""
        return [self._paint(shapes, number, int(row)) for number, row in enumerate(rows)]

    def _paint(self, shapes: Shapes, number: int, row: int) -> _Painted:
        stamp = self._painter.paint(shapes, number)
        in_field, in_stamp = stamp.clip(self._shape)
        snr, outline = draw_outline(self._sky, row, stamp.light, self._sigma, in_field, in_stamp)
        if snr < self._sky.label_snr and outline is not None:
            outline.significance = outline.detection = np.empty(0, dtype=np.float32)  # not needed: spare the transport
        return _Painted(row, in_field, stamp.light[:, *in_stamp], snr, stamp.flux_error, outline)


_brush: _Brush  # of this process, where it is one of several that paint


def _take_brush(sky: Sky, conditions: Conditions) -> None:
    global _brush
    _brush = _Brush(sky, conditions)


def _paint_chunk(shapes: Shapes, rows: np.ndarray) -> list[_Painted]:
    return _brush.paint(shapes, rows)


def _paint_all(sky: Sky, conditions: Conditions, shapes: Shapes, workers: int) -> Iterator[_Painted]:
    """The objects that reach into the field, painted, in their order."""
    rows = np.flatnonzero(shapes.reach_into(conditions.grid.shape))
    chunks = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
    workers = min(workers, len(chunks))
    if workers <= 1:
        brush = _Brush(sky, conditions)
        for chunk in chunks:
            yield from brush.paint(shapes.take(chunk), chunk)
        return
    with process_pool(workers, _take_brush, sky, conditions) as pool:
        waiting: collections.deque[concurrent.futures.Future] = collections.deque()
        for chunk in chunks:
            waiting.append(pool.submit(_paint_chunk, shapes.take(chunk), chunk))
            if len(waiting) > AHEAD * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


# ------------------------------------------------------------------------------------------------------------- truth
def truth_table(conditions: Conditions, objects: pd.DataFrame, scene: Scene) -> pd.DataFrame:
    """The truth catalogue: labelled objects first, ids as in the segmentation, then the FAINT ones centred inside.

    Beside the columns made here it has all columns of the objects that the schema knows.
    """
    labelled = np.array([outline.row for outline in scene.outlines], dtype=int)
    height, width = conditions.grid.shape
    centred = objects.x.between(-0.5, width - 0.5, "left") & objects.y.between(-0.5, height - 0.5, "left")
    faint = np.setdiff1d(np.flatnonzero(centred & np.isfinite(scene.boxes[:, 0])), labelled)
    rows = np.concatenate([labelled, faint])
    chosen = objects.iloc[rows]
    ra, dec = conditions.grid.to_sky(chosen.x, chosen.y)
    blending = np.full(len(rows), np.nan, dtype=np.float32)
    blending[: len(labelled)] = outlines.blendedness(scene.outlines, scene.light, conditions.sky_sigma_njy())
    neighbours = np.zeros(len(rows), dtype=np.int32)
    neighbours[: len(labelled)] = outlines.count_neighbours(scene.outlines)
    is_faint = np.arange(len(rows)) >= len(labelled)
    flags = (
        FLAGS["EDGE"].value * scene.edge[rows]
        | FLAGS["BLENDED"].value * (neighbours > 0)
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
        "snr": scene.snr[rows].astype(np.float32),
        **{f"fluxerr_{band.name}": scene.flux_error[rows, i] for i, band in enumerate(conditions.bands)},
        "area_pix": scene.area_pix[rows],
        "hlr_arcsec": effective_hlr_arcsec(chosen).astype(np.float32),
        "blendedness": blending,
        "neighbours": neighbours,
        "neighbour_arcsec": _nearest_arcsec(conditions, chosen, len(labelled)),
        "flags": flags.astype(np.int32),
    }
    for name in chosen.columns:
        about = catalog.describe(name)
        if name not in table and about is not None:
            table[name] = chosen[name].to_numpy(about.dtype)
    return pd.DataFrame(table)


def _nearest_arcsec(conditions: Conditions, chosen: pd.DataFrame, labelled: int) -> np.ndarray:
    """(number of rows,) float32 distance to the nearest other of the labelled objects, the first ones; NaN: none."""
    xy = chosen[["x", "y"]].to_numpy(np.float64)
    if labelled == 0:
        return np.full(len(xy), np.nan, dtype=np.float32)
    distance, which = KDTree(xy[:labelled]).query(xy, k=2)
    other = np.where(which[:, 0] == np.arange(len(xy)), distance[:, 1], distance[:, 0])
    return np.where(np.isfinite(other), other * conditions.instrument.pixel_scale_arcsec, np.nan).astype(np.float32)
