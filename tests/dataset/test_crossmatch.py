"""One-to-one matches and what their report says, against catalogues whose pairs are known."""

import numpy as np
import pytest

from deepdisc.data.crossmatch import common_offset, crossmatch


@pytest.fixture
def places():
    """300 random positions on a square of 60 arcsec around Dec 60, none closer than 1.5 arcsec to another."""
    rng = np.random.default_rng(0)
    chosen = np.zeros((0, 2))
    while len(chosen) < 300:
        new = rng.uniform(0, 60, 2)
        if not len(chosen) or np.hypot(*(chosen - new).T).min() > 1.5:
            chosen = np.vstack((chosen, new))
    east, north = chosen.T
    dec = 60 + north / 3600
    return np.stack((359.995 + east / 3600 / np.cos(np.radians(dec)), dec), axis=1)


def displaced(places, east, north):
    """The same positions moved, in arcsec; RA runs across 0."""
    moved = places + np.stack((east / 3600 / np.cos(np.radians(places[:, 1])), np.broadcast_to(north / 3600, 300)), 1)
    return np.stack((moved[:, 0] % 360, moved[:, 1]), axis=1)


def test_pairs_separations_and_offset(places):
    rng = np.random.default_rng(1)
    order = rng.permutation(300)
    other = displaced(places, 0.2 + rng.normal(0, 0.05, 300), -0.1)[order][:250]
    match = crossmatch(places, other, 0.6, "arcsec")
    assert len(match) == 250 and (order[match.second] == match.first).all()
    np.testing.assert_allclose(match.separation, 0.224, atol=0.2)
    assert match.offset == (pytest.approx(0.2, abs=0.02), pytest.approx(-0.1, abs=0.005))
    report = match.report()
    assert (report["first"], report["second"], report["first_unmatched"], report["second_unmatched"]) == (
        300,
        250,
        50,
        0,
    )
    assert sum(report["separations"]["counts"]) == 250 and report["ambiguous"] == 0


def test_two_candidates_are_shared_out_and_called_ambiguous():
    first = np.array([[0.0, 0.0], [1.0, 0.0], [50.0, 50.0], [np.nan, 1.0]])
    second = np.array([[0.4, 0.0], [1.9, 0.0], [50.0, 50.5]])
    match = crossmatch(first, second, 1.5, "pix")
    # Both are nearest to 0.4; together 0-0.4 and 1-1.9 are the best two pairs.
    assert list(zip(match.first, match.second, strict=True)) == [(0, 0), (1, 1), (2, 2)]
    assert match.ambiguous.tolist() == [True, True, False] and match.sizes == (3, 3)


def test_matches_by_chance_are_told(places):
    rng = np.random.default_rng(2)
    crowd = np.stack((359.995 + rng.uniform(0, 120, 3000) / 3600, 60 + rng.uniform(0, 60, 3000) / 3600), 1)
    match = crossmatch(places, crowd, 0.5, "arcsec")
    density = 3000 / 3600  # per square arcsec, 60 x 60 arcsec of true angle
    assert match.by_chance == pytest.approx(1 - np.exp(-density * np.pi * 0.25), abs=0.08)
    assert crossmatch(places, displaced(places, 0.1, 0.0), 0.5, "arcsec").by_chance < 0.15


def test_a_common_displacement_is_found_and_none_is_invented(places):
    far = common_offset(places, displaced(places, 2.0, 1.0), 0.5, "arcsec")
    assert far[:2] == (pytest.approx(2.0, abs=0.05), pytest.approx(1.0, abs=0.05)) and far[2] > 100
    rng = np.random.default_rng(3)
    assert (
        common_offset(places, displaced(places, rng.uniform(-9, 9, 300), rng.uniform(-9, 9, 300)), 0.5, "arcsec")
        is None
    )
    assert common_offset(places, places + 5, 0.5, "arcsec") is None


def test_empty_catalogues_match_nothing(places):
    for pair in ((places, places[:0]), (places[:0], places), (places[:0], places[:0])):
        report = crossmatch(*pair, 1.0, "arcsec").report()
        assert report["matched"] == 0 and report["median_separation_arcsec"] is None


def test_jades_spectra_and_3d_hst_are_the_same_galaxies(shared_data):
    from deepdisc.columns import ColumnMap
    from deepdisc.tables import read_table

    tables = shared_data / "data" / "catalogues"
    columns = ColumnMap.from_mapping({"columns": {"ra": "ra", "dec": "dec", "redshift": "zspec"}}, "spectra")
    spectra = columns.apply(*read_table(tables / "specz/jwst_uds_cosmos_jades_zspec_dev80.ascii"))
    frame, units = read_table(tables / "sim_inputs/goodss_3dhst_jwst_galfit.fits.gz")
    names = {name.lower(): name for name in frame.columns}
    ra, dec = (next(names[key] for key in names if key.startswith(part)) for part in ("ra", "dec"))
    hst = ColumnMap.from_mapping({"columns": {"ra": ra, "dec": dec}}, "3D-HST").apply(frame, units)
    match = crossmatch(spectra[["ra", "dec"]].to_numpy(), hst[["ra", "dec"]].to_numpy(), 0.5, "arcsec")
    assert len(match) > 1000 and match.by_chance < 0.1
    assert np.median(match.separation) < 0.3
