"""Completeness, purity, pairs and equal purity on catalogues whose figures are known by construction."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from deepdisc.catalog import FLAGS
from deepdisc.evaluation.bootstrap import bootstrap, fraction, interval, with_errors
from deepdisc.evaluation.detection import (
    Assessor,
    at_equal_purity,
    binned_fraction,
    blended_pairs,
    even_edges,
    purity_curve,
    score_detections,
    threshold_for_purity,
)
from deepdisc.evaluation.match import Criterion

NEAR = Criterion("pixels", 1.0)


def row_of_objects(n, **columns):
    """n objects 50 pixels apart, boxes 8 pixels wide."""
    x = 50.0 * np.arange(n)
    return pd.DataFrame(
        {"x": x, "y": 0.0, "x_min": x - 3.5, "y_min": -3.5, "x_max": x + 4.5, "y_max": 4.5, **columns}
    )  # fmt: skip


def test_counts_by_hand():
    truth = row_of_objects(10, flags=[0] * 8 + [FLAGS["FAINT"].value] * 2)
    pred = pd.concat(
        (row_of_objects(10).iloc[[0, 1, 2, 3, 4, 5, 8]], row_of_objects(1).assign(y=500.0, y_min=496.5, y_max=504.5))
    )
    pred = pred.assign(score=0.9).reset_index(drop=True)
    result = Assessor(pred, truth, NEAR).assess()
    assert result.completeness == pytest.approx(6 / 8)
    assert result.purity == pytest.approx(6 / 7)  # the detection of a FAINT object counts neither way
    assert result.excused.sum() == 1
    metrics = score_detections(pred, truth, result, replicates=20)
    assert (metrics["n_truth"], metrics["n_matched"], metrics["n_false"], metrics["n_excused"]) == (8, 6, 1, 1)
    assert [metrics["false"][name] for name in ("n", "on_an_object", "on_sky")] == [1, 0, 1]
    assert metrics["position"]["dx"] == 0


def test_required_object_comes_before_a_faint_one():
    truth = pd.DataFrame({"x": [0.0, 0.4], "y": 0.0, "flags": [0, FLAGS["FAINT"].value]})
    result = Assessor(pd.DataFrame({"x": [0.4], "y": [0.0]}), truth, NEAR).assess()
    assert result.completeness == 1 and result.purity == 1 and not result.excused.any()


def test_one_faint_object_excuses_one_detection():
    truth = pd.DataFrame({"x": [0.0, 90.0], "y": 0.0, "flags": [FLAGS["FAINT"].value, 0]})
    pred = pd.DataFrame({"x": [0.0, 0.5, 90.0], "y": 0.0})
    assert Assessor(pred, truth, NEAR).assess().purity == pytest.approx(1 / 2)


def test_faint_object_with_another_outline_excuses_by_position():
    truth = row_of_objects(2, flags=[0, FLAGS["FAINT"].value])
    pred = truth.drop(columns="flags").copy()
    pred.loc[1, ["x_min", "x_max"]] = [46.0, 80.0]
    by_box = Criterion("iou", 0.5)
    assert Assessor(pred, truth, by_box).assess().purity == 0.5
    assert Assessor(pred, truth, by_box, excuse=Criterion("pixels", 2.0)).assess().purity == 1.0


def test_magnitude_limit_excuses_fainter_detections_only():
    truth = row_of_objects(3, mag_r=[18.0, 19.0, 23.0])
    pred = row_of_objects(5, mag_r=[18.0, 19.0, 23.0, 24.0, 17.0])
    required = truth["mag_r"].to_numpy() < 20
    result = Assessor(pred, truth, NEAR, required=required, mag_limit=("mag_r", 20.0)).assess()
    assert result.purity == pytest.approx(2 / 3)  # the false one of magnitude 17 counts, that of 24 does not


def test_wilson_interval_by_hand():
    n, k, z = 40, 33, norm.ppf(0.5 + 0.682689492 / 2)
    center = (k / n + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(k / n * (1 - k / n) / n + z**2 / (4 * n**2))
    result = fraction(np.arange(n) < k)
    assert result["value"] == k / n
    np.testing.assert_allclose([result["low"], result["high"], result["err"]], [center - half, center + half, half])


def test_fraction_of_nothing_is_nan_not_zero():
    result = fraction(np.zeros(0, bool))
    assert np.isnan(result["value"]) and result["n"] == 0


def test_bootstrap_error_of_a_mean():
    values = np.random.default_rng(1).normal(0, 3, 400)
    result = with_errors(lambda v: {"mean": v.mean()}, values, replicates=400, seed=2)
    assert result["mean_err"] == pytest.approx(3 / 20, rel=0.15)
    again = bootstrap(lambda v: {"mean": v.mean()}, values, replicates=5, seed=2)
    np.testing.assert_array_equal(
        again["mean"], bootstrap(lambda v: {"mean": v.mean()}, values, replicates=5, seed=2)["mean"]
    )


def test_bootstrap_keeps_columns_paired():
    values = np.random.default_rng(1).normal(size=50)
    samples = bootstrap(lambda a, b: {"d": np.abs(a - b).max()}, values, values, replicates=10)
    assert (samples["d"] == 0).all()
    assert interval(np.linspace(0, 1, 1001)) == pytest.approx((0.025, 0.975))


def test_bins_hold_every_object_once():
    magnitudes = np.concatenate((np.random.default_rng(0).uniform(14.2, 25.0, 500), [12.0, 25.0]))
    edges = even_edges(magnitudes)
    rows = binned_fraction(magnitudes, magnitudes < 22, edges)
    assert sum(row["n"] for row in rows) == len(magnitudes)
    assert all(row["n"] >= 10 for row in rows)
    np.testing.assert_allclose(edges % 0.5, 0)
    assert even_edges(np.array([20.0])).tolist() == [20.0, 20.5]


def test_blended_pairs_need_both_members():
    fwhm = 4.0
    truth = pd.DataFrame({"x": [0.0, 5.0, 100.0, 106.0, 200.0, 203.0, 300.0, 302.0, 400.0, 413.0], "y": 0.0})
    truth["snr"] = [50, 50, 50, 50, 50, 50, 50, 8, 50, 50]  # the fourth pair has a faint member, the fifth is wide
    pred = truth.iloc[[0, 1, 2, 5, 6, 7, 8, 9]][["x", "y"]].reset_index(drop=True)
    result = blended_pairs(truth, Assessor(pred, truth, NEAR).assess(), fwhm, closer_than=2.0)
    assert (result["n"], result["n_recovered"]) == (3, 1)
    assert result["recovered"] == pytest.approx(1 / 3)
    assert result["one_found"] == pytest.approx(2 / 3)
    assert [(row["from"], row["n"]) for row in result["by_separation"]] == [(0.5, 1), (1.0, 1), (1.5, 1)]


def graded(n_true, n_false, seed):
    """Scores of right detections above those of false ones on average."""
    rng = np.random.default_rng(seed)
    truth = row_of_objects(300, snr=np.linspace(3, 60, 300))
    right = truth.iloc[rng.choice(300, n_true, replace=False)][["x", "y"]].assign(score=rng.uniform(0.3, 1.0, n_true))
    false = pd.DataFrame({"x": rng.uniform(0, 15000, n_false), "y": 300.0, "score": rng.uniform(0.0, 0.6, n_false)})
    return pd.concat((right, false), ignore_index=True), truth


def test_equal_purity_cuts_the_less_pure_side():
    a, truth = graded(280, 120, 1)
    b, _ = graded(240, 30, 2)
    cut_a, cut_b, statement = at_equal_purity(a, b, truth, NEAR)
    assert statement["equal"] and statement["threshold_b"] is None and len(cut_b) == len(b)
    assert statement["purity_b"] == pytest.approx(240 / 270)
    assert statement["purity_a"] == pytest.approx(statement["purity_b"], abs=0.01)
    assert statement["purity_a"] >= statement["purity_b"]
    # Brute force: no lower score reaches that purity.
    lower = np.unique(a["score"][a["score"] < statement["threshold_a"]])
    purities = [Assessor(a, truth, NEAR).assess(a["score"].to_numpy() >= t).purity for t in lower]
    assert max(purities) < statement["purity_b"] + 0.005


def test_equal_purity_cuts_the_other_side_when_ours_is_purer():
    a, truth = graded(240, 30, 2)
    b, _ = graded(280, 120, 1)
    cut_a, cut_b, statement = at_equal_purity(a, b, truth, NEAR)
    assert len(cut_a) == len(a) and len(cut_b) < len(b)
    assert statement["threshold_a"] is None and "second" in statement["note"]


def test_purity_out_of_reach_is_said():
    a, truth = graded(100, 100, 3)
    a["score"] = 0.5
    b, _ = graded(100, 0, 4)
    _, _, statement = at_equal_purity(a, b, truth, NEAR)
    assert not statement["equal"] and "no score threshold" in statement["note"]
    assert threshold_for_purity(a, truth, NEAR, 0.9) is None


def test_purity_curve_rises_with_the_threshold():
    pred, truth = graded(280, 120, 5)
    curve = purity_curve(pred, truth, NEAR)
    assert curve["purity"].iloc[0] == pytest.approx(280 / 400)
    assert curve["purity"].iloc[-1] == 1.0
    assert (np.diff(curve["completeness"]) <= 0).all()


def test_cutting_by_score_matches_anew():
    truth = pd.DataFrame({"x": [0.0], "y": [0.0]})
    pred = pd.DataFrame({"x": [0.1, 0.5], "y": 0.0, "score": [0.2, 0.9]})
    assessor = Assessor(pred, truth, NEAR)
    assert assessor.assess().purity == 0.5
    assert assessor.assess(pred["score"].to_numpy() > 0.5).completeness == 1.0


def test_empty_truth_and_empty_prediction():
    none, some = row_of_objects(0, score=[]), row_of_objects(3, score=0.5)
    for pred, truth in ((none, some), (some, none), (none, none)):
        result = Assessor(pred, truth, NEAR).assess()
        metrics = score_detections(pred, truth, result, fwhm_pix=3.0, replicates=5)
        assert metrics["n_pred"] == len(pred) and metrics["n_truth"] == len(truth)
    assert np.isnan(metrics["completeness"]) and np.isnan(metrics["purity"])
