"""Least squares of templates: against NumPy, and the variance that theory promises."""

import numpy as np
import pytest
import torch

from deepdisc.heads.template_fit import fit_templates


def random_case(seed: int = 0, side: int = 9):
    generator = torch.Generator().manual_seed(seed)
    templates = torch.rand(2, 3, 3, side, side, generator=generator)
    pixels = torch.randn(2, 3, side, side, generator=generator) + 5 * templates[:, :, 0]
    weight = torch.rand(2, 3, side, side, generator=generator) + 0.5
    weight[:, :, :2] = 0
    return templates, pixels, weight


@pytest.mark.parametrize("ridge", [0.0, 0.7])
def test_amplitudes_and_errors_are_those_of_numpys_least_squares(ridge):
    templates, pixels, weight = random_case()
    rows = torch.zeros(2, 3, 3)
    rows[..., 1:] = ridge
    fit = fit_templates(templates, pixels, weight, rows)
    for r, c in np.ndindex(2, 3):
        root = weight[r, c].double().sqrt().numpy().ravel()
        design = templates[r, c].double().flatten(1).numpy().T * root[:, None]
        prior = np.diag(np.sqrt(rows[r, c].numpy() * (design**2).sum(0)))
        design = np.concatenate([design, prior])
        data = np.concatenate([pixels[r, c].double().numpy().ravel() * root, np.zeros(3)])
        expected = np.linalg.lstsq(design, data, rcond=None)[0]
        assert fit.amplitude[r, c].numpy() == pytest.approx(expected, rel=2e-4)
        assert fit.sigma[r, c].item() == pytest.approx(np.linalg.inv(design.T @ design)[0, 0] ** 0.5, rel=2e-4)


def test_a_known_profile_reaches_the_variance_of_optimal_weights():
    """SCIENCE: w = m / v / sum(m^2 / v) has the variance 1 / sum(m^2 / v); here measured on 4000 noisy pictures."""
    x = torch.arange(15.0) - 7
    profile = torch.exp(-0.5 * (x**2 + x[:, None] ** 2) / 2.0**2)
    profile /= profile.sum()
    variance = 1 + 30 * profile  # brighter pixels are noisier
    noise = torch.randn(4000, 1, 15, 15, generator=torch.Generator().manual_seed(1)) * variance.sqrt()
    templates = torch.stack((profile, profile, profile)).expand(4000, 1, 3, 15, 15)
    held = torch.tensor([0.0, 1e6, 1e6]).expand(4000, 1, 3)
    fit = fit_templates(templates, 200 * profile + noise, (1 / variance).expand_as(noise), held)
    expected = (profile.square() / variance).sum().rsqrt().item()
    assert fit.sigma[0, 0].item() == pytest.approx(expected, rel=1e-3)
    assert fit.amplitude[:, 0, 0].std().item() == pytest.approx(expected, rel=0.04)
    assert fit.amplitude[:, 0, 0].mean().item() == pytest.approx(200, abs=4 * expected / 4000**0.5)


def test_templates_without_weight_or_all_alike_give_finite_numbers_and_gradients():
    templates, pixels, weight = random_case()
    weight[0, 0] = 0
    templates[1, 0, 1] = templates[1, 0, 0]
    templates[1, 1] = 0
    templates.requires_grad_()
    fit = fit_templates(templates, pixels, weight, torch.zeros(2, 3, 3))
    assert fit.amplitude[0, 0].tolist() == [0, 0, 0] and fit.amplitude[1, 1, 0] == 0
    assert all(torch.isfinite(value).all() for value in vars(fit).values())
    (fit.amplitude.sum() + fit.sigma.log().sum()).backward()
    assert torch.isfinite(templates.grad).all()
