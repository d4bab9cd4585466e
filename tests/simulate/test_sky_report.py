"""The report of a simulated sky: its page, its numbers, and skies of every kind."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from deepdisc import catalog
from deepdisc.errors import InputError
from deepdisc.simulate import Sky, simulate
from deepdisc.simulate.fields import field_conditions
from deepdisc.simulate.population import Population
from deepdisc.simulate.report import expected_objects, read_catalogue, weighted, write_report

SEED = 3


def fields_of(sky, folder):
    """Simulated fields: their conditions and folders."""
    folders = [path.parent for path in simulate(sky, folder, seed=SEED)]
    return [field_conditions(sky, number, SEED) for number in range(sky.fields)], folders


@pytest.fixture(scope="module")
def sky():
    return Sky(
        fields=2,
        bands=["g", "r", "i"],
        shape=(320, 300),
        depth_offset=(0.5, 1.0),
        ebv=(0.0, 0.1),
        galaxy_density=(0.8, 1.2),
    )


@pytest.fixture(scope="module")
def made(sky, tmp_path_factory):
    return fields_of(sky, tmp_path_factory.mktemp("sky"))


@pytest.fixture(scope="module")
def report(sky, made, tmp_path_factory):
    """The page's text and the numbers."""
    output = tmp_path_factory.mktemp("report")
    page = write_report(output, sky, *made)
    assert page == output / "report.html"
    return page.read_text(), json.loads((output / "report.json").read_text())


def test_the_page_needs_nothing_from_elsewhere(report):
    page, _ = report
    assert not re.search(r"https?:|<script|<link|@import|url\(", page)
    assert set(re.findall(r'src="([^,]*),', page)) == {"data:image/png;base64"}
    for heading in ("The field", "Depth", "Number counts", "Colours against redshift", "Sizes and redshifts",
                    "Signal-to-noise and blending", "Galaxies"):  # fmt: skip
        assert f"<h2>{heading}</h2>" in page


def test_a_sky_is_what_it_was_drawn_from(report, made):
    _, found = report
    truth = pd.concat([catalog.read(folder / "truth.parquet") for folder in made[1]])
    inside = truth[truth.x.between(-0.5, 299.5, "left") & truth.y.between(-0.5, 319.5, "left")]
    against = found["against_population"]
    assert found["objects"] == len(inside) and found["fields"] == 2
    assert found["area_arcmin2"] == pytest.approx(2 * 320 * 300 * (0.396 / 60) ** 2)
    for name, class_id in (("galaxy", 0), ("star", 1)):
        row = against["numbers"][name]
        assert row["n"] == (inside.class_id == class_id).sum()
        assert abs(row["ratio"] - 1) < 4 * row["ratio_err"]
    assert sum(row["n"] for row in against["counts"]["r"]["rows"]) == against["numbers"]["galaxy"]["n"]
    assert against["redshift_ks"] < 1.3 * against["redshift_ks_limit"]
    assert against["size_ks"] < 1.3 * against["size_ks_limit"]
    for rows in against["colours"].values():
        for row in rows:
            assert abs(row["median"] - row["expected_median"]) < max(5 * row["median_err"], 0.1)


def test_the_written_images_are_as_deep_as_stated(report, made):
    depth = report[1]["depth"]
    assert list(depth) == ["g", "r", "i"]
    for index, row in enumerate(depth.values()):
        stated = np.mean([one.depth_5sigma[index] for one in made[0]])
        assert row["stated"] == pytest.approx(stated) and row["fields"] == 2 and row["n"] > 100
        assert row["difference"] == pytest.approx(0, abs=max(0.1, 4 * row["depth_err"]))


def test_a_population_of_other_density_and_another_noise_are_told(sky, made, tmp_path):
    conditions = [replace(one, galaxy_density=2 * one.galaxy_density, exposure_factor=4 * one.exposure_factor)
                  for one in made[0]]  # fmt: skip
    write_report(tmp_path, replace(sky, draw_snr=2 * sky.draw_snr), conditions, made[1])
    found = json.loads((tmp_path / "report.json").read_text())
    galaxies = found["against_population"]["numbers"]["galaxy"]
    # Four times the exposures halve the noise, so that an S/N twice as high is the same cut.
    assert galaxies["ratio"] == pytest.approx(0.5, abs=4 * galaxies["ratio_err"])
    for row in found["depth"].values():
        assert row["difference"] == pytest.approx(-2.5 * np.log10(2), abs=max(0.1, 4 * row["depth_err"]))
    assert "off by more than 0.1 mag" in (tmp_path / "report.html").read_text()


def test_the_expectation_is_the_density_times_the_area(sky, made):
    everything = expected_objects(replace(sky, draw_snr=0.0), made[0])
    density = Population.load(sky.population, sky.population_part).density_per_deg2
    area = 320 * 300 * (0.396 / 3600) ** 2
    for kind, factor in ((0, "galaxy_density"), (1, "star_density")):
        number = sum(density[kind] * getattr(one, factor) * area for one in made[0])
        assert everything.weight[everything.class_id == kind].sum() == pytest.approx(number)
    cut = expected_objects(sky, made[0])
    assert cut.weight.sum() < everything.weight.sum() and (cut.estimated_snr >= sky.draw_snr).all()


def test_another_catalogue_is_drawn_beside_it(sky, made, tmp_path):
    drawn = pd.concat([catalog.read(folder / "truth.parquet") for folder in made[1]])
    area = 2 * 320 * 300 * (0.396 / 60) ** 2
    other = drawn[["class_id", "flux_g", "mag_r", "redshift", "hlr_arcsec"]]
    other.to_csv(tmp_path / "survey.csv", index=False)
    write_report(tmp_path / "a", sky, *made, tmp_path / "survey.csv", area)
    found = json.loads((tmp_path / "a" / "report.json").read_text())["against_survey"]
    assert found["numbers"]["galaxy"]["ratio"] == pytest.approx(1, abs=0.02)
    assert found["colours"]["r-i"][0]["expected_median"] is None
    assert found["colours"]["g-r"][0]["expected_median"] == pytest.approx(
        found["colours"]["g-r"][0]["median"], abs=0.06
    )
    assert "survey" in (tmp_path / "a" / "report.html").read_text()
    without_area = weighted(read_catalogue(tmp_path / "survey.csv", ["g", "r", "i"]), drawn[::2], 1.0, None)
    galaxies = without_area[without_area.class_id == 0]
    assert galaxies.weight.sum() == pytest.approx((drawn[::2].class_id == 0).sum())


def test_a_catalogue_that_cannot_be_compared_is_named(tmp_path):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="neither mag_BAND nor flux_BAND for any of g, r; its columns are a, b"):
        read_catalogue(tmp_path / "other.csv", ["g", "r"])
    with pytest.raises(InputError, match="no catalogue at"):
        read_catalogue(tmp_path / "absent.csv", ["g", "r"])
    one = pd.DataFrame({"class_id": [0]})
    with pytest.raises(InputError, match="-1.0 square arcminutes; it must be positive"):
        weighted(one, one, 1.0, -1.0)


@pytest.mark.parametrize(
    "changes",
    [{"bands": ["r"]}, {"galaxy_density": (0, 0), "star_density": (0, 0)}, {"shape": (32, 40)}],
    ids=["one band", "nothing", "tiny"],
)
def test_skies_with_next_to_nothing_have_a_report(tmp_path, changes):
    sky = Sky(**{"shape": (128, 128), "bands": ["g", "r"], **changes})
    page = write_report(tmp_path, sky, *fields_of(sky, tmp_path / "sky"))
    assert "<h2>The field</h2>" in page.read_text()
