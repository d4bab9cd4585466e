"""Completeness, purity, pairs and equal purity on catalogues whose figures are known by construction."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest

from deepdisc.catalog import FLAGS
from deepdisc.evaluation.assessment import Assessor
from deepdisc.evaluation.blends import blend_members, blended_pairs, deblending, deblending_matrix
from deepdisc.evaluation.bootstrap import Resampling
from deepdisc.evaluation.classes import classification
from deepdisc.evaluation.detection import score_detections
from deepdisc.evaluation.false_detections import excess
from deepdisc.evaluation.match import Criterion
from deepdisc.evaluation.purity import at_equal_purity, purity_curve, threshold_for_purity
from deepdisc.files import write_json

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
    metrics = score_detections(pred, truth, result, resampling=Resampling(20))
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
        metrics = score_detections(pred, truth, result, fwhm_pix=3.0, resampling=Resampling(5))
        assert metrics["n_pred"] == len(pred) and metrics["n_truth"] == len(truth)
    assert np.isnan(metrics["completeness"]) and np.isnan(metrics["purity"])


# ---------------------------------------------------------------------------------------------------------- ten objects
def ten_objects():
    """Magnitudes 18 to 22.5; found: 0-5 and 7; false: two detections of magnitudes 22.1 and 22.2."""
    truth = row_of_objects(
        10, mag_r=18.0 + 0.5 * np.arange(10), snr=[100, 80, 60, 40, 25, 18, 12, 9, 6, 4], hlr_arcsec=[0.2, 0.9] * 5,
        blendedness=[0, 0, 0.05, 0.05, 0.4, 0.4, 0, 0, 0.6, 0.6], class_name=["star"] * 3 + ["galaxy"] * 6 + ["quasar"],
    )  # fmt: skip
    found = truth.iloc[[0, 1, 2, 3, 4, 5, 7]]
    pred = pd.concat((found, found.iloc[:2].assign(y=400.0, y_min=396.0, y_max=404.0, mag_r=[22.1, 22.2], snr=3.0)))
    pred["class_name"] = ["star", "star", "galaxy", "galaxy", "galaxy", "galaxy", "quasar", "star", "galaxy"]
    pred["score"] = 0.9
    return pred.reset_index(drop=True), truth


def scored(pred, truth, **options):
    return score_detections(pred, truth, Assessor(pred, truth, NEAR).assess(), resampling=Resampling(20), **options)


def test_completeness_curve_of_ten_objects():
    pred, truth = ten_objects()
    result = scored(pred, truth, magnitude="mag_r")
    assert (result["completeness"], result["completeness_n"]) == (0.7, 10)
    assert (result["purity"], result["purity_n"]) == (pytest.approx(7 / 9), 9)
    # Ten objects make one bin of magnitude; signal-to-noise has fixed ones.
    (row,) = result["by_magnitude"]["completeness"]
    assert (row["from"], row["to"], row["n"], row["n_found"]) == (18.0, 23.0, 10, 7)
    rows = {row["from"]: (row["n_found"], row["n"]) for row in result["by_snr"]["completeness"]}
    assert rows == {
        0: (0, 1),
        5: (0, 1),
        7: (1, 1),
        10: (0, 1),
        15: (1, 1),
        20: (1, 1),
        30: (1, 1),
        50: (2, 2),
        100: (1, 1),
    }
    rows = {row["from"]: (row["n_found"], row["n"]) for row in result["by_blendedness"]["completeness"]}
    assert rows == {0: (3, 4), 0.03: (2, 2), 0.3: (2, 2), 0.5: (0, 2)}
    assert result["by_size"]["column"] == "hlr_arcsec" and result["by_size"]["completeness"][0]["n"] == 10
    low_snr = result["by_snr"]["purity"][0]
    assert (low_snr["from"], low_snr["n_found"], low_snr["n"]) == (0, 0, 2)


def test_confusion_of_ten_objects():
    pred, truth = ten_objects()
    result = scored(pred, truth, magnitude="mag_r")["classification"]
    assert result["counts"] == {
        "galaxy": {"galaxy": 3, "quasar": 1, "star": 0}, "star": {"galaxy": 1, "quasar": 0, "star": 2}
    }  # fmt: skip
    assert result["missed"] == {"galaxy": 2, "quasar": 1, "star": 0}
    assert result["false"] == {"galaxy": 1, "quasar": 0, "star": 1}
    assert (result["accuracy"], result["n"]) == (pytest.approx(5 / 7), 7)
    star, galaxy, quasar = (result["classes"][name] for name in ("star", "galaxy", "quasar"))
    assert (star["completeness"], star["recall"], star["purity"]) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert (galaxy["completeness"], galaxy["recall"], galaxy["purity"]) == pytest.approx((3 / 6, 3 / 4, 3 / 5))
    assert quasar["completeness"] == quasar["purity"] == 0 and np.isnan(quasar["recall"])
    (row,) = result["by_magnitude"]
    assert (row["n"], row["n_found"]) == (7, 5)


def test_numbers_and_words_for_the_same_classes():
    truth = row_of_objects(3, class_id=[0, 1, 2])
    pred = row_of_objects(3, class_name=["GALAXY", "Stars", "QSO"])
    result = classification(pred, truth, Assessor(pred, truth, NEAR).assess(), None)
    assert result["accuracy"] == 1.0 and set(result["classes"]) == {"galaxy", "star", "quasar"}
    assert not classification(pred[["x", "y"]], truth, Assessor(pred, truth, NEAR).assess(), None)["available"]


# -------------------------------------------------------------------------------------------------------------- blends
def test_deblending_by_hand():
    """Blends of 1, 2, 2 and 3 objects seen as 1, 1, 2 and 4; one detection of nothing; one object missed."""
    x = [0.0, 100, 103, 200, 204, 300, 303, 306, 400]
    truth = pd.DataFrame({"x": x, "y": 0.0})
    pred = pd.DataFrame({"x": [0.0, 101, 200, 204, 300, 302, 304, 306, 500], "y": 0.0})
    result = deblending(pred, truth, Assessor(pred, truth, NEAR).assess(), fwhm_pix=2.5)
    assert result["counts"][0][1] == 1 and result["counts"][1][:2] == [1, 1]
    assert result["counts"][2][1:3] == [1, 1] and result["counts"][3][4] == 1
    assert np.sum(result["counts"]) == 6
    one, two, three = result["rows"]
    assert (one["n"], one["right"], one["merged"], one["shredded"]) == (2, 0.5, 0.5, 0)
    assert (two["n"], two["right"], two["merged"]) == (2, 0.5, 0.5) and two["right_low"] < 0.5 < two["right_high"]
    assert (three["n"], three["shredded"]) == (1, 1.0)


def test_blends_leave_out_what_does_not_count():
    truth = pd.DataFrame({"x": [0.0, 3.0, 50.0], "y": 0.0, "flags": [0, FLAGS["FAINT"].value, 0]})
    pred = pd.DataFrame({"x": [0.0, 3.0, 50.0, 90.0], "y": 0.0})
    n_truth, n_pred = blend_members(pred, truth, Assessor(pred, truth, NEAR).assess(), 5.0)
    assert sorted(zip(n_truth.tolist(), n_pred.tolist(), strict=True)) == [(0, 1), (1, 1), (1, 1)]


def test_blends_of_different_fields_are_apart():
    truth = pd.DataFrame({"x": [0.0, 1.0], "y": 0.0, "field": ["a", "b"]})
    n_truth, n_pred = blend_members(truth, truth, Assessor(truth, truth, NEAR).assess(), 5.0)
    assert n_truth.tolist() == n_pred.tolist() == [1, 1]


def test_large_blends_join_the_last_row():
    result = deblending_matrix(np.array([9, 2]), np.array([8, 2]), most=4)
    assert result["counts"][4][4] == 1 and result["rows"][1]["merged"] == 1.0  # 8 of 9: merged, though both are "4"


# ----------------------------------------------------------------------------------------------------- false detections
def test_false_detections_crowd_around_stars_and_edges():
    """Of 1000 false ones 300 lie 10 to 20 pixels from one of ten stars, 200 within 5 pixels of the left edge."""
    rng = np.random.default_rng(0)
    shape = (1000, 2000)
    star = rng.uniform(200, 800, (10, 2)) * [2, 1]
    angle, radius = rng.uniform(0, 2 * np.pi, 300), rng.uniform(10, 20, 300)
    near = star[np.arange(300) % 10] + radius[:, None] * np.stack((np.cos(angle), np.sin(angle)), 1)
    edge = np.stack((rng.uniform(-0.5, 4.5, 200), rng.uniform(0, 999, 200)), 1)
    places = np.concatenate((near, edge, rng.uniform(0, 1, (500, 2)) * [1999, 999]))
    pred = pd.DataFrame(places, columns=["x", "y"])
    truth = pd.DataFrame(star, columns=["x", "y"]).assign(y=lambda t: t["y"], class_name="star", mag_r=16.0)
    faint = truth.assign(x=truth["x"] + 60, mag_r=20.0)
    truth = pd.concat((truth, faint), ignore_index=True)
    result = excess(
        pred, truth, Assessor(pred, truth, Criterion("pixels", 1e-3)).assess(), magnitude="mag_r", shape=shape
    )
    assert result["n"] == 1000 and result["n_bright_stars"] == 10
    ring = next(row for row in result["near_stars"] if row["from"] == 10)
    expected = 1000 * 10 * np.pi * (20**2 - 10**2) / 2e6
    assert ring["n"] >= 300 and ring["expected"] == pytest.approx(expected, rel=0.2)
    assert ring["excess_low"] < ring["n"] / ring["expected"] == ring["excess"] < ring["excess_high"]
    far = next(row for row in result["near_stars"] if row["from"] == 40)
    assert far["excess_low"] < 1.0
    border = result["near_edges"][0]
    assert border["n"] >= 200 and border["expected"] == pytest.approx(1000 * 5 * (2 * 3000 - 20) / 2e6, rel=0.1)


def test_without_bright_stars_the_reason_is_told():
    pred, truth = ten_objects()
    assessment = Assessor(pred, truth, NEAR).assess()
    result = excess(pred, truth, assessment, magnitude="mag_r", brighter_than=15)
    assert result["near_stars"] == [] and result["near_stars_reason"] == "no star is brighter than 15"
    assert "no magnitudes" in excess(pred, truth, assessment)["near_stars_reason"]
    assert excess(truth, truth, Assessor(truth, truth, NEAR).assess())["reason"] == "no detection is false"


# ----------------------------------------------------------------------------------------------------------------- IoU
def test_iou_of_matched_boxes_by_hand():
    truth = row_of_objects(3)
    pred = truth.copy()
    pred.loc[1, "x_max"] = pred.loc[1, "x_min"] + 4  # half of the box
    pred.loc[2, ["x_min", "x_max"]] += 4  # half of it, shifted: 1/3
    result = scored(pred, truth)["iou"]["boxes"]
    assert result["n"] == 3 and result["median"] == pytest.approx(0.5)
    edges, counts = result["histogram"]["edges"], np.array(result["histogram"]["counts"])
    assert [edges[i] for i in np.flatnonzero(counts)] == pytest.approx([0.3, 0.5, 0.95])
    assert not scored(pred, truth)["iou"]["outlines"]["available"]


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_detections(n, tmp_path):
    pred, truth = ten_objects()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = scored(pred[:n], truth[:n], magnitude="mag_r", fwhm_pix=3.0, shape=(500, 600))
    write_json(tmp_path / "x.json", result)
    stored = json.loads((tmp_path / "x.json").read_text())
    assert stored["completeness_n"] == n and (stored["completeness"] is None) == (n == 0)
    assert stored["iou"]["boxes"]["n"] == n and (stored["iou"]["boxes"]["median_err"] is None) == (n < 2)
    assert stored["deblending"]["available"] and len(stored["deblending"]["rows"]) == (n > 0)
