"""Fits the calibrations of heads to objects whose true values are known, and keeps only what holds on other objects.

Legend: N objects, K components of a PDF, M knots, L terms. A *form* is a set of parameters that a fit may change; each
form contains the one before.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deepdisc.heads.calibration import MixtureCalibration, legendre
from deepdisc.mixture import Mixture

LEAST_OBJECTS = 400  # of one quantity: two halves of 200, of which each fixes a width to 5 %
LEAST_PER_KNOT = 200
SIGNIFICANT = 2.0  # standard errors by which a form must beat the simpler one on objects that it was not fitted to
FORMS = ("identity", "constant", "varying", "PIT")
_OUTLIERS, _OUTLIER_WIDTH = 0.02, 3.0  # share of wrong labels that the likelihood allows for, and their width in std
_SCALES = ("log_spread", "log_sigma", "shift")
_PRIOR = 0.5  # standard deviation of every parameter around identity
_STEP_PRIOR = 0.3  # of the differences between neighbouring knots


@dataclass
class MixtureFit:
    """What was fitted to one quantity.

    Attributes:
        values: buffers of a `MixtureCalibration` of one quantity, by name, with a first axis of length 1.
        form: the form that was kept, one of FORMS.
        gains: for each form tried: mean gain in log-likelihood per object over the form kept before, and its error.
        before: the PDFs as the head gave them, float64.
        after: the same, each calibrated by the fit to the other half.
    """

    values: dict[str, Tensor]
    form: str
    gains: dict[str, tuple[float, float]]
    before: Mixture
    after: Mixture


def fit_mixture(module: MixtureCalibration, pdf: Mixture, truth: Tensor, half: Tensor) -> MixtureFit:
    """Fit one quantity's calibration by maximum likelihood.

    Forms are tried from the simplest on. Each is fitted to either half of the objects and judged by the likelihood of
    the other half; it is kept where it gains significantly there, and finally fitted to all. The likelihood has a few
    per cent of outliers (Cauchy), so that a wrong label, a blend taken for one object, does not widen all PDFs.

    Args:
        module: for its settings; of any number of quantities; unchanged.
        pdf: batch shape (N,), as the head gives them.
        truth: (N,).
        half: (N,) bool, which objects belong to the first half; blends and noise should not straddle them.
    """
    pdf, truth = pdf.to(torch.float64), truth.to(torch.float64)
    sets = (half, ~half, torch.ones_like(half))
    blank = _blank(module, pdf)
    start = [blank] * 3
    kept, gains = "identity", {}
    score = _held_out(module, pdf, truth, sets, start)
    for form in FORMS[1:]:
        if form == "varying" and len(truth) < LEAST_PER_KNOT * blank["knots"].shape[1]:
            continue
        fitted = [_fit(module, pdf[rows], truth[rows], form, values) for rows, values in zip(sets, start, strict=True)]
        gain = _held_out(module, pdf, truth, sets, fitted) - score
        gains[form] = (float(gain.mean()), float(gain.std() / math.sqrt(len(gain))))
        if gains[form][0] > SIGNIFICANT * gains[form][1]:
            start, kept, score = fitted, form, score + gain
    after = _crossed(module, pdf, sets, start)
    values = start[2] if kept != "identity" else {name: torch.zeros_like(x) for name, x in start[2].items()}
    return MixtureFit(values, kept, gains, pdf, after)


def _blank(module: MixtureCalibration, pdf: Mixture) -> dict[str, Tensor]:
    """Identity, with knots at evenly spaced quantiles of the covariate."""
    values = {name: torch.zeros_like(buffer[:1], dtype=torch.float64) for name, buffer in module.named_buffers()}
    levels = torch.linspace(0.05, 0.95, values["knots"].shape[1], dtype=torch.float64)
    values["knots"] = module.covariate(pdf).quantile(levels)[None]
    return values


def _fit(
    module: MixtureCalibration, pdf: Mixture, truth: Tensor, form: str, start: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The values of greatest likelihood under a weak prior, beginning at `start`."""
    if form == "PIT":
        for number in range(start["pit_terms"].shape[1]):
            terms = start["pit_terms"].clone()
            terms[:, number] = _fit_pit(module, pdf, truth, start)
            start = {**start, "pit_terms": terms}
        return start
    m = start["knots"].shape[1]
    width = 1 if form == "constant" else m
    free = {name: start[name][:, :width].clone().requires_grad_() for name in _SCALES}
    outliers = _outlier_density(pdf, truth)

    def loss() -> Tensor:
        values = {name: value.expand(-1, m) for name, value in free.items()}
        total = -_log_likelihood(module.with_values(pdf, {**start, **values}), truth, outliers).sum()
        for value in free.values():
            deviations = torch.cat((value / _PRIOR, value.diff(dim=1) / _STEP_PRIOR), dim=1)
            total = total + 0.5 * deviations.square().sum()
        return total / len(truth)

    _minimise(loss, list(free.values()))
    return {**start, **{name: value.detach().expand(-1, m) for name, value in free.items()}}


@torch.no_grad()
def _fit_pit(module: MixtureCalibration, pdf: Mixture, truth: Tensor, start: dict[str, Tensor]) -> Tensor:
    """The terms (1, L) of the density of the PITs of what `start` gives: a convex problem in the PITs alone."""
    scaled = module.with_values(pdf, start)
    own = scaled.log_prob(truth) + math.log(1 - _OUTLIERS)
    is_good = torch.sigmoid(own - _outlier_density(pdf, truth) - math.log(_OUTLIERS))
    count = start["pit_terms"].shape[-1]
    mean = (is_good[:, None] * legendre(scaled.cdf(truth), count)).sum(0) / is_good.sum()
    nodes, weights = (torch.as_tensor(part) for part in np.polynomial.legendre.leggauss(64))
    at_nodes = legendre((nodes + 1) / 2, count)
    terms = torch.zeros(count, dtype=torch.float64, requires_grad=True)

    def loss() -> Tensor:
        norm = (at_nodes @ terms + (weights / 2).log()).logsumexp(0)
        return norm - mean @ terms + 0.5 * (terms / _PRIOR).square().sum() / len(truth)

    with torch.enable_grad():
        _minimise(loss, [terms])
    return terms.detach()[None]


def _minimise(loss: Callable[[], Tensor], free: list[Tensor]) -> None:
    optimizer = torch.optim.LBFGS(free, max_iter=60, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


def _outlier_density(pdf: Mixture, truth: Tensor) -> Tensor:
    """log of a Cauchy density (N,) at the truth, around the PDF's median and several times as wide."""
    width = _OUTLIER_WIDTH * pdf.std()
    pull = (truth - pdf.median()) / width
    return -torch.log(math.pi * width) - torch.log1p(pull.square())


def _log_likelihood(pdf: Mixture, truth: Tensor, outliers: Tensor) -> Tensor:
    own = pdf.log_prob(truth) + math.log(1 - _OUTLIERS)
    return torch.logaddexp(own, outliers + math.log(_OUTLIERS))


@torch.no_grad()
def _held_out(
    module: MixtureCalibration, pdf: Mixture, truth: Tensor, sets: tuple[Tensor, ...], fitted: list[dict[str, Tensor]]
) -> Tensor:
    """Log-likelihood (N,) of each object under the fit to the other half."""
    result = torch.zeros_like(truth)
    for rows, values in zip(sets[:2], fitted[1::-1], strict=True):
        own = pdf[rows]
        result[rows] = _log_likelihood(module.with_values(own, values), truth[rows], _outlier_density(own, truth[rows]))
    return result


@torch.no_grad()
def _crossed(
    module: MixtureCalibration, pdf: Mixture, sets: tuple[Tensor, ...], fitted: list[dict[str, Tensor]]
) -> Mixture:
    """The PDFs (N,), each calibrated by the fit to the other half."""
    parts = [module.with_values(pdf[rows], values) for rows, values in zip(sets[:2], fitted[1::-1], strict=True)]
    order = torch.cat([torch.nonzero(rows)[:, 0] for rows in sets[:2]]).argsort()
    return Mixture.cat(parts)[order]
