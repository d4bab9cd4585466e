"""Redshift figures against numbers by hand and SciPy; n(z); what is left out is counted."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
from honest_pdfs import catalogue, honest
from scipy import stats

from deepdisc.evaluation.bootstrap import Resampling
from deepdisc.evaluation.photoz import point_metrics, score_redshifts
from deepdisc.evaluation.redshift_distribution import redshift_distribution
from deepdisc.files import write_json

POINT = ("bias", "sigma_nmad", "sigma_iqr", "eta_15", "eta_iqr")


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


# ------------------------------------------------------------------------------------------------------------- summary
@pytest.fixture(scope="module")
def scored():
    """600 objects whose scatter grows with magnitude, half of it known to z_odds."""
    weights, means, sigmas, z = honest(600)
    rng = np.random.default_rng(4)
    pred = catalogue(weights, means, sigmas)
    magnitude = rng.uniform(20, 25, 600)
    noise = 0.01 + 0.03 * (magnitude - 20)
    pred["z_mode"] = z + noise * (1 + z) * rng.normal(size=600)
    pred["z_odds"] = np.clip(1.2 - 5 * noise + rng.normal(0, 0.05, 600), 0, 1)
    pred["score"] = rng.uniform(0.3, 1, 600)
    truth = pd.DataFrame({"redshift": z, "mag_i": magnitude})
    return pred, truth, score_redshifts(pred, truth, magnitude="mag_i", resampling=Resampling(30))


def test_every_figure_has_an_error_and_an_interval(scored):
    pred, truth, result = scored
    for name in (*POINT, "crps", "cde_loss", "pit_ks", "pit_cvm", "pit_ad", "coverage_68", "coverage_hdi_95"):
        assert result[f"{name}_err"] >= 0 and result[f"{name}_low"] <= result[f"{name}_high"], name
    assert result["n"] == result["pdf"]["n"] == result["by_estimate"]["z_mode"]["n"] == 600
    expected = point_metrics(pred["z_mode"].to_numpy(), truth["redshift"].to_numpy())
    assert {name: result[name] for name in POINT} == expected


@pytest.mark.parametrize("name", ["by_magnitude", "by_redshift", "by_predicted_redshift", "by_score", "by_odds"])
def test_tables_hold_every_object_once(scored, name):
    _, _, result = scored
    for part in (result[name], result["pdf"][name]):
        assert sum(row["n"] for row in part) == 600 and len(part) > 2
        assert all(row["from"] <= row["median"] < row["to"] for row in part)
    assert all(np.isfinite(row["sigma_nmad_err"]) for row in result[name])
    assert all(np.isfinite(row["crps_err"]) for row in result["pdf"][name])


def test_a_table_by_hand(scored):
    pred, truth, result = scored
    row = result["by_magnitude"][3]
    inside = truth["mag_i"].between(row["from"], row["to"], inclusive="left")
    expected = point_metrics(pred["z_mode"][inside].to_numpy(), truth["redshift"][inside].to_numpy())
    assert row["n"] == inside.sum() and row["sigma_nmad"] == expected["sigma_nmad"]
    assert result["by_magnitude"][0]["sigma_nmad"] < 0.3 * result["by_magnitude"][-1]["sigma_nmad"]


def test_cutting_on_odds_buys_precision(scored):
    pred, truth, result = scored
    rows = result["odds_cut"]["rows"]
    assert [row["n"] for row in rows][:4] == [600, 570, 540, 480]
    assert rows[0]["sigma_nmad"] == result["sigma_nmad"]
    assert rows[-1]["sigma_nmad"] < 0.5 * rows[0]["sigma_nmad"]
    best = pred["z_odds"].to_numpy() >= rows[5]["threshold"]
    # Ties at the threshold (odds of exactly 1) may add a few.
    assert best.sum() >= rows[5]["n"]
    assert not score_redshifts(pred.drop(columns="z_odds"), truth, resampling=Resampling(2))["odds_cut"]["available"]


def test_the_whole_is_json(scored, tmp_path):
    _, _, result = scored
    write_json(tmp_path / "x.json", {k: v for k, v in result.items() if k != "arrays"})
    assert json.loads((tmp_path / "x.json").read_text())["pdf"]["histogram"]["n"] == 600


def test_summary_counts_what_it_leaves_out():
    weights, means, sigmas, z = honest(50)
    pred = catalogue(weights, means, sigmas)
    pred.loc[3, "z_mode"] = np.nan
    pred.loc[4, "z_mode"] = -1.0
    pred.loc[5:9, "flags"] = 4
    pred["z_mean"] = pred["z_mode"].where(np.arange(50) > 9)
    truth = pd.DataFrame({"redshift": z})
    truth.loc[:1, "redshift"] = np.nan
    truth.loc[2, "redshift"] = -9.0
    result = score_redshifts(pred, truth, n_unmatched=7, resampling=Resampling(20))
    assert result["n"] == 45
    assert list(result["excluded"].values()) == [7, 2, 1, 2]
    assert result["by_flag"]["MASKED"]["n"] == 5 and "sigma_nmad_err" in result["by_flag"]["MASKED"]
    assert result["estimate"] == "z_mode" and result["pdf"]["n"] == 45
    assert result["by_estimate"]["z_mean"]["n"] == 40  # its gaps are its own


def test_no_truth_or_no_prediction_says_why():
    pred = catalogue(*honest(3)[:3])
    assert "truth has no redshifts" in score_redshifts(pred, pd.DataFrame({"x": [1, 2, 3]}))["reason"]
    assert score_redshifts(pred[:0], pd.DataFrame({"redshift": np.zeros(0)}))["reason"] == "nothing is matched"
    reason = score_redshifts(pd.DataFrame({"x": [1.0]}), pd.DataFrame({"redshift": [0.3]}))["reason"]
    assert "none of the columns" in reason


def test_point_estimates_without_pdfs():
    rng = np.random.default_rng(0)
    z = rng.uniform(0.1, 1.5, 200)
    pred = pd.DataFrame({"z_mean": z + 0.02 * rng.normal(size=200)})
    result = score_redshifts(pred, pd.DataFrame({"redshift": z}), resampling=Resampling(5))
    assert result["available"] and result["estimate"] == "z_mean" and not result["pdf"]["available"]
    assert "no PDF columns" in result["pdf"]["reason"] and "crps" not in result
    assert result["distribution"]["stacked"] == "point estimates"


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_objects(n, tmp_path):
    weights, means, sigmas, z = honest(4)
    pred = catalogue(weights, means, sigmas).assign(z_odds=0.9, score=0.5)
    pred.loc[n:, "z_mode"] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = score_redshifts(
            pred, pd.DataFrame({"redshift": z, "mag_i": 20.0}), magnitude="mag_i", resampling=Resampling(10)
        )
    result.pop("arrays")
    result["pdf"].pop("pit", None)
    write_json(tmp_path / "x.json", result)
    stored = json.loads((tmp_path / "x.json").read_text())
    assert stored["n"] == n and (stored["bias"] is None) == (n == 0) and (stored["bias_err"] is None) == (n < 2)
    assert len(stored.get("by_magnitude", [])) == (n > 0)


def test_errors_over_fields_are_larger_where_fields_differ():
    rng = np.random.default_rng(2)
    field = np.repeat(np.arange(20), 30)
    z = rng.uniform(0.2, 1.2, 600)
    pred = pd.DataFrame({"z_mode": z + (1 + z) * (0.05 * rng.normal(size=20)[field] + 0.005 * rng.normal(size=600))})
    truth = pd.DataFrame({"redshift": z})
    by_object = score_redshifts(pred, truth, resampling=Resampling(60))
    by_field = score_redshifts(pred, truth, resampling=Resampling(60, blocks=field))
    assert by_field["bias"] == by_object["bias"]
    assert by_field["bias_err"] > 2 * by_object["bias_err"]


# ---------------------------------------------------------------------------------------------------------------- n(z)
def test_stacked_pdfs_by_hand():
    """Two objects, normal PDFs at 0.5 and 1.5, true redshifts 0.6 and 1.6: all of the bias is 0.1 / 2.1."""
    pred = catalogue(np.ones((2, 1)), np.array([[0.5], [1.5]]), np.full((2, 1), 0.1), np.nan)
    result = score_redshifts(pred, pd.DataFrame({"redshift": [0.6, 1.6]}), resampling=Resampling(5))["distribution"]
    whole = result["bins"][0]
    assert result["stacked"] == "PDFs" and (whole["n"], whole["from"]) == (2, None)
    assert whole["mean_stack"] == pytest.approx(1.0) and whole["mean_truth"] == pytest.approx(1.1)
    assert whole["mean_bias"] == pytest.approx(-0.1 / 2.1)
    assert whole["width_truth"] == pytest.approx(0.5) and whole["width_stack"] == pytest.approx(np.hypot(0.5, 0.1))
    assert whole["width_bias"] == pytest.approx((np.hypot(0.5, 0.1) - 0.5) / 2.1)
    edges = np.array(result["edges"])
    expected = np.diff([stats.norm.cdf(edges, mean, 0.1) for mean in (0.5, 1.5)]).mean(0)
    np.testing.assert_allclose(whole["stack"], expected, atol=1e-9)
    assert np.flatnonzero(whole["truth"]).tolist() == [np.searchsorted(edges, z) - 1 for z in (0.6, 1.6)]
    assert sum(whole["truth"]) == pytest.approx(1)


def test_stacks_of_honest_pdfs_are_unbiased_in_every_bin():
    weights, means, sigmas, z = honest(4000, seed=8)
    pred = catalogue(weights, means, sigmas)
    result = score_redshifts(pred, pd.DataFrame({"redshift": z}), resampling=Resampling(60))["distribution"]
    assert [row["n"] for row in result["bins"]] == [4000] + [800] * 5
    for row in result["bins"]:
        assert abs(row["mean_bias"]) < 4 * row["mean_bias_err"]
        assert abs(row["width_bias"]) < 4 * row["width_bias_err"]
        assert row["mean_bias_low"] < row["mean_bias"] < row["mean_bias_high"]
        pull = np.subtract(row["stack"], row["truth"]) / np.maximum(row["truth_err"], 1e-3)
        assert np.abs(pull).max() < 6
    assert max(row["mean_bias_err"] for row in result["bins"][1:]) > result["bins"][0]["mean_bias_err"]


def test_error_of_the_mean_of_n_of_z():
    rng = np.random.default_rng(3)
    z = rng.normal(1.0, 0.2, 2000)
    result = redshift_distribution(z + rng.normal(0, 0.1, 2000), z, None, resampling=Resampling(200))["bins"][0]
    assert result["mean_bias_err"] == pytest.approx(0.1 / np.sqrt(2000) / 2, rel=0.2)
    assert result["mean_truth_err"] == pytest.approx(0.2 / np.sqrt(2000), rel=0.2)
    assert result["width_stack"] == pytest.approx(np.hypot(0.2, 0.1), rel=0.05)


def test_tomographic_edges_can_be_given():
    z = np.linspace(0.05, 1.95, 100)
    result = redshift_distribution(z, z, None, edges=np.array([0.0, 0.5, 2.0]), resampling=Resampling(3))
    assert [(row["from"], row["to"], row["n"]) for row in result["bins"]] == [
        (None, None, 100),
        (0, 0.5, 24),
        (0.5, 2, 76),
    ]
    assert all(row["mean_bias"] == row["ks"] == 0 for row in result["bins"])
