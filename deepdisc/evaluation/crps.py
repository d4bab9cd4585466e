"""The continuous ranked probability score of truncated Gaussian mixtures in closed form.

`CRPS(F, x) = int (F(t) - [t >= x])^2 dt = E|X - x| - E|X - X'| / 2` for independent X, X' of the distribution F
(Gneiting & Raftery 2007, eq. 21). Both expectations are sums over components: of moments of truncated normals, and of
bivariate normal probabilities, which Owen's T function gives (Owen 1956).

Legend: N objects, K components; m, s mean and sigma of an untruncated component, l the bound, P = Phi((m - l) / s).
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import ndtr, owens_t

from deepdisc.mixture import Mixture

# Components of less mass above the bound are differences of nearly equal numbers: quadrature keeps its precision there.
_LEAST_MASS = 1e-3
_LEAST_WEIGHT = 1e-9
_CHUNK = 20_000


def crps(mixture: Mixture, x: np.ndarray) -> np.ndarray:
    """CRPS (N,) of true values `x` (N,), in the unit of the quantity; smaller is better.

    Objects with a component nearly all of which lies below the bound are integrated numerically (`Mixture.crps`).
    """
    x = np.asarray(x, np.float64)
    scores = [np.zeros(0)]
    for start in range(0, len(x), _CHUNK):
        scores.append(_closed(mixture[start : start + _CHUNK], x[start : start + _CHUNK]))
    return np.concatenate(scores)


def _closed(mixture: Mixture, x: np.ndarray) -> np.ndarray:
    weights, mean, sigma = (
        part.double().numpy() for part in (mixture.weights, mixture.component_mean, mixture.component_sigma)
    )
    if mixture.lower is None:
        lower, mass = -np.inf, np.ones_like(mean)
    else:
        lower = mixture.lower
        mass = ndtr((mean - lower) / sigma)
    hard = ((mass < _LEAST_MASS) & (weights > _LEAST_WEIGHT)).any(1)
    mass = np.maximum(mass, _LEAST_MASS)  # of components that weigh nothing
    score = (weights * _distance_to(x[:, None], mean, sigma, lower, mass)).sum(1)
    for i, j in zip(*np.triu_indices(mean.shape[1]), strict=True):
        both = (mean[:, i], sigma[:, i], mass[:, i]), (mean[:, j], sigma[:, j], mass[:, j])
        share = weights[:, i] * weights[:, j] * (1.0 if i == j else 2.0)
        score -= share * _distance_between(*both, lower) / 2
    if hard.any():
        rows, low = torch.as_tensor(hard), x[hard]
        inside = np.maximum(low, lower)  # the quadrature begins at the bound
        score[hard] = mixture[rows].crps(torch.as_tensor(inside)).numpy() + inside - low
    return score


def _density(t: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * t**2) / np.sqrt(2 * np.pi)


def _distance_to(x: np.ndarray, mean: np.ndarray, sigma: np.ndarray, lower: float, mass: np.ndarray) -> np.ndarray:
    """E|X - x| of truncated components: `(2 A(max(x, l)) - A(l)) / P` with `A(t) = E (X - x) [X > t]`, untruncated."""

    def above(t: np.ndarray | float) -> np.ndarray:
        pull = (mean - t) / sigma
        return (mean - x) * ndtr(pull) + sigma * _density(pull)

    return (2 * above(np.maximum(x, lower)) - above(lower)) / mass


def _distance_between(first: tuple, second: tuple, lower: float) -> np.ndarray:
    """E|X - Y| of two truncated components given as (mean, sigma, mass), each (N,).

    By partial integration (Stein's lemma) with Q = P(X > Y > l), D = int_l phi_x phi_y, s^2 = s_x^2 + s_y^2:
    `E|X - Y| P_x P_y = (m_x - m_y)(2 Q - P_x P_y) + 2 s^2 D - s_y^2 phi_y(l) P_x - s_x^2 phi_x(l) P_y`.
    """
    (mean_x, sigma_x, mass_x), (mean_y, sigma_y, mass_y) = first, second
    total = np.hypot(sigma_x, sigma_y)
    shift = mean_x - mean_y
    product = 2 * total * _density(shift / total)
    if np.isinf(lower):
        return shift * (2 * ndtr(shift / total) - 1) + product
    middle = (mean_x * sigma_y**2 + mean_y * sigma_x**2) / total**2
    product *= ndtr((middle - lower) / (sigma_x * sigma_y / total))
    ordered = _both_below(shift / total, (mean_y - lower) / sigma_y, -sigma_y / total)
    edge = sigma_y * _density((mean_y - lower) / sigma_y) * mass_x
    edge += sigma_x * _density((mean_x - lower) / sigma_x) * mass_y
    return (shift * (2 * ordered - mass_x * mass_y) + product - edge) / (mass_x * mass_y)


def _both_below(h: np.ndarray, k: np.ndarray, correlation: np.ndarray) -> np.ndarray:
    """P(U < h, V < k) of standard normals with this correlation (Owen 1956, eq. 2.1)."""
    h, k = (np.where(value == 0, 1e-300, value) for value in (h, k))
    root = np.sqrt(1 - correlation**2)
    with np.errstate(over="ignore"):
        tails = owens_t(h, (k / h - correlation) / root) + owens_t(k, (h / k - correlation) / root)
    return (ndtr(h) + ndtr(k)) / 2 - tails - np.where(h * k < 0, 0.5, 0.0)
