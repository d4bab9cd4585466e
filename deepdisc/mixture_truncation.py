"""A normal distribution cut at a bound, in forms that stay exact when nearly all of it lies below the bound.

Legend: `a = (mu - lower) / sigma` is the mean above the bound in sigmas (negative: the mean lies below it), `t =
(x - lower) / sigma >= 0` a value above the bound, `h = phi(a) / Phi(a)`. The density at t is `phi(t - a) / Phi(a)`.
With a = -1000 numerator and denominator are e^-500000; written through `S(a) = Phi(a) e^(a^2 / 2)` for a < 0 the large
exponents cancel on paper: `log density = t a - t^2 / 2 - log S(a) - log sqrt(2 pi)`. Everything is in float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.special import erfc, erfcx, ndtri

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_SQRT_2 = math.sqrt(2)
# From here on the first terms of the asymptotic series are exact in float64, or as good as the difference they replace.
_FAR, _FAR_MOMENTS = 200.0, 25.0


def ndtr(x: Tensor) -> Tensor:
    """`Phi(x)`, exact also where it is tiny: torch's own computes `(1 + erf) / 2`."""
    return 0.5 * erfc(-x / _SQRT_2)


def log_mass(a: Tensor) -> Tensor:
    """`log Phi(a)` without its exponent `-min(a, 0)^2 / 2`; derivatives are exact too, for any a."""
    # Not clamp(): it has no gradient at 0, where a network may well begin.
    above = torch.log1p(-ndtr(-torch.where(a >= 0, a, 0.0)))
    depth = torch.where(a < 0, -a, 0.0)
    below = (0.5 * erfcx(depth.clamp(max=_FAR) / _SQRT_2)).log()
    inverse = depth.clamp(min=_FAR).reciprocal()
    square = inverse.square()
    series = -square * (1 - square * (3 - square * (15 - 105 * square)))  # Abramowitz & Stegun 26.2.12
    far = inverse.log() - LOG_SQRT_2PI + torch.log1p(series)
    return torch.where(a >= 0, above, torch.where(depth < _FAR, below, far))


def log_density(t: Tensor, a: Tensor) -> Tensor:
    """Log-density of the cut unit normal at t >= 0 above the bound."""
    return torch.where(a < 0, t * (a - 0.5 * t), -0.5 * (t - a).square()) - log_mass(a) - LOG_SQRT_2PI


def log_survival(t: Tensor, a: Tensor) -> Tensor:
    """Log of the probability above t >= 0."""
    b = a - t
    exponent = torch.where(a < 0, t * (a - 0.5 * t), -0.5 * b.clamp(max=0).square())
    return (log_mass(b) - log_mass(a) + exponent).clamp(max=0)


def survival(t: Tensor, a: Tensor) -> Tensor:
    """Probability above t >= 0, exact to rounding of 1 (not of itself): cheaper than its logarithm, for integrals."""
    near = ndtr(a - t) / ndtr(a.clamp(min=0))
    if not bool((a < 0).any()):
        return near
    depth = -a.clamp(max=0)
    beneath = (-t * (depth + 0.5 * t)).exp() * erfcx((t + depth) / _SQRT_2) / erfcx(depth / _SQRT_2)
    return torch.where(a < 0, beneath, near)


def moments(a: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of t and its variance: `a + h` and `1 - h (a + h)`."""
    hazard = (-log_mass(a) - 0.5 * a.clamp(min=0).square() - LOG_SQRT_2PI).exp()
    mean = a + hazard
    variance = 1 - hazard * mean
    # Both are differences of large numbers where the mean lies far below: there by their series in 1 / a.
    inverse = (-a).clamp(min=_FAR_MOMENTS).reciprocal()
    s = inverse.square()
    far_mean = inverse * (1 - s * (2 - s * (10 - s * (74 - s * (706 - s * 8162)))))
    far_variance = s * (1 - s * (6 - s * (50 - s * (518 - s * (6354 - s * 89782)))))
    far = a < -_FAR_MOMENTS
    return torch.where(far, far_mean, mean), torch.where(far, far_variance, variance)


def quantile_bracket(log_below: Tensor, log_above: Tensor, a: Tensor | None) -> tuple[Tensor, Tensor]:
    """Two values around the quantile, equal to rounding unless the mean lies below the bound.

    Args:
        log_below: log q.
        log_above: log(1 - q).
        a: see the legend, or None for a normal that is not cut.

    Returns:
        Bounds of `(x - mu) / sigma` without a cut, of t with one.
    """
    below, above = log_below.exp(), log_above.exp()
    if a is None:
        middle = torch.where(below < 0.5, ndtri(below), -ndtri(above))
        return middle, middle
    share = ndtr(a.clamp(min=0))
    below = ndtr(-a.clamp(min=0)) + below * share
    exact = a + torch.where(below < 0.5, ndtri(below), -ndtri(above * share))
    # With the mean below the bound the hazard rate is at least |a|, and at least that of a = 0.
    half = -ndtri(0.5 * log_above.exp())
    high = torch.minimum(half, -log_above / (-a).clamp(min=1e-300))
    return torch.where(a >= 0, exact, torch.zeros_like(a)), torch.where(a >= 0, exact, high)
