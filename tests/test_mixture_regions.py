"""Modes, quantiles, highest-density intervals of mixtures against brute force."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from deepdisc.errors import InputError
from deepdisc.mixture import Mixture
from deepdisc.mixture_roots import find_zeros

seeds = st.integers(0, 10**6)
bounds = st.sampled_from([None, 0.0])
N, K = 30, 4


def random_mixtures(seed, lower) -> Mixture:
    """Components with widths over four decades, so that narrow ones stand on broad ones and beside them."""
    g = torch.Generator().manual_seed(seed)
    logits, mean, log_sigma = torch.randn(3, N, K, generator=g, dtype=torch.float64)
    return Mixture(2 * logits, 2 * mean, (1.5 * log_sigma - 1).exp(), lower)


def fine_grid(mixture):
    """(N, G) values that resolve every component, and the exponential tails of those far below the bound."""
    steps = torch.linspace(-9, 9, 1201, dtype=torch.float64)
    grid = (mixture.component_mean[..., None] + steps * mixture.component_sigma[..., None]).flatten(1)
    if mixture.lower is not None:
        pull = ((mixture.lower - mixture.component_mean) / mixture.component_sigma).clamp(min=1)
        tail = torch.linspace(0, 36, 1201, dtype=torch.float64) * (mixture.component_sigma / pull)[..., None]
        grid = torch.cat((grid, mixture.lower + tail.flatten(1)), 1).clamp(min=mixture.lower)
    return grid.sort(1).values


@settings(max_examples=6, deadline=None)
@given(seeds, bounds)
def test_no_value_is_denser_than_the_mode(seed, lower):
    mixture = random_mixtures(seed, lower)
    highest = mixture[:, None].log_prob(fine_grid(mixture)).amax(1)
    assert bool((mixture.log_prob(mixture.mode()) >= highest - 1e-12).all())
    assert bool((mixture.hdi_level(mixture.mode()) < 1e-6).all())


def test_modes_known_by_hand():
    def one(parts, lower=None):
        return Mixture(*(torch.tensor(column, dtype=torch.float64) for column in zip(*parts, strict=True)), lower=lower)

    assert float(one([(0, 0.7, 0.1)], 0.0).mode()) == pytest.approx(0.7, abs=1e-12)
    assert float(one([(0, -0.4, 0.1)], 0.0).mode()) == 0.0
    # The highest point lies between two broad components, away from the spikes on both of their means.
    spiked = [(math.log(w), m, s) for w, m, s in ((1, -1, 1), (1, 1, 1), (5e-3, -1, 0.02), (5e-3, 1, 0.02))]
    assert abs(float(one(spiked).mode())) == pytest.approx(1, abs=0.01)
    spiked = [(math.log(w), m, s) for w, m, s in ((1, -0.9, 1), (1, 0.9, 1), (4e-4, -0.9, 0.02), (4e-4, 0.9, 0.02))]
    assert float(one(spiked).mode()) == pytest.approx(0, abs=1e-6)
    bound = Mixture(torch.zeros(1), torch.tensor([-1.0]), torch.tensor([1.0]), lower=0.7)  # 0.7 is no float32
    assert math.isfinite(float(bound.log_prob(bound.mode())))


@settings(max_examples=6, deadline=None)
@given(seeds, bounds, st.sampled_from([0.1, 0.5, 0.68, 0.95, 0.999]))
def test_highest_density_intervals_are_the_shortest_of_their_probability(seed, lower, level):
    mixture = random_mixtures(seed, lower)
    intervals = mixture.hdi(level)
    start, end = intervals.unbind(-1)
    known = ~start.isnan()
    assert bool((known == ~end.isnan()).all()) and bool((start[known] < end[known]).all())
    assert bool((end[:, :-1] < start[:, 1:])[known[:, 1:]].all())
    at = mixture[:, None]
    mass = torch.where(known, at.cdf(end.nan_to_num()) - at.cdf(start.nan_to_num()), 0.0).sum(1)
    assert torch.allclose(mass, torch.tensor(level, dtype=torch.float64), atol=1e-9)
    # Brute force: the cells of a fine grid, densest first, until they hold as much.
    grid = fine_grid(mixture)
    cell, width = at.cdf(grid).diff(dim=1), grid.diff(dim=1)
    order = torch.where(width > 0, cell / width.clamp(min=1e-300), 0.0).sort(1, descending=True).indices
    cell = cell.gather(1, order)
    needed = (width.gather(1, order) * (cell.cumsum(1) - cell < level)).sum(1)
    assert bool(((end - start).nan_to_num().sum(1) <= needed * (1 + 1e-9)).all())


@settings(max_examples=6, deadline=None)
@given(seeds, bounds)
def test_credibility_of_a_value_is_the_probability_of_all_denser_ones(seed, lower):
    mixture = random_mixtures(seed, lower)
    x = mixture.sample(1, torch.Generator().manual_seed(seed))[0]
    grid = fine_grid(mixture)
    middle = (grid[:, 1:] + grid[:, :-1]) / 2
    denser = mixture[:, None].log_prob(middle) > mixture.log_prob(x)[:, None]
    brute = (mixture[:, None].cdf(grid).diff(dim=1) * denser).sum(1)
    assert torch.allclose(mixture.hdi_level(x), brute, atol=0.01)
    # The ends of the intervals of a level have that level.
    ends = mixture.hdi(0.8)[:, 0, 1]
    assert torch.allclose(mixture.hdi_level(ends), torch.tensor(0.8, dtype=torch.float64), atol=1e-8)


def test_credibility_of_honest_densities_is_uniform_and_far_values_have_all():
    mixture = random_mixtures(1, 0.0)
    draws = mixture.sample(60, torch.Generator().manual_seed(5))
    assert stats.kstest(mixture.hdi_level(draws).flatten().numpy(), "uniform").pvalue > 0.01
    assert torch.allclose(mixture.hdi_level(torch.tensor(-1.0)), torch.ones(N, dtype=torch.float64))
    assert torch.allclose(mixture.hdi_level(torch.tensor(1e9)), torch.ones(N, dtype=torch.float64))


def test_intervals_of_one_gaussian_and_of_batches():
    one = Mixture(torch.zeros(2, 3, 1), torch.full((2, 3, 1), 5.0), torch.full((2, 3, 1), 2.0))
    assert one.hdi(0.6827).shape == (2, 3, 1, 2)
    assert torch.allclose(one.hdi(0.682689492)[0, 0, 0], torch.tensor([3.0, 7.0]), atol=1e-5)
    cut = Mixture(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1), lower=0.0)
    assert torch.allclose(cut.hdi(0.682689492)[0, 0], torch.tensor([0.0, 1.0]), atol=1e-6)
    for level in (0, 1, 68):
        with pytest.raises(InputError, match="give one between 0 and 1"):
            one.hdi(level)


@pytest.mark.parametrize("lower", [None, 0.0])
def test_quantiles_are_exact_far_in_the_tails_and_for_every_shape(lower):
    mixture = random_mixtures(7, lower)
    q = torch.tensor([1e-12, 1e-6, 0.16, 0.5, 0.84, 1 - 1e-6], dtype=torch.float64)
    x = mixture.quantile(q[:, None])
    assert x.shape == (6, N)
    assert torch.allclose(mixture.cdf(x), q[:, None].expand(6, N), rtol=1e-9, atol=0 if lower is None else 1e-15)
    assert torch.equal(mixture.reshape(5, 6).quantile(0.16), x[2].reshape(5, 6))
    assert torch.equal(mixture.quantile(q[torch.arange(N) % 6]), x[torch.arange(N) % 6, torch.arange(N)])


def test_weightless_components_do_not_matter():
    mixture = Mixture.from_columns(np.array([[1.0, 0.0]]), np.array([[1.0, 1e6]]), np.array([[0.1, 1e-3]]), None)
    for found, expected in ((mixture.median(), 1.0), (mixture.mode(), 1.0), (mixture.hdi(0.682689492)[0, 0, 1], 1.1)):
        assert float(found) == pytest.approx(expected, abs=1e-9)


def test_zeros_are_found_where_newton_alone_fails():
    roots = torch.tensor([0.3, -2.0, 1e-8, 5.0], dtype=torch.float64)

    def steep_then_flat(x, rows):
        u = (x - roots[rows]) * 50
        return torch.tanh(u), 50 / torch.cosh(u).square()

    found = find_zeros(steep_then_flat, torch.full((4,), -1e3).double(), torch.full((4,), 1e3).double())
    assert torch.allclose(found, roots, rtol=1e-12, atol=1e-15)
    nowhere = find_zeros(lambda x, rows: (x * torch.nan, x), torch.zeros(1).double(), torch.ones(1).double())
    assert nowhere.shape == (1,)
