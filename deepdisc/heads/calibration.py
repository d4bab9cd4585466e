"""What makes a head's probabilities honest after training: small maps that start as identity and are fitted later.

A network's PDFs are as honest as its training was long; on objects that it did not learn from they are often too narrow
or off by a fraction of their width (Guo et al. 2017, arXiv:1706.04599). `deepdisc calibrate` measures that on a
validation set and fits these modules, which every head applies when it predicts, never when it learns.

Legend: R objects, Q quantities (bands), K components, J pieces of a component, M knots, L terms; F the CDF of a PDF.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.special import log_ndtr, ndtri

from deepdisc.mixture import Mixture

EMPTY_LOGIT = -1e4  # of a component without weight: finite, for 0 * inf would be NaN
# A standard normal as a sum of narrower ones of this width, this far apart, in units of its sigma (see `_split`).
PIECE_SIGMA = 0.7
PIECE_STEP = 0.8
_LEAST_PIT = 1e-6  # the PIT of float32 PDFs is not known any closer to its ends
_SLOPES = (0.1, 10.0)
_TABLE = 1025  # points of the table of G
_AT_ONCE = 4_000_000  # values of components at a time, which bounds the memory


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
    - then the PDF's CDF F becomes G(F), G the integral of g on [0, 1], `ln g = sum_l pit_terms_l P_l(2 u - 1) + const`
      with Legendre polynomials: the smooth alternatives of Neyman (1937) to a uniform PIT, whose density g is. A value
      x moves to `T(x) = F^-1(G^-1(F(x)))`. So that the PDF stays a mixture, each component is split into J narrower
      ones that add up to it (within 0.4 % of its peak and 0.0013 in its CDF for J = 5, 0.1 % and 0.0001 for J = 7), and
      each of these is moved by T at its median and stretched by the slope of T there. What the straight lines miss of
      a bent T, a second and a third round with terms of their own mend, without splitting again. K becomes J K, for
      all quantities, as soon as one of them has terms. A Gaussian PDF whose errors have a skewness of 1 is left with a
      largest distance between the PIT's CDF and the diagonal of 0.015 (0.07 before).

    Args:
        num_quantities: Q; 1 for PDFs of batch shape (R,).
        num_knots: M.
        num_terms: L.
        num_rounds: of the PIT's recalibration.
        num_pieces: J, odd; fewer make smaller catalogues, more describe the tails beyond 3 sigma better.
    """

    def __init__(
        self,
        num_quantities: int = 1,
        num_knots: int = 4,
        num_terms: int = 6,
        num_rounds: int = 3,
        num_pieces: int = 5,
    ):
        per_knot = (num_quantities, num_knots)
        shapes = dict.fromkeys(("knots", "log_spread", "log_sigma", "shift"), per_knot)
        super().__init__(**shapes, pit_terms=(num_quantities, num_rounds, num_terms))
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
        for number, terms in enumerate(values["pit_terms"].unbind(1)):
            if bool(terms.any()):
                pdf = self._transported(pdf, terms.to(pdf.logits), self.num_pieces if number == 0 else 1)
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

    @staticmethod
    def _transported(pdf: Mixture, terms: Tensor, count: int) -> Mixture:
        """The PDFs moved by T, as mixtures of J K components, for terms (Q, L) and J = `count`."""
        pieces = _split(pdf, count)
        middle = _truncated_medians(pieces)
        moved, stretch = _transport(pdf, terms, middle)
        mean = moved + stretch * (pieces.component_mean - middle)
        # what has no terms keeps its components, followed by empty ones
        plain_logits = torch.full_like(pieces.logits, EMPTY_LOGIT)
        plain_logits[..., : pdf.logits.shape[-1]] = pdf.logits
        plain_mean, plain_sigma = (part.repeat(1, 1, count) for part in (pdf.component_mean, pdf.component_sigma))
        is_plain = ~terms.any(-1)[:, None]
        return Mixture(
            torch.where(is_plain, plain_logits, pieces.logits),
            torch.where(is_plain, plain_mean, mean),
            torch.where(is_plain, plain_sigma, stretch * pieces.component_sigma),
            pdf.lower,
        )


def _split(pdf: Mixture, count: int) -> Mixture:
    """The same PDFs with every component split into narrower ones, (..., J K).

    N(0, 1) is N(0, 1 - s^2) convolved with N(0, s^2); the sum over a regular grid of the former's values replaces the
    integral.
    """
    if count == 1:
        return pdf
    offsets = PIECE_STEP * (torch.arange(count, dtype=pdf.logits.dtype, device=pdf.logits.device) - (count - 1) / 2)
    share = (-0.5 * offsets.square() / (1 - PIECE_SIGMA**2)).log_softmax(0)
    mean = pdf.component_mean[..., None] + pdf.component_sigma[..., None] * offsets
    sigma = (PIECE_SIGMA * pdf.component_sigma)[..., None].expand_as(mean)
    logits = pdf.log_weights[..., None] + share
    if pdf.lower is not None:  # truncation takes more of some pieces than of others
        whole = log_ndtr((pdf.component_mean - pdf.lower) / pdf.component_sigma)
        logits = logits + log_ndtr((mean - pdf.lower) / sigma) - whole[..., None]
    return Mixture(logits.flatten(-2), mean.flatten(-2), sigma.flatten(-2), pdf.lower)


def _truncated_medians(pdf: Mixture) -> Tensor:
    """Median (..., K) of each component alone."""
    if pdf.lower is None:
        return pdf.component_mean
    parts = (part[..., None] for part in (torch.zeros_like(pdf.logits), pdf.component_mean, pdf.component_sigma))
    return Mixture(*parts, lower=pdf.lower).median()


@torch.no_grad()
def _transport(pdf: Mixture, terms: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """T and its slope, both (R, Q, n), at values x (R, Q, n) of PDFs (R, Q), for terms (Q, L)."""
    size = max(1, _AT_ONCE // max(1, x[0].numel() * pdf.logits.shape[-1])) if len(x) else 1
    parts = [_transport_some(part, terms, at) for part, at in zip(_chunks(pdf, size), x.split(size), strict=True)]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def _chunks(pdf: Mixture, size: int) -> list[Mixture]:
    return [pdf[start : start + size] for start in range(0, max(len(pdf), 1), size)]


def _transport_some(pdf: Mixture, terms: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """`_transport`, with F^-1 by interpolation between the x of each PDF: normal scores of F are smooth, F is not."""
    at = x.double().sort(-1).values.contiguous()
    columns = at.movedim(-1, 0)
    u = pdf.cdf(columns).double().movedim(0, -1).clamp(_LEAST_PIT, 1 - _LEAST_PIT)
    score = ndtri(u).contiguous()
    # the slope of the normal score, 1 / sigma all along a Gaussian
    log_rise = pdf.log_prob(columns).double().movedim(0, -1) + score.square() / 2
    moved_u, log_g = _inverse_of_integral(u, terms)
    wanted = ndtri(moved_u.clamp(_LEAST_PIT, 1 - _LEAST_PIT))
    moved = interpolate_sorted(wanted, score, at)
    moved_rise = interpolate_sorted(wanted, score, log_rise)
    slope = (log_rise - moved_rise + (wanted.square() - score.square()) / 2 - log_g).exp()
    # far out in the tails the map is a shift; slopes there would be quotients of vanishing densities
    is_inside = (u > _LEAST_PIT) & (u < 1 - _LEAST_PIT)
    slope = torch.where(is_inside, slope.nan_to_num(1.0).clamp(*_SLOPES), 1.0)
    rank = x.double().argsort(-1).argsort(-1)
    return moved.gather(-1, rank).to(x), slope.gather(-1, rank).to(x)


def interpolate_sorted(x: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Functions of x (..., n), linear between sorted knots (..., m) with values (..., m), extrapolated linearly."""
    if knots.shape[-1] == 1:
        return values + (x - knots)
    high = torch.searchsorted(knots, x.contiguous()).clamp(1, knots.shape[-1] - 1)
    x0, x1, y0, y1 = (part.gather(-1, at) for part in (knots, values) for at in (high - 1, high))
    return y0 + (x - x0) / (x1 - x0).clamp(min=1e-12) * (y1 - y0)


def _inverse_of_integral(u: Tensor, terms: Tensor) -> tuple[Tensor, Tensor]:
    """`G^-1(u)` and ln g there, float64, for u (R, Q, n) and terms (Q, L), by interpolation in a table."""
    grid = torch.linspace(0, 1, _TABLE, dtype=torch.float64, device=u.device)
    log_g = terms.double() @ legendre(grid, terms.shape[-1]).T  # (Q, table)
    g = log_g.exp()
    integral = torch.cat((torch.zeros_like(g[:, :1]), torch.cumsum((g[:, 1:] + g[:, :-1]) / 2, 1)), dim=1) / (
        _TABLE - 1
    )
    total = integral[:, -1:]
    by_quantity = u.movedim(1, 0).flatten(1)
    moved = interpolate_sorted(
        by_quantity, (integral / total).contiguous(), grid.expand_as(integral).contiguous()
    ).clamp(0, 1)
    log_g = interpolate_sorted(moved, grid.expand_as(integral).contiguous(), log_g - total.log())
    shape = u.movedim(1, 0).shape
    return tuple(part.reshape(shape).movedim(0, 1) for part in (moved, log_g))


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


def legendre(u: Tensor, count: int) -> Tensor:
    """`P_l(2 u - 1)`, l = 1 ... L, of PIT values u (...,): (..., L)."""
    v = 2 * u - 1
    terms = [torch.ones_like(v), v]
    for n in range(1, count):
        terms.append(((2 * n + 1) * v * terms[-1] - n * terms[-2]) / (n + 1))
    return torch.stack(terms[1 : count + 1], dim=-1)


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
