"""Weighted linear least squares of a few templates to windows of pixels: fluxes that are exactly linear in the pixels.

Legend: R objects, C bands, T templates, S window side; template 0 is the object, whose amplitude is its flux.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# A template whose own part, after the others are taken off, is below this share of its norm has no amplitude.
SMALLEST_PIVOT = 1e-6
SMALLEST_NORM = 1e-10  # of a template that hardly any weight falls on, for pixels in units of their noise


@dataclass
class Fit:
    """What the pixels say about the amplitudes of T templates.

    Attributes:
        amplitude: (R, C, T) in the unit of the pixels.
        sigma: (R, C) standard deviation of the object's amplitude, with the uncertainty of the other templates'.
        sigma_alone: (R, C) the same if the other amplitudes were known.
        overlap: (R, C) weighted correlation of the object's template with the second one.
    """

    amplitude: Tensor
    sigma: Tensor
    sigma_alone: Tensor
    overlap: Tensor


def fit_templates(templates: Tensor, pixels: Tensor, weight: Tensor, ridge: Tensor) -> Fit:
    """Minimise sum w (f - sum_t a_t m_t)^2 + sum_t ridge_t n_t a_t^2 with n_t = sum w m_t^2.

    For independent Gaussian noise of variance 1 / w and a Gaussian prior of mean 0 and variance 1 / (ridge_t n_t) of
    each amplitude this is the posterior mean, and `sigma` its standard deviation. With one template and no ridge the
    weights of the pixels are m w / sum(m^2 w), the linear estimate of highest signal-to-noise (Naylor 1998, MNRAS 296,
    339, eq. 7).

    Args:
        templates: (R, C, T, S, S).
        pixels: (R, C, S, S) f.
        weight: (R, C, S, S) w, inverse variances, 0 for pixels without a measurement. An object's template without any
            weight gives the amplitude 0 and the sigma 1e5. Pixels and weights are in units of the noise.
        ridge: (R, C, T), 0 for a free amplitude, infinite-like (1e6) for one that is held at 0.
    """
    flat = templates.flatten(-2)
    weighted = flat * weight.flatten(-2)[:, :, None]
    normal = (weighted @ flat.transpose(-1, -2)).double()
    right = (weighted @ pixels.flatten(-2)[..., None])[..., 0].double()
    norm = normal.diagonal(dim1=-2, dim2=-1)
    scale = norm.clamp(min=SMALLEST_NORM).rsqrt()
    unit = torch.eye(normal.shape[-1], dtype=torch.float64, device=normal.device)
    # Templates of unit norm: the matrix holds their correlations. Those without weight correlate with none.
    correlation = normal * scale[..., None] * scale[..., None, :]
    correlation = torch.where(unit.bool(), unit, correlation)
    factor = torch.linalg.cholesky(correlation + (ridge.double() + SMALLEST_PIVOT)[..., None] * unit)
    sides = torch.cat(((right * scale)[..., None], unit[:, :1].expand(*right.shape, 1)), dim=-1)
    solved = torch.cholesky_solve(sides, factor)
    return Fit(
        amplitude=(solved[..., 0] * scale).float(),
        sigma=(solved[..., 0, 1].sqrt() * scale[..., 0]).float(),
        sigma_alone=scale[..., 0].float(),
        overlap=correlation[..., 0, 1].float(),
    )
