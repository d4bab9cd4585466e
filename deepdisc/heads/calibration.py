"""What makes a head's probabilities honest after training: small maps that start as identity and are fitted later.

A network's PDFs are as honest as its training was long; on objects that it did not learn from they are often too narrow
or off by a fraction of their width (Guo et al. 2017, arXiv:1706.04599). `deepdisc calibrate` measures that on a
validation set and fits these modules, which every head applies when it predicts, never when it learns.

Legend: R objects, Q quantities (bands), K components, J pieces of a component, M knots, L terms; F the CDF of a PDF.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from deepdisc.mixture import Mixture

EMPTY_LOGIT = -1e4  # of a component without weight: finite, for 0 * inf would be NaN
# A standard normal as a sum of narrower ones of this width, this far apart, in units of its sigma (see `_pieces`).
PIECE_SIGMA = 0.7
PIECE_STEP = 0.8


class FittedAfterTraining(nn.Module):
    """A module whose buffers are all zero (identity) until `deepdisc calibrate` sets them.

    Weights that lack them load as identity; fine-tuning begins without them, for they belong to the old weights.
    """

    fitted_after_training = True

    def __init__(self, **shapes: tuple[int, ...]):
        super().__init__()
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))

    @property
    def is_identity(self) -> bool:
        """Whether nothing was fitted."""
        return not any(bool(buffer.any()) for buffer in self.buffers())

    def reset(self) -> None:
        """Back to identity."""
        for buffer in self.buffers():
            buffer.zero_()

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        for name, buffer in self.named_buffers():
            state_dict.setdefault(prefix + name, torch.zeros_like(buffer))
        super()._load_from_state_dict(state_dict, prefix, *args)


class MixtureCalibration(FittedAfterTraining):
    """Temperature, shift and a recalibration of the PIT for PDFs that are mixtures, and stay so.

    For each quantity, with s = asinh(mean / 2 std) of its PDF (a logarithmic signal-to-noise) as the only covariate:

    - the components' distances from the PDF's mean are multiplied by `exp(log_spread)`, their widths by
      `exp(log_sigma)` (a temperature; that of means and of widths differ, for the peaks of a redshift PDF are where
      they are, while those of a flux PDF merely shape it), and they move by `shift` of their widths: each a function
      of s, linear between knots and constant beyond them;
    - then the density f is multiplied by `g(F)`, `ln g = sum_l pit_terms_l P_l(2 F - 1)` with Legendre polynomials, up
      to normalisation: the smooth alternatives of Neyman (1937) to a uniform PIT. Each component is split into J
      narrower ones that add up to it (within 0.4 % of its peak and 0.0013 in its CDF for J = 5, 0.1 % and 0.0001 for
      J = 7), and their weights are multiplied by the mean of g over each. Structure of g finer than a piece is
      smoothed; the fit maximises the likelihood of the result and so allows for it. K becomes J K, for all
      quantities, as soon as one of them has terms.

    Args:
        num_quantities: Q; 1 for PDFs of batch shape (R,).
        num_knots: M.
        num_terms: L.
        num_pieces: J, odd; fewer make smaller catalogues, more describe the tails beyond 3 sigma better.
    """

    def __init__(self, num_quantities: int = 1, num_knots: int = 4, num_terms: int = 6, num_pieces: int = 5):
        per_knot = (num_quantities, num_knots)
        shapes = dict.fromkeys(("knots", "log_spread", "log_sigma", "shift"), per_knot)
        super().__init__(**shapes, pit_terms=(num_quantities, num_terms))
        self.num_pieces = num_pieces

    def forward(self, pdf: Mixture) -> Mixture:
        """Calibrate PDFs of batch shape (R, Q), or (R,) where Q = 1; the very same object where nothing was fitted."""
        if self.is_identity:
            return pdf
        return self.with_values(pdf, dict(self.named_buffers()))

    def with_values(self, pdf: Mixture, values: dict[str, Tensor]) -> Mixture:
        """`forward` with these values, by name of the buffer, through which gradients flow."""
        is_flat = len(pdf.batch_shape) == 1
        if is_flat:
            pdf = pdf[:, None]
        pdf = self._scaled(pdf, values)
        if bool(values["pit_terms"].any()):
            pdf = self._reweighted(pdf, values["pit_terms"].to(pdf.logits))
        return pdf[:, 0] if is_flat else pdf

    @staticmethod
    def covariate(pdf: Mixture) -> Tensor:
        """s = asinh(mean / 2 std) of the components before truncation, of the PDF's batch shape."""
        mean, std = _untruncated_moments(pdf)
        return torch.asinh(mean / (2 * std))

    def _scaled(self, pdf: Mixture, values: dict[str, Tensor]) -> Mixture:
        s = self.covariate(pdf)
        spread, sigma, shift = (
            interpolate(s, values["knots"].to(s), values[name].to(s))[..., None]
            for name in ("log_spread", "log_sigma", "shift")
        )
        center = _untruncated_moments(pdf)[0][..., None]
        # written as a change, so that identity is exact
        mean = pdf.component_mean + torch.expm1(spread) * (pdf.component_mean - center) + shift * pdf.component_sigma
        return Mixture(pdf.logits, mean, pdf.component_sigma * sigma.exp(), pdf.lower)

    def _reweighted(self, pdf: Mixture, terms: Tensor) -> Mixture:
        """The density times g of its own CDF, as a mixture of J K components, for terms (Q, L)."""
        offsets, log_share = _pieces(self.num_pieces, pdf.logits)
        mean = pdf.component_mean[..., None] + pdf.component_sigma[..., None] * offsets
        sigma = (pdf.component_sigma[..., None] * PIECE_SIGMA).expand_as(mean)
        logits = pdf.log_weights[..., None] + log_share
        if pdf.lower is not None:  # truncation takes more of some pieces than of others
            logits = logits + torch.special.log_ndtr((mean - pdf.lower) / sigma)
            logits = logits - torch.special.log_ndtr((pdf.component_mean - pdf.lower) / pdf.component_sigma)[..., None]
        logits = logits + self._log_mean_g(pdf, mean, sigma, terms)
        # what has no terms keeps its components, followed by empty ones
        is_plain = ~terms.any(-1)[:, None, None]
        middle = torch.arange(self.num_pieces, device=logits.device) == 0
        plain_logits = torch.where(middle, pdf.logits[..., None], EMPTY_LOGIT)
        pairs = (
            (plain_logits, logits),
            (pdf.component_mean[..., None], mean),
            (pdf.component_sigma[..., None], sigma),
        )
        parts = (torch.where(is_plain, plain, split).flatten(-2) for plain, split in pairs)
        return Mixture(*parts, lower=pdf.lower)

    @staticmethod
    def _log_mean_g(pdf: Mixture, mean: Tensor, sigma: Tensor, terms: Tensor) -> Tensor:
        """log of the mean of g(F) over each piece (R, Q, K, J), by 3-point Gauss-Hermite quadrature."""
        nodes = mean.new_tensor([-math.sqrt(3), 0.0, math.sqrt(3)])
        log_weights = mean.new_tensor([1 / 6, 2 / 3, 1 / 6]).log()
        x = mean[..., None] + sigma[..., None] * nodes
        if pdf.lower is not None:
            x = x.clamp(min=pdf.lower)
        shape = x.shape
        x = x.flatten(2).movedim(-1, 0)
        u = pdf.cdf(x).movedim(0, -1).reshape(shape)
        return (log_density_of_pit(u, terms[:, None, None, :]) + log_weights).logsumexp(-1)


def _untruncated_moments(pdf: Mixture) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (...,) of the components as they were before truncation."""
    mean = (pdf.weights * pdf.component_mean).sum(-1)
    variance = pdf.component_sigma.square() + (pdf.component_mean - mean[..., None]).square()
    return mean, (pdf.weights * variance).sum(-1).sqrt()


def interpolate(s: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Functions of s (R, Q), linear between knots (Q, M) where they have these values (Q, M), constant beyond."""
    result = values[:, 0].expand_as(s)
    for i in range(knots.shape[1] - 1):
        width = (knots[:, i + 1] - knots[:, i]).clamp(min=1e-6)
        result = result + ((s - knots[:, i]) / width).clamp(0, 1) * (values[:, i + 1] - values[:, i])
    return result


def log_density_of_pit(u: Tensor, terms: Tensor) -> Tensor:
    """`sum_l terms_l P_l(2 u - 1)`, l = 1 ... L, of PIT values u (..., n) and terms (..., L) that broadcast to them."""
    v = 2 * u - 1
    before, current = torch.ones_like(v), v
    total = terms[..., :1] * current
    for n in range(1, terms.shape[-1]):
        before, current = current, ((2 * n + 1) * v * current - n * before) / (n + 1)
        total = total + terms[..., n : n + 1] * current
    return total


def _pieces(count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Positions and log-shares (J,) of the pieces of a standard normal.

    N(0, 1) is N(0, 1 - s^2) convolved with N(0, s^2); the sum over a regular grid of the former's values replaces the
    integral, with an error of exp(-2 pi^2 s^2 (1 - s^2) / step^2).
    """
    offsets = PIECE_STEP * (torch.arange(count, dtype=like.dtype, device=like.device) - (count - 1) / 2)
    return offsets, (-0.5 * offsets.square() / (1 - PIECE_SIGMA**2)).log_softmax(0)


class ShearCalibration(FittedAfterTraining):
    """Response, additive bias and temperature of the two components of shear, along the pixel axes.

    Measured: `g_hat = (1 + m) g + c + noise`. The PDF is moved and scaled so that its mean is an unbiased estimate of g
    whatever g is, `(g_hat - c) / (1 + m)`, and its width that of the estimate: the likelihood of a shear given the
    galaxy. (The mean of a posterior is drawn towards the shears of the training set and averages to less than g.)
    """

    def __init__(self):
        super().__init__(multiplicative=(2,), additive=(2,), log_sigma=(2,))

    def forward(self, pdf):
        """Calibrate a `MultivariateMixture` of two dimensions; the very same object where nothing was fitted."""
        if self.is_identity:
            return pdf
        scale = 1 / (1 + self.multiplicative)
        mean = (pdf.component_mean - self.additive.to(pdf.component_mean)) * scale.to(pdf.component_mean)
        widths = (scale.abs() * self.log_sigma.exp()).to(pdf.component_mean)
        return type(pdf)(pdf.logits, mean, widths[:, None] * pdf.scale_tril)
