"""MViTv2, a multi-scale vision transformer (Li et al. 2022, arXiv:2112.01526), for any number of bands.

Parameter names and semantics are those of detectron2's MViTv2 project: `patch_embed.proj`, `blocks.0` ..., and a norm
of each output, `scale2_norm` ... `scale5_norm`. Widths double and maps halve from scale to scale; strides are 4, 8,
16, 32. Blocks attend within windows, except the last one of scales 3, 4 and 5, which sees the whole map.

Sizes: T has depth 10 and last_block_indexes (0, 2, 7, 9), S 16 and (0, 2, 13, 15), B 24 and (1, 4, 20, 23).

Legend: N images, (H, W) a map, C its width. Maps are channels-last, (N, H, W, C), until they are returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from deepdisc.backbones.attention import NORM_EPS, PooledAttention
from deepdisc.backbones.layers import recomputed
from deepdisc.errors import InputError

PATCH_STRIDE = 4
PRETRAIN_SIZE = 224 // PATCH_STRIDE  # side of the first map of ImageNet's images, for which the tables are made


@dataclass(frozen=True)
class BlockPlan:
    """What distinguishes a block from the others; see `PooledAttention`."""

    scale: int
    dim: int
    dim_out: int
    num_heads: int
    stride_q: int
    stride_kv: int
    window_size: int
    pretrain_size: int


def plan_blocks(
    embed_dim: int, num_heads: int, last_blocks: Sequence[int], kv_stride: int, window_size: int
) -> list[BlockPlan]:
    """Lay out all blocks.

    The first block of a scale halves the map and doubles width and heads. Keys are pooled to about the same number at
    every scale, and twice as coarsely where a block sees the whole of a large map (the last one of scales 3 and 4).

    Args:
        embed_dim: width of the first scale.
        num_heads: heads of the first scale.
        last_blocks: index of the last block of each scale.
        kv_stride: pooling of the keys of the first scale.
        window_size: side of a window in cells of the first scale; 0 = no windows.

    Raises:
        InputError: the strides of a block do not divide its window.
    """
    plans = []
    for i in range(last_blocks[-1] + 1):
        level = sum(i > last for last in last_blocks)
        opens, sees_all = i - 1 in last_blocks, i in last_blocks[1:]
        # the first block of a scale still reads the map, and the width, of the one before
        before = level - 1 if opens else level
        plan = BlockPlan(
            scale=level + 2,
            dim=embed_dim * 2**before,
            dim_out=embed_dim * 2**level,
            num_heads=num_heads * 2**level,
            stride_q=2 if opens else 1,
            stride_kv=max(kv_stride // 2**level, 1) * (2 if i in last_blocks[1:3] else 1),
            window_size=0 if sees_all else window_size // 2**before,
            pretrain_size=PRETRAIN_SIZE // 2**before,
        )
        if plan.window_size % plan.stride_q or plan.window_size % plan.stride_kv:
            raise InputError(
                f"adaptive_window_size={window_size} gives block {i} windows of {plan.window_size} cells, which its "
                f"strides {plan.stride_q} and {plan.stride_kv} do not divide: use a multiple of 8 and of "
                f"adaptive_kv_stride={kv_stride}, or 0 for no windows"
            )
        plans.append(plan)
    return plans


class PatchEmbed(nn.Module):
    """The first convolution, 7x7 with stride 4: pixels to vectors."""

    def __init__(self, in_channels: int, embed_dim: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, embed_dim, kernel_size=7, stride=PATCH_STRIDE, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, bands, H, W) -> (N, ceil(H / 4), ceil(W / 4), C)."""
        return self.proj(x).permute(0, 2, 3, 1).contiguous()


class MLP(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.fc2(F.gelu(self.fc1(x)))


class MultiScaleBlock(nn.Module):
    """Pooled attention and an MLP, each around a shortcut; the first block of a scale halves and widens the map."""

    def __init__(self, plan: BlockPlan, drop_path_rate: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(plan.dim, eps=NORM_EPS)
        self.attn = PooledAttention(
            plan.dim,
            plan.dim_out,
            num_heads=plan.num_heads,
            stride_q=plan.stride_q,
            stride_kv=plan.stride_kv,
            window_size=plan.window_size,
            pretrain_size=plan.pretrain_size,
        )
        self.norm2 = nn.LayerNorm(plan.dim_out, eps=NORM_EPS)
        self.mlp = MLP(plan.dim_out)
        self.proj = nn.Linear(plan.dim, plan.dim_out) if plan.dim != plan.dim_out else None
        self.drop_path = StochasticDepth(drop_path_rate, mode="row")
        self.halves = plan.stride_q == 2

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H', W', C'), where H' is H, or ceil(H / 2) in the first block of a scale."""
        normed = self.norm1(x)
        # a widening shortcut starts from the normalised map, any other from the map itself: as published
        shortcut = x if self.proj is None else self.proj(normed)
        if self.halves:
            shortcut = F.max_pool2d(shortcut.permute(0, 3, 1, 2), 3, stride=2, padding=1).permute(0, 2, 3, 1)
        x = shortcut + self.drop_path(self.attn(normed))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class MViT(nn.Module):
    """The four scales of an MViTv2, for images of any size.

    Attributes:
        in_channels: number of bands.
        channels, strides: of each output, by name (`scale2` ... `scale5`).
        num_layers: number of blocks; see `layer_of`.
    """

    def __init__(
        self,
        in_channels: int = 3,
        embed_dim: int = 96,
        depth: int = 10,
        num_heads: int = 1,
        last_block_indexes: Sequence[int] = (0, 2, 7, 9),
        adaptive_kv_stride: int = 4,
        adaptive_window_size: int = 56,
        drop_path_rate: float = 0.0,
        freeze_at: int = 0,
        checkpoint_activations: bool = False,
    ):
        """Build the network; the defaults are MViTv2-T, of which `drop_path_rate` is 0.2 in training.

        Args:
            in_channels: number of bands.
            embed_dim: width of the first scale.
            depth: number of blocks.
            num_heads: attention heads of the first scale.
            last_block_indexes: the last block of each of the four scales, counted from 0.
            adaptive_kv_stride: pooling of keys and values at the first scale, halved from scale to scale.
            adaptive_window_size: side of the attention windows in cells of the first scale; 0 = no windows.
            drop_path_rate: probability with which training skips a branch of the last block, for one image of the
                batch; it rises linearly from 0 at the first block (stochastic depth, arXiv:1603.09382).
            freeze_at: number of parts that do not learn: patch embedding (1), blocks of scale 2 (2) ... scale 5 (5);
                0 = all learn. The norms of the outputs always learn.
            checkpoint_activations: keep only the input of each block for the backward pass and compute the rest
                again: less memory, more time.

        Raises:
            InputError: an argument has a value that does not fit; the message names it.
        """
        super().__init__()
        last_blocks = tuple(last_block_indexes)
        numbers = {
            "in_channels": in_channels,
            "adaptive_kv_stride": adaptive_kv_stride,
            "adaptive_window_size": adaptive_window_size,
            "drop_path_rate": drop_path_rate,
            "freeze_at": freeze_at,
        }
        _check(numbers, embed_dim, num_heads, depth, last_blocks)
        plans = plan_blocks(embed_dim, num_heads, last_blocks, adaptive_kv_stride, adaptive_window_size)
        rates = [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        self.in_channels = in_channels
        self.num_layers = depth
        self.checkpoint_activations = checkpoint_activations
        self.patch_embed = PatchEmbed(in_channels, embed_dim)
        self.blocks = nn.ModuleList(MultiScaleBlock(plan, rate) for plan, rate in zip(plans, rates, strict=True))
        self.channels = {f"scale{plans[i].scale}": plans[i].dim_out for i in last_blocks}
        self.strides = {name: PATCH_STRIDE * 2**i for i, name in enumerate(self.channels)}
        for name, width in self.channels.items():
            self.add_module(f"{name}_norm", nn.LayerNorm(width, eps=NORM_EPS))
        self._output_of = dict(zip(last_blocks, self.channels, strict=True))
        self.apply(_initialise)
        self._freeze(freeze_at, [plan.scale for plan in plans])

    def _freeze(self, freeze_at: int, scales: list[int]) -> None:
        self.patch_embed.requires_grad_(freeze_at < 1)
        for block, scale in zip(self.blocks, scales, strict=True):
            block.requires_grad_(freeze_at < scale)

    def layer_of(self, name: str) -> int:
        """Depth at which a parameter acts, for layer-wise learning rates.

        Args:
            name: of the parameter within this network.

        Returns:
            0 for the patch embedding, i + 1 for block i, `num_layers` + 1 for the norms of the outputs.
        """
        part, *rest = name.split(".")
        if part == "blocks":
            return int(rest[0]) + 1
        return 0 if part == "patch_embed" else self.num_layers + 1

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, bands, H, W) -> {"scale2": (N, C, ceil(H / 4), ceil(W / 4)), ...}, finest first."""
        x = self.patch_embed(x)
        recompute = self.checkpoint_activations and torch.is_grad_enabled()
        outputs = {}
        for i, block in enumerate(self.blocks):
            x = recomputed(block, x) if recompute else block(x)
            if i in self._output_of:
                name = self._output_of[i]
                outputs[name] = getattr(self, f"{name}_norm")(x).permute(0, 3, 1, 2)
        return outputs


def _initialise(module: nn.Module) -> None:
    """As published; position tables are set where they are made, convolutions and norms keep torch's defaults."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def _check(numbers: dict[str, float], embed_dim: int, num_heads: int, depth: int, last_blocks: tuple[int, ...]) -> None:
    """Raise an InputError that names the first argument of `MViT` that does not fit."""
    allowed = {
        "in_channels": ("at least 1", lambda x: x >= 1),
        "adaptive_kv_stride": ("at least 1", lambda x: x >= 1),
        "adaptive_window_size": ("at least 8, or 0 for no windows", lambda x: x == 0 or x >= 8),
        "drop_path_rate": ("from 0 to less than 1", lambda x: 0 <= x < 1),
        "freeze_at": ("from 0 (all learn) to 5 (all blocks are frozen)", lambda x: 0 <= x <= 5),
    }
    for name, value in numbers.items():
        text, fits = allowed[name]
        if not fits(value):
            raise InputError(f"{name}={value} must be {text}")
    if num_heads < 1 or embed_dim < 1 or embed_dim % num_heads:
        raise InputError(f"embed_dim={embed_dim} must be a positive multiple of num_heads={num_heads}")
    rises = all(a < b for a, b in zip((-1, *last_blocks), last_blocks, strict=False))
    if len(last_blocks) != 4 or not rises or last_blocks[-1] != depth - 1:
        raise InputError(
            f"last_block_indexes={list(last_blocks)} does not fit depth={depth}: give four rising block numbers, the "
            f"last one depth - 1 = {depth - 1}, such as 0, 2, 7, 9 for a depth of 10"
        )
