"""Mixtures of Gaussians of several correlated quantities: the two components of shear, the fluxes of all bands.

Legend: D quantities, K components; batch axes (...,) come first. The covariance of a component is `L L^T` with L =
`scale_tril`, lower triangular: positive definite whatever a network says. Not truncated: the probability that a
correlated Gaussian has above a bound has no closed form. What leaves one quantity or one linear combination of them
(`marginal`, `project`) is a `Mixture`, which has all further methods.

As in `Mixture`, parameters are float32 at least and every method computes in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from deepdisc.errors import InputError
from deepdisc.mixture import LOG_SIGMA_RANGE, Mixture
from deepdisc.mixture_truncation import LOG_SQRT_2PI


def _triangular(factor: Tensor) -> Tensor:
    """The lower triangular L (..., D, D), diagonal >= 0, with `L L^T = A A^T` for A = `factor` (..., D, M), M >= D.

    By QR, which keeps twice the digits that forming the product and its Cholesky factor would.
    """
    upper = torch.linalg.qr(factor.mT).R
    sign = torch.where(upper.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(upper)
    return (upper * sign[..., None]).mT


def _solve(lower: Tensor, right: Tensor) -> Tensor:
    """`lower^-1 right` of vectors (..., D)."""
    return torch.linalg.solve_triangular(lower, right[..., None], upper=False)[..., 0]


def _log_normal(offset: Tensor, scale_tril: Tensor) -> Tensor:
    """Log-density of N(0, L L^T) at `offset` (..., D)."""
    log_determinant = scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -0.5 * _solve(scale_tril, offset).square().sum(-1) - log_determinant - offset.shape[-1] * LOG_SQRT_2PI


class MultivariateMixture:
    """A batch of mixtures of K Gaussians of D quantities.

    Args:
        logits: (..., K) unnormalised log-weights.
        mean: (..., K, D) means, in the units of the quantities.
        scale_tril: (..., K, D, D) lower triangular factors of the covariances, diagonal > 0.
    """

    def __init__(self, logits: Tensor, mean: Tensor, scale_tril: Tensor):
        dtype = torch.float64 if torch.float64 in (logits.dtype, mean.dtype, scale_tril.dtype) else torch.float32
        shape = torch.broadcast_shapes(logits.shape, mean.shape[:-1], scale_tril.shape[:-2])
        self.logits = logits.to(dtype).expand(shape)
        self.component_mean = mean.to(dtype).expand(*shape, -1)
        self.scale_tril = scale_tril.to(dtype).expand(*shape, -1, -1)

    # ------------------------------------------------------------------------------------------- making, moving
    @staticmethod
    def raw_size(components: int, dimensions: int) -> int:
        """How many outputs of a network `from_raw` takes."""
        return components * (1 + dimensions + dimensions * (dimensions + 1) // 2)

    @classmethod
    def from_raw(cls, raw: Tensor, dimensions: int, sigma_min: float = 0.0) -> MultivariateMixture:
        """From a network's last layer, for quantities of order one.

        Row i of the factor L is `exp(l_i) (u_i1, ..., u_i,i-1, 1)`: the u say how the quantities correlate, the l how
        wide they are.

        Args:
            raw: (..., `raw_size`): K log-weights, K D means, K D log-widths l (clamped to a finite range), and the
                K D (D - 1) / 2 numbers u, row by row.
            dimensions: D.
            sigma_min: added in quadrature to the width in every direction.
        """
        raw, per_component = raw.float(), cls.raw_size(1, dimensions)
        components, rest = divmod(raw.shape[-1], per_component)
        assert rest == 0 and components > 0, f"{raw.shape[-1]} outputs for components of {per_component}"
        sizes = [components * n for n in (1, dimensions, dimensions, dimensions * (dimensions - 1) // 2)]
        logits, mean, log_width, correlation = raw.split(sizes, dim=-1)
        mean, log_width, correlation = (
            part.unflatten(-1, (components, part.shape[-1] // components)) for part in (mean, log_width, correlation)
        )
        unit = torch.diag_embed(torch.ones_like(mean))
        row, column = torch.tril_indices(dimensions, dimensions, offset=-1, device=raw.device)
        unit[..., row, column] = correlation
        scale_tril = unit * log_width.clamp(*LOG_SIGMA_RANGE).exp()[..., None]
        if sigma_min > 0:
            floor = sigma_min * torch.eye(dimensions, dtype=torch.float64, device=raw.device)
            scale_tril = _triangular(torch.cat((scale_tril.double(), floor.expand_as(scale_tril)), dim=-1)).float()
        return cls(logits, mean, scale_tril)

    @classmethod
    def from_columns(cls, weights: np.ndarray, means: np.ndarray, trils: np.ndarray) -> MultivariateMixture:
        """From what `numpy` gives: (N, K), (N, K D), (N, K D (D + 1) / 2); computes in float64."""
        weights, means, trils = (
            torch.as_tensor(np.asarray(part, dtype=np.float64)) for part in (weights, means, trils)
        )
        mean = means.unflatten(-1, (weights.shape[-1], -1))
        dimensions = mean.shape[-1]
        scale_tril = mean.new_zeros(*mean.shape, dimensions)
        row, column = torch.tril_indices(dimensions, dimensions)
        scale_tril[..., row, column] = trils.unflatten(-1, (weights.shape[-1], -1))
        return cls(weights.log(), mean, scale_tril)

    def numpy(self) -> dict[str, np.ndarray]:
        """Lists for a catalogue, float32: `weights` (..., K), `means` (..., K D), `trils` (..., K D (D + 1) / 2).

        Component by component; `trils` holds the lower triangles of the factors, row by row.
        """
        row, column = torch.tril_indices(self.dimensions, self.dimensions)
        parts = {
            "weights": self.weights,
            "means": self.component_mean.flatten(-2),
            "trils": self.scale_tril[..., row, column].flatten(-2),
        }
        return {name: part.detach().cpu().float().numpy() for name, part in parts.items()}

    @property
    def batch_shape(self) -> torch.Size:
        """The shape without the axes of components and quantities."""
        return self.logits.shape[:-1]

    @property
    def dimensions(self) -> int:
        """D, the number of quantities."""
        return self.component_mean.shape[-1]

    @property
    def weights(self) -> Tensor:
        """Normalised weights (..., K)."""
        return self.logits.softmax(-1)

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, index) -> MultivariateMixture:
        """Some of the batch; the index never reaches components or quantities: `[..., 0]` is the last batch axis."""
        index = index if isinstance(index, tuple) else (index,)
        trailing = any(part is Ellipsis for part in index)
        parts = (self.logits, self.component_mean, self.scale_tril)
        return MultivariateMixture(
            *(part[(*index, *[slice(None)] * n) if trailing else index] for n, part in enumerate(parts, start=1))
        )

    def _map(self, function) -> MultivariateMixture:
        return MultivariateMixture(*(function(part) for part in (self.logits, self.component_mean, self.scale_tril)))

    def to(self, target: torch.device | torch.dtype | str) -> MultivariateMixture:
        """The same mixtures on another device or in another precision (float32 at least)."""
        return self._map(lambda tensor: tensor.to(target))

    def detach(self) -> MultivariateMixture:
        """The same mixtures without a gradient graph."""
        return self._map(Tensor.detach)

    @staticmethod
    def cat(items: Sequence[MultivariateMixture]) -> MultivariateMixture:
        """Concatenate along the first axis; all must have the same K and D."""
        parts = zip(*((item.logits, item.component_mean, item.scale_tril) for item in items), strict=True)
        return MultivariateMixture(*(torch.cat(part) for part in parts))

    def _wide(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, means, factors in float64."""
        return self.logits.double().log_softmax(-1), self.component_mean.double(), self.scale_tril.double()

    def _values(self, values: Tensor | Sequence[float], dimensions: int) -> Tensor:
        values = torch.as_tensor(values, dtype=torch.float64, device=self.logits.device)
        assert values.shape[-1] == dimensions, f"{values.shape[-1]} values of {dimensions} quantities"
        return values

    def _like(self, *parts: Tensor) -> MultivariateMixture:
        return MultivariateMixture(*(part.to(self.logits.dtype) for part in parts))

    # --------------------------------------------------------------------------------------------------- density
    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density (...,) at `x` (..., D)."""
        log_weights, mean, scale_tril = self._wide()
        offset = self._values(x, self.dimensions)[..., None, :] - mean
        return (log_weights + _log_normal(offset, scale_tril)).logsumexp(-1).to(self.logits.dtype)

    def prob(self, x: Tensor) -> Tensor:
        """Density (...,) at `x` (..., D), per unit of every quantity."""
        return self.log_prob(x).exp()

    def mean(self) -> Tensor:
        """Expected values (..., D)."""
        log_weights, mean, _ = self._wide()
        return (log_weights.exp()[..., None] * mean).sum(-2).to(self.logits.dtype)

    def covariance(self) -> Tensor:
        """Covariance (..., D, D) of the whole mixture."""
        log_weights, mean, scale_tril = self._wide()
        weights = log_weights.exp()[..., None, None]
        offset = mean - (weights[..., 0] * mean).sum(-2, keepdim=True)
        within, between = scale_tril @ scale_tril.mT, offset[..., :, None] * offset[..., None, :]
        return (weights * (within + between)).sum(-3).to(self.logits.dtype)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw (n, ..., D) values."""
        shape = (n, *self.batch_shape)
        log_weights, mean, scale_tril = self._wide()
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64).to(self.logits.device)
        normal = torch.randn((*shape, self.dimensions), generator=generator, dtype=torch.float64)
        k = (uniform[..., None] > log_weights.exp().cumsum(-1)).sum(-1).clamp(max=self.logits.shape[-1] - 1)
        chosen = torch.nn.functional.one_hot(k, self.logits.shape[-1]).double()
        value = (scale_tril @ normal.to(self.logits.device)[..., None, :, None])[..., 0] + mean
        return (chosen[..., None] * value).sum(-2).to(self.logits.dtype)

    # ------------------------------------------------------------------------------- fewer quantities, other quantities
    def project(self, direction: Tensor | Sequence[float], shift: float | Tensor = 0.0) -> Mixture:
        """The density of `direction . x + shift`: a difference of two fluxes, one component of a rotated shear.

        Args:
            direction: (D,) or (..., D), not all 0.
            shift: a number or (...,).
        """
        _, mean, scale_tril = self._wide()
        direction = self._values(direction, self.dimensions)[..., None, :]
        shift = torch.as_tensor(shift, dtype=torch.float64, device=mean.device)[..., None]
        sigma = (scale_tril.mT @ direction[..., None])[..., 0].norm(dim=-1)
        parts = (self.logits, (direction * mean).sum(-1) + shift, sigma)
        return Mixture(*(part.to(self.logits.dtype) for part in parts))

    def marginal(self, quantity: int) -> Mixture:
        """The density of one quantity."""
        return Mixture(self.logits, self.component_mean[..., quantity], self.scale_tril[..., quantity, :].norm(dim=-1))

    def difference(self, first: int, second: int) -> Mixture:
        """The density of `x_first - x_second`; with log-fluxes or magnitudes as quantities, of a colour."""
        direction = torch.zeros(self.dimensions, dtype=torch.float64)
        direction[first], direction[second] = 1.0, -1.0
        return self.project(direction)

    def select(self, quantities: Sequence[int]) -> MultivariateMixture:
        """The joint density of some quantities, in this order."""
        rows = self.scale_tril.double()[..., list(quantities), :]
        return self._like(self.logits, self.component_mean[..., list(quantities)], _triangular(rows))

    def conditional(self, quantities: Sequence[int], values: Tensor | Sequence[float]) -> MultivariateMixture:
        """The joint density of the other quantities (in their order) where these have been measured exactly.

        Args:
            quantities: numbers of the known ones, not all.
            values: (n,) or (..., n) what they are.
        """
        known = [quantity % self.dimensions for quantity in quantities]
        other = [quantity for quantity in range(self.dimensions) if quantity not in known]
        if len(set(known)) != len(known) or not known or not other:
            raise InputError(
                f"conditional on the quantities {list(quantities)} of {self.dimensions}: name some, once each"
            )
        log_weights, mean, scale_tril = self._wide()
        factor, n = _triangular(scale_tril[..., known + other, :]), len(known)
        offset = self._values(values, n)[..., None, :] - mean[..., known]
        logits = log_weights + _log_normal(offset, factor[..., :n, :n])
        pull = _solve(factor[..., :n, :n], offset)
        moved = mean[..., other] + (factor[..., n:, :n] @ pull[..., None])[..., 0]
        # The largest becomes 0: logits far below would lose their digits in float32.
        return self._like(logits - logits.detach().amax(-1, keepdim=True), moved, factor[..., n:, n:])

    def affine(self, matrix: Tensor | Sequence, shift: Tensor | Sequence[float] | float = 0.0) -> MultivariateMixture:
        """The density of `matrix x + shift`: zero points, rotations, colours.

        Args:
            matrix: (E, D) or (..., E, D), of rank E <= D.
            shift: a number, (E,) or (..., E).

        Raises:
            InputError: more than D new quantities.
        """
        _, mean, scale_tril = self._wide()
        matrix = self._values(matrix, self.dimensions)[..., None, :, :]
        if matrix.shape[-2] > self.dimensions:
            raise InputError(f"affine: {matrix.shape[-2]} quantities from {self.dimensions} have no density")
        shift = torch.as_tensor(shift, dtype=torch.float64, device=mean.device)
        shift = shift[..., None, :] if shift.ndim else shift
        moved = (matrix @ mean[..., None])[..., 0] + shift
        return self._like(self.logits, moved, _triangular(matrix @ scale_tril))

    # ------------------------------------------------------------------------------------------------ two densities
    def _pairwise(self, other: MultivariateMixture) -> tuple[Tensor, Tensor, Tensor]:
        """Logs of the integrals of all products (..., K, L), and both means and factors, paired."""
        (weights_i, mean_i, tril_i), (weights_j, mean_j, tril_j) = self._wide(), other._wide()
        both = torch.broadcast_tensors(tril_i[..., :, None, :, :], tril_j[..., None, :, :, :])
        total = _triangular(torch.cat(both, dim=-1))
        offset = mean_j[..., None, :, :] - mean_i[..., :, None, :]
        return weights_i[..., :, None] + weights_j[..., None, :] + _log_normal(offset, total), offset, total

    def log_overlap(self, other: MultivariateMixture) -> Tensor:
        """log of the integral of the product of two densities (...,): how well two measurements agree."""
        return self._pairwise(other)[0].logsumexp((-2, -1)).to(self.logits.dtype)

    def product(self, other: MultivariateMixture, max_components: int | None = None) -> MultivariateMixture:
        """The normalised product of two densities: the coadd of two independent measurements.

        Args:
            other: the other measurement.
            max_components: keep only so many of the K L components, the heaviest, and renormalise.
        """
        logits, offset, total = self._pairwise(other)
        _, mean, scale_tril = self._wide()
        mean, scale_tril = mean[..., :, None, :], scale_tril[..., :, None, :, :]
        # With V = C_i + C_j = T T^T and W = T^-1 C_i: mean + W^T T^-1 (m_j - m_i), covariance C_i - W^T W; the latter
        # as (1 - W^T T^-1) L_i and W^T T^-1 L_j side by side (Joseph's form), a sum instead of a difference.
        gain = torch.linalg.solve_triangular(total, scale_tril @ scale_tril.mT, upper=False)
        gain = torch.linalg.solve_triangular(total.mT, gain, upper=True).mT
        moved = mean + (gain @ offset[..., None])[..., 0]
        rest = torch.eye(self.dimensions, dtype=gain.dtype, device=gain.device) - gain
        factor = torch.cat((rest @ scale_tril, gain @ other.scale_tril.double()[..., None, :, :, :]), dim=-1)
        logits, moved, factor = logits.flatten(-2), moved.flatten(-3, -2), _triangular(factor).flatten(-4, -3)
        if max_components is not None and logits.shape[-1] > max_components:
            logits, kept = logits.topk(max_components, dim=-1)
            moved = moved.take_along_dim(kept[..., None], dim=-2)
            factor = factor.take_along_dim(kept[..., None, None], dim=-3)
        return self._like(logits - logits.detach().amax(-1, keepdim=True), moved, factor)

    def __repr__(self) -> str:
        return (
            f"MultivariateMixture(batch {tuple(self.batch_shape)}, {self.logits.shape[-1]} components, "
            f"{self.dimensions} quantities)"
        )
