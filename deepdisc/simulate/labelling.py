"""Truth per pixel of a rendered field, in torch: the rules of `outlines`, for all objects of a batch at once.

N = number of objects, B = bands, H, W = height and width of the field.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from deepdisc.simulate.conditions import Conditions
from deepdisc.simulate.outlines import CORE, FEWEST_VISIBLE
from deepdisc.simulate.renderer import Batch, Renderer
from deepdisc.simulate.settings import Sky
from deepdisc.simulate.shapes import Shapes

_SIGNIFICANCE_BITS = 32  # a pixel's key is the significance, as ordered bits, above the complement of the object's row


@dataclass
class Rendered:
    """A field without noise and its labelled objects; L of them.

    Attributes:
        light: (B, H, W) float32 tensor, nJy.
        rows: (L,) rows of the table of objects.
        segmentation: (H, W) int32, label = place in `rows` + 1; 0 background.
        snr: (L,) total signal-to-noise.
        boxes: (L, 4) float32 x0, y0, x1, y1, pixel edges, of the whole outlines inside the field.
        area_pix: (L,) int32, pixels of the whole outlines inside the field.
        edge: (L,) bool, the outline touches the field's edge.
    """

    light: Tensor
    rows: np.ndarray
    segmentation: np.ndarray
    snr: np.ndarray
    boxes: np.ndarray
    area_pix: np.ndarray
    edge: np.ndarray


def render_labelled(sky: Sky, conditions: Conditions, objects: pd.DataFrame, renderer: Renderer) -> Rendered:
    """Render a field and label its pixels.

    Args:
        sky: settings.
        conditions: those of the renderer.
        objects: their table, see `objects`.
        renderer: draws.
    """
    shape, labels = conditions.grid.shape, _Labels(sky, conditions, len(objects), renderer.device)
    canvas = renderer.canvas()
    for batch in renderer.batches(Shapes.of(objects, conditions)):
        pixels = batch.pixels(shape)
        canvas.add(batch, pixels)
        labels.add(batch, pixels)
    return labels.finish(canvas.light())


class _Labels:
    """Gathers the outlines batch by batch."""

    def __init__(self, sky: Sky, conditions: Conditions, count: int, device: torch.device):
        self._sky, self._shape, self._device = sky, conditions.grid.shape, device
        self._per_sigma = torch.from_numpy((1 / conditions.sky_sigma_njy()).astype(np.float32)).to(device)
        self._count = count
        self._keys: list[tuple[Tensor, Tensor]] = []
        self._found: list[tuple[np.ndarray, Tensor]] = []

    def add(self, batch: Batch, pixels: Tensor) -> None:
        """Outline a batch's objects.

        Args:
            batch: their light.
            pixels: (N, side, side), see `Batch.pixels`.
        """
        significance = (batch.light * self._per_sigma[:, None, None]).square_().sum(dim=1)
        snr = significance.sum(dim=(1, 2)).sqrt()
        significance.sqrt_()
        level = (self._sky.peak_fraction * significance.amax(dim=(1, 2))).clamp(max=self._sky.isophote)
        inside = significance > level[:, None, None]
        middle = slice(inside.shape[1] // 2 - CORE, inside.shape[1] // 2 + CORE + 1)
        inside[:, middle, middle] = True
        inside &= pixels < self._shape[0] * self._shape[1]
        columns, rows = (_extent(inside.any(dim=axis)) for axis in (1, 2))
        start = torch.stack([batch.x0, batch.y0], dim=1)
        first, last = (torch.stack([a, b], dim=1) + start for a, b in zip(columns, rows, strict=True))
        area = inside.sum(dim=(1, 2))
        self._found.append((batch.rows, torch.cat([snr[:, None], first, last + 1, area[:, None]], dim=1)))
        order = torch.from_numpy(2**_SIGNIFICANCE_BITS - 1 - batch.rows).to(self._device)
        key = (significance.view(torch.int32).to(torch.int64) << _SIGNIFICANCE_BITS) + order[:, None, None]
        inside &= (snr >= self._sky.label_snr)[:, None, None]
        self._keys.append((pixels[inside], key[inside]))

    def finish(self, light: Tensor) -> Rendered:
        """Give every pixel to one object; see `outlines.segment`."""
        nothing = torch.empty(0, dtype=torch.int64, device=self._device)
        pixels, keys = (torch.cat([nothing, *parts]) for parts in self._both())
        owner = 2**_SIGNIFICANCE_BITS - 1 - (keys & (2**_SIGNIFICANCE_BITS - 1))
        every, found = self._table()
        labelled = found[:, 0] >= self._sky.label_snr
        labelled &= found[:, 5] > 0
        kept = torch.zeros(self._count, dtype=torch.bool, device=self._device)
        kept[torch.from_numpy(every[labelled])] = True
        while True:
            best = torch.zeros(self._shape[0] * self._shape[1], dtype=torch.int64, device=self._device)
            here = kept[owner]
            best.scatter_reduce_(0, pixels[here], keys[here], "amax")
            winner = torch.where(
                best > 0, 2**_SIGNIFICANCE_BITS - 1 - (best & (2**_SIGNIFICANCE_BITS - 1)), self._count
            )
            visible = torch.bincount(winner, minlength=self._count + 1)[: self._count]
            hidden = kept & (visible < FEWEST_VISIBLE)
            if not hidden.any():
                break
            kept &= ~hidden
        rows = kept.nonzero()[:, 0].cpu().numpy()
        number = np.zeros(self._count + 1, dtype=np.int32)
        number[rows] = np.arange(1, len(rows) + 1)
        place = np.full(self._count, -1)
        place[every] = np.arange(len(every))
        chosen, (height, width) = found[place[rows]], self._shape
        boxes = chosen[:, 1:5].astype(np.float32)
        edge = (boxes[:, :2] == 0).any(axis=1) | (boxes[:, 2] == width) | (boxes[:, 3] == height)
        segmentation = number[winner.cpu().numpy()].reshape(self._shape)
        return Rendered(light, rows, segmentation, chosen[:, 0], boxes, chosen[:, 5].astype(np.int32), edge)

    def _both(self) -> tuple[list[Tensor], list[Tensor]]:
        return [pixels for pixels, _ in self._keys], [keys for _, keys in self._keys]

    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the objects, and (their number, 6): signal-to-noise, box, area."""
        if not self._found:
            return np.zeros(0, dtype=np.int64), np.zeros((0, 6))
        every = np.concatenate([rows for rows, _ in self._found])
        return every, torch.cat([values for _, values in self._found]).double().cpu().numpy()


def _extent(line: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) first and last place that is true in (N, side)."""
    number = line.to(torch.uint8)
    return number.argmax(dim=1), line.shape[1] - 1 - number.flip(1).argmax(dim=1)
