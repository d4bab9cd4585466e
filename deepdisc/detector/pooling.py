"""Cuts regions out of a feature pyramid (ROIAlign: arXiv:1703.06870; the level by size: arXiv:1612.03144, eq. 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from deepdisc.errors import InputError


def feature_stride(name: str) -> int:
    """Stride in image pixels of a feature map by its name: "image" is 1, "p<level>" is 2**level.

    Raises:
        InputError: the name is neither.
    """
    if name == "image":
        return 1
    if name[:1] != "p" or not (name[1:].isascii() and name[1:].isdecimal()):
        raise InputError(f'unknown feature map {name!r}: the names are "image" and "p2", "p3", ... (stride 2**level)')
    return 2 ** int(name[1:])


def at_least_single(feature: Tensor) -> Tensor:
    """A map in single precision or better: boxes take its type, and half of it would move them by a pixel."""
    return feature.to(torch.promote_types(feature.dtype, torch.float32)) if feature.is_floating_point() else feature


class ROIPooler(nn.Module):
    """ROIAlign of each box on the level of the pyramid that suits its size."""

    def __init__(
        self,
        output_size: int,
        in_features: Sequence[str],
        sampling_ratio: int = 0,
        canonical_box_size: float = 224.0,
        canonical_level: int = 4,
    ):
        """Set the levels.

        Args:
            output_size: side of the pooled map.
            in_features: names of successive levels, finest first, or a single map ("image", say).
            sampling_ratio: samples per output cell and axis; 0 = as many as the cell has pixels.
            canonical_box_size: a box of this side (square root of its area, image pixels) ...
            canonical_level: ... is pooled from the map of stride 2**canonical_level.
        """
        super().__init__()
        self.output_size = output_size
        self.in_features = list(in_features)
        self.strides = [feature_stride(name) for name in self.in_features]
        if not self.in_features or any(b != 2 * a for a, b in zip(self.strides, self.strides[1:], strict=False)):
            raise InputError(f"in_features={self.in_features}: the pooler needs successive levels, finest first")
        self.sampling_ratio = sampling_ratio
        self.canonical_box_size = canonical_box_size
        self.canonical_level = canonical_level

    def levels(self, boxes: Tensor) -> Tensor:
        """Positions (N,) in `in_features` of the maps from which boxes (N, 4) are pooled."""
        lowest = self.strides[0].bit_length() - 1
        side = torch.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
        # the 1e-8 keeps the logarithm of an empty box finite; it belongs inside, as in detectron2
        level = torch.floor(self.canonical_level + torch.log2(side / self.canonical_box_size + 1e-8))
        return level.clamp(lowest, lowest + len(self.strides) - 1).to(torch.int64) - lowest

    def forward(self, features: dict[str, Tensor], boxes: list[Tensor]) -> Tensor:
        """Pool regions of all images of a batch.

        Args:
            features: maps (N, C, H / stride, W / stride) by name.
            boxes: for each image (n_i, 4), pixels of the image; may lie outside or be empty (then zeros).

        Returns:
            (sum n_i, C, output_size, output_size), images one after the other.
        """
        maps = [at_least_single(features[name]) for name in self.in_features]
        assert len(boxes) == len(maps[0])
        image = torch.repeat_interleave(torch.arange(len(boxes)), torch.tensor([len(box) for box in boxes]))
        flat = torch.cat(boxes)
        regions = torch.cat((image[:, None].to(flat), flat), dim=1).to(maps[0].dtype)
        if len(maps) == 1:
            return self._align(maps[0], regions, self.strides[0])
        level_of_box = self.levels(flat)
        side = self.output_size
        pooled = maps[0].new_zeros((len(flat), maps[0].shape[1], side, side))
        for level, (feature, stride) in enumerate(zip(maps, self.strides, strict=True)):
            here = torch.nonzero(level_of_box == level).flatten()
            pooled.index_put_((here,), self._align(feature, regions[here], stride))
        return pooled

    def _align(self, feature: Tensor, regions: Tensor, stride: int) -> Tensor:
        return roi_align(feature, regions, self.output_size, 1.0 / stride, self.sampling_ratio, aligned=True)
