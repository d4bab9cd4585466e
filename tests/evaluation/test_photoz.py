"""Redshift figures against numbers by hand, SciPy and quadrature."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import integrate, stats

from deepdisc.errors import InputError
from deepdisc.evaluation.photoz import (
    anderson_darling,
    highest_density_level,
    mixture_of,
    pdf_metrics,
    pdf_scores,
    point_metrics,
    score_redshifts,
)
from deepdisc.mixture import Mixture


def catalogue(weights, means, sigmas, lower=0.0):
    mixture = Mixture.from_columns(weights, means, sigmas, lower)
    return pd.DataFrame(
        {
            "z_mode": mixture.mode().numpy(), "z_weights": list(weights), "z_means": list(means),
            "z_sigmas": list(sigmas), "z_lower": lower, "flags": 0,
        }
    )  # fmt: skip


def honest(n, seed=0, k=3):
    """Mixtures near the bound, and true redshifts drawn from them by rejection (not by the class under test)."""
    rng = np.random.default_rng(seed)
    weights, means, sigmas = (
        rng.dirichlet(np.ones(k), n),
        rng.uniform(-0.1, 1.5, (n, k)),
        rng.uniform(0.03, 0.4, (n, k)),
    )
    z = np.empty(n)
    for i in range(n):
        j = rng.choice(k, p=weights[i])
        z[i] = -1.0
        while z[i] < 0:
            z[i] = rng.normal(means[i, j], sigmas[i, j])
    return weights, means, sigmas, z


def test_point_metrics_by_hand():
    z_true = np.zeros(5)
    result = point_metrics(np.array([-0.01, 0.0, 0.02, 0.05, 0.50]), z_true)
    assert result["bias"] == pytest.approx(0.02)
    assert result["sigma_nmad"] == pytest.approx(1.4826 * 0.03)  # deviations .03 .02 0 .03 .48, median .03
    assert result["sigma_iqr"] == pytest.approx((0.05 - 0.0) / 1.349)
    assert result["eta_15"] == pytest.approx(1 / 5)
    assert result["eta_iqr"] == pytest.approx(1 / 5)  # beyond max(0.06, 3 * 0.0371)


def test_scatter_is_divided_by_one_plus_z():
    assert point_metrics(np.array([1.2]), np.array([1.0]))["bias"] == pytest.approx(0.1)


def test_gaussian_scatter_is_recovered():
    rng = np.random.default_rng(1)
    z = rng.uniform(0, 2, 20_000)
    result = point_metrics(z + 0.05 * (1 + z) * rng.normal(size=len(z)), z)
    assert result["sigma_nmad"] == pytest.approx(0.05, rel=0.03)
    assert result["sigma_iqr"] == pytest.approx(0.05, rel=0.03)
    assert result["eta_15"] == pytest.approx(2 * stats.norm.sf(3), rel=0.5)


def test_honest_pdfs_have_uniform_pit_and_nominal_coverage():
    weights, means, sigmas, z = honest(3000)
    metrics = pdf_metrics(**pdf_scores(Mixture.from_columns(weights, means, sigmas, 0.0), z))
    assert metrics["pit_ks"] < 1.63 / np.sqrt(3000)  # the 1 % point of Kolmogorov's distribution
    assert metrics["pit_ad"] < 3.86  # the 1 % point of Anderson and Darling's
    for name, level in (("68", 0.68), ("95", 0.95)):
        spread = 3 * np.sqrt(level * (1 - level) / 3000)
        assert metrics[f"coverage_{name}"] == pytest.approx(level, abs=spread)
        assert metrics[f"coverage_hdi_{name}"] == pytest.approx(level, abs=spread + 0.005)
    assert metrics["pit_outliers"] < 0.002


def test_overconfident_pdfs_are_found_out():
    weights, means, sigmas, z = honest(1000)
    metrics = pdf_metrics(**pdf_scores(Mixture.from_columns(weights, means, sigmas / 4, 0.0), z))
    limit = 0.68 - 5 * np.sqrt(0.68 * 0.32 / 1000)
    assert metrics["pit_ks"] > 2 * 1.63 / np.sqrt(1000)  # twice the 1 % point
    assert metrics["coverage_68"] < limit and metrics["coverage_hdi_68"] < limit


def test_crps_and_cde_loss_by_quadrature():
    weights, means, sigmas, z = honest(4, seed=3)

    def density(i, x):
        parts = stats.norm.pdf(x, means[i], sigmas[i]) / stats.norm.sf(0, means[i], sigmas[i])
        return float((weights[i] * parts).sum()) if x >= 0 else 0.0

    def cdf(i, x):
        below = stats.norm.cdf(0, means[i], sigmas[i])
        parts = (stats.norm.cdf(x, means[i], sigmas[i]) - below) / (1 - below)
        return float((weights[i] * parts).sum())

    scores = pdf_scores(Mixture.from_columns(weights, means, sigmas, 0.0), z)
    losses = []
    for i in range(4):
        crps = integrate.quad(lambda x, i=i: (cdf(i, x) - (x >= z[i])) ** 2, 0, 8, points=[z[i]], limit=400)[0]
        assert scores["crps"][i] == pytest.approx(crps, abs=1e-5)
        assert scores["pit"][i] == pytest.approx(cdf(i, z[i]), abs=1e-9)
        square = integrate.quad(
            lambda x, i=i: density(i, x) ** 2, 0, 8, points=list(np.clip(means[i], 0, 8)), limit=400
        )[0]
        losses.append(square - 2 * density(i, z[i]))
    assert pdf_metrics(**scores)["cde_loss"] == pytest.approx(np.mean(losses), abs=1e-5)


def test_anderson_darling_by_its_definition():
    u = np.sort(np.random.default_rng(2).beta(1.3, 1.0, 60))

    def integrand(x):
        return (np.searchsorted(u, x, side="right") / len(u) - x) ** 2 / (x * (1 - x))

    edges = np.concatenate(([0], u, [1]))
    expected = len(u) * sum(integrate.quad(integrand, a, b)[0] for a, b in zip(edges[:-1], edges[1:], strict=True))
    assert anderson_darling(u) == pytest.approx(expected, rel=1e-6)


def test_highest_density_level_of_a_normal():
    mixture = Mixture.from_columns(np.ones((3, 1)), np.full((3, 1), 1.0), np.full((3, 1), 0.1), None)
    level = highest_density_level(mixture, torch.tensor([1.0, 1.1, 1.3], dtype=torch.float64), points=1000)
    np.testing.assert_allclose(level, [0.0, 0.682689, 0.9973], atol=0.002)


def test_summary_counts_what_it_leaves_out():
    weights, means, sigmas, z = honest(50)
    pred = catalogue(weights, means, sigmas)
    pred.loc[3, "z_mode"] = np.nan
    pred.loc[5:9, "flags"] = 4
    truth = pd.DataFrame({"redshift": z})
    truth.loc[:1, "redshift"] = np.nan
    result = score_redshifts(pred, truth, n_unmatched=7, replicates=20)
    assert result["n"] == 47
    assert list(result["excluded"].values()) == [7, 2, 1]
    assert result["by_flag"]["MASKED"]["n"] == 5
    assert result["estimate"] == "z_mode"
    for name in ("bias", "sigma_nmad", "sigma_iqr", "eta_15", "eta_iqr", "crps", "cde_loss", "pit_ks", "coverage_68"):
        assert np.isfinite(result[name]) and result[f"{name}_err"] >= 0
    assert result["pdf"]["n"] == 47


def test_no_truth_or_no_prediction_says_why():
    pred = catalogue(*honest(3)[:3])
    assert "truth has no redshifts" in score_redshifts(pred, pd.DataFrame({"x": [1, 2, 3]}))["reason"]
    assert (
        "none of the columns"
        in score_redshifts(pd.DataFrame({"x": [1.0]}), pd.DataFrame({"redshift": [0.3]}))["reason"]
    )
    without_pdf = score_redshifts(pred[["z_mode"]], pd.DataFrame({"redshift": [0.1, 0.2, 0.3]}), replicates=5)
    assert without_pdf["available"] and not without_pdf["pdf"]["available"]


def test_bounds_come_from_the_catalogue():
    pred = catalogue(np.ones((2, 1)), np.zeros((2, 1)), np.ones((2, 1)))
    assert mixture_of(pred).lower == 0.0
    assert mixture_of(pred.assign(z_lower=np.nan)).lower is None
    assert mixture_of(pred).cdf(torch.tensor([0.6745, 0.0])).tolist() == pytest.approx([0.5, 0.0], abs=1e-4)
    with pytest.raises(InputError, match="same bound"):
        mixture_of(pred.assign(z_lower=[0.0, 0.1]))
