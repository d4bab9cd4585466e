"""Known distributions in, numbers out."""

import math

import numpy as np
import pandas as pd
import pytest

from deepdisc.simulate.comparison import compare, is_centred, without_magnification

BANDS = ["g", "r", "i"]
AREA = 0.02  # square degrees


def population(n, seed, **changes):
    """Galaxies of Gaussian magnitudes whose colour g - r grows with redshift; log sizes fall with magnitude."""
    rng = np.random.default_rng(seed)
    r, z = rng.normal(24, 1, n), rng.uniform(0, 3, n)
    frame = pd.DataFrame({"class_id": 0, "redshift": z, "mag_r": r})
    frame["mag_g"] = r + 0.5 * z + rng.normal(0, 0.2, n) + changes.get("colour", 0)
    frame["mag_i"] = r - 0.3 + rng.normal(0, 0.1, n)
    frame["hlr_arcsec"] = 10 ** (-0.3 - 0.1 * (r - 24) + rng.normal(0, changes.get("size_scatter", 0.15), n))
    return frame


def expected(n=40_000, total=4000, **changes):
    return population(n, seed=1, **changes).assign(weight=total / n)


def pulls(rows, name):
    return [(row[name] - row[f"expected_{name}"]) / row[f"{name}_err"] for row in rows]


def test_a_sample_of_the_population_agrees_with_it():
    found = compare(population(4000, seed=2), expected(), AREA, BANDS)
    assert found["numbers"]["galaxy"] == pytest.approx(
        {"n": 4000, "expected": 4000, "ratio": 1, "ratio_err": 4000**-0.5}
    )
    assert "star" not in found["numbers"]
    for band in BANDS:
        counts = found["counts"][band]
        assert counts["bins"] >= 6 and counts["chi2"] < counts["bins"] + 4 * math.sqrt(2 * counts["bins"])
    for rows in (*found["colours"].values(), found["size_magnitude"]):
        assert np.abs(pulls(rows, "median")).max() < 4.5 and np.abs(pulls(rows, "scatter")).max() < 4.5
    assert found["redshift_ks"] < 1.3 * found["redshift_ks_limit"]
    assert found["size_ks"] < 1.3 * found["size_ks_limit"]


def test_counts_are_per_magnitude_and_square_degree():
    found = compare(population(4000, seed=2), expected(), AREA, BANDS)["counts"]["r"]["rows"]
    at_24 = next(row for row in found if row["low"] == 24.0)
    # The share of a Gaussian of width 1 between 0 and 0.5 is 0.19146.
    assert at_24["expected_density"] == pytest.approx(0.19146 * 4000 / 0.5 / AREA, rel=0.03)
    assert abs(at_24["density"] - at_24["expected_density"]) < 4 * at_24["density_err"]
    assert at_24["density_err"] == pytest.approx(math.sqrt(at_24["n"]) / 0.5 / AREA)
    assert sum(row["n"] for row in found) == 4000


def test_colours_against_redshift_are_those_put_in():
    rows = compare(population(20_000, seed=3), expected(), AREA, BANDS)["colours"]["g-r"]
    assert [row["low"] for row in rows] == [0, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5]
    row = next(row for row in rows if row["low"] == 1.0)
    assert row["median"] == pytest.approx(0.5 * 1.25, abs=0.02)
    # A uniform spread of 0.25 convolved with a Gaussian of 0.2: sigma = sqrt(0.04 + 0.0625 / 12) = 0.2127.
    assert row["scatter"] == pytest.approx(0.2127, abs=4 * row["scatter_err"]) and row["scatter_err"] < 0.01


@pytest.mark.parametrize(
    ("change", "where"),
    [({"colour": 0.1}, lambda found: max(np.abs(pulls(found["colours"]["g-r"], "median")))),
     ({"size_scatter": 0.25}, lambda found: max(np.abs(pulls(found["size_magnitude"], "scatter"))))],
)  # fmt: skip
def test_what_differs_is_found(change, where):
    assert where(compare(population(4000, seed=2), expected(**change), AREA, BANDS)) > 5


def test_a_lack_of_faint_objects_and_of_high_redshifts_is_found():
    drawn = population(6000, seed=2)
    drawn = drawn[(drawn.mag_r < 24.5) & (drawn.redshift < 2.5)]
    found = compare(drawn, expected(total=6000), AREA, BANDS)
    assert found["counts"]["r"]["chi2"] > 20 * found["counts"]["r"]["bins"]
    assert found["redshift_ks"] == pytest.approx(1 / 6, abs=0.02) and found["redshift_ks_limit"] < 0.03


def test_the_median_error_is_that_of_repeated_samples():
    errors, medians = [], []
    for seed in range(60):
        rows = compare(population(500, seed), expected(2000), AREA, BANDS)["colours"]["g-r"]
        row = next(row for row in rows if row["low"] == 1.0)
        medians.append(row["median"])
        errors.append(row["median_err"])
    assert np.mean(errors) == pytest.approx(np.std(medians, ddof=1), rel=0.3)


def test_stars_are_counted_apart_and_have_no_colours():
    stars = population(300, seed=5).assign(class_id=1, redshift=np.nan, hlr_arcsec=0.0)
    found = compare(pd.concat([population(1000, 2), stars]), expected(total=1000), AREA, BANDS)
    assert found["numbers"]["star"]["n"] == 300 and math.isnan(found["numbers"]["star"]["ratio"])
    assert sum(row["n"] for row in found["star_counts"]["r"]["rows"]) == 300
    assert sum(row["n"] for row in found["counts"]["r"]["rows"]) == 1000


def test_other_catalogues_may_lack_columns_and_rows():
    other = expected()[["class_id", "mag_r", "weight"]]
    found = compare(population(500, 1), other, AREA, BANDS)
    assert found["counts"]["g"]["rows"][0]["expected_density"] == 0
    assert all(math.isnan(row["expected_median"]) for row in found["colours"]["g-r"])
    assert math.isnan(found["redshift_ks"]) and all(row["expected"] == 0 for row in found["sizes"])
    nothing = compare(population(500, 1)[:0], expected()[:0], AREA, BANDS)
    assert nothing["numbers"] == {} and nothing["counts"]["r"]["rows"] == [] and nothing["size_magnitude"] == []


def test_fluxes_that_are_zero_in_the_blue_do_not_count():
    drawn = population(500, 1)
    drawn.loc[:99, "mag_g"] = np.nan  # absorbed by the intergalactic medium
    found = compare(drawn, expected(), AREA, BANDS)
    assert sum(row["n"] for row in found["counts"]["g"]["rows"]) == 400
    assert sum(row["n"] for row in found["colours"]["g-r"]) == 400


def test_magnification_is_taken_out():
    truth = pd.DataFrame({"mag_r": [24.0, 24.0], "g1": [0.0, 0.3], "g2": [0.0, 0.4], "kappa": [0.5, 0.0]})
    # mu = 1 / 0.5^2 = 4 and 1 / (1 - 0.25) = 4/3.
    fainter = [2.5 * math.log10(4), 2.5 * math.log10(4 / 3)]
    assert without_magnification(truth, ["r"]).mag_r.tolist() == pytest.approx([24 + m for m in fainter])
    assert truth.mag_r.tolist() == [24, 24]
    unlensed = truth[["mag_r"]]
    assert without_magnification(unlensed, ["r"]) is unlensed


def test_centres_are_inside_from_edge_to_edge():
    truth = pd.DataFrame({"x": [-0.5, -0.6, 9.4, 9.5], "y": [0, 0, 19.4, 3]})
    assert is_centred(truth, (20, 10)).tolist() == [True, False, True, False]
