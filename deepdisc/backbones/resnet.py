"""ResNet for any number of bands (He et al. 2016, arXiv:1512.03385), with detectron2's parameter names and semantics.

Names: `stem.conv1`, then `res2` ... `res5`, each a sequence of blocks with `shortcut`, `conv1`, `conv2` (`conv3`), and
the norm of a convolution inside it (`conv1.norm`). Strides are 4, 8, 16, 32, or 2, 4, 8, 16 without the stem's
max-pool, which suits galaxies of a few pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepdisc.backbones.layers import ConvNorm, freeze, recomputed
from deepdisc.errors import InputError

BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class Stem(nn.Module):
    """The first convolution, 7x7 with stride 2, and optionally a 3x3 max-pool with stride 2."""

    def __init__(self, in_channels: int, out_channels: int, norm: str, max_pool: bool):
        super().__init__()
        self.conv1 = ConvNorm(in_channels, out_channels, 7, stride=2, norm=norm)
        self.max_pool = max_pool
        self.stride = 4 if max_pool else 2

    def forward(self, x: Tensor) -> Tensor:
        """(N, bands, H, W) -> (N, C, H / stride, W / stride)."""
        x = F.relu_(self.conv1(x))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1) if self.max_pool else x


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18 and -34)."""

    expansion = 1

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: str, stride_in_1x1: bool):
        super().__init__()
        del stride_in_1x1  # this block has no 1x1 convolution
        self.shortcut = ConvNorm(in_channels, out_channels, 1, stride, norm) if in_channels != out_channels else None
        self.conv1 = ConvNorm(in_channels, out_channels, 3, stride, norm)
        self.conv2 = ConvNorm(out_channels, out_channels, 3, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H / stride, W / stride)."""
        out = self.conv2(F.relu_(self.conv1(x)))
        out = out + (x if self.shortcut is None else self.shortcut(x))
        return F.relu_(out)


class BottleneckBlock(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut (ResNet-50 and -101).

    `stride_in_1x1` puts the stride into the first 1x1 (the original MSRA weights) instead of the 3x3 (torchvision's).
    Both have the same parameter names, so the wrong choice loads silently and computes nonsense.
    """

    expansion = 4

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: str, stride_in_1x1: bool):
        super().__init__()
        middle = out_channels // self.expansion
        stride1, stride3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.shortcut = ConvNorm(in_channels, out_channels, 1, stride, norm) if in_channels != out_channels else None
        self.conv1 = ConvNorm(in_channels, middle, 1, stride1, norm)
        self.conv2 = ConvNorm(middle, middle, 3, stride3, norm)
        self.conv3 = ConvNorm(middle, out_channels, 1, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H / stride, W / stride)."""
        out = self.conv3(F.relu_(self.conv2(F.relu_(self.conv1(x)))))
        out = out + (x if self.shortcut is None else self.shortcut(x))
        return F.relu_(out)


class ResNet(nn.Module):
    """The four stages of a ResNet.

    Attributes:
        in_channels: number of bands.
        channels, strides: of each output, by name (`res2` ... `res5`).
    """

    def __init__(
        self,
        depth: int = 50,
        in_channels: int = 3,
        stem_out_channels: int = 64,
        res2_out_channels: int | None = None,
        stem_max_pool: bool = True,
        stride_in_1x1: bool = True,
        norm: str = "FrozenBN",
        freeze_at: int = 0,
        checkpoint_activations: bool = False,
    ):
        """Build the network.

        Args:
            depth: 18, 34, 50 or 101.
            in_channels: number of bands.
            stem_out_channels: width of the stem (64 in the paper).
            res2_out_channels: width of the first stage, doubled by each later one; by default the stem's, times 4 for
                depth 50 and 101.
            stem_max_pool: with (stride 4) or without (stride 2) the stem's max-pool.
            stride_in_1x1: see `BottleneckBlock`.
            norm: "FrozenBN" for pretrained weights, "BN" or "GN" for training from scratch (see `layers.make_norm`).
            freeze_at: number of parts, counted from the stem (1), that do not learn; 0 = all learn, 5 = none.
            checkpoint_activations: compute each block anew in the backward pass instead of keeping its maps.

        Raises:
            InputError: `depth`, `norm` or `freeze_at` is not one of those above.
        """
        super().__init__()
        if depth not in BLOCKS_PER_STAGE:
            raise InputError(f"depth={depth} is not a ResNet: choose one of {', '.join(map(str, BLOCKS_PER_STAGE))}")
        block = BottleneckBlock if depth >= 50 else BasicBlock
        self.in_channels = in_channels
        self.checkpoint_activations = checkpoint_activations
        self.stem = Stem(in_channels, stem_out_channels, norm, stem_max_pool)
        self.channels: dict[str, int] = {}
        self.strides: dict[str, int] = {}
        width_in, width, stride = stem_out_channels, res2_out_channels, self.stem.stride
        width = stem_out_channels * block.expansion if width is None else width
        for stage, count in enumerate(BLOCKS_PER_STAGE[depth], start=2):
            name, first_stride = f"res{stage}", 1 if stage == 2 else 2
            blocks = []
            for i in range(count):
                blocks.append(block(width_in, width, first_stride if i == 0 else 1, norm, stride_in_1x1))
                width_in = width
            self.add_module(name, nn.Sequential(*blocks))
            stride *= first_stride
            self.channels[name], self.strides[name] = width, stride
            width *= 2
        parts = [self.stem, *(getattr(self, name) for name in self.channels)]
        if not 0 <= freeze_at <= len(parts):
            raise InputError(
                f"freeze_at={freeze_at}: a ResNet has {len(parts)} parts; give 0 (all learn) to {len(parts)}"
            )
        for part in parts[:freeze_at]:
            freeze(part)

    @property
    def num_layers(self) -> int:
        """Number of stages above the stem, for learning rates that decay with depth."""
        return len(self.channels)

    def layer_of(self, name: str) -> int:
        """Depth of a parameter by its name in this network: 0 = stem, 1 = res2, ..."""
        part = name.split(".")[0]
        return 0 if part == "stem" else 1 + list(self.channels).index(part)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, bands, H, W) -> {"res2": (N, C, H / stride, W / stride), ...}."""
        x = self.stem(x)
        outputs = {}
        recompute = self.checkpoint_activations and torch.is_grad_enabled()
        for name in self.channels:
            for block in getattr(self, name):
                x = recomputed(block, x) if recompute else block(x)
            outputs[name] = x
        return outputs
