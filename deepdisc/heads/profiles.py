"""A small network that draws, around each object and in every band, its own light and that of its neighbours.

Legend: R objects, C bands, S window side. Weights that belong to single bands have the bands along their last axis, in
blocks, so that `BandLinear.mixing` can re-order them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def band_permutation(order: Sequence[int], per_band: int, others: int = 0) -> Tensor:
    """(I, I) matrix, I = C per_band + others, that re-orders blocks of bands: `old @ matrix` has the new order.

    Args:
        order: for each of the C bands, its place in the old order; a permutation.
        per_band: numbers in each band's block.
        others: numbers after the blocks, which stay.
    """
    bands = torch.zeros(len(order), len(order))
    bands[list(order), range(len(order))] = 1
    return torch.block_diag(torch.kron(bands, torch.eye(per_band)), torch.eye(others))


class BandInput(nn.Module):
    """A convolution or linear layer whose inputs are C blocks of `per_band` numbers, then `others` more."""

    def __init__(self, bands: int, per_band: int, others: int, out: int, kernel: int = 1):
        super().__init__()
        self.per_band, self.others, self.kernel = per_band, others, kernel
        inputs = bands * per_band + others
        self.weight = nn.Parameter(torch.randn(out * kernel**2, inputs) * (2 / (inputs * kernel**2)) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        """(R, I, S, S) or (R, I) -> (R, out, S, S) or (R, out)."""
        if x.ndim == 2:
            return F.linear(x, self.weight, self.bias)
        kernel = self.weight.unflatten(0, (-1, self.kernel, self.kernel)).permute(0, 3, 1, 2)
        return F.conv2d(x, kernel, self.bias, padding=self.kernel // 2)

    def band_weights(self, order: Sequence[int]) -> dict[str, Tensor]:
        """See `deepdisc.training.loading.ReadsBands`."""
        return {"weight": band_permutation(order, self.per_band, self.others)}


class BandOutput(nn.Module):
    """A linear layer, of each pixel or of a vector, whose outputs are C blocks of `per_band` numbers; it starts at 0.

    With `own` > 0 each band's outputs also depend linearly on that many numbers of the same band.
    """

    def __init__(self, bands: int, per_band: int, inputs: int, own: int = 0):
        super().__init__()
        self.per_band, self.own_inputs = per_band, own
        self.weight = nn.Parameter(torch.zeros(inputs, bands * per_band))
        self.bias = nn.Parameter(torch.zeros(1, bands * per_band))
        if own:
            self.own = nn.Parameter(torch.zeros(own, bands * per_band))

    def forward(self, x: Tensor, own: Tensor | None = None) -> Tensor:
        """(R, inputs, S, S) or (R, inputs) -> (R, C, per_band, S, S) or (R, C, per_band).

        Args:
            x: inputs of all bands.
            own: (R, C, own, S, S) or (R, C, own).
        """
        if x.ndim == 2:
            made = x @ self.weight + self.bias
        else:
            made = F.conv2d(x, self.weight.t()[:, :, None, None], self.bias[0])
        made = made.unflatten(1, (-1, self.per_band))
        if own is not None:
            made = made + torch.einsum("rck...,kco->rco...", own, self.own.unflatten(1, (-1, self.per_band)))
        return made

    def band_weights(self, order: Sequence[int]) -> dict[str, Tensor]:
        """See `deepdisc.training.loading.ReadsBands`."""
        names = ("weight", "bias", "own") if self.own_inputs else ("weight", "bias")
        return dict.fromkeys(names, band_permutation(order, self.per_band))


class ProfileNetwork(nn.Module):
    """A U-Net (Ronneberger et al. 2015, arXiv:1505.04597) of three levels: pixels of all bands -> maps for every band.

    Args:
        bands: C.
        per_band: input maps of each band.
        others: input maps that belong to no band.
        outputs: maps of each band that it makes.
        widths: channels at full, half and quarter resolution.
        context: length of a vector that describes the object, added at the coarsest level; 0 for none.
    """

    def __init__(
        self,
        bands: int,
        per_band: int,
        others: int,
        outputs: int,
        widths: Sequence[int] = (16, 32, 64),
        context: int = 0,
    ):
        super().__init__()
        fine, middle, coarse = widths
        self.stem = BandInput(bands, per_band, others, fine, kernel=3)
        self.fine = _conv(fine, fine)
        self.to_middle, self.middle = _conv(fine, middle, 2), _conv(middle, middle)
        self.to_coarse = _conv(middle, coarse, 2)
        self.coarse = nn.ModuleList([_conv(coarse, coarse), _conv(coarse, coarse)])
        self.context = nn.Linear(context, coarse) if context else None
        self.from_coarse, self.up_middle = nn.Conv2d(coarse, middle, 1), _conv(middle, middle)
        self.from_middle, self.up_fine = nn.Conv2d(middle, fine, 1), _conv(fine, fine)
        self.out = BandOutput(bands, outputs, fine, own=per_band)
        self._own = (bands, per_band)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps and a description of the object.

        Args:
            x: (R, C per_band + others, S, S) float32.
            context: (R, length) or None.

        Returns:
            maps (R, C, outputs, S, S) and a vector (R, widths[2]), float32.
        """
        fine = F.relu(self.stem(x))
        fine = fine + F.relu(self.fine(fine))
        middle = F.relu(self.to_middle(fine))
        middle = middle + F.relu(self.middle(middle))
        coarse = F.relu(self.to_coarse(middle))
        if self.context is not None:
            coarse = coarse + self.context(context)[..., None, None]
        for layer in self.coarse:
            coarse = coarse + F.relu(layer(coarse))
        summary = coarse.float().mean((-2, -1))
        middle = middle + _resized(self.from_coarse(coarse), middle)
        middle = middle + F.relu(self.up_middle(middle))
        fine = fine + _resized(self.from_middle(middle), fine)
        fine = fine + F.relu(self.up_fine(fine))
        # A logarithm of light in 8 bits is off by per cents: the last layer sees the pixels themselves once more.
        with torch.autocast(x.device.type, enabled=False):
            return self.out(fine.float(), x[:, : self._own[0] * self._own[1]].unflatten(1, self._own)), summary


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1)


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=True)


def moffat_logits(parameters: Tensor, center: Tensor, shape: Tensor, axes: tuple[Tensor, Tensor]) -> Tensor:
    """Logarithm (R, C, S, S) of elliptical Moffat (1969) profiles of peak 1.

    log p = -beta log(1 + r^2 / 2 beta), which is a Gaussian for large beta.

    Args:
        parameters: (R, C, 6) changes of the start, all 0 for beta = 10: of the centre (in widths), the widths' common
            logarithm, that of their ratio, the correlation, log beta.
        center: (R, 2) x, y, pixels.
        shape: (R, 3) sigma_x, sigma_y (pixels) and correlation.
        axes: x and y (R, S) of the pixels.
    """
    x0, y0, size, ratio, mixed, log_beta = parameters.clamp(-5, 5).unbind(-1)
    sigma_x = shape[:, :1] * (size + ratio).clamp(-3, 3).exp()
    sigma_y = shape[:, 1:2] * (size - ratio).clamp(-3, 3).exp()
    correlation = torch.tanh(torch.atanh(shape[:, 2:]) + mixed)
    u = (axes[0][:, None] - center[:, :1, None] - (x0 * shape[:, :1])[..., None]) / sigma_x[..., None]
    v = (axes[1][:, None] - center[:, 1:, None] - (y0 * shape[:, 1:2])[..., None]) / sigma_y[..., None]
    mixed = correlation[..., None, None]
    u, v = u[:, :, None, :], v[..., None]
    square = (u.square() - 2 * mixed * u * v + v.square()) / (1 - mixed.square()).clamp(min=0.02)
    beta = 10 * log_beta.clamp(-2, 2).exp()[..., None, None]
    return -beta * torch.log1p(square / (2 * beta))
