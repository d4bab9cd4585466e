"""Gaussian-mixture probability densities: the one form in which every measured quantity leaves the network.

Legend: K components along the last axis; any number of leading (batch) axes. `lower` truncates every component at
that bound and renormalises it (redshifts live on z >= 0), so that no probability lies below it: component k has the
density `N(x; mu, sigma) / Phi((mu - lower) / sigma)` for x >= lower. (Cabayol et al. 2021, eq. 5, prints the error
function of the label here; the normalisation depends on the component only.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.special import log_ndtr

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
LOG_SIGMA_RANGE = (-9.0, 9.0)  # sigma between 1e-4 and 8e3: exp() can neither underflow nor explode in float32


class Mixture:
    """A batch of mixtures of K Gaussians, optionally truncated from below.

    Args:
        logits: (..., K) unnormalised log-weights.
        mean: (..., K) means of the untruncated components, in the unit of the quantity.
        sigma: (..., K) standard deviations of the untruncated components, > 0.
        lower: bound of the support, or None for the whole line.
    """

    def __init__(self, logits: Tensor, mean: Tensor, sigma: Tensor, lower: float | None = None):
        self.logits, self.component_mean, self.component_sigma = torch.broadcast_tensors(logits, mean, sigma)
        self.lower = lower

    # ------------------------------------------------------------------------------------------- making, moving
    @classmethod
    def from_raw(cls, raw: Tensor, lower: float | None = None, sigma_min: float = 0.0) -> Mixture:
        """From a network's last layer.

        Args:
            raw: (..., 3K): K log-weights, K means, K log-sigmas (clamped to a finite range).
            lower: see the class.
            sigma_min: added in quadrature to every sigma, in the unit of the quantity.
        """
        logits, mean, log_sigma = raw.float().chunk(3, dim=-1)
        sigma = log_sigma.clamp(*LOG_SIGMA_RANGE).exp()
        if sigma_min > 0:
            sigma = (sigma.square() + sigma_min**2).sqrt()
        return cls(logits, mean, sigma, lower)

    @classmethod
    def from_columns(cls, weights: np.ndarray, means: np.ndarray, sigmas: np.ndarray, lower: float | None) -> Mixture:
        """From catalogue columns (N, K): `z_weights`, `z_means`, `z_sigmas`; computes in float64."""
        as_tensor = [torch.as_tensor(np.asarray(array, dtype=np.float64)) for array in (weights, means, sigmas)]
        return cls(as_tensor[0].log(), as_tensor[1], as_tensor[2], lower)

    @property
    def batch_shape(self) -> torch.Size:
        """The shape without the component axis."""
        return self.logits.shape[:-1]

    @property
    def log_weights(self) -> Tensor:
        """Normalised log-weights (..., K)."""
        return self.logits.log_softmax(-1)

    @property
    def weights(self) -> Tensor:
        """Normalised weights (..., K)."""
        return self.logits.softmax(-1)

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, index) -> Mixture:
        return self._map(lambda tensor: tensor[index])

    def _map(self, function) -> Mixture:
        parts = (function(part) for part in (self.logits, self.component_mean, self.component_sigma))
        return Mixture(*parts, lower=self.lower)

    def to(self, target: torch.device | torch.dtype | str) -> Mixture:
        """The same mixtures on another device or in another precision."""
        return self._map(lambda tensor: tensor.to(target))

    def detach(self) -> Mixture:
        """The same mixtures without a gradient graph."""
        return self._map(Tensor.detach)

    @staticmethod
    def cat(items: Sequence[Mixture]) -> Mixture:
        """Concatenate along the first axis; all must have the same K and bound."""
        assert len({item.lower for item in items}) == 1
        parts = zip(*((item.logits, item.component_mean, item.component_sigma) for item in items), strict=True)
        return Mixture(*(torch.cat(part) for part in parts), lower=items[0].lower)

    # --------------------------------------------------------------------------------------------------- density
    def _log_norm(self) -> Tensor:
        """log of the probability that an untruncated component has above `lower`, (..., K)."""
        if self.lower is None:
            return torch.zeros_like(self.component_mean)
        return log_ndtr((self.component_mean - self.lower) / self.component_sigma)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density at `x` (broadcastable to the batch shape); -inf below the bound."""
        x = torch.as_tensor(x, dtype=self.logits.dtype, device=self.logits.device)
        pull = (x[..., None] - self.component_mean) / self.component_sigma
        components = self.log_weights - 0.5 * pull.square() - self.component_sigma.log() - LOG_SQRT_2PI
        density = (components - self._log_norm()).logsumexp(-1)
        if self.lower is not None:
            density = torch.where(x >= self.lower, density, torch.full_like(density, -math.inf))
        return density

    def prob(self, x: Tensor) -> Tensor:
        """Density at `x`, per unit of the quantity."""
        return self.log_prob(x).exp()

    def cdf(self, x: Tensor) -> Tensor:
        """Probability below `x`."""
        x = torch.as_tensor(x, dtype=self.logits.dtype, device=self.logits.device)
        upper_tail = log_ndtr((self.component_mean - x[..., None]) / self.component_sigma)
        # 1 - exp(difference of logs) stays exact where a component's mean lies far below the bound.
        component = -torch.expm1((upper_tail - self._log_norm()).clamp(max=0))
        return (self.weights * component).sum(-1).clamp(0, 1)

    # --------------------------------------------------------------------------------------------------- moments
    def _component_moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of each truncated component (..., K), in float64 (differences of large numbers)."""
        mean, sigma = self.component_mean.double(), self.component_sigma.double()
        if self.lower is None:
            return mean, sigma.square()
        a = (mean - self.lower) / sigma
        ratio = (-0.5 * a.square() - LOG_SQRT_2PI - log_ndtr(a)).exp()
        variance = sigma.square() * (1 - a * ratio - ratio.square())
        return (mean + sigma * ratio).clamp(min=self.lower), variance.clamp(min=0)

    def mean(self) -> Tensor:
        """Expected value (...,)."""
        mean, _ = self._component_moments()
        return (self.weights.double() * mean).sum(-1).to(self.logits.dtype)

    def variance(self) -> Tensor:
        """Variance (...,)."""
        mean, variance = self._component_moments()
        weights = self.weights.double()
        center = (weights * mean).sum(-1, keepdim=True)
        return (weights * (variance + (mean - center).square())).sum(-1).to(self.logits.dtype)

    def std(self) -> Tensor:
        """Standard deviation (...,)."""
        return self.variance().sqrt()

    def median(self) -> Tensor:
        """Median (...,)."""
        return self.quantile(0.5)

    def quantile(self, q: float | Tensor) -> Tensor:
        """The value below which the probability is `q`, 0 < q < 1; the batch and `q` broadcast. No gradient."""
        with torch.no_grad():
            wide = self.to(torch.float64)
            q = torch.as_tensor(q, dtype=torch.float64, device=self.logits.device)
            reach = 40 * wide.component_sigma
            low, high = (wide.component_mean - reach).amin(-1), (wide.component_mean + reach).amax(-1)
            if self.lower is not None:
                low = torch.full_like(low, self.lower)
                high = (wide.component_mean.clamp(min=self.lower) + reach).amax(-1)
            low, high = torch.broadcast_tensors(low, high, q)[:2] if q.ndim else (low, high)
            for _ in range(70):
                middle = (low + high) / 2
                below = wide.cdf(middle) < q
                low, high = torch.where(below, middle, low), torch.where(below, high, middle)
            return ((low + high) / 2).to(self.logits.dtype)

    def mode(self) -> Tensor:
        """The value of highest density (...,): mean-shift from every component, best kept. No gradient."""
        with torch.no_grad():
            wide = self.to(torch.float64)
            precision = wide.component_sigma.pow(-2)
            start = wide.component_mean
            if self.lower is not None:
                start = torch.cat((start.clamp(min=self.lower), torch.full_like(start[..., :1], self.lower)), dim=-1)
            x = start
            log_scale = wide.log_weights - wide.component_sigma.log() - wide._log_norm()
            for _ in range(100):
                pull = (x[..., None] - wide.component_mean[..., None, :]) / wide.component_sigma[..., None, :]
                share = (log_scale[..., None, :] - 0.5 * pull.square()).softmax(-1) * precision[..., None, :]
                x = (share * wide.component_mean[..., None, :]).sum(-1) / share.sum(-1)
                if self.lower is not None:
                    x = x.clamp(min=self.lower)
            candidates = torch.cat((x, start), dim=-1)
            density = wide._map(lambda tensor: tensor[..., None, :]).log_prob(candidates)
            best = density.argmax(-1, keepdim=True)
            return candidates.gather(-1, best)[..., 0].to(self.logits.dtype)

    def odds(self, width: float = 0.06) -> Tensor:
        """Probability within `width * (1 + mode)` of the mode (Benitez 2000): how single-peaked a redshift PDF is."""
        mode = self.mode()
        half = width * (1 + mode)
        low = mode - half if self.lower is None else (mode - half).clamp(min=self.lower)
        return self.cdf(mode + half) - self.cdf(low)

    # ----------------------------------------------------------------------------------------------- comparisons
    def norm2(self) -> Tensor:
        """Integral of the squared density (...,), the first term of the CDE loss; closed form."""
        _, log_mass = self._pairwise(self)
        return log_mass.logsumexp((-2, -1)).exp()

    def _pairwise(self, other: Mixture) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Products of all pairs of components: ((mean, sigma) of each, log of its integral), each (..., K, L)."""
        mean_i, mean_j = self.component_mean[..., :, None], other.component_mean[..., None, :]
        var_i, var_j = self.component_sigma[..., :, None].square(), other.component_sigma[..., None, :].square()
        total = var_i + var_j
        mean = (mean_i * var_j + mean_j * var_i) / total
        sigma = (var_i * var_j / total).sqrt()
        log_mass = (
            self.log_weights[..., :, None]
            + other.log_weights[..., None, :]
            - 0.5 * (mean_i - mean_j).square() / total
            - 0.5 * total.log()
            - LOG_SQRT_2PI
        )
        if self.lower is not None:
            log_mass = (
                log_mass
                + log_ndtr((mean - self.lower) / sigma)
                - self._log_norm()[..., :, None]
                - other._log_norm()[..., None, :]
            )
        return (mean, sigma), log_mass

    def product(self, other: Mixture) -> Mixture:
        """The normalised product of two densities: the coadd of two independent measurements of one quantity."""
        assert self.lower == other.lower
        (mean, sigma), log_mass = self._pairwise(other)
        return Mixture(log_mass.flatten(-2), mean.flatten(-2), sigma.flatten(-2), self.lower)

    def affine(self, scale: float | Tensor = 1.0, shift: float | Tensor = 0.0) -> Mixture:
        """The density of `scale * x + shift`, scale > 0 (a change of zero point, say)."""
        scale, shift = (torch.as_tensor(v, dtype=self.logits.dtype, device=self.logits.device) for v in (scale, shift))
        lower = None if self.lower is None else float(scale * self.lower + shift)  # a bound allows only scalars
        return Mixture(
            self.logits,
            self.component_mean * scale[..., None] + shift[..., None],
            self.component_sigma * scale[..., None],
            lower,
        )

    def crps(self, x: Tensor) -> Tensor:
        """Continuous ranked probability score of the true value `x`, in the unit of the quantity; smaller is better.

        Closed form without a bound (Grimit et al. 2006, eq. 5); with one, Gauss-Legendre quadrature of
        `int (F(t) - [t >= x])^2 dt` between break points at every component's mean and multiples of its sigma.
        """
        wide = self.to(torch.float64)
        x = torch.as_tensor(x, dtype=torch.float64, device=self.logits.device)
        score = wide._crps_closed(x) if self.lower is None else wide._crps_quadrature(x)
        return score.to(self.logits.dtype)

    def _crps_closed(self, x: Tensor) -> Tensor:
        def expected_distance(offset: Tensor, sigma: Tensor) -> Tensor:
            pull = offset / sigma
            return 2 * sigma * (-0.5 * pull.square() - LOG_SQRT_2PI).exp() + offset * torch.erf(pull / math.sqrt(2))

        mean, sigma, weights = self.component_mean, self.component_sigma, self.weights
        to_truth = (weights * expected_distance(x[..., None] - mean, sigma)).sum(-1)
        sigma_pair = (sigma[..., :, None].square() + sigma[..., None, :].square()).sqrt()
        spread = expected_distance(mean[..., :, None] - mean[..., None, :], sigma_pair)
        return to_truth - 0.5 * (weights[..., :, None] * weights[..., None, :] * spread).sum((-2, -1))

    def _crps_quadrature(self, x: Tensor) -> Tensor:
        steps = x.new_tensor([-9.0, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 9])
        mean, sigma = self.component_mean[..., :, None], self.component_sigma[..., :, None]
        x = x.expand(self.batch_shape)
        # A component far below the bound leaves a tail with the scale sigma / pull, not sigma.
        pull = ((self.lower - mean) / sigma).clamp(min=1.0)
        tail = self.lower + steps.abs() * 4 * sigma / pull
        breaks = torch.cat(((mean + steps * sigma).flatten(-2), tail.flatten(-2), x[..., None]), dim=-1)
        breaks = torch.cat((breaks, torch.full_like(x[..., None], self.lower)), dim=-1)
        breaks = breaks.clamp(min=self.lower).sort(-1).values
        nodes, node_weights = (torch.as_tensor(part, dtype=x.dtype) for part in np.polynomial.legendre.leggauss(6))
        half = (breaks[..., 1:] - breaks[..., :-1]) / 2
        t = breaks[..., :-1, None] + half[..., None] * (1 + nodes.to(x.device))
        wide = self._map(lambda tensor: tensor[..., None, None, :])
        step = (t >= x[..., None, None]).to(x.dtype)
        integrand = (wide.cdf(t) - step).square()
        return ((integrand * node_weights.to(x.device)).sum(-1) * half).sum(-1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw (n, ...) values; the inverse of each component's distribution, so that the bound is exact."""
        with torch.no_grad():
            wide = self.to(torch.float64)
            shape = (n, *self.batch_shape)
            uniform = torch.rand((2, *shape), generator=generator, dtype=torch.float64).to(self.logits.device)
            edges = wide.weights.cumsum(-1)
            k = (uniform[0][..., None] > edges).sum(-1).clamp(max=self.logits.shape[-1] - 1)
            picked = [
                part.expand(*shape, part.shape[-1]).gather(-1, k[..., None])
                for part in (torch.zeros_like(wide.logits), wide.component_mean, wide.component_sigma)
            ]
            return Mixture(*picked, lower=self.lower).quantile(uniform[1].clamp(1e-12, 1 - 1e-12)).to(self.logits.dtype)

    def numpy(self) -> dict[str, np.ndarray]:
        """`{"weights", "means", "sigmas"}`, each (..., K), in float32 as the catalogue stores them."""
        parts = {"weights": self.weights, "means": self.component_mean, "sigmas": self.component_sigma}
        return {name: part.detach().cpu().float().numpy() for name, part in parts.items()}

    def __repr__(self) -> str:
        return f"Mixture(batch {tuple(self.batch_shape)}, {self.logits.shape[-1]} components, lower={self.lower})"
