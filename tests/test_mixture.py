"""Mixtures against quadrature, scipy and sampling."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, stats

from deepdisc.mixture import Mixture

components = st.lists(
    st.tuples(st.floats(-3, 3), st.floats(-2, 4), st.floats(0.02, 1.5)),  # logit, mean, sigma
    min_size=1,
    max_size=5,
)
bounds = st.sampled_from([None, 0.0, -1.0])


def make(parts, lower) -> Mixture:
    logits, mean, sigma = (torch.tensor(column, dtype=torch.float64) for column in zip(*parts, strict=True))
    return Mixture(logits, mean, sigma, lower)


def scipy_density(parts, lower):
    """The same density by scipy, with the breakpoints that quadrature needs."""
    logits = np.array([p[0] for p in parts])
    weights = np.exp(logits - logits.max())
    weights /= weights.sum()
    frozen = [
        stats.norm(m, s) if lower is None else stats.truncnorm((lower - m) / s, np.inf, loc=m, scale=s)
        for _, m, s in parts
    ]
    return weights, frozen


def integral(function, parts, lower, upper=None):
    low = min(m - 12 * s for _, m, s in parts) if lower is None else lower
    high = max(max(m, low) + 12 * s for _, m, s in parts) if upper is None else upper
    marks = {m + k * s for _, m, s in parts for k in (-8, -4, -2, -1, 0, 1, 2, 4, 8)}
    points = sorted({min(max(mark, low), high) for mark in marks} | {low, high})
    pieces = zip(points, points[1:], strict=False)
    return sum(integrate.quad(function, a, b, epsabs=1e-12, epsrel=1e-10)[0] for a, b in pieces)


@settings(max_examples=40, deadline=None)
@given(components, bounds, st.floats(-1.5, 5).map(lambda x: round(x, 4)))
def test_density_and_distribution_equal_scipy(parts, lower, x):
    mixture = make(parts, lower)
    weights, frozen = scipy_density(parts, lower)
    expected_pdf = sum(w * f.pdf(x) for w, f in zip(weights, frozen, strict=True))
    expected_cdf = sum(w * f.cdf(x) for w, f in zip(weights, frozen, strict=True))
    assert float(mixture.prob(torch.tensor(x, dtype=torch.float64))) == pytest.approx(expected_pdf, rel=1e-7, abs=1e-12)
    assert float(mixture.cdf(torch.tensor(x, dtype=torch.float64))) == pytest.approx(expected_cdf, rel=1e-7, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(components, bounds)
def test_density_integrates_to_one_and_moments_equal_quadrature(parts, lower):
    mixture = make(parts, lower)

    def pdf(x):
        return float(mixture.prob(torch.tensor(x, dtype=torch.float64)))

    assert integral(pdf, parts, lower) == pytest.approx(1, abs=1e-7)
    mean = integral(lambda x: x * pdf(x), parts, lower)
    assert float(mixture.mean()) == pytest.approx(mean, abs=1e-6)
    variance = integral(lambda x: (x - mean) ** 2 * pdf(x), parts, lower)
    assert float(mixture.variance()) == pytest.approx(variance, abs=1e-6)
    assert float(mixture.norm2()) == pytest.approx(integral(lambda x: pdf(x) ** 2, parts, lower), rel=1e-6)


@settings(max_examples=15, deadline=None)
@given(components, bounds, st.floats(0.0, 4))
def test_crps_equals_quadrature_of_its_definition(parts, lower, truth):
    mixture = make(parts, lower)

    def squared_difference(t):
        return (float(mixture.cdf(torch.tensor(t, dtype=torch.float64))) - (t >= truth)) ** 2

    low = min(min(m - 12 * s for _, m, s in parts), truth) if lower is None else lower
    high = max(max(max(m, low) + 12 * s for _, m, s in parts), truth + 0.1)
    marks = {m + k * s for _, m, s in parts for k in (-4, -2, -1, 0, 1, 2, 4)} | {low, high, truth}
    edges = sorted(min(max(mark, low), high) for mark in marks)
    expected = sum(
        integrate.quad(squared_difference, a, b, epsabs=1e-10)[0] for a, b in zip(edges, edges[1:], strict=False)
    )
    assert float(mixture.crps(torch.tensor(truth, dtype=torch.float64))) == pytest.approx(expected, abs=2e-6)


@settings(max_examples=30, deadline=None)
@given(components, bounds, st.floats(0.001, 0.999))
def test_quantile_inverts_the_distribution(parts, lower, q):
    mixture = make(parts, lower)
    value = mixture.quantile(q)
    assert float(mixture.cdf(value)) == pytest.approx(q, abs=1e-9)
    assert lower is None or float(value) >= lower


@settings(max_examples=20, deadline=None)
@given(components, bounds)
def test_mode_is_the_highest_point_of_a_fine_grid(parts, lower):
    mixture = make(parts, lower)
    grid = torch.linspace(-4 if lower is None else lower, 8, 20001, dtype=torch.float64)
    highest = max(float(mixture.log_prob(x)) for x in grid[::20])
    around = mixture.mode() + torch.linspace(-0.01, 0.01, 41, dtype=torch.float64)
    highest = max(highest, *(float(mixture.log_prob(x)) for x in around))
    assert float(mixture.log_prob(mixture.mode())) >= highest - 1e-6


def test_mode_of_one_gaussian_and_of_one_that_peaks_below_the_bound():
    assert float(make([(0, 0.7, 0.1)], 0.0).mode()) == pytest.approx(0.7, abs=1e-9)
    assert float(make([(0, -0.4, 0.1)], 0.0).mode()) == 0.0


@settings(max_examples=15, deadline=None)
@given(components, components, st.sampled_from([None, 0.0]))
def test_product_is_the_normalised_product_of_densities(parts_a, parts_b, lower):
    a, b = make(parts_a, lower), make(parts_b, lower)
    product = a.product(b)
    x = torch.linspace(0.05, 3, 7, dtype=torch.float64)
    log_ratio = product.log_prob(x) - a.log_prob(x) - b.log_prob(x)
    assert torch.allclose(log_ratio, log_ratio[0].expand(7), atol=1e-6)


def test_affine_changes_the_unit():
    mixture = make([(0, 1.0, 0.2), (1, 2.0, 0.5)], 0.0)
    scaled = mixture.affine(scale=3.0, shift=0.5)
    x = torch.tensor(1.7, dtype=torch.float64)
    assert float(scaled.prob(3 * x + 0.5)) == pytest.approx(float(mixture.prob(x)) / 3)
    assert scaled.lower == 0.5


def test_tails_stay_finite_in_float32_where_the_naive_formula_fails():
    far = Mixture(torch.zeros(1), torch.tensor([-40.0]), torch.tensor([0.5]), lower=0.0)
    x = torch.tensor(0.01, requires_grad=True)
    value = far.log_prob(x)
    # mu is 80 sigma below the bound: the tail is exponential with rate ~ |mu| / sigma^2 = 160.
    assert value.item() == pytest.approx(math.log(160) - 1.6, abs=0.02)
    value.backward()
    assert math.isfinite(float(x.grad))
    assert float(far.cdf(torch.tensor(10.0))) == pytest.approx(1)
    assert 0 < float(far.mean()) < 0.01
    away = Mixture(torch.zeros(2), torch.tensor([0.0, 1.0]), torch.tensor([1e-3, 1e-3]))
    assert float(away.log_prob(torch.tensor(50.0))) == pytest.approx(-0.5 * 49000.0**2, rel=1e-3)


def test_nothing_lies_below_the_bound():
    mixture = make([(0, -0.2, 0.5), (0, 0.3, 0.2)], 0.0)
    assert float(mixture.log_prob(torch.tensor(-1e-6))) == -math.inf
    assert float(mixture.cdf(torch.tensor(0.0))) == 0.0
    assert float(mixture.sample(2000, torch.Generator().manual_seed(1)).min()) >= 0


def test_gradients_equal_finite_differences():
    raw = torch.tensor([0.3, -0.2, 0.5, 1.2, -1.0, 0.4], dtype=torch.float64, requires_grad=True)
    x = torch.tensor(0.8, dtype=torch.float64)

    def negative_log_likelihood(values):
        logits, mean, log_sigma = values.chunk(3)
        return -Mixture(logits, mean, log_sigma.exp(), lower=0.0).log_prob(x)

    assert torch.autograd.gradcheck(negative_log_likelihood, raw)
    numeric = optimize.approx_fprime(
        raw.detach().numpy(), lambda v: float(negative_log_likelihood(torch.tensor(v))), 1e-7
    )
    negative_log_likelihood(raw).backward()
    assert raw.grad.numpy() == pytest.approx(numeric, abs=1e-5)


def test_samples_follow_the_distribution():
    mixture = make([(0, 0.1, 0.3), (1, 1.5, 0.2)], 0.0)
    draws = mixture.sample(4000, torch.Generator().manual_seed(2))
    assert stats.kstest(mixture.cdf(draws).numpy(), "uniform").pvalue > 0.01
    again = mixture.sample(4000, torch.Generator().manual_seed(2))
    assert torch.equal(draws, again)


def test_batches_index_concatenate_and_keep_the_bound():
    batch = Mixture.from_raw(torch.randn(4, 15, generator=torch.Generator().manual_seed(0)), lower=0.0)
    joined = Mixture.cat([batch[:1], batch[torch.tensor([False, True, True, True])]])
    assert len(joined) == 4 and joined.lower == 0.0
    assert torch.equal(joined.quantile(0.3), batch.quantile(0.3))
    assert batch[:0].mode().shape == (0,) and batch[:0].crps(torch.zeros(0)).shape == (0,)


def test_catalogue_columns_round_trip():
    batch = Mixture.from_raw(torch.randn(6, 9, generator=torch.Generator().manual_seed(0)), lower=0.0)
    parts = batch.numpy()
    back = Mixture.from_columns(parts["weights"], parts["means"], parts["sigmas"], lower=0.0)
    assert torch.allclose(back.median().float(), batch.median(), atol=1e-5)


def test_odds_is_the_mass_around_the_mode():
    mixture = make([(0, 0.5, 0.01), (0, 2.0, 0.01)], 0.0)
    assert float(mixture.odds()) == pytest.approx(0.5, abs=1e-6)
