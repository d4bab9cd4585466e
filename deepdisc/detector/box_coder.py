"""Boxes as offsets from other boxes (Girshick et al. 2014, arXiv:1311.2524, appendix C)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from deepdisc.errors import InputError

# a box grows by at most this factor (62.5) in one step, so that exp cannot overflow
MAX_LOG_SCALE = math.log(1000.0 / 16)


class BoxCoder:
    """Encodes target boxes as (dx, dy, dw, dh) relative to source boxes, and back.

    `dx = wx (x_t - x_s) / w_s`, `dw = ww log(w_t / w_s)` with centres x and widths w, and the same in y.
    """

    def __init__(self, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)):
        """`weights` (wx, wy, ww, wh) bring the four numbers to unit variance."""
        self.weights = tuple(float(weight) for weight in weights)
        if len(self.weights) != 4 or min(self.weights) <= 0:
            raise InputError(f"a box coder has four positive weights (x, y, w, h), not {list(self.weights)}")

    def encode(self, source: Tensor, target: Tensor) -> Tensor:
        """Offsets (N, 4) that take `source` boxes (N, 4), of positive size, to `target` boxes (N, 4)."""
        source_size = source[:, 2:] - source[:, :2]
        target_size = target[:, 2:] - target[:, :2]
        source_center = source[:, :2] + 0.5 * source_size
        target_center = target[:, :2] + 0.5 * target_size
        weights = source.new_tensor(self.weights)
        shift = weights[:2] * (target_center - source_center) / source_size
        scale = weights[2:] * torch.log(target_size / source_size)
        return torch.cat((shift, scale), dim=1)

    def decode(self, deltas: Tensor, source: Tensor) -> Tensor:
        """Apply offsets (N, 4 K) to boxes (N, 4): boxes (N, 4 K), in single precision, not clipped."""
        deltas = deltas.float()
        source = source.to(deltas.dtype)
        offsets = deltas.reshape(len(deltas), deltas.shape[1] // 4, 4) / deltas.new_tensor(self.weights)
        size = (source[:, 2:] - source[:, :2])[:, None]
        center = source[:, None, :2] + 0.5 * size
        center = offsets[..., :2] * size + center
        size = torch.exp(offsets[..., 2:].clamp(max=MAX_LOG_SCALE)) * size
        return torch.cat((center - 0.5 * size, center + 0.5 * size), dim=-1).reshape(deltas.shape)
