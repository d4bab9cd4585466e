"""Uncertainties against formulas, and their behaviour on samples of nothing, one and two."""

import json
import warnings

import numpy as np
import pytest
from scipy.stats import norm

from deepdisc.evaluation.bins import binned_fraction, binned_statistic, even_edges, quantile_edges
from deepdisc.evaluation.bootstrap import (
    Resampling,
    bootstrap,
    fraction,
    interval,
    jackknife_errors,
    named_fraction,
    paired_differences,
    quantiles,
    resampling_weights,
    sky_areas,
    with_errors,
)
from deepdisc.files import write_json


def mean(values, *others):
    return {"mean": float(values.mean()) if len(values) else float("nan")}


def test_wilson_interval_by_hand():
    n, k, z = 40, 33, norm.ppf(0.5 + 0.682689492 / 2)
    center = (k / n + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(k / n * (1 - k / n) / n + z**2 / (4 * n**2))
    result = fraction(np.arange(n) < k)
    assert result["value"] == k / n
    np.testing.assert_allclose([result["low"], result["high"], result["err"]], [center - half, center + half, half])
    assert named_fraction(np.arange(n) < k, "x")["x_low"] == result["low"]


def test_fraction_of_nothing_is_nan_not_zero():
    result = fraction(np.zeros(0, bool))
    assert np.isnan(result["value"]) and result["n"] == 0


def test_bootstrap_error_of_a_mean():
    values = np.random.default_rng(1).normal(0, 3, 400)
    result = with_errors(mean, values, resampling=Resampling(400, 2))
    assert result["mean_err"] == pytest.approx(3 / 20, rel=0.15)
    assert (result["mean_high"] - result["mean_low"]) / 2 == pytest.approx(3 / 20, rel=0.15)
    assert result["mean_low"] < result["mean"] < result["mean_high"]
    again = bootstrap(mean, values, resampling=Resampling(5, 2))
    np.testing.assert_array_equal(again["mean"], bootstrap(mean, values, resampling=Resampling(5, 2))["mean"])


def test_large_samples_are_resampled_less_often():
    values = np.random.default_rng(1).normal(size=100_000)
    assert len(bootstrap(mean, values, resampling=Resampling(200))["mean"]) == 50
    assert len(bootstrap(mean, values[:20_000], resampling=Resampling(200))["mean"]) == 200
    assert with_errors(mean, values)["mean_err"] == pytest.approx(1 / np.sqrt(1e5), rel=0.35)
    assert resampling_weights(100_000, Resampling(60)).shape == (50, 100_000)


def test_no_outlier_among_few_does_not_prove_that_there_are_none():
    few = with_errors(lambda v: {"eta_15": float((v > 9).mean()), "mean": float(v.mean())}, np.arange(8.0))
    expected = fraction(np.zeros(8, bool))
    assert (few["eta_15"], few["eta_15_low"], few["eta_15_high"]) == (0.0, 0.0, expected["high"])
    assert few["eta_15_err"] == expected["err"] > 0.04 and "eta_15_n" not in few


def test_bootstrap_keeps_columns_paired():
    values = np.random.default_rng(1).normal(size=50)
    samples = bootstrap(lambda a, b: {"d": np.abs(a - b).max()}, values, values, resampling=Resampling(10))
    assert (samples["d"] == 0).all()
    assert interval(np.linspace(0, 1, 1001)) == pytest.approx((0.025, 0.975))


def correlated(fields=40, members=25, seed=3):
    """Objects of one field share half of their variance: the mean's error is that of 40 fields, not of 1000 objects."""
    rng = np.random.default_rng(seed)
    field = np.repeat(np.arange(fields), members)
    return rng.normal(size=fields)[field] + rng.normal(size=len(field)), np.array([f"field {i}" for i in field])


def test_blocks_find_the_error_that_fields_share():
    values, field = correlated()
    expected = np.sqrt(1 / 40 + 1 / 1000)
    assert with_errors(mean, values, resampling=Resampling(400))["mean_err"] < 0.4 * expected
    assert with_errors(mean, values, resampling=Resampling(400, blocks=field))["mean_err"] == pytest.approx(
        expected, rel=0.25
    )
    assert jackknife_errors(mean, values, blocks=field)["mean"] == pytest.approx(expected, rel=0.25)


def test_jackknife_of_a_mean_is_its_standard_error():
    values = np.array([1.0, 2.0, 4.0, 9.0])
    errors = jackknife_errors(mean, values, blocks=np.arange(4))
    assert errors["mean"] == pytest.approx(values.std(ddof=1) / 2)


def test_weights_are_the_resamplings_of_the_bootstrap():
    values, field = correlated(6, 5)
    for blocks in (None, field):
        weights = resampling_weights(len(values), Resampling(7, 4, blocks))
        means = (weights @ values) / weights.sum(1)
        np.testing.assert_allclose(means, bootstrap(mean, values, resampling=Resampling(7, 4, blocks))["mean"], 1e-6)


def test_areas_are_compact_and_of_equal_numbers():
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 100, 4000), rng.uniform(0, 25, 4000)
    label = sky_areas(x, y, 16)
    assert np.bincount(label).tolist() == [250] * 16
    for area in range(16):  # 16 equal squares of side 12.5
        assert max(np.ptp(x[label == area]), np.ptp(y[label == area])) < 18
    assert set(sky_areas(np.array([0.0, 1.0]), np.array([0.0, np.nan]), 5)) == {0}


def test_common_scatter_cancels_in_a_paired_difference():
    rng = np.random.default_rng(5)
    shared, own = rng.normal(0, 10, 300), rng.normal(0, 0.1, 300)
    result = paired_differences(mean, [shared + own + 0.05], [shared], resampling=Resampling(300))["mean"]
    difference = result["difference"]
    assert result["a_err"] > 0.4  # alone, neither mean is known to better than 0.58
    assert difference["value"] == pytest.approx(0.05 + own.mean())
    assert difference["high"] - difference["low"] == pytest.approx(2 * 1.96 * 0.1 / np.sqrt(300), rel=0.2)
    assert difference["significant"] and result["n"] == 300
    equal = paired_differences(mean, [shared], [shared], resampling=Resampling(20))["mean"]["difference"]
    assert (equal["value"], equal["low"], equal["high"], equal["significant"]) == (0, 0, 0, False)


def test_ratios_of_scatters():
    rng = np.random.default_rng(6)
    truth = rng.normal(size=2000)
    result = paired_differences(
        lambda f, t: {"scatter": float(np.std(f - t))},
        [truth + rng.normal(0, 0.1, 2000)], [truth + rng.normal(0, 0.2, 2000)], [truth], ratios=("scatter",),
    )["scatter"]["difference"]  # fmt: skip
    assert result["kind"] == "ratio" and result["significant"]
    assert result["low"] < 0.5 < result["high"] and result["value"] == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_small_samples_give_null_and_no_warning(n, tmp_path):
    values = np.arange(float(n))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = with_errors(mean, values, resampling=Resampling(20))
        blocks = with_errors(
            mean, values, resampling=Resampling(20, blocks=np.zeros(n))
        )  # all of one field: no error is known
        jackknife = jackknife_errors(mean, values, blocks=np.zeros(n))
        difference = paired_differences(mean, [values], [values], resampling=Resampling(20))["mean"]
        rows = binned_statistic(values, np.array([-1.0, 5.0]), mean, values, resampling=Resampling(5))
    write_json(tmp_path / "x.json", {"a": result, "b": blocks, "c": jackknife, "d": difference, "e": rows})
    stored = json.loads((tmp_path / "x.json").read_text())
    assert stored["b"]["mean_err"] is stored["c"]["mean"] is None
    assert (stored["a"]["mean"] is None) == (n == 0)
    assert (stored["a"]["mean_err"] is None) == (stored["d"]["difference"]["low"] is None) == (n < 2)
    assert stored["d"]["difference"]["significant"] is False
    assert [row["n"] for row in stored["e"]] == ([n] if n else [])


def test_a_few_resamplings_without_a_figure_do_not_hide_its_error():
    values = np.array([1.0, *np.zeros(5)])  # about a third of the resamplings lack the one that matters

    def rare(chosen):
        return {"share": float((chosen == 1).mean()) if (chosen == 1).any() else float("nan")}

    assert np.isnan(with_errors(rare, values, resampling=Resampling(100))["share_err"])
    often = with_errors(rare, np.array([1.0, 1, 1, 1, 0, 0]), resampling=Resampling(100))
    assert often["share_err"] > 0


@pytest.mark.parametrize("n", [1, 2, 3, 10, 101])
def test_quantiles_are_those_of_numpy(n):
    values, shares = np.random.default_rng(n).normal(size=n), (0.0, 0.1587, 0.25, 0.5, 0.975, 1.0)
    np.testing.assert_allclose(quantiles(values, shares), np.quantile(values, shares), rtol=1e-12)
    assert np.isnan(quantiles(values[:0], shares)).all()


# ---------------------------------------------------------------------------------------------------------------- bins
def test_bins_hold_every_object_once():
    magnitudes = np.concatenate((np.random.default_rng(0).uniform(14.2, 25.0, 500), [12.0, 25.0]))
    edges = even_edges(magnitudes)
    rows = binned_fraction(magnitudes, magnitudes < 22, edges)
    assert sum(row["n"] for row in rows) == len(magnitudes)
    assert all(row["n"] >= 10 for row in rows)
    np.testing.assert_allclose(edges % 0.5, 0)
    assert even_edges(np.array([20.0])).tolist() == [20.0, 20.5]


def test_stray_values_do_not_empty_the_bins():
    values = np.concatenate((np.random.default_rng(0).normal(20, 1, 1000), [-3e6, 5e7]))
    edges = even_edges(values)
    rows = binned_fraction(values, values > 0, edges)
    assert sum(row["n"] for row in rows) == 1002 and 10 < len(rows) < 25


def test_equal_numbers_in_quantile_bins():
    values = np.random.default_rng(0).lognormal(size=100)
    edges = quantile_edges(values, 5)
    assert np.histogram(values, edges)[0].tolist() == [20] * 5
    assert len(quantile_edges(values[:15], 5)) == 2  # one bin: no bin of fewer than ten
    assert binned_fraction(np.full(7, 0.9), np.ones(7, bool), quantile_edges(np.full(7, 0.9)))[0]["n"] == 7
    assert len(quantile_edges(np.full(3, np.nan))) == len(even_edges(np.zeros(0))) == 0
    assert binned_fraction(np.zeros(0), np.zeros(0, bool), np.zeros(0)) == []
