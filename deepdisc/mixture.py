"""Gaussian-mixture probability densities: the one form in which every measured quantity leaves the network.

Legend: K components along the last axis; any number of leading (batch) axes, objects R or objects and bands (R, C).
`lower` truncates every component at that bound and renormalises it (redshifts live on z >= 0), so that no probability
lies below it: component k has the density `N(x; mu, sigma) / Phi((mu - lower) / sigma)` for x >= lower. (Cabayol et al.
2021, eq. 5, prints the error function of the label here; the normalisation depends on the component only.)

Parameters are float32 or float64, never less; every method computes in float64 (autocast leaves it alone) and answers
in the precision of the parameters. Correlated quantities: `mixture_multivariate.MultivariateMixture`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from deepdisc import mixture_integrals as integrals
from deepdisc import mixture_regions as regions
from deepdisc import mixture_truncation as truncation
from deepdisc.errors import InputError
from deepdisc.mixture_truncation import LOG_SQRT_2PI

LOG_SIGMA_RANGE = (-9.0, 9.0)  # sigma between 1e-4 and 8e3: exp() can neither underflow nor explode in float32


class Mixture:
    """A batch of mixtures of K Gaussians, optionally truncated from below.

    Args:
        logits: (..., K) unnormalised log-weights.
        mean: (..., K) means of the untruncated components, in the unit of the quantity.
        sigma: (..., K) standard deviations of the untruncated components, > 0.
        lower: bound of the support, the same for all objects, or None for the whole line.
    """

    def __init__(self, logits: Tensor, mean: Tensor, sigma: Tensor, lower: float | None = None):
        dtype = torch.float64 if torch.float64 in (logits.dtype, mean.dtype, sigma.dtype) else torch.float32
        parts = torch.broadcast_tensors(*(part.to(dtype) for part in (logits, mean, sigma)))
        self.logits, self.component_mean, self.component_sigma = parts
        self.lower = lower

    # ------------------------------------------------------------------------------------------- making, moving
    @classmethod
    def from_raw(cls, raw: Tensor, lower: float | None = None, sigma_min: float = 0.0) -> Mixture:
        """From a network's last layer, for quantities of order one (a flux head scales its own parameters).

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
        """Some of the batch; the index never reaches the components: `[..., 0]` is the last batch axis."""
        index = index if isinstance(index, tuple) else (index,)
        if any(part is Ellipsis for part in index):
            index = (*index, slice(None))
        return self._map(lambda tensor: tensor[index])

    def _map(self, function) -> Mixture:
        parts = (function(part) for part in (self.logits, self.component_mean, self.component_sigma))
        return Mixture(*parts, lower=self.lower)

    def to(self, target: torch.device | torch.dtype | str) -> Mixture:
        """The same mixtures on another device or in another precision (float32 at least)."""
        return self._map(lambda tensor: tensor.to(target))

    def detach(self) -> Mixture:
        """The same mixtures without a gradient graph."""
        return self._map(Tensor.detach)

    def reshape(self, *shape: int) -> Mixture:
        """The same mixtures with another batch shape."""
        return self._map(lambda tensor: tensor.reshape(*shape, tensor.shape[-1]))

    def expand(self, *shape: int) -> Mixture:
        """The same mixtures, repeated to a larger batch shape without copying."""
        return self._map(lambda tensor: tensor.expand(*shape, tensor.shape[-1]))

    @staticmethod
    def cat(items: Sequence[Mixture]) -> Mixture:
        """Concatenate along the first axis; all must have the same K and bound."""
        assert len({item.lower for item in items}) == 1
        parts = zip(*((item.logits, item.component_mean, item.component_sigma) for item in items), strict=True)
        return Mixture(*(torch.cat(part) for part in parts), lower=items[0].lower)

    def _at(self, x: Tensor | float) -> Tensor:
        """Values in float64 on the mixtures' device, with an axis for the components."""
        return torch.as_tensor(x, dtype=torch.float64, device=self.logits.device)[..., None]

    def _like(self, result: Tensor) -> Tensor:
        return result.to(self.logits.dtype)

    # --------------------------------------------------------------------------------------------------- density
    def _above_bound(self) -> Tensor:
        """How many sigmas each component's mean lies above the bound, (..., K) float64."""
        return (self.component_mean.double() - self.lower) / self.component_sigma.double()

    def _log_components(self, x: Tensor) -> Tensor:
        """Log of each component's part of the density at x (..., 1), without regard to the bound: (..., K) float64."""
        mean, sigma = self.component_mean.double(), self.component_sigma.double()
        if self.lower is None:
            density = -0.5 * ((x - mean) / sigma).square() - LOG_SQRT_2PI
        else:
            density = truncation.log_density(((x - self.lower) / sigma).clamp(min=0), self._above_bound())
        return self.logits.double().log_softmax(-1) + density - sigma.log()

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density at `x` (broadcastable to the batch shape); -inf below the bound."""
        x = self._at(x)
        density = self._like(self._log_components(x).logsumexp(-1))
        if self.lower is not None:
            # The bound in the parameters' own precision, so that values rounded to it (a mode, say) lie on it.
            below = self._like(x[..., 0]) < torch.tensor(self.lower, dtype=self.logits.dtype)
            density = torch.where(below, torch.full_like(density, -math.inf), density)
        return density

    def prob(self, x: Tensor) -> Tensor:
        """Density at `x`, per unit of the quantity."""
        return self.log_prob(x).exp()

    def cdf(self, x: Tensor) -> Tensor:
        """Probability below `x`; tiny ones keep their digits, except those of values just above the bound (1e-16)."""
        return self._like(self._tail(self._at(x), torch.tensor(True, device=self.logits.device)).clamp(0, 1))

    def _tail(self, x: Tensor, below: Tensor) -> Tensor:
        """Probability below x (..., 1) where `below` (...,), else that above it; exact however small, float64."""
        sigma = self.component_sigma.double()
        if self.lower is None:
            pull = (x - self.component_mean.double()) / sigma
            component = truncation.ndtr(torch.where(below[..., None], pull, -pull))
        else:
            log_above = truncation.log_survival(((x - self.lower) / sigma).clamp(min=0), self._above_bound())
            component = torch.where(below[..., None], -torch.expm1(log_above), log_above.exp())
        return (self.logits.double().softmax(-1) * component).sum(-1)

    # --------------------------------------------------------------------------------------------------- moments
    def _component_moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of each truncated component (..., K), float64."""
        mean, sigma = self.component_mean.double(), self.component_sigma.double()
        if self.lower is None:
            return mean, sigma.square()
        offset, variance = truncation.moments(self._above_bound())
        return self.lower + sigma * offset, sigma.square() * variance

    def mean(self) -> Tensor:
        """Expected value (...,)."""
        mean, _ = self._component_moments()
        return self._like((self.logits.double().softmax(-1) * mean).sum(-1))

    def variance(self) -> Tensor:
        """Variance (...,)."""
        mean, variance = self._component_moments()
        weights = self.logits.double().softmax(-1)
        center = (weights * mean).sum(-1, keepdim=True)
        return self._like((weights * (variance + (mean - center).square())).sum(-1))

    def std(self) -> Tensor:
        """Standard deviation (...,)."""
        return self.variance().sqrt()

    # -------------------------------------------------------------------------- values found by solving; no gradient
    def median(self) -> Tensor:
        """Median (...,)."""
        return self.quantile(0.5)

    @torch.no_grad()
    def quantile(self, q: float | Tensor) -> Tensor:
        """The value below which the probability is `q`, 0 < q < 1; the batch and `q` broadcast. No gradient."""
        return self._like(regions.quantile(self, q))

    @torch.no_grad()
    def mode(self) -> Tensor:
        """The value of highest density (...,). No gradient."""
        return self._like(regions.mode(self))

    def odds(self, width: float = 0.06) -> Tensor:
        """Probability within `width * (1 + mode)` of the mode (Benitez 2000): how single-peaked a redshift PDF is."""
        mode = self.mode()
        half = width * (1 + mode)
        return self.cdf(mode + half) - self.cdf(mode - half)

    @torch.no_grad()
    def hdi(self, level: float) -> Tensor:
        """Highest-density intervals: the smallest set of values that has the probability `level`. No gradient.

        Returns:
            (..., M, 2) lower and upper ends in increasing order, M that of the object with most intervals; NaN beyond
            an object's own number.

        Raises:
            InputError: `level` is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise InputError(f"hdi: the level {level} is not a probability; give one between 0 and 1, as 0.68")
        return self._like(regions.highest_density_intervals(self, level))

    @torch.no_grad()
    def hdi_level(self, x: Tensor) -> Tensor:
        """Credibility of `x`: the probability of all values denser than it; uniform for honest PDFs. No gradient."""
        return self._like(regions.credibility(self, x))

    # ------------------------------------------------------------------------------------------ one or two densities
    def _pairwise(self, other: Mixture) -> tuple[Tensor, Tensor, Tensor]:
        """Products of all pairs of components: log of the integral, mean, sigma of each, (..., K, L) float64."""
        if self.lower != other.lower:
            raise InputError(f"densities bounded at {self.lower} and at {other.lower}: both need the same bound")
        mean_i, mean_j = self.component_mean.double()[..., :, None], other.component_mean.double()[..., None, :]
        sigma_i, sigma_j = self.component_sigma.double()[..., :, None], other.component_sigma.double()[..., None, :]
        total = sigma_i.square() + sigma_j.square()
        share = sigma_j.square() / total
        mean = mean_j + (mean_i - mean_j) * share
        sigma = sigma_i * share.sqrt()
        exponent = -0.5 * (mean_i - mean_j).square() / total
        log_mass = self.logits.double().log_softmax(-1)[..., :, None]
        log_mass = log_mass + other.logits.double().log_softmax(-1)[..., None, :] - 0.5 * total.log() - LOG_SQRT_2PI
        if self.lower is not None:
            a_i, a_j = self._above_bound()[..., :, None], other._above_bound()[..., None, :]
            r = (mean - self.lower) / sigma
            log_mass = log_mass + truncation.log_mass(r) - truncation.log_mass(a_i) - truncation.log_mass(a_j)
            # D^2 / V + r^2 = a_i^2 + a_j^2: written out, these cancel where the means lie far below the bound.
            beneath = -0.5 * (a_i.clamp(min=0).square() + a_j.clamp(min=0).square())
            exponent = exponent + 0.5 * (a_i.clamp(max=0).square() + a_j.clamp(max=0).square())
            exponent = torch.where(r < 0, beneath, exponent)
        return log_mass + exponent, mean, sigma

    def log_overlap(self, other: Mixture) -> Tensor:
        """log of the integral of the product of two densities (...,): how well two measurements agree.

        Its negative is the loss of unsupervised transfer L_UTL (Cabayol et al. 2021, eq. 7), exact with and without
        bound; two exposures must first be brought to one zero point (`affine`).

        Raises:
            InputError: the two have different bounds.
        """
        log_mass, _, _ = self._pairwise(other)
        return self._like(log_mass.logsumexp((-2, -1)))

    def norm2(self) -> Tensor:
        """Integral of the squared density (...,), the first term of the CDE loss; closed form."""
        return self.log_overlap(self).exp()

    def product(self, other: Mixture, max_components: int | None = None) -> Mixture:
        """The normalised product of two densities: the coadd of two independent measurements of one quantity.

        Args:
            other: the other measurement.
            max_components: keep only so many of the K L components, the heaviest, and renormalise: a coadd of many
                exposures would hold K^n. The neglected probability is the error.

        Raises:
            InputError: the two have different bounds.
        """
        logits, mean, sigma = (part.flatten(-2) for part in self._pairwise(other))
        if max_components is not None and logits.shape[-1] > max_components:
            logits, kept = logits.topk(max_components, dim=-1)
            mean, sigma = mean.gather(-1, kept), sigma.gather(-1, kept)
        # The largest becomes 0: logits far below would lose their digits in float32.
        logits = logits - logits.detach().amax(-1, keepdim=True)
        dtype = torch.promote_types(self.logits.dtype, other.logits.dtype)
        return Mixture(logits.to(dtype), mean.to(dtype), sigma.to(dtype), self.lower)

    def affine(self, scale: float | Tensor = 1.0, shift: float | Tensor = 0.0) -> Mixture:
        """The density of `scale * x + shift` (a change of zero point, say).

        Args:
            scale: a number or one per object (and band), not 0; > 0 where there is a bound.
            shift: the same, in the new unit. With a bound, the new one must be the same for all: a bound of 0 allows
                any scales.

        Raises:
            InputError: a bound would become an upper bound, or differ between objects.
        """
        scale, shift = (
            torch.as_tensor(part, dtype=torch.float64, device=self.logits.device) for part in (scale, shift)
        )
        lower = None if self.lower is None else self._moved_bound(scale, shift)
        mean = self.component_mean.double() * scale[..., None] + shift[..., None]
        sigma = self.component_sigma.double() * scale[..., None].abs()
        return Mixture(self.logits, self._like(mean), self._like(sigma), lower)

    def _moved_bound(self, scale: Tensor, shift: Tensor) -> float:
        bounds = (scale * self.lower + shift).detach().flatten()
        if not len(bounds):
            return self.lower
        low, high, smallest = float(bounds.min()), float(bounds.max()), float(scale.min())
        if smallest <= 0:
            raise InputError(
                f"affine: a scale of {smallest:g} would turn the bound into an upper one; scales must be > 0"
            )
        if low != high:
            raise InputError(
                f"affine: the bound {self.lower:g} would lie between {low:g} and {high:g}, but all densities of a "
                "Mixture have the same; transform such objects one by one"
            )
        return low

    # ---------------------------------------------------------------------------------------------------- scores
    def cde_loss(self, x: Tensor) -> Tensor:
        """Term of the CDE loss, `int p^2 - 2 p(x)` at the true value (Izbicki & Lee 2017), closed form."""
        return self.norm2() - 2 * self.prob(x)

    def crps(self, x: Tensor) -> Tensor:
        """Continuous ranked probability score of the true value `x`, in the unit of the quantity; smaller is better.

        Closed form without a bound (Grimit et al. 2006, eq. 5); with one, quadrature of `int (F(t) - [t >= x])^2 dt`,
        exact to about 1e-9 of the width.
        """
        return self._like(integrals.crps(self, x))

    def entropy(self) -> Tensor:
        """Differential entropy `-int p log p` (...,) in nats of the unit of the quantity.

        Mixtures have no closed form: Gauss-Legendre quadrature between multiples of every sigma, exact to 1e-7.
        """
        return self._like(integrals.entropy(self))

    # ---------------------------------------------------------------------------------------------- drawing, giving
    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw (n, ...) values; the inverse of each component's distribution, so that the bound is exact."""
        shape = (n, *self.batch_shape)
        uniform = torch.rand((2, *shape), generator=generator, dtype=torch.float64).to(self.logits.device)
        edges = self.logits.double().softmax(-1).cumsum(-1)
        k = (uniform[0][..., None] > edges).sum(-1, keepdim=True).clamp(max=self.logits.shape[-1] - 1)
        picked = self.expand(*shape)._map(lambda part: part.gather(-1, k))
        one = Mixture(torch.zeros_like(picked.logits), picked.component_mean, picked.component_sigma, self.lower)
        return one.quantile(uniform[1].clamp(1e-12, 1 - 1e-12))

    def numpy(self) -> dict[str, np.ndarray]:
        """`{"weights", "means", "sigmas"}`, each (..., K), in float32 as the catalogue stores them."""
        parts = {"weights": self.weights, "means": self.component_mean, "sigmas": self.component_sigma}
        return {name: part.detach().cpu().float().numpy() for name, part in parts.items()}

    def __repr__(self) -> str:
        return f"Mixture(batch {tuple(self.batch_shape)}, {self.logits.shape[-1]} components, lower={self.lower})"
