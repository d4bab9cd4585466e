"""Integrals over a mixture's distribution: CRPS and entropy, in closed form where there is one, else by quadrature.

Quadrature is Gauss-Legendre between break points at multiples of every component's sigma, so that a narrow component
beside a broad one is resolved. The nodes do not carry gradients, the integrand does: derivatives are as exact.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from deepdisc.mixture_regions import flattened, in_chunks
from deepdisc.mixture_truncation import LOG_SQRT_2PI, survival

if TYPE_CHECKING:
    from deepdisc.mixture import Mixture

_STEPS = (-9.0, -5.0, -2.5, 0.0, 2.5, 5.0, 9.0)  # sigmas from the mean
_TAIL = (0.0, 2.0, 5.0, 11.0, 20.0, 36.0)  # scales of an exponential tail
_NODES = 8
_CHUNK = 512  # mixtures at a time, of some hundred nodes each


def _nodes(mixture: Mixture, *more: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights (n, nodes) over the support; further break points (n,) keep their gradients."""
    mean, sigma = mixture.component_mean.detach()[..., None], mixture.component_sigma.detach()[..., None]
    breaks = (mean + mean.new_tensor(_STEPS) * sigma).flatten(1)
    if mixture.lower is not None:
        pull = (mixture.lower - mean) / sigma
        if bool((pull > 0).any()):
            # A component far below the bound leaves a tail with the scale sigma / pull, not sigma.
            tail = mixture.lower + mean.new_tensor(_TAIL) * sigma / pull.clamp(min=1.0)
            breaks = torch.cat((breaks, tail.flatten(1)), dim=1)
    breaks = torch.cat((breaks, *(point[:, None] for point in more)), dim=1)
    if mixture.lower is not None:
        breaks = breaks.clamp(min=mixture.lower)
    breaks = breaks.sort(1).values
    at, weight = (torch.as_tensor(part, dtype=mean.dtype, device=mean.device) for part in _legendre())
    half = (breaks[:, 1:] - breaks[:, :-1]) / 2
    nodes = breaks[:, :-1, None] + half[..., None] * (1 + at)
    return nodes.flatten(1), (half[..., None] * weight).flatten(1)


def _legendre() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(_NODES)


def entropy(mixture: Mixture) -> Tensor:
    """See `Mixture.entropy`; float64."""
    flat = mixture.reshape(mixture.batch_shape.numel())
    return in_chunks(_entropy, flat, size=_CHUNK).reshape(mixture.batch_shape)


def _entropy(mixture: Mixture) -> Tensor:
    nodes, weights = _nodes(mixture)
    log_density = mixture[:, None]._log_components(nodes[..., None]).logsumexp(-1)
    return -(log_density * log_density.exp() * weights).sum(1)


def crps(mixture: Mixture, x: Tensor) -> Tensor:
    """See `Mixture.crps`; float64."""
    if mixture.lower is None:
        return _crps_closed(
            mixture.to(torch.float64), torch.as_tensor(x, dtype=torch.float64, device=mixture.logits.device)
        )
    flat, x, shape = flattened(mixture, x)
    return in_chunks(_crps_quadrature, flat, x, size=_CHUNK).reshape(shape)


def _crps_closed(mixture: Mixture, x: Tensor) -> Tensor:
    def expected_distance(offset: Tensor, sigma: Tensor) -> Tensor:
        pull = offset / sigma
        return 2 * sigma * (-0.5 * pull.square() - LOG_SQRT_2PI).exp() + offset * torch.erf(pull / math.sqrt(2))

    mean, sigma, weights = mixture.component_mean, mixture.component_sigma, mixture.weights
    to_truth = (weights * expected_distance(x[..., None] - mean, sigma)).sum(-1)
    sigma_pair = (sigma[..., :, None].square() + sigma[..., None, :].square()).sqrt()
    spread = expected_distance(mean[..., :, None] - mean[..., None, :], sigma_pair)
    return to_truth - 0.5 * (weights[..., :, None] * weights[..., None, :] * spread).sum((-2, -1))


def _crps_quadrature(mixture: Mixture, x: Tensor) -> Tensor:
    inside = x.clamp(min=mixture.lower)
    nodes, weights = _nodes(mixture, inside)
    step = (nodes >= inside[:, None]).to(nodes)
    beneath = (mixture.lower - x).clamp(min=0)  # a true value below the bound: certain error from it to the bound
    t = (nodes[..., None] - mixture.lower) / mixture.component_sigma[:, None]
    above = (mixture.weights[:, None] * survival(t, mixture._above_bound()[:, None])).sum(-1)
    return ((1 - above - step).square() * weights).sum(1) + beneath
