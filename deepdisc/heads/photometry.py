"""What the pixels themselves say about an object's brightness and colours, at native resolution.

Pooled network features know shapes well but absolute fluxes poorly; these few numbers are ordinary photometry that a
measurement head takes beside them.

Legend: R objects, C bands, A apertures, S window side in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from deepdisc.heads.windows import Windows, iterate_windows
from deepdisc.structures import Instances


def band_matrices(order: Sequence[int]) -> tuple[Tensor, Tensor]:
    """What becomes of one number per band, and of the differences between neighbours, for bands in another order.

    Args:
        order: for each of these C bands, its place in the other order; a permutation.

    Returns:
        (C, C) and (C - 1, C - 1) of -1, 0 and 1: numbers in the other order = matrix @ numbers in this one.
    """
    place = sorted(range(len(order)), key=lambda band: order[band])
    values = torch.eye(len(order))[place]
    colors = torch.zeros((max(len(order) - 1, 0),) * 2)
    for row, (start, end) in zip(colors, pairwise(place), strict=True):
        row[min(start, end) : max(start, end)] = 1.0 if start < end else -1.0
    return values, colors


class AperturePhotometry(nn.Module):
    """Gaussian-weighted fluxes in every band around each object's re-centred position, as inputs for a network.

    For band b with pixels f, variances v and Gaussian weights w on valid pixels: F = sum(w f) / sum(w^2) is the
    least-squares amplitude of a profile w in white noise and sigma^2 = sum(w^2 v) / sum(w^2)^2 its variance. The
    outputs are `asinh(F / 2 sigma) + ln(2 sigma)` (an asinh magnitude, natural logarithm of nJy), its differences
    between neighbouring bands (colours), `asinh(F / sigma)` and the share of valid pixels.

    Args:
        num_bands: C.
        sigmas_pix: widths of the Gaussian apertures, in pixels.
        window: S, side of the window cut out around the object, odd: it has a middle pixel.
    """

    def __init__(self, num_bands: int, sigmas_pix: tuple[float, ...] = (1.5, 2.5, 4.0), window: int = 21):
        super().__init__()
        assert window % 2, f"window={window} has no middle pixel"
        self.num_bands = num_bands
        self.window = window
        self.sigmas_pix = tuple(sigmas_pix)
        offsets = torch.arange(window, dtype=torch.float32) - (window - 1) / 2
        self.register_buffer("offsets", offsets, persistent=False)
        self.num_outputs = len(self.sigmas_pix) * (2 * num_bands + max(num_bands - 1, 0)) + num_bands

    def band_mixing(self, order: Sequence[int]) -> Tensor:
        """How the outputs of bands in another order follow from these: exact, for a colour is a sum of colours.

        Args:
            order: for each of these C bands, its place in the other order; a permutation.

        Returns:
            (num_outputs, num_outputs) matrix T of -1, 0 and 1: outputs in the other order = T @ outputs in this one.
        """
        values, colors = band_matrices(order)
        return torch.block_diag(*[values, colors, values] * len(self.sigmas_pix), values)

    @torch.no_grad()
    def forward(self, pixels: dict[str, Tensor], instances: list[Instances], box_field: str) -> Tensor:
        """Measure all objects of a batch.

        Args:
            pixels: "flux" (N, C, H, W) nJy, "variance" (N, C, H, W) nJy^2, "valid" (N, C, H, W) bool.
            instances: one per image.
            box_field: name of the boxes to measure in.

        Returns:
            (R, num_outputs) float32, objects of all images one after the other.
        """
        # Native pixels always: the apertures are a few pixels wide.
        chunks = iterate_windows(pixels, instances, box_field, self.window, coarsest=1)
        rows = [self._measure(windows) for windows in chunks]
        return torch.cat(rows) if rows else self.offsets.new_zeros((0, self.num_outputs))

    def _measure(self, windows: Windows) -> Tensor:
        """Outputs (R, num_outputs) of objects."""
        flux, variance, valid = windows.flux, windows.variance, windows.valid
        centers = self._recenter(flux, variance, valid, windows.offset)
        columns = []
        for sigma in self.sigmas_pix:
            weight = self._gaussian(centers, sigma)[:, None] * valid
            norm = weight.square().sum((-2, -1)).clamp(min=1e-6)
            total = (weight * flux).sum((-2, -1)) / norm
            error = ((weight.square() * variance).sum((-2, -1)).clamp(min=1e-20).sqrt() / norm).clamp(min=1e-6)
            measured = (norm > 1e-3).float()
            magnitude = (torch.asinh(total / (2 * error)) + (2 * error).log()) * measured
            columns += [magnitude / 4 - 1, magnitude.diff(dim=1), torch.asinh(total / error) * measured / 3]
        columns.append(valid.float().mean((-2, -1)))
        return torch.cat(columns, dim=1)

    def _gaussian(self, centers: Tensor, sigma: float) -> Tensor:
        """Weights (R, S, S) of a circular Gaussian at the centres (R, 2)."""
        x = (-0.5 * ((self.offsets - centers[:, 0, None]) / sigma).square()).exp()
        y = (-0.5 * ((self.offsets - centers[:, 1, None]) / sigma).square()).exp()
        return y[:, :, None] * x[:, None, :]

    def _recenter(self, flux: Tensor, variance: Tensor, valid: Tensor, centers: Tensor) -> Tensor:
        """Windowed centroid of the noise-weighted band stack, at most 2 pixels from the box centre."""
        noise = (variance.sum((-2, -1)) / valid.sum((-2, -1)).clamp(min=1)).sqrt().clamp(min=1e-12)
        stack = (flux / noise[..., None, None]).sum(1)
        start = centers
        for _ in range(4):
            weight = self._gaussian(centers, 2.0) * stack.clamp(min=0)
            total = weight.sum((-2, -1)).clamp(min=1e-6)
            mean_x = (weight.sum(1) * (self.offsets - centers[:, 0, None])).sum(1) / total
            mean_y = (weight.sum(2) * (self.offsets - centers[:, 1, None])).sum(1) / total
            centers = centers + 2 * torch.stack((mean_x, mean_y), dim=1)
            centers = torch.minimum(torch.maximum(centers, start - 2), start + 2)
        return centers
