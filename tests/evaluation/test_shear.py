"""Shear biases that are put in come out; rings cancel shapes; the two-point function equals a sum over all pairs."""

import json
import sys
import warnings

import numpy as np
import pandas as pd
import pytest

from deepdisc.evaluation.bootstrap import Resampling
from deepdisc.evaluation.shear import average_pairs, bias_metrics, residual_rmse, score_shear
from deepdisc.evaluation.shear_correlation import residual_correlation
from deepdisc.files import write_json


def galaxies(n=20_000, m=(0.0, 0.0), c=(0.0, 0.0), alpha=0.0, noise=0.25, fields=20, seed=0):
    """n galaxies in fields of constant shear, each field with its own PSF."""
    rng = np.random.default_rng(seed)
    field = np.arange(n) % fields
    truth = pd.DataFrame({"field": [f"{i:03d}" for i in field]})
    truth["ra"], truth["dec"] = rng.uniform(150.0, 150.5, n), rng.uniform(2.0, 2.5, n)
    truth["mag_i"] = rng.uniform(20, 25, n)
    pred = pd.DataFrame(index=range(n))
    for i in (1, 2):
        truth[f"g{i}"] = rng.uniform(-0.05, 0.05, fields)[field]
        pred[f"psf_e{i}"] = rng.normal(0, 0.05, fields)[field]
        pred[f"g{i}"] = (1 + m[i - 1]) * truth[f"g{i}"] + c[i - 1] + alpha * pred[f"psf_e{i}"]
        pred[f"g{i}"] += rng.normal(0, noise, n)
    return pred, truth


def test_a_line_through_five_points_by_hand():
    g = np.array([-0.02, -0.01, 0.0, 0.01, 0.02])
    zero, one = np.zeros(5), np.ones(5)
    result = bias_metrics(1.03 * g + 0.004, 0.98 * g - 0.002, g, g, one)
    assert result == pytest.approx({"m1": 0.03, "c1": 0.004, "m2": -0.02, "c2": -0.002, "m": 0.005, "c": 0.001})
    e = np.array([0.1, -0.1, 0.05, 0.0, 0.02])
    leaking = bias_metrics(1.03 * g + 0.004 + 0.06 * e, g, g, g, one, e, e)
    assert leaking["alpha1"] == pytest.approx(0.06) and leaking["m1"] == pytest.approx(0.03)
    assert leaking["alpha2"] == pytest.approx(0, abs=1e-12)
    constant = bias_metrics(zero + 0.013, zero + 0.003, zero + 0.01, zero, one)  # 0.003 is m, or c, or both
    assert np.isnan(constant["m1"]) and np.isnan(constant["c1"])
    assert np.isnan(constant["m2"]) and constant["c2"] == pytest.approx(0.003)
    following = bias_metrics(1.03 * g, g, g, g, one, 2 * g, 2 * g)  # the PSF follows the shear: nothing can be told
    assert np.isnan(following["m1"]) and np.isnan(following["alpha1"])


def test_weights_by_hand():
    g = np.array([0.0, 0.01, 0.0, 0.01])
    observed = np.array([0.0, 0.011, 0.0, 0.013])
    assert bias_metrics(observed, g, g, g, np.array([1.0, 1, 1, 1]))["m1"] == pytest.approx(0.2)
    assert bias_metrics(observed, g, g, g, np.array([1.0, 3, 1, 1]))["m1"] == pytest.approx(0.15)


def test_bias_and_leakage_are_recovered_within_their_errors():
    pred, truth = galaxies(60_000, m=(0.04, -0.03), c=(0.002, -0.001), alpha=0.08, noise=0.1, fields=60)
    result = score_shear(pred, truth, magnitude="mag_i", resampling=Resampling(100))
    assert result["n"] == result["n_galaxies"] == 60_000 and result["resampled"] == "fields"
    expected = {"m1": 0.04, "m2": -0.03, "c1": 0.002, "c2": -0.001, "alpha1": 0.08, "alpha2": 0.08, "m": 0.005}
    for name, value in expected.items():
        assert abs(result[name] - value) < 4 * result[f"{name}_err"], name
        assert result[f"{name}_jackknife_err"] == pytest.approx(result[f"{name}_err"], rel=0.5), name
    # The formula of a straight line: noise / (sqrt(N) spread of the shear).
    assert result["m1_err"] == pytest.approx(0.1 / np.sqrt(60_000) / truth["g1"].std(), rel=0.35)
    assert sum(row["n"] for row in result["by_magnitude"]) == 60_000 and len(result["by_magnitude"]) == 5
    assert all("m1_err" in row and "alpha2" in row for row in result["by_magnitude"])


def test_errors_cover_the_truth_as_often_as_they_say():
    pulls = []
    for seed in range(40):
        pred, truth = galaxies(3000, noise=0.1, fields=30, seed=seed)
        result = score_shear(
            pred.drop(columns=["psf_e1", "psf_e2"]), truth.drop(columns=["ra", "dec"]), resampling=Resampling(40)
        )
        pulls += [result["m1"] / result["m1_err"], result["c2"] / result["c2_err"]]
    assert 0.75 < np.std(pulls) < 1.35


def test_rings_cancel_shapes():
    """A shape of 0.25 and its turned twin average out: what is left is the measurement's noise of 0.001."""
    rng = np.random.default_rng(2)
    n = 3000
    shape = rng.normal(0, 0.25, (2, n))
    pair = np.arange(n)
    frames = []
    for sign in (1, -1):
        truth = pd.DataFrame({"g1": rng.uniform(-0.02, 0.02, n), "g2": 0.01 * np.sin(pair), "pair_id": pair})
        if sign < 0:
            truth[["g1", "g2"]] = frames[0][1][["g1", "g2"]].to_numpy()
        pred = pd.DataFrame({"g1": 1.01 * truth["g1"] + sign * shape[0], "g2": truth["g2"] + sign * shape[1]})
        frames.append((pred + rng.normal(0, 0.001, (n, 2)), truth))
    pred, truth = (pd.concat([part[side] for part in frames], ignore_index=True) for side in (0, 1))
    keep = np.arange(2 * n) != 17  # one twin is missing: its partner must go, too
    result = score_shear(pred[keep], truth[keep].reset_index(drop=True), resampling=Resampling(50))
    assert result["rings_averaged"] and result["n"] == n - 1 and result["n_galaxies"] == 2 * n - 2
    assert result["excluded"]["without the other members of the ring"] == 1
    assert result["m1_err"] < 0.003 and abs(result["m1"] - 0.01) < 4 * result["m1_err"]
    alone = score_shear(
        pred[keep], truth[keep].drop(columns="pair_id").reset_index(drop=True), resampling=Resampling(50)
    )
    assert alone["m1_err"] > 50 * result["m1_err"]


def test_galaxies_of_no_ring_are_not_averaged():
    pred, truth = galaxies(400, fields=10)
    plain = score_shear(pred, truth, resampling=Resampling(5))
    for pair in (-1, np.nan, np.arange(400)):
        result = score_shear(pred, truth.assign(pair_id=pair), resampling=Resampling(5))
        assert result["n"] == 400 and not result["rings_averaged"] and result["m1"] == plain["m1"]


def test_rings_by_hand():
    columns = np.array([[1.0, 3.0, 10.0, 5.0, 7.0], [0.0, 0.0, 9.0, 2.0, 4.0]])
    means, first, left_out = average_pairs(columns, np.array([4, 4, 8, 9, 9]))
    assert means.tolist() == [[2.0, 6.0], [0.0, 3.0]] and first.tolist() == [0, 3] and left_out == 1


def test_rmse_is_told_with_the_number_averaged():
    rng = np.random.default_rng(0)
    rows = residual_rmse(rng.normal(0.001, 0.25, (2, 50_000)))
    assert [row["n_averaged"] for row in rows] == [1, 10, 100, 1000, 10_000]
    for row in rows[:4]:
        assert row["rmse"] == pytest.approx(np.hypot(0.25 / np.sqrt(row["n_averaged"]), 0.001), abs=4 * row["rmse_err"])
    assert residual_rmse(np.array([[3.0, 4.0], [0.0, 0.0]]))[0]["rmse1"] == pytest.approx(np.sqrt(12.5))
    assert residual_rmse(np.zeros((2, 0))) == []


def test_weights_come_from_errors_and_bad_rows_are_counted():
    pred, truth = galaxies(400, noise=0.01, fields=10)
    pred["g1_err"] = pred["g2_err"] = np.where(np.arange(400) < 200, 0.01, 1e3)
    pred.loc[200:, ["g1", "g2"]] = 5.0  # nonsense, and said to be
    pred.loc[0, "g1"] = np.nan
    pred.loc[1, "g1_err"] = pred.loc[1, "g2_err"] = 0.0
    result = score_shear(pred, truth, resampling=Resampling(20))
    assert result["excluded"]["without a predicted or a true shear, a weight or a PSF"] == 2
    assert abs(result["m1"]) < 0.2


def test_stars_are_no_galaxies_without_shear():
    pred, truth = galaxies(4000, m=(0.5, 0.5), noise=0.01)
    star = np.arange(4000) % 3 == 0
    truth["class_name"] = np.where(star, "star", "galaxy")
    truth.loc[star, ["g1", "g2"]] = 0.0
    result = score_shear(pred, truth, resampling=Resampling(20))
    assert result["n"] == (~star).sum() and result["excluded"]["stars"] == star.sum()
    assert abs(result["m1"] - 0.5) < 4 * result["m1_err"] and result["m1_err"] < 0.05


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_galaxies(n, tmp_path):
    pred, truth = galaxies(4, fields=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = score_shear(pred[:n], truth[:n], magnitude="mag_i", resampling=Resampling(5))
    write_json(tmp_path / "x.json", result)
    stored = json.loads((tmp_path / "x.json").read_text())
    assert stored["n"] == n and len(stored["rmse"]) == (n > 0)
    assert not stored["correlation"]["available"]


def test_catalogues_without_shear_say_so():
    pred, truth = galaxies(10)
    assert "true catalogue has no columns g1, g2" in score_shear(pred, truth[["ra"]])["reason"]
    assert "predicted and the true" in score_shear(pred[["psf_e1"]], truth[["ra"]])["reason"]


def test_few_fields_are_cut_into_areas():
    pred, truth = galaxies(2000, fields=2)
    assert score_shear(pred, truth, resampling=Resampling(5))["resampled"] == "areas of the sky"
    assert score_shear(pred, truth, resampling=Resampling(5))["n_blocks"] == 50
    nowhere = score_shear(pred, truth[["g1", "g2"]], resampling=Resampling(5))
    assert nowhere["resampled"] == "objects" and nowhere["n_areas"] == 50
    given = score_shear(pred, truth, resampling=Resampling(5, blocks=np.arange(2000) % 9))
    assert (given["resampled"], given["n_blocks"]) == ("given blocks", 9)


# -------------------------------------------------------------------------------------------------- two-point function
def brute_force(ra, dec, residual, edges):
    """xi+ and xi- by a sum over all pairs: position angles from North through East on a flat sky."""
    east, north = (ra - ra.mean()) * np.cos(np.radians(dec.mean())) * 60, (dec - dec.mean()) * 60
    i, j = np.triu_indices(len(ra), 1)
    dx, dy = east[j] - east[i], north[j] - north[i]
    angle, distance = np.arctan2(dx, dy), np.hypot(dx, dy)
    r = residual[0] + 1j * residual[1]
    plus = (r[i] * r[j].conj()).real
    minus = (r[i] * r[j] * np.exp(-4j * angle)).real
    place = np.digitize(distance, edges) - 1
    return [(plus[place == k].mean(), minus[place == k].mean(), int((place == k).sum())) for k in range(len(edges) - 1)]


def correlated_sky(n, seed=1, center=(30.0, -10.0)):
    """An E-mode wave whose crests lie 30 degrees from North towards East: a wrong parity shows in xi-."""
    rng = np.random.default_rng(seed)
    ra = center[0] + rng.uniform(-0.1, 0.1, n) / np.cos(np.radians(center[1]))
    dec = center[1] + rng.uniform(-0.1, 0.1, n)
    east, north = (ra - center[0]) * np.cos(np.radians(center[1])) * 60, (dec - center[1]) * 60
    wave = 0.02 * np.cos(1.3 * (north * np.cos(np.pi / 6) + east * np.sin(np.pi / 6)))
    residual = wave * np.array([[np.cos(np.pi / 3)], [np.sin(np.pi / 3)]])
    return pd.DataFrame({"ra": ra, "dec": dec}), residual


def test_two_point_function_equals_the_sum_over_all_pairs():
    pytest.importorskip("treecorr", reason="needs the extra `shear`")
    truth, residual = correlated_sky(1500)
    result = residual_correlation(truth, truth, residual, np.ones(1500), bins=5, range_arcmin=(1.0, 6.0))
    edges = np.array([result["rows"][0]["from"], *(row["to"] for row in result["rows"])])
    expected = brute_force(truth["ra"].to_numpy(), truth["dec"].to_numpy(), residual, edges)
    for row, (plus, minus, n) in zip(result["rows"], expected, strict=True):
        assert row["n"] == pytest.approx(n, rel=0.02)
        assert row["xip"] == pytest.approx(plus, abs=5e-6) and row["xim"] == pytest.approx(minus, abs=5e-6)
        assert row["xip_err"] > 0
    mirrored = brute_force(-truth["ra"].to_numpy(), truth["dec"].to_numpy(), residual, edges)
    assert max(abs(a[1] - b[1]) for a, b in zip(expected, mirrored, strict=True)) > 5e-5  # a wrong parity would show


def test_pairs_of_different_fields_do_not_count():
    pytest.importorskip("treecorr", reason="needs the extra `shear`")
    skies = [correlated_sky(300, seed) for seed in range(4)]
    truth = pd.concat([sky for sky, _ in skies], ignore_index=True).assign(field=np.repeat(list("abcd"), 300))
    residual = np.concatenate([part for _, part in skies], axis=1)
    options = {"bins": 4, "range_arcmin": (1.0, 6.0)}
    together = residual_correlation(truth, truth, residual, np.ones(1200), **options)
    apart = [residual_correlation(sky, sky, part, np.ones(300), **options) for sky, part in skies]
    assert together["n_fields"] == 4
    for i, row in enumerate(together["rows"]):
        parts = [part["rows"][i] for part in apart]
        n = np.array([part["n"] for part in parts])
        assert row["n"] == pytest.approx(n.sum(), rel=0.02)
        for name in ("xip", "xim"):
            assert row[name] == pytest.approx(np.sum([part[name] for part in parts] * n) / n.sum(), abs=5e-6)


def test_residuals_without_correlation():
    pytest.importorskip("treecorr", reason="needs the extra `shear`")
    pred, truth = galaxies(4000, noise=0.2, fields=1, seed=4)
    result = score_shear(pred, truth.drop(columns="field"), resampling=Resampling(5))["correlation"]
    pulls = [row[name] / row[f"{name}_err"] for row in result["rows"] for name in ("xip", "xim")]
    assert len(pulls) == 20 and np.abs(pulls).max() < 4.5


def test_without_treecorr_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "treecorr", None)
    truth, residual = correlated_sky(10)
    result = residual_correlation(truth, truth, residual, np.ones(10))
    assert not result["available"] and 'pip install "deepdisc[shear]"' in result["reason"]
