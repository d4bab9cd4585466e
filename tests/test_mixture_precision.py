"""Mixtures where plain formulas fail: against mpmath with 50 digits, against finite differences, in low precision."""

import math

import mpmath
import pytest
import torch

from deepdisc.mixture import Mixture
from deepdisc.mixture_truncation import log_mass, log_survival, moments, survival

mpmath.mp.dps = 50
A = [
    -1e6,
    -1e4,
    -1000.0,
    -201.0,
    -199.0,
    -38.0,
    -5.0,
    -1.0,
    -1e-9,
    0.0,
    0.5,
    3.0,
    8.0,
    40.0,
]  # mean above bound / sigma


def phi_integral(x):
    """The normal distribution function to 50 digits, also at -1e6."""
    return mpmath.erfc(-mpmath.mpf(x) / mpmath.sqrt(2)) / 2


@pytest.mark.parametrize("a", A)
def test_cut_normal_equals_mpmath(a):
    """Mass, distribution, mean and variance; t is on the scale on which the cut normal falls."""
    at = torch.tensor(a, dtype=torch.float64)
    exact = phi_integral(a)
    mass = mpmath.log(exact) + mpmath.mpf(min(a, 0)) ** 2 / 2
    assert float(log_mass(at)) == pytest.approx(float(mass), rel=1e-12, abs=1e-300)
    hazard = mpmath.npdf(a) / exact
    mean, variance = moments(at)
    assert float(mean) == pytest.approx(float(a + hazard), rel=1e-9)
    assert float(variance) == pytest.approx(float(1 - hazard * (a + hazard)), rel=1e-9)
    for pull in (0.01, 1.0, 30.0):
        t = pull / max(-a, 1.0)
        above = phi_integral(mpmath.mpf(a) - mpmath.mpf(t)) / exact
        value = torch.tensor(t, dtype=torch.float64)
        assert float(log_survival(value, at)) == pytest.approx(float(mpmath.log(above)), rel=1e-9, abs=1e-15)
        assert float(survival(value, at)) == pytest.approx(float(above), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("a", A)
def test_derivative_of_the_mass_equals_mpmath(a):
    at = torch.tensor(a, dtype=torch.float64, requires_grad=True)
    log_mass(at).backward()
    expected = mpmath.npdf(a) / phi_integral(a) + min(mpmath.mpf(a), 0)
    assert float(at.grad) == pytest.approx(float(expected), rel=1e-7, abs=1e-300)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("a", [-1e4, -1000.0, -30.0, -2.0, 2.0])
def test_truncated_density_equals_mpmath_in_either_precision(a, dtype):
    sigma, x = 0.5, 0.5 / max(-a, 1.0)
    mixture = Mixture(torch.zeros(2, dtype=dtype), torch.full((2,), a * sigma, dtype=dtype), torch.tensor(sigma), 0.0)
    x = float(torch.tensor(x, dtype=dtype))
    expected = mpmath.log(mpmath.npdf(x, mpmath.mpf(a) * sigma, sigma) / phi_integral(a))
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    assert float(mixture.log_prob(x)) == pytest.approx(float(expected), rel=tolerance)


def test_scores_of_a_component_far_below_the_bound_equal_those_of_its_exponential_tail():
    """At 1e4 sigma below, the tail is an exponential of rate |mu| / sigma^2 to a relative 1e-8."""
    sigma, rate = 0.5, 1e4 / 0.5
    tail = Mixture(torch.zeros(1).double(), torch.tensor([-1e4 * sigma]).double(), torch.tensor([sigma]).double(), 0.0)
    x = 1.3 / rate
    assert float(tail.mean()) == pytest.approx(1 / rate, rel=1e-6)
    assert float(tail.std()) == pytest.approx(1 / rate, rel=1e-6)
    assert float(tail.median()) == pytest.approx(math.log(2) / rate, rel=1e-6)
    assert float(tail.entropy()) == pytest.approx(1 - math.log(rate), rel=1e-6)
    assert float(tail.crps(x)) == pytest.approx(x + (2 * math.exp(-1.3) - 1.5) / rate, rel=1e-6)
    assert float(tail.norm2()) == pytest.approx(rate / 2, rel=1e-6)
    assert float(tail.hdi(0.9)[0, 1]) == pytest.approx(-math.log(0.1) / rate, rel=1e-6)
    assert float(tail.product(tail).mean()) == pytest.approx(0.5 / rate, rel=1e-6)


def extreme_parameters(lower):
    """Means, widths and true values over all decades of fluxes (nJy), some a thousand and more sigmas apart."""
    logits = torch.tensor([0.0, -30.0])
    cases = [(1e9, 1e-3, 1e9), (1e-3, 1e-6, 1e-3), (0.0, 1e-3, 10.0), (1e9, 1e5, 1e-3), (5.0, 1e-9, 5.0)]
    if lower is not None:
        cases += [(-1000.0, 1.0, 0.0), (-1000.0, 1.0, 5.0), (-1e9, 1e3, 1e-3), (-1e4, 1.0, 1e4), (0.0, 1e-3, 0.0)]
    mean, sigma, x = (torch.tensor(column) for column in zip(*cases, strict=True))
    return logits, mean[:, None].expand(-1, 2).clone(), sigma[:, None] * torch.tensor([1.0, 2.0]), x


@pytest.mark.parametrize("lower", [None, 0.0])
@pytest.mark.parametrize("autocast", [False, True])
def test_everything_trained_on_is_finite_with_its_gradients(lower, autocast):
    logits, mean, sigma, x = extreme_parameters(lower)
    raw = [part.requires_grad_() for part in (logits.expand(len(mean), 2).clone(), mean, sigma)]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        mixture = Mixture(*raw, lower=lower)
        losses = {
            "log_prob": mixture.log_prob(x), "crps": mixture.crps(x), "cdf": mixture.cdf(x), "mean": mixture.mean(),
            "variance": mixture.variance(), "log_overlap": mixture.log_overlap(mixture.affine(1.001)),
            "entropy": mixture.entropy(), "product": mixture.product(mixture).log_prob(x),
        }  # fmt: skip
    for name, value in losses.items():
        assert value.dtype == torch.float32 and bool(value.isfinite().all()), name
        for gradient in torch.autograd.grad(value.sum(), raw, retain_graph=True, allow_unused=True):
            assert gradient is None or bool(gradient.isfinite().all()), name
    for found in (mixture.mode(), mixture.median(), mixture.quantile(0.99), mixture.hdi(0.68)[:, 0]):
        assert bool(found.isfinite().all())
    assert bool((mixture.sample(5, torch.Generator().manual_seed(0)) >= (-math.inf if lower is None else lower)).all())


def test_a_label_ten_thousand_sigmas_away_has_its_exact_density():
    away = Mixture(torch.zeros(2), torch.tensor([0.0, 1.0]), torch.tensor([1e-3, 1e-3]))
    assert float(away.log_prob(50.0)) == pytest.approx(-0.5 * 49000.0**2, rel=1e-5)


def test_parameters_in_half_precision_are_widened():
    raw = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    logits, mean, log_sigma = raw.chunk(3, -1)
    mixture = Mixture(logits, mean, log_sigma.exp(), 0.0)
    assert mixture.logits.dtype == mixture.log_prob(torch.ones(3)).dtype == torch.float32
    assert mixture.to(torch.bfloat16).logits.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        inside = mixture.log_prob(torch.ones(3)), mixture.median(), mixture.norm2()
    for value, expected in zip(
        inside, (mixture.log_prob(torch.ones(3)), mixture.median(), mixture.norm2()), strict=True
    ):
        assert torch.equal(value, expected)


@pytest.mark.parametrize("lower", [None, 0.0])
def test_gradients_equal_finite_differences(lower):
    start = torch.tensor([0.3, -0.2, 0.1, 0.5, 1.2, -1.5, -1.0, 0.4, -1.2], dtype=torch.float64, requires_grad=True)
    x = torch.tensor([0.8, 0.1, 2.5], dtype=torch.float64, requires_grad=True)

    def functions(values, x):
        logits, mean, log_sigma = values.chunk(3)
        mixture = Mixture(logits, mean, log_sigma.exp(), lower)
        other = mixture.affine(1.3)
        return (
            mixture.log_prob(x), mixture.cdf(x), mixture.crps(x), mixture.cde_loss(x), mixture.mean(),
            mixture.variance(), mixture.entropy(), mixture.log_overlap(other), mixture.product(other).log_prob(x),
        )  # fmt: skip

    assert torch.autograd.gradcheck(functions, (start, x), atol=1e-6)
