"""Mixtures of several correlated quantities against SciPy, sampling, and the one-dimensional class."""

import numpy as np
import pytest
import torch
from scipy import stats

from deepdisc.errors import InputError
from deepdisc.mixture import Mixture
from deepdisc.mixture_multivariate import MultivariateMixture

R, K, D = 5, 3, 4


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def mixture():
    size = MultivariateMixture.raw_size(K, D)
    return MultivariateMixture.from_raw(torch.randn(R, size, generator=generator()), D).to(torch.float64)


@pytest.fixture
def x():
    return torch.randn(R, D, generator=generator(1), dtype=torch.float64)


def scipy_density(mixture, row, x):
    weights, means, factors = (
        part[row].numpy() for part in (mixture.weights, mixture.component_mean, mixture.scale_tril)
    )
    parts = zip(weights, means, factors, strict=True)
    return sum(w * stats.multivariate_normal(m, f @ f.T).pdf(x) for w, m, f in parts)


def test_density_equals_scipy(mixture, x):
    expected = [scipy_density(mixture, row, x[row].numpy()) for row in range(R)]
    np.testing.assert_allclose(mixture.prob(x), expected, rtol=1e-9)


def test_density_in_two_dimensions_integrates_to_one():
    raw = 0.5 * torch.randn(4, MultivariateMixture.raw_size(3, 2), generator=generator())
    mixture = MultivariateMixture.from_raw(raw, 2)
    axis = torch.linspace(-20, 20, 401)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)[:, :, None]
    total = mixture.prob(grid).double().sum((0, 1)) * 0.1**2
    assert torch.allclose(total, torch.ones(4, dtype=torch.float64), atol=1e-5)


def test_moments_and_samples_agree(mixture):
    draws = mixture.sample(100_000, generator(2))
    sigma = mixture.covariance().diagonal(dim1=-2, dim2=-1).sqrt()
    assert bool(((draws.mean(0) - mixture.mean()).abs() < 5 * sigma / 100_000**0.5).all())
    for row in range(R):
        scale = sigma[row][:, None] * sigma[row]
        assert float(((torch.cov(draws[:, row].T) - mixture.covariance()[row]) / scale).abs().max()) < 0.05
    direction = torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=torch.float64)
    level = mixture.project(direction, shift=0.7).cdf(draws @ direction + 0.7)
    assert stats.kstest(level[:, 0].numpy(), "uniform").pvalue > 0.001


def test_marginals_and_differences_are_those_of_the_joint_density(mixture):
    covariance, mean = mixture.covariance(), mixture.mean()
    one = mixture.marginal(2)
    assert isinstance(one, Mixture) and one.batch_shape == (R,)
    assert torch.allclose(one.mean(), mean[:, 2]) and torch.allclose(one.variance(), covariance[:, 2, 2])
    colour = mixture.difference(1, 3)
    assert torch.allclose(colour.mean(), mean[:, 1] - mean[:, 3])
    expected = covariance[:, 1, 1] + covariance[:, 3, 3] - 2 * covariance[:, 1, 3]
    assert torch.allclose(colour.variance(), expected)
    pair = mixture.select([3, 0])
    assert torch.allclose(pair.covariance(), covariance[:, [3, 0]][:, :, [3, 0]])
    assert torch.allclose(pair.marginal(1).log_prob(0.3), mixture.marginal(0).log_prob(0.3))


def test_conditional_times_marginal_is_the_joint_density(mixture, x):
    rest = mixture.conditional([2, 0], x[:, [2, 0]])
    joint = rest.log_prob(x[:, [1, 3]]) + mixture.select([2, 0]).log_prob(x[:, [2, 0]])
    assert torch.allclose(joint, mixture.log_prob(x), atol=1e-10)
    far = mixture.conditional([1], [1e6])  # the weights underflow: one component takes all
    assert torch.allclose(far.weights.amax(-1), torch.ones(R, dtype=torch.float64)) and bool(
        far.mean().isfinite().all()
    )
    for bad in ([], [0, 0], [0, 1, 2, 3]):
        with pytest.raises(InputError, match="name some, once each"):
            mixture.conditional(bad, torch.zeros(len(bad)))


def test_affine_maps_densities_by_the_determinant(mixture, x):
    matrix = torch.randn(R, D, D, generator=generator(3), dtype=torch.float64)
    shift = torch.randn(R, D, generator=generator(4), dtype=torch.float64)
    moved = mixture.affine(matrix, shift)
    at = (matrix @ x[..., None])[..., 0] + shift
    assert torch.allclose(moved.log_prob(at), mixture.log_prob(x) - torch.linalg.slogdet(matrix)[1], atol=1e-9)
    colours = mixture.affine([[1.0, -1, 0, 0], [0, 1, -1, 0]])
    assert torch.allclose(colours.marginal(0).log_prob(0.2), mixture.difference(0, 1).log_prob(0.2))
    with pytest.raises(InputError, match="5 quantities from 4"):
        mixture.affine(torch.ones(5, 4))


def test_product_and_overlap_are_those_of_the_densities(mixture, x):
    other = mixture[torch.tensor([1, 2, 3, 4, 0])]
    product, overlap = mixture.product(other), mixture.log_overlap(other)
    assert product.logits.shape == (R, K * K)
    assert torch.allclose(product.log_prob(x) + overlap, mixture.log_prob(x) + other.log_prob(x), atol=1e-9)
    kept = mixture.product(other, max_components=4)
    assert kept.logits.shape == (R, 4) and kept.scale_tril.shape == (R, 4, D, D)
    order = product.logits.argmax(-1)
    assert torch.allclose(kept.component_mean[0, 0], product.component_mean[0, order[0]])


def test_in_one_dimension_it_is_a_mixture():
    logits, mean, sigma = torch.randn(3, R, K, generator=generator(5), dtype=torch.float64)
    one = Mixture(logits, mean, sigma.exp())
    same = MultivariateMixture(logits, mean[..., None], sigma.exp()[..., None, None])
    at = torch.linspace(-1, 1, R, dtype=torch.float64)
    assert torch.allclose(same.log_prob(at[:, None]), one.log_prob(at))
    assert torch.allclose(same.log_overlap(same[:1]), one.log_overlap(one[:1]))
    assert torch.allclose(same.product(same[:1]).marginal(0).quantile(0.3), one.product(one[:1]).quantile(0.3))


def test_catalogue_columns_round_trip(mixture, x):
    parts = mixture.numpy()
    shapes = {name: part.shape for name, part in parts.items()}
    assert shapes == {"weights": (R, K), "means": (R, K * D), "trils": (R, K * D * (D + 1) // 2)}
    back = MultivariateMixture.from_columns(**parts)
    assert torch.allclose(back.log_prob(x), mixture.log_prob(x), atol=1e-3)


def test_batches_index_concatenate_and_may_be_empty(mixture, x):
    joined = MultivariateMixture.cat([mixture[:2], mixture[torch.tensor([2, 3, 4])]])
    assert len(joined) == R and torch.equal(joined.log_prob(x), mixture.log_prob(x))
    assert mixture[..., 0].batch_shape == () and mixture[:, None].batch_shape == (R, 1)
    none = mixture[:0].detach()
    assert none.sample(2).shape == (2, 0, D) and none.covariance().shape == (0, D, D)
    assert none.product(none).affine(torch.eye(D)).log_prob(torch.zeros(0, D)).shape == (0,)
    assert none.marginal(1).median().shape == (0,)


@pytest.mark.parametrize("sigma_min", [0.0, 0.3])
def test_network_outputs_of_any_size_give_finite_densities_under_autocast(sigma_min):
    size = MultivariateMixture.raw_size(2, 2)
    raw = torch.cat((torch.zeros(1, size), 1e3 * torch.randn(20, size, generator=generator(6)))).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        mixture = MultivariateMixture.from_raw(raw, 2, sigma_min)
        loss = -mixture.log_prob(torch.zeros(21, 2))
        product = mixture.product(mixture).mean()
    loss.sum().backward()
    assert loss.dtype == torch.float32 and bool(loss.isfinite().all()) and bool(raw.grad.isfinite().all())
    assert bool(product.isfinite().all())
    assert mixture.covariance()[0, 0, 0].item() == pytest.approx(1 + sigma_min**2, rel=1e-6)


def test_gradients_equal_finite_differences(x):
    raw = 0.5 * torch.randn(2, MultivariateMixture.raw_size(2, 3), generator=generator(7), dtype=torch.float64)
    tril = torch.randn(2, 2, 3, 3, generator=generator(8), dtype=torch.float64).tril() * 0.3

    def functions(logits, mean, low):
        mixture = MultivariateMixture(logits, mean, low + torch.eye(3))
        return (
            mixture.log_prob(x[:2, :3]), mixture.log_overlap(mixture.affine(torch.eye(3) * 1.3)),
            mixture.conditional([1], [0.3]).log_prob(x[:2, :2]), mixture.project([1.0, -1, 0.5]).log_prob(0.2),
            mixture.product(mixture).covariance(),
        )  # fmt: skip

    parts = raw[:, :2], raw[:, 2:8].reshape(2, 2, 3), tril
    assert torch.autograd.gradcheck(functions, tuple(part.clone().requires_grad_() for part in parts), atol=1e-6)
