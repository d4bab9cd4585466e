"""Anchor boxes: the grid of prior boxes that the region proposal network refines (arXiv:1506.01497)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deepdisc.errors import InputError


class AnchorGenerator(nn.Module):
    """Boxes of given sizes and shapes, centred on a grid at `i * stride` of each feature level."""

    def __init__(self, sizes: Sequence[Sequence[float]], aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0)):
        """Build the anchors of one cell of each level.

        Args:
            sizes: for each level the square roots of the anchor areas, pixels of the image.
            aspect_ratios: height / width, the same for each size.

        Raises:
            InputError: no size or ratio, or one that is not positive.
        """
        super().__init__()
        for name, values in {"aspect_ratios": aspect_ratios, **{f"sizes[{i}]": x for i, x in enumerate(sizes)}}.items():
            if not len(values) or not all(0 < value < float("inf") for value in values):
                raise InputError(f"the anchors' {name}={list(values)} must be positive numbers, one at least")
        self.num_levels = len(sizes)
        for level, level_sizes in enumerate(sizes):
            self.register_buffer(f"cell_{level}", _cell(level_sizes, aspect_ratios), persistent=False)

    @property
    def num_anchors(self) -> list[int]:
        """Anchors per cell, for each level."""
        return [len(self.get_buffer(f"cell_{level}")) for level in range(self.num_levels)]

    def forward(self, grid_sizes: Sequence[tuple[int, int]], strides: Sequence[int]) -> list[Tensor]:
        """Return for each level the boxes (H * W * A, 4): rows, then columns, then the anchors of a cell.

        Args:
            grid_sizes: (H, W) of each level.
            strides: image pixels per grid cell, of each level.
        """
        anchors = []
        for level, ((height, width), stride) in enumerate(zip(grid_sizes, strides, strict=True)):
            cell = self.get_buffer(f"cell_{level}")
            x = torch.arange(width, dtype=cell.dtype, device=cell.device) * stride
            y = torch.arange(height, dtype=cell.dtype, device=cell.device) * stride
            y, x = torch.meshgrid(y, x, indexing="ij")
            shifts = torch.stack((x, y, x, y), dim=-1).reshape(-1, 1, 4)
            anchors.append((shifts + cell).reshape(-1, 4))
        return anchors


def _cell(sizes: Sequence[float], aspect_ratios: Sequence[float]) -> Tensor:
    """Anchors (A, 4) centred on the origin, not rounded: sizes outside, aspect ratios inside."""
    boxes = []
    for size in sizes:
        for ratio in aspect_ratios:
            width = (size**2 / ratio) ** 0.5
            height = ratio * width
            boxes.append([-width / 2, -height / 2, width / 2, height / 2])
    return torch.tensor(boxes)
