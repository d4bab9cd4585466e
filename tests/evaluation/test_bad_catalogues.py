"""Catalogues that do not fit together: an error that says what to do, or a note and a count, never a silent score."""

import numpy as np
import pandas as pd
import pytest
from astropy import units as u
from astropy.coordinates import FK4, SkyCoord
from astropy.table import Table

from deepdisc.columns import ColumnMap
from deepdisc.errors import InputError
from deepdisc.evaluation import crossmatch, evaluate
from deepdisc.evaluation.catalogues import load
from deepdisc.evaluation.conventions import measure_offset


def sky(n=60, seed=0):
    """Objects 6 arcsec apart or more, with pixels of 0.2 arcsec."""
    rng = np.random.default_rng(seed)
    place = rng.permutation(400)[:n]
    x, y = 40 + 30.0 * (place % 20) + rng.uniform(-5, 5, n), 40 + 30.0 * (place // 20) + rng.uniform(-5, 5, n)
    frame = pd.DataFrame(
        {"id": np.arange(1, n + 1), "x": x, "y": y, "ra": 150 - x * 0.2 / 3600, "dec": 2 + y * 0.2 / 3600}
    )
    return frame.assign(score=rng.uniform(0.5, 1, n), redshift=rng.uniform(0.1, 1, n))


def shaken(frame, seed=1, pixels=0.15):
    rng = np.random.default_rng(seed)
    return frame.assign(x=frame.x + rng.normal(0, pixels, len(frame)), y=frame.y + rng.normal(0, pixels, len(frame)))


# --------------------------------------------------------------------------------------------------- pixel conventions
@pytest.mark.parametrize("shift", [(1, 1), (-1, -1), (1, 0)])
def test_pixels_counted_from_one_are_told_with_the_remedy(shift):
    truth = sky()
    pred = shaken(truth).assign(x=lambda f: f.x + shift[0], y=lambda f: f.y + shift[1])
    metrics = evaluate(pred, truth, match_by="pixels", max_distance_pix=1.0, replicates=5)
    [note] = metrics["notes"]
    which = "predicted" if sum(shift) > 0 else "true"
    assert f"the {which} catalogue seems to count pixels from 1" in note and "x: X - 1, y: Y - 1" in note
    offset = metrics["detection"]["offset"]
    assert offset["dx"] == pytest.approx(shift[0], abs=0.1) and offset["dy"] == pytest.approx(shift[1], abs=0.1)
    assert offset["n"] == 60 and offset["warning"] == note


def test_half_pixels_are_told_with_the_remedy():
    truth = sky()
    note = crossmatch(shaken(truth).assign(x=lambda f: f.x + 0.5, y=lambda f: f.y + 0.5), truth).attrs["notes"][0]
    assert "counts from the pixel's edge, the other from its centre" in note and "x: X -0.5, y: Y -0.5" in note


def test_the_remedy_works():
    truth = sky()
    pred = shaken(truth).rename(columns={"x": "X", "y": "Y"})
    pred[["X", "Y"]] += 1
    remedy = ColumnMap.from_mapping({"columns": {"x": "X - 1", "y": "Y - 1", "score": "score"}}, "remedy")
    metrics = evaluate(pred, truth, columns=remedy, replicates=5)
    assert metrics["notes"] == [] and metrics["detection"]["completeness"] == 1.0


def test_honest_scatter_and_small_offsets_raise_no_alarm():
    truth = sky()
    assert evaluate(shaken(truth), truth, match_by="pixels", replicates=5)["notes"] == []
    assert measure_offset(shaken(truth, pixels=0.6), truth)["warning"] is None
    few = truth.iloc[:5]
    assert not measure_offset(few.assign(x=few.x + 1), few)["available"]


def test_an_offset_of_no_convention_is_told_too():
    truth = sky()
    note = measure_offset(shaken(truth).assign(x=lambda f: f.x + 1.7), truth)["warning"]
    assert "(+1.7" in note and "are both of the same image" in note


def test_positions_too_crowded_to_tell_an_offset_do_not_stop_the_scoring(monkeypatch):
    monkeypatch.setattr("deepdisc.matching.MOST_PAIRS", 1000)
    crowded = sky().assign(x=lambda f: f.x / 1000, y=lambda f: f.y / 1000)
    metrics = evaluate(crowded, crowded, match_by="sky", replicates=5)
    offset = metrics["detection"]["offset"]
    assert not offset["available"] and "pairs within reach of each other" in offset["reason"]
    assert metrics["detection"]["completeness"] == 1.0


def test_offsets_on_the_sky_are_told_in_arcsec():
    truth = sky()[["ra", "dec"]]
    moved = truth.assign(dec=truth.dec + 0.4 / 3600)
    table = crossmatch(moved, truth)
    assert "+0.00 arcsec to the East and +0.40 to the North" in table.attrs["notes"][0]


# ----------------------------------------------------------------------------------------------------------- sky frames
@pytest.mark.parametrize(
    ("frame", "header", "said"),
    [
        ("fk5", {"RADESYS": "FK5", "EQUINOX": 2000.0}, "converted from FK5 of equinox J2000.000 to ICRS"),
        (
            FK4(equinox="B1950"),
            {"RADESYS": "FK4", "EQUINOX": 1950.0},
            "converted from FK4 of equinox B1950.000 to ICRS",
        ),
        ("galactic", {"RADESYS": "GALACTIC"}, "converted from galactic to ICRS"),
    ],
    ids=["fk5", "fk4", "galactic"],
)
def test_a_header_that_states_another_frame_is_obeyed_and_said(tmp_path, frame, header, said):
    truth = sky()
    there = SkyCoord(truth.ra, truth.dec, unit="deg").transform_to(frame)
    angles = there.spherical
    table = Table({"ra": angles.lon.wrap_at(360 * u.deg).deg, "dec": angles.lat.deg}, meta=header)
    table.write(tmp_path / "c.fits")
    found, notes = load(tmp_path / "c.fits")
    assert said in notes[0]
    offset = SkyCoord(found.ra, found.dec, unit="deg").separation(SkyCoord(truth.ra, truth.dec, unit="deg"))
    assert offset.arcsec.max() < 1e-3
    assert len(crossmatch(tmp_path / "c.fits", truth, keep="matched", max_distance_arcsec=0.01)) == 60


def test_a_map_that_states_the_frame_comes_before_the_header(tmp_path):
    galactic = SkyCoord(sky().ra, sky().dec, unit="deg").galactic
    table = Table({"l": galactic.l.deg, "b": galactic.b.deg}, meta={"RADESYS": "GALACTIC"})
    table.write(tmp_path / "c.fits")
    stated = ColumnMap.from_mapping({"columns": {"ra": "l", "dec": "b"}, "sky_frame": "galactic"}, "here")
    np.testing.assert_allclose(load(tmp_path / "c.fits", stated)[0].ra, sky().ra, atol=1e-9)


def test_icrs_headers_are_left_alone(tmp_path):
    table = Table({"ra": [10.0], "dec": [5.0]}, meta={"RADESYS": "ICRS"})
    table.write(tmp_path / "c.fits")
    found, notes = load(tmp_path / "c.fits")
    assert found.ra[0] == 10 and notes == []


def test_columns_that_are_galactic_are_named():
    galactic = SkyCoord(sky().ra, sky().dec, unit="deg").galactic
    frame = pd.DataFrame({"l": galactic.l.deg, "b": galactic.b.deg})
    assert "has galactic positions (l, b)" in load(frame)[1][0]
    mapped = {"columns": {"ra": "l", "dec": "b"}, "sky_frame": "galactic"}
    table = crossmatch(
        frame, sky(), columns=ColumnMap.from_mapping(mapped, "here"), keep="matched", max_distance_arcsec=0.01
    )
    assert len(table) == 60


# ----------------------------------------------------------------------------------------------------------- no overlap
@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        (lambda f: f.assign(ra=np.radians(f.ra), dec=np.radians(f.dec)), "seems to be in radians"),
        (lambda f: f.assign(ra=f.ra / 15), "seems to be with right ascensions in hours"),
        (lambda f: f.assign(ra=f.dec + 50, dec=f.ra - 100), "are they of the same field, in ICRS degrees"),
        (
            lambda f: f.assign(**dict(zip(("ra", "dec"), galactic_of(f), strict=True))),
            "seems to be in galactic coordinates",
        ),
    ],
    ids=["radians", "hours", "elsewhere", "galactic"],
)
def test_catalogues_that_do_not_overlap_are_refused_with_a_guess(change, remedy):
    truth = sky().drop(columns=["x", "y"])
    for a, b in ((change(truth), truth), (truth, change(truth))):
        with pytest.raises(InputError, match=f"the two catalogues do not overlap: predicted ra .*{remedy}"):
            evaluate(a, b, replicates=5)


def galactic_of(frame):
    galactic = SkyCoord(frame.ra, frame.dec, unit="deg").galactic
    return galactic.l.deg, galactic.b.deg


def test_exchanged_ra_and_dec_are_seen():
    truth = sky().drop(columns=["x", "y"]).assign(ra=lambda f: f.ra - 90)  # ra 60, dec 2: exchanged both are possible
    with pytest.raises(InputError, match="seems to be with ra and dec exchanged"):
        crossmatch(truth.rename(columns={"ra": "dec", "dec": "ra"}), truth)


def test_pixels_of_another_image_are_refused():
    truth = sky()[["x", "y"]]
    with pytest.raises(InputError, match="do not overlap: predicted x 50.*are they positions on the same image"):
        evaluate(truth + 5000, truth, replicates=5)


def test_a_field_across_ra_zero_overlaps_itself():
    frame = sky().drop(columns=["x", "y"]).assign(ra=lambda f: (f.ra - 150 + 0.02) % 360)
    assert frame.ra.max() > 359 and len(crossmatch(frame, frame, keep="matched")) == 60


# --------------------------------------------------------------------------------------------- rows that cannot be used
def test_empty_catalogues():
    truth = sky()
    metrics = evaluate(truth.iloc[:0], truth, replicates=5)
    assert metrics["detection"]["completeness"] == 0 and np.isnan(metrics["detection"]["purity"])
    with pytest.raises(InputError, match="the true catalogue has no rows: there is nothing to score against"):
        evaluate(truth, truth.iloc[:0], replicates=5)


def test_an_id_that_occurs_twice_is_named():
    twice = pd.concat((sky(), sky().iloc[4:6]), ignore_index=True)
    for a, b, which in ((twice, sky(), "predicted"), (sky(), twice, "true")):
        with pytest.raises(InputError, match=f"the {which} catalogue: id 5 occurs more than once, and so do 2 rows"):
            evaluate(a, b, replicates=5)
    joined = crossmatch(twice, sky(), keep="matched")
    assert len(joined) == 60 and "the first catalogue: id 5 occurs more than once" in joined.attrs["notes"][0]
    unnamed = load(pd.DataFrame({"ID": ["a", "", ""], "RA": [1.0, 2, 3], "DEC": 0.0}), "deepdisc_jades")
    assert len(unnamed[0]) == 3 and unnamed[1] == []
    tiles = pd.concat((sky().assign(tile=0), sky().assign(tile=1)), ignore_index=True)
    assert evaluate(tiles, tiles, replicates=5)["detection"]["n_matched"] == 120


def test_rows_without_a_position_are_counted():
    pred = sky()
    pred.loc[:6, ["x", "ra"]] = np.nan
    metrics = evaluate(pred, sky(), match_by="pixels", replicates=5)
    assert "7 of 60 rows of the predicted catalogue have no x, y: they match nothing" in metrics["notes"]
    assert metrics["detection"]["n_matched"] == 53


def test_impossible_declinations_and_text_are_refused():
    with pytest.raises(InputError, match="a declination of 150.*are ra and dec exchanged"):
        load(pd.DataFrame({"ra": [2.0], "dec": [150.0]}), label="predicted")
    with pytest.raises(InputError, match="the true catalogue: column ra holds text"):
        load(pd.DataFrame({"ra": ["10:00:00"], "dec": [1.0]}), label="true")


def test_redshifts_that_are_unknown_are_counted_not_scored():
    truth, pred = sky(), sky().rename(columns={"redshift": "z_mode"})
    truth.loc[:4, "redshift"], pred.loc[5:7, "z_mode"] = np.nan, np.nan
    redshift = evaluate(pred, truth, replicates=5)["redshift"]
    assert redshift["n"] == 52
    excluded = redshift["excluded"]
    assert excluded["detected, but without a true redshift (stars, or not observed)"] == 5
    assert sum(n for words, n in excluded.items() if "without a predicted redshift" in words) == 3


def test_pdfs_that_are_not_normalised_are_counted_not_scored():
    truth, pred = sky(), sky().rename(columns={"redshift": "z_mode"})
    weights = [[0.5, 0.5]] * 60
    weights[3], weights[8] = [0.5, 0.9], [0.1, 0.1]
    pred = pred.assign(
        z_weights=weights, z_means=[[z, z] for z in pred.z_mode], z_sigmas=[[0.05, 0.1]] * 60, z_lower=0.0
    )
    pdf = evaluate(pred, truth, replicates=5)["redshift"]["pdf"]
    assert pdf["n"] == 58 and 2 in pdf["excluded"].values()


# ---------------------------------------------------------------------------------------------------------------- units
def test_units_that_the_file_states_are_converted_or_refused(tmp_path):
    table = Table({"ra": np.radians([10.0, 11.0]), "dec": np.radians([1.0, 2.0]), "flux_r": [1.0, 2.0]})
    table["ra"].unit = table["dec"].unit = "rad"
    table["flux_r"].unit = "uJy"
    table.write(tmp_path / "c.fits")
    found, _ = load(tmp_path / "c.fits")
    np.testing.assert_allclose(found.ra, [10, 11])
    np.testing.assert_allclose(found.flux_r, [1000, 2000])
    table["flux_r"].unit = "ct"
    table.write(tmp_path / "d.fits")
    with pytest.raises(InputError, match="column flux_r has the unit 'ct', which cannot become nJy.*give a column map"):
        load(tmp_path / "d.fits")


def test_fluxes_without_a_unit_are_refused_by_a_map():
    table = pd.DataFrame({"X": [1.0], "Y": [1.0], "F": [3.0]})
    made = ColumnMap.from_mapping({"columns": {"x": "X", "y": "Y", "flux_r": "F"}}, "here")
    with pytest.raises(InputError, match="neither the file nor the recipe says the flux's unit"):
        load(table, made)


def test_files_without_rows_are_empty_not_text(tmp_path):
    truth = sky()
    truth.iloc[:0].to_csv(tmp_path / "empty.csv", index=False)
    metrics = evaluate(tmp_path / "empty.csv", truth, replicates=5)
    assert metrics["detection"]["completeness"] == 0 and metrics["detection"]["n_pred"] == 0
    with pytest.raises(InputError, match="the true catalogue has no rows"):
        evaluate(truth, tmp_path / "empty.csv", replicates=5)


def test_boxes_that_end_before_they_begin_are_counted():
    turned = sky().assign(
        x_min=lambda f: f.x + 2, x_max=lambda f: f.x - 2, y_min=lambda f: f.y, y_max=lambda f: f.y + 1
    )
    notes = evaluate(turned, sky(), match_by="pixels", replicates=5)["notes"]
    assert any("60 of 60 boxes of the predicted catalogue end where they begin, or before" in note for note in notes)


def test_pdfs_that_are_text_are_refused(tmp_path):
    truth = sky().assign(redshift=0.5)
    pred = truth.assign(z_mode=0.5, z_weights="[1.0]", z_means="[0.5]", z_sigmas="[0.1]")
    pred.to_csv(tmp_path / "pred.csv", index=False)
    with pytest.raises(InputError, match="column z_weights holds text .*, not lists of numbers, which CSV cannot"):
        evaluate(tmp_path / "pred.csv", truth, replicates=5)
