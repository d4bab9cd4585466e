"""Colours and uncertainties of the fluxes that the flux head has measured, as inputs for a network.

Legend: R objects, C bands; F and sigma = mean and standard deviation of an object's flux PDF in one band, nJy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deepdisc.errors import InputError
from deepdisc.heads.photometry import band_matrices
from deepdisc.mixture import Mixture
from deepdisc.structures import Instances


class FluxColours(nn.Module):
    """What the fields `pred_flux` and `pred_flux_measured` of the instances say, in numbers of order one.

    In each band the asinh magnitude `asinh(F / 2 sigma) + ln(sigma)` (Lupton, Gunn & Szalay 1999; natural logarithm of
    nJy, ln F for bright objects and finite for any flux), its standard deviation `sigma / sqrt(F^2 + 4 sigma^2)`, which
    is at most 1/2, the signal-to-noise as `asinh(F / sigma)`, and whether the band was measured; between neighbouring
    bands the differences of magnitudes. A band that was not measured has the mean magnitude of those that were, the
    largest uncertainty and no signal. No gradient reaches the flux head.

    Args:
        num_bands: C.
    """

    needs = ("pred_flux", "pred_flux_measured")

    def __init__(self, num_bands: int):
        super().__init__()
        self.num_bands = num_bands
        self.num_outputs = 4 * num_bands + max(num_bands - 1, 0)

    def band_mixing(self, order: Sequence[int]) -> Tensor:
        """How the outputs of bands in another order follow from these; see `AperturePhotometry.band_mixing`."""
        values, colors = band_matrices(order)
        return torch.block_diag(values, colors, values, values, values)

    @torch.no_grad()
    def forward(self, features: dict[str, Tensor], instances: list[Instances], box_field: str) -> Tensor:
        """Describe all objects of a batch.

        Args:
            features: not used.
            instances: one per image, with `pred_flux` (mixtures of batch shape (R, C), nJy) and `pred_flux_measured`
                (R, C) bool.
            box_field: not used.

        Returns:
            (R, num_outputs) float32, objects of all images one after the other.

        Raises:
            InputError: the fluxes are missing, or are of another number of bands.
        """
        for objects in instances:
            if not all(objects.has(field) for field in self.needs):
                raise InputError(
                    f"FluxColours reads {' and '.join(self.needs)}, which the objects do not have: list the flux head "
                    "before this one in roi_heads.heads"
                )
        fluxes = Mixture.cat([objects.pred_flux for objects in instances])
        if fluxes.batch_shape[1:] != (self.num_bands,):
            raise InputError(
                f"FluxColours has num_bands={self.num_bands}, the flux head measures {tuple(fluxes.batch_shape[1:])}: "
                "set both to the model's ${num_bands}"
            )
        measured = torch.cat([objects.pred_flux_measured for objects in instances])
        return self._describe(fluxes.mean().float(), fluxes.std().float(), measured)

    @staticmethod
    def _describe(flux: Tensor, sigma: Tensor, measured: Tensor) -> Tensor:
        """Outputs from F, sigma and whether it was measured, each (R, C)."""
        measured = measured & torch.isfinite(flux) & torch.isfinite(sigma)
        flux = torch.where(measured, flux, 0.0)
        sigma = torch.where(measured, sigma, 1.0).clamp(min=1e-6)
        magnitude = torch.where(measured, torch.asinh(flux / (2 * sigma)) + sigma.log(), 0.0)
        mean = magnitude.sum(1, keepdim=True) / measured.sum(1, keepdim=True).clamp(min=1)
        magnitude = torch.where(measured, magnitude, mean)
        error = sigma / (flux.square() + 4 * sigma.square()).sqrt()
        signal = torch.asinh(flux / sigma)
        columns = (magnitude / 4 - 1, magnitude.diff(dim=1), 2 * error, signal / 3, measured.float())
        return torch.cat(columns, dim=1)
