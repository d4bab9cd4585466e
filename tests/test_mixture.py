"""Mixtures against quadrature, scipy and sampling."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats

from deepdisc.errors import InputError
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


def integral(function, parts, lower, *marks):
    """Gauss-Legendre with 40 points in each of many pieces; `function` takes and gives tensors."""
    low = min(m - 12 * s for _, m, s in parts) if lower is None else lower
    high = max(max(m, low) + 12 * s for _, m, s in parts)
    low, high = min([low, *marks]), max([high, *marks])
    marks = {m + k * s for _, m, s in parts for k in (-8, -4, -2, -1, 0, 1, 2, 4, 8)} | {*marks}
    if lower is not None:  # a component far below the bound leaves an exponential tail, much narrower than sigma
        tails = [s / max((lower - m) / s, 1) for _, m, s in parts]
        marks |= {lower + k * scale for scale in tails for k in (0.5, 1, 2, 4, 8, 16, 32)}
    points = sorted({min(max(mark, low), high) for mark in marks} | {low, high})
    pieces = zip(points, points[1:], strict=False)
    return sum(integrate.fixed_quad(lambda x: function(torch.as_tensor(x)).numpy(), a, b, n=40)[0] for a, b in pieces)


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

    pdf = mixture.prob
    assert integral(pdf, parts, lower) == pytest.approx(1, abs=1e-7)
    mean = integral(lambda x: x * pdf(x), parts, lower)
    assert float(mixture.mean()) == pytest.approx(mean, abs=1e-6)
    variance = integral(lambda x: (x - mean) ** 2 * pdf(x), parts, lower)
    assert float(mixture.variance()) == pytest.approx(variance, abs=1e-6)
    assert float(mixture.norm2()) == pytest.approx(integral(lambda x: pdf(x) ** 2, parts, lower), rel=1e-6)


@settings(max_examples=15, deadline=None)
@given(components, bounds, st.floats(0.0, 4))
def test_crps_and_entropy_equal_quadrature_of_their_definitions(parts, lower, truth):
    mixture = make(parts, lower)

    def squared_difference(t):
        return (mixture.cdf(t) - (t >= truth).double()).square()

    expected = integral(squared_difference, parts, lower, truth)
    assert float(mixture.crps(truth)) == pytest.approx(expected, abs=1e-6)
    expected = -integral(lambda x: mixture.prob(x) * mixture.log_prob(x).clamp(min=-700), parts, lower)
    assert float(mixture.entropy()) == pytest.approx(expected, abs=1e-6)
    loss = float(mixture.norm2() - 2 * mixture.prob(truth))
    assert float(mixture.cde_loss(truth)) == pytest.approx(loss, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(components, bounds, st.floats(0.001, 0.999))
def test_quantile_inverts_the_distribution(parts, lower, q):
    mixture = make(parts, lower)
    value = mixture.quantile(q)
    assert float(mixture.cdf(value)) == pytest.approx(q, abs=1e-9)
    assert lower is None or float(value) >= lower


@settings(max_examples=15, deadline=None)
@given(components, components, bounds)
def test_product_and_overlap_are_those_of_the_densities(parts_a, parts_b, lower):
    a, b = make(parts_a, lower), make(parts_b, lower)
    product, overlap = a.product(b), a.log_overlap(b)
    x = torch.linspace(0.05, 3, 7, dtype=torch.float64)
    assert torch.allclose(product.log_prob(x) + overlap, a.log_prob(x) + b.log_prob(x), atol=1e-6)
    expected = integral(lambda t: a.prob(t) * b.prob(t), [*parts_a, *parts_b], lower)
    assert float(overlap.exp()) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_overlap_is_the_printed_loss_of_unsupervised_transfer():
    a, b = make([(0.2, 1.0, 0.5), (0.0, 2.0, 0.7)], 0.0), make([(0.5, 1.5, 0.4), (-0.3, 0.3, 0.6)], 0.0)
    terms = []
    for i in range(2):
        for j in range(2):
            mi, mj, si, sj = (float(p[k]) for p, k in ((a.component_mean, i), (b.component_mean, j),
                                                       (a.component_sigma, i), (b.component_sigma, j)))  # fmt: skip
            d, v = mi - mj, si**2 + sj**2
            r = (mi / si**2 + mj / sj**2) / math.sqrt(1 / si**2 + 1 / sj**2)
            terms.append(
                float(a.log_weights[i] + b.log_weights[j]) - d**2 / (2 * v) - math.log(2 * math.pi * v) / 2
                + math.log(2) - math.log(1 + math.erf(mi / (math.sqrt(2) * si)))
                - math.log(1 + math.erf(mj / (math.sqrt(2) * sj))) + math.log(1 + math.erf(r / math.sqrt(2)))
            )  # fmt: skip
    assert float(a.log_overlap(b)) == pytest.approx(special.logsumexp(terms), abs=1e-12)


def test_a_coadd_of_many_exposures_keeps_the_heaviest_components():
    exposures = [make([(0, 5 + 0.1 * i, 1.0), (-2, 3.0, 2.0)], 0.0) for i in range(6)]
    exact = kept = exposures[0]
    for exposure in exposures[1:]:
        exact, kept = exact.product(exposure), kept.product(exposure, max_components=8)
    assert exact.logits.shape[-1] == 64 and kept.logits.shape[-1] == 8
    x = torch.linspace(3, 7, 9, dtype=torch.float64)
    assert torch.allclose(kept.cdf(x), exact.cdf(x), atol=0.01)
    with pytest.raises(InputError, match="bounded at 0.0 and at None: both need the same bound"):
        exact.product(make([(0, 1.0, 1.0)], None))


def test_affine_changes_the_unit():
    mixture = make([(0, 1.0, 0.2), (1, 2.0, 0.5)], 0.0)
    scaled = mixture.affine(scale=3.0, shift=0.5)
    x = torch.tensor(1.7, dtype=torch.float64)
    assert float(scaled.prob(3 * x + 0.5)) == pytest.approx(float(mixture.prob(x)) / 3)
    assert scaled.lower == 0.5
    mirrored = make([(0, 1.0, 0.2), (1, 2.0, 0.5)], None).affine(scale=-2.0)
    assert float(mirrored.cdf(-2 * x)) == pytest.approx(1 - float(make([(0, 1.0, 0.2), (1, 2.0, 0.5)], None).cdf(x)))


def test_zero_points_differ_between_objects_and_bands_where_the_bound_is_zero():
    flux = Mixture.from_raw(torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(0)), lower=0.0)
    scale = torch.rand(4, 3, generator=torch.Generator().manual_seed(1)) + 0.5
    moved = flux.affine(scale)
    assert moved.lower == 0.0
    assert torch.allclose(moved.median(), scale * flux.median(), rtol=1e-5)
    assert flux[:0].affine(scale[:0]).lower == 0.0
    with pytest.raises(InputError, match="the bound 0 would lie between"):
        flux.affine(scale, shift=scale)
    with pytest.raises(InputError, match="scales must be > 0"):
        flux.affine(-scale)


def test_nothing_lies_below_the_bound():
    mixture = make([(0, -0.2, 0.5), (0, 0.3, 0.2)], 0.0)
    assert float(mixture.log_prob(torch.tensor(-1e-6))) == -math.inf
    assert float(mixture.cdf(torch.tensor(0.0))) == 0.0
    assert float(mixture.sample(2000, torch.Generator().manual_seed(1)).min()) >= 0


def test_samples_follow_the_distribution():
    mixture = make([(0, 0.1, 0.3), (1, 1.5, 0.2)], 0.0)
    draws = mixture.sample(4000, torch.Generator().manual_seed(2))
    assert stats.kstest(mixture.cdf(draws).numpy(), "uniform").pvalue > 0.01
    again = mixture.sample(4000, torch.Generator().manual_seed(2))
    assert torch.equal(draws, again)


def test_batches_index_concatenate_and_keep_the_bound():
    batch = Mixture.from_raw(torch.randn(4, 15, generator=torch.Generator().manual_seed(0)), lower=0.0)
    assert batch.reshape(2, 2)[..., 1].batch_shape == (2,) and batch.reshape(2, 2)[:, 0].logits.shape == (2, 5)
    joined = Mixture.cat([batch[:1], batch[torch.tensor([False, True, True, True])]])
    assert len(joined) == 4 and joined.lower == 0.0
    assert torch.equal(joined.quantile(0.3), batch.quantile(0.3))
    assert batch[:0].mode().shape == batch[:0].entropy().shape == batch[:0].hdi_level(torch.zeros(0)).shape == (0,)
    assert batch[:0].hdi(0.5).shape[::2] == (0, 2) and batch[:0].crps(torch.zeros(0)).shape == (0,)


def test_catalogue_columns_round_trip():
    batch = Mixture.from_raw(torch.randn(6, 9, generator=torch.Generator().manual_seed(0)), lower=0.0)
    parts = batch.numpy()
    back = Mixture.from_columns(parts["weights"], parts["means"], parts["sigmas"], lower=0.0)
    assert torch.allclose(back.median().float(), batch.median(), atol=1e-5)


def test_odds_is_the_mass_around_the_mode():
    mixture = make([(0, 0.5, 0.01), (0, 2.0, 0.01)], 0.0)
    assert float(mixture.odds()) == pytest.approx(0.5, abs=1e-6)
