"""Fluxes, their errors, colours and the stellar locus: by hand, and on noise of known size."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from deepdisc.evaluation.bootstrap import Resampling
from deepdisc.evaluation.colours import colour_metrics, locus_width, score_colours
from deepdisc.evaluation.flux import bands_of, flux_metrics, pair_statistics, pull_metrics, score_fluxes, sigma_68
from deepdisc.files import write_json
from deepdisc.mixture import Mixture
from deepdisc.photometry import mag_from_njy


def sky(n=4000, seed=0, bias=1.0, understated=1.0):
    """Galaxies and stars in g, r, i; measured fluxes with 20 nJy of noise, times `bias`; errors / `understated`."""
    rng = np.random.default_rng(seed)
    star = rng.uniform(size=n) < 0.3
    color = rng.uniform(0.2, 1.2, n)
    truth = pd.DataFrame({"class_name": np.where(star, "star", "galaxy")})
    mag = {"r": rng.uniform(19, 24.5, n)}
    mag["g"] = mag["r"] + color
    mag["i"] = mag["r"] - np.where(star, 0.5 * color**2, rng.normal(0.4, 0.3, n))  # stars: a curve without width
    pred = pd.DataFrame(index=range(n))
    for band in "gri":
        truth[f"flux_{band}"] = 10 ** (0.4 * (31.4 - mag[band]))
        pred[f"flux_{band}"] = bias * truth[f"flux_{band}"] + rng.normal(0, 20, n)
        pred[f"fluxerr_{band}"] = 20.0 / understated
    return pred, truth


# --------------------------------------------------------------------------------------------------------------- fluxes
def test_ten_fluxes_by_hand():
    true = np.full(10, 100.0)
    flux = np.array([90, 95, 97, 99, 100, 102, 103, 104, 110, 150.0])
    result = flux_metrics(flux, true)
    assert result["bias"] == pytest.approx(0.01)  # between 100 and 102
    low, high = np.interp([9 * 0.1586552535, 9 * 0.8413447465], range(10), flux)  # NumPy's quantiles of ten values
    assert result["scatter"] == pytest.approx((high - low) / 200)
    pulls = pull_metrics((flux - true) / 10)
    assert pulls["pull_mean"] == pytest.approx(0.5) and pulls["pull_median"] == pytest.approx(0.1)
    assert pulls["pull_beyond_3"] == 0.1 and pulls["pull_beyond_5"] == 0.0  # the last is at exactly 5
    assert pulls["pull_ks"] == pytest.approx(stats.kstest((flux - true) / 10, "norm").statistic)


def test_width_of_a_normal_distribution_is_one():
    assert sigma_68(stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000)) == pytest.approx(1, abs=1e-4)


def test_honest_errors():
    pred, truth = sky()
    result = score_fluxes(pred, truth, resampling=Resampling(20))
    assert list(result["by_band"]) == ["g", "r", "i"]
    for band in result["by_band"].values():
        assert band["n"] == band["n_pull"] == 4000 and band["uncertainty"] == "errors"
        assert band["pull_width"] == pytest.approx(1, abs=0.05) and abs(band["pull_mean"]) < 4 / np.sqrt(4000)
        assert band["pull_beyond_3"] < 0.006 and band["pull_beyond_5"] == 0
        assert band["pull_ks"] < 1.63 / np.sqrt(4000) and band["pit_ks_p"] > 0.01
        assert abs(band["bias"]) < 4 * band["bias_err"] + 1e-4
        rows = band["by_magnitude"]
        assert sum(row["n"] for row in rows) == sum(row["n"] for row in band["pulls_by_magnitude"]) == 4000
        assert all(row["from"] % 0.5 == 0 for row in rows)
        # The relative scatter is the noise over the flux.
        row = rows[-2]
        assert row["scatter"] == pytest.approx(20 / 10 ** (0.4 * (31.4 - row["median"])), rel=0.2)


def test_bias_and_understated_errors_are_found():
    pred, truth = sky(bias=1.05, understated=2)
    band = score_fluxes(pred[truth["flux_r"] > 2000], truth[truth["flux_r"] > 2000], resampling=Resampling(20))[
        "by_band"
    ]["r"]
    assert band["bias"] == pytest.approx(0.05, abs=0.003)
    pred, truth = sky(understated=2)
    band = score_fluxes(pred, truth, resampling=Resampling(20))["by_band"]["r"]
    assert band["pull_width"] == pytest.approx(2, rel=0.05)
    assert band["pull_beyond_3"] == pytest.approx(2 * stats.norm.sf(1.5), rel=0.2)
    assert band["pit_ks_p"] < 1e-6


def test_pit_of_gaussian_errors_is_that_of_a_mixture_of_one():
    pred, truth = sky(n=300)
    errors = score_fluxes(pred, truth, bands=["r"], resampling=Resampling(5))["by_band"]["r"]
    pdfs = pred[["flux_r"]].assign(
        flux_weights_r=[[1.0]] * 300, flux_means_r=list(pred[["flux_r"]].to_numpy()), flux_sigmas_r=[[20.0]] * 300
    )
    mixture = score_fluxes(pdfs, truth, bands=["r"], resampling=Resampling(5))["by_band"]["r"]
    assert mixture["uncertainty"] == "PDFs"
    for name in ("pit_mean", "pit_ks", "pit_ad", "pull_mean", "pull_width", "pull_width_err"):
        assert mixture[name] == pytest.approx(errors[name], abs=1e-9), name


def test_pdfs_that_end_at_zero_flux():
    """True fluxes drawn from truncated normals have a flat PIT; their pulls are in units of the PDF's own width."""
    rng = np.random.default_rng(3)
    mean, sigma = rng.uniform(-20, 60, 2000), 30.0
    true = stats.truncnorm.rvs((0 - mean) / sigma, np.inf, loc=mean, scale=sigma, random_state=rng)
    pred = pd.DataFrame(
        {
            "flux_r": Mixture.from_columns(np.ones((2000, 1)), mean[:, None], np.full((2000, 1), sigma), 0.0).mean(),
            "flux_weights_r": [[1.0]] * 2000, "flux_means_r": list(mean[:, None]), "flux_sigmas_r": [[sigma]] * 2000,
            "flux_lower_r": 0.0,
        }
    )  # fmt: skip
    band = score_fluxes(pred, pd.DataFrame({"flux_r": true}), resampling=Resampling(5))["by_band"]["r"]
    assert band["pit_ks"] < 1.63 / np.sqrt(2000)
    assert abs(band["pull_mean"]) < 4 / np.sqrt(2000)


def test_exclusions_are_counted():
    truth = pd.DataFrame({"flux_r": [100.0, 100, 0, np.nan, 100]})
    pred = pd.DataFrame({"flux_r": [90.0, np.nan, 5, 80, -20], "fluxerr_r": [10.0, 10, 10, 10, 0]})
    band = score_fluxes(pred, truth, resampling=Resampling(5))["by_band"]["r"]
    assert (band["n"], band["n_pull"]) == (2, 2)  # a negative flux is a measurement; a true flux of 0 has a pull
    assert list(band["excluded"].values()) == [1, 2, 1]


def test_magnitudes_serve_where_there_are_no_fluxes():
    pred, truth = sky(n=200)
    magnitudes = pd.DataFrame({"mag_r": mag_from_njy(pred["flux_r"]), "mag_K": 20.0})
    assert bands_of(magnitudes, truth) == ["r"]
    band = score_fluxes(magnitudes, truth, resampling=Resampling(5))["by_band"]["r"]
    expected = score_fluxes(pred, truth, resampling=Resampling(5))["by_band"]["r"]
    assert band["bias"] == pytest.approx(expected["bias"])
    assert band["n_pull"] == 0 and band["uncertainty"] is None and np.isnan(band["pull_width"])
    assert not score_fluxes(magnitudes[["mag_K"]], truth)["available"]


def test_bands_are_ordered_by_wavelength():
    frame = pd.DataFrame(columns=["mag_z", "flux_g", "mag_g", "flux_i", "x", "fluxerr_g", "flux_weights_g"])
    assert bands_of(frame[["mag_z", "flux_g", "flux_i"]], frame) == ["g", "i", "z"]


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_objects(n, tmp_path):
    pred, truth = sky(n=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = score_fluxes(pred[:n], truth[:n], bands=["r"], resampling=Resampling(5))
        colours = score_colours(pred[:n], truth[:n], bands=["g", "r", "i"], resampling=Resampling(5))
        pairs = pair_statistics(pred[:n], pred[:n], bands=["r"], resampling=Resampling(5))
    write_json(tmp_path / "x.json", [result, colours, pairs])
    band = json.loads((tmp_path / "x.json").read_text())[0]["by_band"]["r"]
    assert band["n"] == n and (band["bias"] is None) == (n == 0) and (band["bias_err"] is None) == (n < 2)


# ---------------------------------------------------------------------------------------------------------------- pairs
def test_two_exposures_agree_within_their_errors():
    first, _ = sky(seed=0)
    truth = sky(seed=0)[1]
    rng = np.random.default_rng(9)
    second = first.assign(flux_r=truth["flux_r"] + rng.normal(0, 50, len(first)), fluxerr_r=50.0)
    band = pair_statistics(first, second, bands=["r"], resampling=Resampling(20))["by_band"]["r"]
    assert band["pull_width"] == pytest.approx(1, abs=4 * band["pull_width_err"])
    assert band["n"] == 4000 and sum(row["n"] for row in band["by_magnitude"]) <= 4000
    hidden = second.assign(fluxerr_r=5.0)  # the second claims to be ten times as good: sqrt((20^2 + 50^2)/(20^2 + 5^2))
    band = pair_statistics(first, hidden, bands=["r"], resampling=Resampling(20))["by_band"]["r"]
    assert band["pull_width"] == pytest.approx(np.sqrt(2900 / 425), rel=0.05)
    assert "no fluxerr_r" in pair_statistics(first, truth, bands=["r"])["by_band"]["r"]["reason"]


def test_pairs_by_hand():
    first = pd.DataFrame({"flux_r": [10.0, 20, 30, np.nan], "fluxerr_r": [3.0] * 4})
    second = pd.DataFrame({"flux_r": [5.0, 20, 55, 1], "fluxerr_r": [4.0] * 4})
    band = pair_statistics(first, second, resampling=Resampling(5))["by_band"]["r"]
    assert band["n"] == 3 and band["excluded"] == {"without both fluxes and errors": 1}
    assert band["pull_mean"] == pytest.approx((1 + 0 - 5) / 3) and band["pull_beyond_3"] == pytest.approx(1 / 3)


# -------------------------------------------------------------------------------------------------------------- colours
def test_colours_by_hand():
    truth = pd.DataFrame({"mag_g": [21.0, 21, 21, 21], "mag_r": [20.0, 20.5, 20.2, 20.0], "class_name": "galaxy"})
    pred = pd.DataFrame({"mag_g": [21.1, 21, 20.9, np.nan], "mag_r": [20.0, 20.4, 20.2, 20.0]})
    result = score_colours(pred, truth, resampling=Resampling(5))["by_colour"]["g-r"]
    assert result["n"] == 3 and list(result["excluded"].values()) == [0, 1]
    assert result["bias"] == pytest.approx(0.1)  # differences 0.1, 0.1, -0.1
    assert result["by_class"]["galaxy"]["width_truth"] == pytest.approx(sigma_68(np.array([1.0, 0.5, 0.8])))


def test_colours_of_the_program_itself_come_before_those_of_its_fluxes():
    truth = pd.DataFrame({"flux_g": [100.0] * 400, "flux_r": [200.0] * 400})
    true = 2.5 * np.log10(2.0)
    error = np.random.default_rng(0).normal(0, 0.05, 400)
    pred = truth.assign(color_g_r=true + error, colorerr_g_r=0.1)
    result = score_colours(pred, truth, resampling=Resampling(5))["by_colour"]["g-r"]
    assert result["scatter"] == pytest.approx(0.05, rel=0.15) and result["n_pull"] == 400
    assert result["pull_width"] == pytest.approx(0.5, rel=0.15)  # the errors are overstated twice
    without = score_colours(truth, truth, resampling=Resampling(5))["by_colour"]["g-r"]
    assert without["n_pull"] == 0 and np.isnan(without["pull_width"])


def test_noise_widens_histograms():
    rng = np.random.default_rng(0)
    true = rng.normal(0.5, 0.3, 20_000)
    result = colour_metrics(true + rng.normal(0, 0.4, 20_000), true)
    assert result["width_truth"] == pytest.approx(0.3, rel=0.02) and result["width"] == pytest.approx(0.5, rel=0.02)
    assert result["scatter"] == pytest.approx(0.4, rel=0.02)


def test_the_width_of_the_locus_is_that_of_the_errors():
    rng = np.random.default_rng(1)
    x = rng.uniform(0.2, 1.2, 3000)
    y = 0.5 * x**2
    assert locus_width(x, y) < 1e-6
    outliers = rng.uniform(size=3000) < 0.02  # quasars and blends
    noisy_x, noisy_y = x + rng.normal(0, 0.02, 3000), y + rng.normal(0, 0.02, 3000) + outliers * 0.7
    assert locus_width(noisy_x, noisy_y) == pytest.approx(0.02, rel=0.1)
    assert np.isnan(locus_width(x[:20], y[:20])) and np.isnan(locus_width(np.ones(50), y[:50]))


def test_the_locus_of_a_catalogue():
    pred, truth = sky()
    bright = (truth["flux_i"] > 3000) & (truth["flux_g"] > 3000)
    result = score_colours(pred[bright], truth[bright], resampling=Resampling(20))["stellar_locus"]
    locus = result["g-r, r-i"]
    assert list(result) == ["g-r, r-i"] and locus["n"] == (bright & (truth["class_name"] == "star")).sum()
    assert locus["width_truth"] < 1e-6 < 0.002 < locus["width"] < 0.02 and locus["width_err"] < 0.3 * locus["width"]
    galaxies = score_colours(pred, truth.assign(class_name="galaxy"), resampling=Resampling(2))["stellar_locus"][
        "g-r, r-i"
    ]
    assert not galaxies["available"] and "0 stars" in galaxies["reason"]
    nameless = score_colours(pred, truth.drop(columns="class_name"), resampling=Resampling(2))
    assert nameless["stellar_locus"]["g-r, r-i"]["reason"] == "the truth has no classes"
