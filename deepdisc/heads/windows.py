"""Square windows of measured pixels around objects, at native resolution or, for large objects, summed in blocks.

Legend: N images, R objects of all images one after the other, C bands, S window side in (binned) pixels, b binning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deepdisc.structures import Instances, box_centers

COARSEST = 64  # binning at most: beyond, a box is larger than any tile
FEWEST_GOOD = 0.5  # a binned pixel is valid with at least this share of its pixels


@dataclass
class Windows:
    """Pixels around R objects.

    Attributes:
        flux: (R, C, S, S) float32 nJy, 0 where not valid; a binned pixel holds the sum of its b x b pixels.
        variance: (R, C, S, S) float32 nJy^2, 0 where not valid.
        valid: (R, C, S, S) bool, the pixel is inside the image and measured.
        offset: (R, 2) float32 x, y of the box centre relative to the centre of the window's middle, binned pixels.
        box: (R, 2) float32 width and height of the box, binned pixels.
        binning: (R,) int64 b, a power of two.
        image: (R,) int64 number of the object's image in the batch.
    """

    flux: Tensor
    variance: Tensor
    valid: Tensor
    offset: Tensor
    box: Tensor
    binning: Tensor
    image: Tensor

    def __len__(self) -> int:
        return len(self.flux)

    def __getitem__(self, index: slice | Tensor) -> Windows:
        return Windows(**{name: value[index] for name, value in vars(self).items()})

    def axes(self) -> tuple[Tensor, Tensor]:
        """(R, S) each: distances in x and y of the pixels' centres from the box centre, binned pixels."""
        side = self.flux.shape[-1]
        place = torch.arange(side, dtype=torch.float32, device=self.flux.device) - (side - 1) / 2
        return place - self.offset[:, 0, None], place - self.offset[:, 1, None]

    @staticmethod
    def cat(items: Sequence[Windows]) -> Windows:
        """One after the other."""
        return Windows(**{name: torch.cat([getattr(item, name) for item in items]) for name in vars(items[0])})


def cut_windows(
    features: dict[str, Tensor],
    instances: list[Instances],
    box_field: str,
    size: int,
    fill: float = 0.5,
    coarsest: int = COARSEST,
) -> Windows:
    """Cut a window around the centre of every object's box.

    Objects whose box is longer than `fill` of the window are seen in pixels summed b x b, b = 2, 4, ..., until it is
    not: noise and total flux are conserved. A sum over an incomplete block is scaled to the whole block.

    Args:
        features: "flux" (N, C, H, W) nJy, "variance" (N, C, H, W) nJy^2, "valid" (N, C, H, W) bool. Pixels whose flux
            is not finite or whose variance is not finite and positive count as not valid.
        instances: one per image.
        box_field: name of the boxes, pixels of the image, pixel-edge coordinates.
        size: S, odd for windows with a middle pixel.
        fill: largest share of the window's side that the box takes up.
        coarsest: largest b, a power of two; 1 for native pixels always.
    """
    pieces = list(iterate_windows(features, instances, box_field, size, fill, coarsest, chunk=1 << 30))
    return Windows.cat(pieces) if pieces else _empty(features["flux"], size)


def iterate_windows(
    features: dict[str, Tensor],
    instances: list[Instances],
    box_field: str,
    size: int,
    fill: float = 0.5,
    coarsest: int = COARSEST,
    chunk: int = 512,
) -> Iterator[Windows]:
    """As `cut_windows`, at most `chunk` objects at a time: all windows of a crowded tile would need gigabytes."""
    waiting: list[Windows] = []
    for piece in _pieces(features, instances, box_field, size, fill, coarsest, chunk):
        if waiting and sum(map(len, waiting)) + len(piece) > chunk:
            yield Windows.cat(waiting)
            waiting = []
        waiting.append(piece)
    if waiting:
        yield Windows.cat(waiting)


def _pieces(
    features: dict[str, Tensor],
    instances: list[Instances],
    box_field: str,
    size: int,
    fill: float,
    coarsest: int,
    chunk: int,
) -> Iterator[Windows]:
    """The same, the objects of one image at a time."""
    for number, objects in enumerate(instances):
        boxes = getattr(objects, box_field).to(features["flux"].device, torch.float32)
        if len(boxes) == 0:
            continue
        binning = _binning(boxes, fill * size, coarsest)
        levels = _pyramid(tuple(features[name][number] for name in ("flux", "variance", "valid")), int(binning.max()))
        for part, scale in zip(boxes.split(chunk), binning.split(chunk), strict=True):
            yield _cut(levels, part, scale, number, size)


def _binning(boxes: Tensor, longest: float, coarsest: int) -> Tensor:
    """(R,) int64 powers of two by which the longer sides of boxes (R, 4) become at most `longest` pixels."""
    sides = (boxes[:, 2:] - boxes[:, :2]).amax(1)
    steps = (sides / longest).clamp(min=1).log2().ceil().to(torch.int64)
    return (2**steps).clamp(max=coarsest)


def _pyramid(image: tuple[Tensor, Tensor, Tensor], coarsest: int) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    """Flux, variance and valid, each (C, H, W), by binning."""
    flux, variance, valid = image
    valid = valid & flux.isfinite() & variance.isfinite() & (variance > 0)
    flux, variance = (torch.where(valid, part, torch.zeros_like(part)).float() for part in (flux, variance))
    levels = {1: (flux, variance, valid)}
    count, b = valid.float(), 1
    while b < coarsest:
        b *= 2
        flux, variance, count = (_sum_blocks(part) for part in (flux, variance, count))
        good = count >= FEWEST_GOOD * b * b
        whole = torch.where(good, b * b / count.clamp(min=1), torch.zeros_like(count))
        levels[b] = (flux * whole, variance * whole.square(), good)
    return levels


def _sum_blocks(image: Tensor) -> Tensor:
    """Sums (C, ceil(H / 2), ceil(W / 2)) of blocks of 2 x 2 pixels, with nothing beyond the edge."""
    padded = F.pad(image, (0, image.shape[-1] % 2, 0, image.shape[-2] % 2))
    return F.avg_pool2d(padded[None], 2, divisor_override=1)[0]


def _cut(levels: dict[int, tuple], boxes: Tensor, binning: Tensor, number: int, size: int) -> Windows:
    """Windows around boxes (R, 4) of one image, each from the level of its binning (R,)."""
    count, bands = len(boxes), len(levels[1][0])
    centers = box_centers(boxes) / binning[:, None]
    half = 0.5 * (size % 2)
    middle = (centers + 0.5 - half).floor()
    start = middle.to(torch.int64) - size // 2
    place = torch.arange(size, device=boxes.device)
    columns, rows = (start[:, axis, None] + place for axis in (0, 1))
    shape = (count, bands, size, size)
    windows = Windows(
        flux=boxes.new_zeros(shape),
        variance=boxes.new_zeros(shape),
        valid=torch.zeros(shape, dtype=torch.bool, device=boxes.device),
        offset=centers - middle - half,
        box=(boxes[:, 2:] - boxes[:, :2]).clamp(min=0) / binning[:, None],
        binning=binning,
        image=torch.full((count,), number, device=boxes.device),
    )
    for b, (flux, variance, valid) in levels.items():
        here = (binning == b).nonzero()[:, 0]
        height, width = flux.shape[-2:]
        y, x = rows[here][:, :, None], columns[here][:, None, :]
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
        seen = valid[:, y, x].transpose(0, 1) & inside[:, None]
        windows.valid[here] = seen
        windows.flux[here] = flux[:, y, x].transpose(0, 1) * seen
        windows.variance[here] = variance[:, y, x].transpose(0, 1) * seen
    return windows


def _empty(flux: Tensor, size: int) -> Windows:
    """Windows of no objects."""
    pixels = torch.zeros((0, flux.shape[1], size, size), device=flux.device)
    pairs, numbers = pixels.new_zeros((0, 2)), torch.zeros(0, dtype=torch.int64, device=flux.device)
    return Windows(pixels, pixels, pixels.bool(), pairs, pairs, numbers, numbers)
