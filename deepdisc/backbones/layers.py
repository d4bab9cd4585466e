"""Layers that every part of the network is made of: normalisation, and the convolution that carries its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deepdisc.errors import InputError

GROUPS = 32  # of a group norm (Wu & He 2018, arXiv:1803.08494)


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation whose statistics and affine parameters are fixed buffers."""

    def __init__(self, num_features: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        # so that a fresh layer is the identity: var + eps = 1
        self.register_buffer("running_var", torch.ones(num_features) - eps)

    @classmethod
    def from_batch_norm(cls, norm: nn.BatchNorm2d) -> FrozenBatchNorm2d:
        """Freeze a batch norm at its present statistics."""
        frozen = cls(norm.num_features, norm.eps)
        frozen.load_state_dict({name: getattr(norm, name).detach() for name in frozen.state_dict()})
        return frozen.to(norm.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W)."""
        if not x.requires_grad:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        # F.batch_norm would keep what it needs for gradients of the affine parameters, which do not learn
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[None, :, None, None].to(x.dtype) + shift[None, :, None, None].to(x.dtype)


NORMS = ("FrozenBN", "BN", "GN")


def make_norm(name: str, channels: int) -> nn.Module:
    """A normalisation layer: "FrozenBN", "BN" (`nn.BatchNorm2d`) or "GN" (32 groups).

    Raises:
        InputError: none of these, or a group norm of channels that 32 does not divide.
    """
    if name == "FrozenBN":
        return FrozenBatchNorm2d(channels)
    if name == "BN":
        return nn.BatchNorm2d(channels)
    if name != "GN":
        raise InputError(f"norm={name!r} is not a norm: choose one of {', '.join(NORMS)}")
    if channels % GROUPS:
        raise InputError(f'norm="GN" needs widths that are multiples of {GROUPS}, not {channels}: use "BN"')
    return nn.GroupNorm(GROUPS, channels)


class ConvNorm(nn.Conv2d):
    """Convolution that keeps the size (over the stride), followed by a norm held inside it (`conv1.norm.weight`).

    With a norm it has no bias; with norm=None it is a plain convolution with bias.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, norm: str | None = "FrozenBN"
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=norm is None
        )
        self.norm = None if norm is None else make_norm(norm, out_channels)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and normalise (N, C, H, W)."""
        x = super().forward(x)
        return x if self.norm is None else self.norm(x)


def freeze(module: nn.Module) -> None:
    """Let no parameter below `module` learn, and fix the statistics of its batch norms."""
    module.requires_grad_(False)
    for conv in module.modules():
        if isinstance(conv, ConvNorm) and isinstance(conv.norm, nn.BatchNorm2d):
            conv.norm = FrozenBatchNorm2d.from_batch_norm(conv.norm)


def recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """`block(x)`, but its maps are computed anew in the backward pass instead of being kept."""
    return checkpoint(block, x, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), _uncounted(block)))


@contextlib.contextmanager
def _uncounted(block: nn.Module) -> Iterator[None]:
    """Keep the second forward pass from entering the running statistics of batch norms again."""
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
