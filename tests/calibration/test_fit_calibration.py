"""A known dishonesty is found and undone, on objects that the fit never saw; honest probabilities stay as they are."""

import numpy as np
import pytest
import torch
from scipy import stats

from deepdisc.calibration.fit import fit_mixture
from deepdisc.calibration.fit_novelty import fit_novelty
from deepdisc.calibration.fit_shear import fit_shear
from deepdisc.heads.calibration import MixtureCalibration, ShearCalibration
from deepdisc.heads.novelty import Distance
from deepdisc.mixture import Mixture
from deepdisc.mixture_multivariate import MultivariateMixture

N = 2500
MANY = 8000  # the noise of the fit must be small beside that of N other objects
ERRORS = {
    "honest": lambda rng, snr: rng.normal(size=len(snr)),
    "too narrow": lambda rng, snr: 1.5 * rng.normal(size=len(snr)),
    "too wide and shifted": lambda rng, snr: 0.7 * rng.normal(size=len(snr)) + 0.3,
    "worse for bright objects": lambda rng, snr: np.hypot(1, 0.02 * snr) * rng.normal(size=len(snr)),
    "skewed": lambda rng, snr: (rng.gamma(4, size=len(snr)) - 4) / 2,
}
FORMS = {
    "honest": "identity",
    "too narrow": "constant",
    "too wide and shifted": "constant",
    "worse for bright objects": "varying",
    "skewed": "PIT",
}


def fluxes(kind, seed, count=N):
    """PDFs of five coinciding Gaussians (the hardest case for a skewed shape) and true values off by `ERRORS`."""
    rng = np.random.default_rng(seed)
    snr, sigma = 10 ** rng.uniform(0.3, 2.5, count), np.exp(rng.normal(0, 1, count))
    mean, width = (torch.tensor(part)[:, None].expand(count, 5) for part in (snr * sigma, sigma))
    return Mixture(torch.zeros(count, 5).double(), mean, width), torch.tensor(
        snr * sigma - sigma * ERRORS[kind](rng, snr)
    )


def p_value(pdf, truth):
    return stats.kstest(pdf.cdf(truth).numpy(), "uniform").pvalue


def module_of(fit):
    module = MixtureCalibration().double()
    module.load_state_dict({name: value.double() for name, value in fit.values.items()})
    return module


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind == "skewed" else kind for kind in ERRORS]
)
def test_a_known_dishonesty_is_undone_on_other_objects(kind):
    count = MANY if kind == "skewed" else N
    pdf, truth = fluxes(kind, seed=1, count=count)
    fit = fit_mixture(MixtureCalibration(), pdf, truth, torch.arange(count) % 2 == 0)
    assert fit.form == FORMS[kind]
    other, other_truth = fluxes(kind, seed=12)
    calibrated = module_of(fit)(other)
    if kind == "honest":
        assert calibrated is other and p_value(other, other_truth) > 0.01
    else:
        assert p_value(other, other_truth) < 1e-6 < 0.01 < p_value(calibrated, other_truth)
    assert p_value(fit.after, truth) > 0.01, "each half under the fit to the other"


def test_a_bounded_redshift_pdf_stays_above_its_bound_and_becomes_honest():
    rng = np.random.default_rng(3)
    mean = torch.tensor(rng.uniform(0.02, 1.5, (N, 1)))
    sigma = torch.full((N, 1), 0.1).double()
    truth = torch.tensor(
        stats.truncnorm.rvs(-mean.numpy()[:, 0] / 0.16, np.inf, mean.numpy()[:, 0], 0.16, random_state=4)
    )
    pdf = Mixture(torch.zeros(N, 1).double(), mean, sigma, 0.0)
    fit = fit_mixture(MixtureCalibration(), pdf, truth, torch.arange(N) % 2 == 0)
    assert p_value(pdf, truth) < 1e-6 and p_value(fit.after, truth) > 0.01
    after = module_of(fit)(pdf)
    assert after.lower == 0.0 and float(after.cdf(torch.zeros(N)).max()) == 0.0


def test_a_few_wrong_labels_do_not_widen_all():
    pdf, truth = fluxes("honest", seed=5)
    truth[::50] += 200 * pdf.component_sigma[::50, 0]
    fit = fit_mixture(MixtureCalibration(), pdf, truth, torch.arange(N) % 2 == 0)
    assert float(fit.values["log_sigma"].abs().max()) < 0.05


def shears(seed, count=4000, response=0.7, spread=0.05):
    """g_hat = 0.7 g + 0.01 + noise of 0.2, said to be 0.1."""
    generator = torch.Generator().manual_seed(seed)
    truth = spread * torch.randn(count, 2, generator=generator)
    mean = response * truth + torch.tensor([0.02, 0.0]) + 0.2 * torch.randn(count, 2, generator=generator)
    tril = (0.1 * torch.eye(2)).expand(count, 1, 2, 2)
    return MultivariateMixture(torch.zeros(count, 1), mean[:, None], tril), truth


def test_response_bias_and_width_of_shears_are_undone_on_other_objects():
    pdf, truth = shears(0)
    tile = torch.arange(len(truth)) // 100
    fit = fit_shear(pdf, truth, tile % 2 == 0, tile)
    assert fit.form == "response"
    for name, value in (("m1", -0.3), ("m2", -0.3), ("c1", 0.02), ("c2", 0.0), ("width1", 2.0), ("width2", 2.0)):
        assert abs(fit.response[name] - value) < 4 * fit.response[f"{name}_err"], name
        nominal = 1.0 if name.startswith("width") else 0.0
        assert abs(fit.corrected[name] - nominal) < 4 * fit.corrected[f"{name}_err"], name
    module = ShearCalibration()
    module.load_state_dict(fit.values)
    other, other_truth = shears(1)
    after = module(other)
    pull = (after.mean() - other_truth) / after.covariance().diagonal(dim1=-2, dim2=-1).sqrt()
    assert abs(float(pull.std()) - 1) < 0.05
    slope = float((after.mean() * other_truth).sum() / other_truth.square().sum())
    assert abs(slope - 1) < 4 * 0.3 / (0.05 * 8000**0.5) + 0.1


@pytest.mark.parametrize("wrong, reason", [({"spread": 0.0}, "do not vary"), ({"response": 0.0}, "does not follow")])
def test_a_shear_that_tells_nothing_is_left_alone_and_said(wrong, reason):
    pdf, truth = shears(0, count=1000, **wrong)
    tile = torch.arange(len(truth)) // 50
    fit = fit_shear(pdf, truth, tile % 2 == 0, tile)
    assert fit.form == "identity" and reason in fit.reason
    assert not any(value.any() for value in fit.values.values())


def test_novelty_is_a_mahalanobis_distance_with_one_in_a_thousand_above_1():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.tensor([[3.0, 0, 0], [2.9, 0.5, 0], [0, 0, 100]])

    def draw(count):
        return torch.randn(count, 3, generator=generator) @ mixing.T + 7

    known = draw(20_000)
    distance = Distance(3)
    assert torch.isnan(distance(known)).all()
    distance.load_state_dict(fit_novelty(known, torch.arange(len(known)) % 2 == 0))
    share = float((distance(draw(100_000)) > 1).float().mean())
    assert 0.0005 < share < 0.0017
    # within the range of each feature alone, but where the first two disagree as they never do
    strange = torch.tensor([[7 + 3.0, 7 - 3.0, 7.0]])
    assert float(distance(strange)) > 1
