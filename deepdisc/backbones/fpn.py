"""Feature pyramid network (Lin et al. 2017, arXiv:1612.03144), with detectron2's parameter names and semantics."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from deepdisc.backbones.layers import ConvNorm


class FPN(nn.Module):
    """Top-down path over the stages of a bottom-up network: maps of equal width at every stride.

    A level is named by the logarithm of its stride: stride 4 is `p2`. One more level than the bottom-up network has is
    made by subsampling the last one (`p6` for strides 4 to 32); it serves the proposals of the largest objects.

    Attributes:
        in_channels: number of bands.
        out_channels: width of every level.
        strides: stride of each level, by name.
        size_divisibility: image sizes must be padded to a multiple of this.
    """

    def __init__(self, bottom_up: nn.Module, out_channels: int = 256, norm: str | None = None):
        """Build the pyramid.

        Args:
            bottom_up: network with `in_channels`, `channels` and `strides` (see `ResNet`), each stride twice the last.
            out_channels: width of every level.
            norm: of the convolutions, see `layers.make_norm`; None = biases instead.
        """
        super().__init__()
        strides = list(bottom_up.strides.values())
        assert all(b == 2 * a for a, b in zip(strides, strides[1:], strict=False)), f"strides must double: {strides}"
        self.in_channels = bottom_up.in_channels
        self.out_channels = out_channels
        self.strides: dict[str, int] = {}
        for stride, channels in zip(strides, bottom_up.channels.values(), strict=True):
            level = stride.bit_length() - 1
            lateral = ConvNorm(channels, out_channels, 1, norm=norm)
            output = ConvNorm(out_channels, out_channels, 3, norm=norm)
            for conv in (lateral, output):
                nn.init.kaiming_uniform_(conv.weight, a=1)
            self.add_module(f"fpn_lateral{level}", lateral)
            self.add_module(f"fpn_output{level}", output)
            self.strides[f"p{level}"] = stride
        self.bottom_up = bottom_up
        self._levels = [stride.bit_length() - 1 for stride in strides]
        self.strides[f"p{self._levels[-1] + 1}"] = 2 * strides[-1]
        self.size_divisibility = strides[-1]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, bands, H, W) -> {"p2": (N, out_channels, H / 4, W / 4), ...}, finest first."""
        stages = list(self.bottom_up(x).values())
        outputs: dict[str, Tensor] = {}
        top_down = None
        for level, stage in zip(reversed(self._levels), reversed(stages), strict=True):
            merged = getattr(self, f"fpn_lateral{level}")(stage)
            if top_down is not None:
                merged = merged + F.interpolate(top_down, scale_factor=2.0, mode="nearest")
            outputs[f"p{level}"] = getattr(self, f"fpn_output{level}")(merged)
            top_down = merged
        pyramid = {name: outputs[name] for name in reversed(outputs)}
        last = self._levels[-1]
        pyramid[f"p{last + 1}"] = F.max_pool2d(pyramid[f"p{last}"], kernel_size=1, stride=2)
        return pyramid
