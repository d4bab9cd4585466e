"""The shipped column maps on small imitations of what the programs write; and the maps' own rules used there."""

import numpy as np
import pandas as pd
import pytest
from astropy.coordinates import SkyCoord
from astropy.table import Table

from deepdisc.columns import ColumnMap
from deepdisc.errors import InputError
from deepdisc.evaluation.catalogues import each, load

SEXTRACTOR = """#   1 NUMBER                 Running object number
#   2 ALPHA_J2000            Right ascension of barycenter (J2000)                      [deg]
#   3 DELTA_J2000            Declination of barycenter (J2000)                          [deg]
#   4 X_IMAGE                Object position along x                                    [pixel]
#   5 Y_IMAGE                Object position along y                                    [pixel]
#   6 XMIN_IMAGE             Minimum x-coordinate among detected pixels                 [pixel]
#   7 YMIN_IMAGE             Minimum y-coordinate among detected pixels                 [pixel]
#   8 XMAX_IMAGE             Maximum x-coordinate among detected pixels                 [pixel]
#   9 YMAX_IMAGE             Maximum y-coordinate among detected pixels                 [pixel]
#  10 A_IMAGE                Profile RMS along major axis                               [pixel]
#  11 B_IMAGE                Profile RMS along minor axis                               [pixel]
#  12 THETA_IMAGE            Position angle (CCW/x)                                     [deg]
#  13 KRON_RADIUS            Kron apertures in units of A or B
#  14 FLUX_AUTO              Flux within a Kron-like elliptical aperture                [count]
#  15 FLUXERR_AUTO           RMS error for AUTO flux                                    [count]
#  16 MAG_AUTO               Kron-like elliptical aperture magnitude                    [mag]
#  17 MAGERR_AUTO            RMS error for AUTO magnitude                               [mag]
#  18 CLASS_STAR             S/G classifier output
  1  150.10  2.20   11.0  21.5   9  20  13  23  2.0 1.0  30.0  3.5  300.0  10.0  22.0   0.04   0.03
  2  150.20  2.30    1.0   1.0   1   1   1   1  1.0 1.0   0.0  3.5    5.0  10.0  99.0  99.0    0.98
"""


def test_sextractor_counts_pixels_from_one(tmp_path):
    path = tmp_path / "field.cat"
    path.write_text(SEXTRACTOR)
    frame, notes = load(path, "sextractor", band="r")
    assert notes == [] and frame.id.tolist() == [1, 2] and frame.table_row.tolist() == [0, 1]
    assert (frame.x[0], frame.y[0], frame.x[1], frame.y[1]) == (10.0, 20.5, 0.0, 0.0)
    # Pixels 9 to 13 counted from 1 are 8 to 12 from 0, and cover the edges 8 to 13; the object of one pixel is 1 wide.
    assert frame.loc[0, ["x_min", "y_min", "x_max", "y_max"]].tolist() == [8, 19, 13, 23]
    assert frame.loc[1, ["x_min", "y_min", "x_max", "y_max"]].tolist() == [0, 0, 1, 1]
    assert (frame.a_pix[0], frame.b_pix[0], frame.theta_deg[0]) == (7.0, 3.5, 30.0)
    assert frame.ra.tolist() == [150.10, 150.20] and frame.class_name.tolist() == ["galaxy", "star"]
    np.testing.assert_allclose(frame.mag_r, [22.0, np.nan])
    np.testing.assert_allclose(frame.fluxerr_r[0] / frame.flux_r[0], 0.04 * 0.4 * np.log(10))
    np.testing.assert_allclose(frame.snr, [30.0, 0.5])
    assert frame.score[0] > 0.99 > frame.score[1] > 0.4
    assert "mag_r" not in load(path, "sextractor")[0]  # nothing says which band it is


def test_sextractor_of_several_bands_and_few_columns(tmp_path):
    Table({"NUMBER": [4], "X_IMAGE": [3.0], "Y_IMAGE": [2.0], "MAG_AUTO_g": [21.0], "MAG_AUTO_z": [20.0]}).write(
        tmp_path / "c.fits"
    )
    frame, _ = load(tmp_path / "c.fits", "sextractor")
    assert set(frame.columns) == {
        "catalogue_id",
        "id",
        "table_row",
        "x",
        "y",
        *(f"{k}_{b}" for k in ("mag", "flux") for b in "gz"),
    }
    with pytest.raises(InputError, match="none of the map's columns; it has flux, foo; give the map of the program"):
        load(pd.DataFrame({"flux": [1.0], "foo": [2.0]}), "sextractor")


def test_sep_detects_and_its_map_reads_the_objects():
    sep = pytest.importorskip("sep")
    y, x = np.mgrid[:60, :80]
    image = 100 * np.exp(-0.5 * (((x - 50) / 3) ** 2 + ((y - 20) / 1.5) ** 2)) + 80 * np.exp(
        -0.5 * (((x - 20) / 2) ** 2 + ((y - 40) / 2) ** 2)
    )
    objects, labels = sep.extract(image.astype(np.float32), 1.0, segmentation_map=True)
    table = pd.DataFrame({name: objects[name] for name in objects.dtype.names}).assign(
        id=np.arange(1, len(objects) + 1)
    )
    frame, _ = load(table, "sep")
    frame = frame.sort_values("x", ascending=False).reset_index(drop=True)
    np.testing.assert_allclose(frame[["x", "y"]], [[50, 20], [20, 40]], atol=0.01)
    for row in frame.itertuples():
        rows, columns = np.nonzero(labels == row.id)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert [row.x_min, row.y_min, row.x_max, row.y_max] == box
    assert frame.a_pix[0] > 1.5 * frame.b_pix[0] and abs(frame.theta_deg[0]) < 1
    assert frame.score.between(0, 1).all() and frame.area_pix.tolist() == [(labels == i).sum() for i in frame.id]


def test_photutils_measures_and_its_map_reads_the_table():
    segmentation = pytest.importorskip("photutils.segmentation")
    y, x = np.mgrid[:60, :80]
    image = 100 * np.exp(-0.5 * (((x - 50) / 1.5) ** 2 + ((y - 20) / 3) ** 2))
    labels = segmentation.detect_sources(image, 1.0, 5)
    table = segmentation.SourceCatalog(image, labels, error=np.ones_like(image)).to_table()
    frame, _ = load(table.to_pandas(), "photutils")
    rows, columns = np.nonzero(labels.data)
    assert frame.loc[0, ["x_min", "y_min", "x_max", "y_max"]].tolist() == [
        columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    ]  # fmt: skip
    np.testing.assert_allclose(frame.loc[0, ["x", "y"]].astype(float), [50, 20], atol=0.01)
    assert frame.a_pix[0] == pytest.approx(3, rel=0.1) and frame.b_pix[0] == pytest.approx(1.5, rel=0.1)
    assert abs(abs(frame.theta_deg[0]) - 90) < 1 and frame.snr[0] > 100 and 0.99 < frame.score[0] < 1


@pytest.mark.parametrize("kind", ["ecsv", "fits"])
@pytest.mark.filterwarnings("ignore")
def test_photutils_writes_sky_positions_that_are_read_again(tmp_path, kind):
    table = Table({"label": [1, 2], "x_centroid": [3.0, 4.0], "y_centroid": [5.0, 6.0]})
    table["sky_centroid"] = SkyCoord([10.0, 11.0], [-5.0, -6.0], unit="deg", frame="fk5").icrs
    table.write(tmp_path / f"c.{kind}")
    frame, _ = load(tmp_path / f"c.{kind}", "photutils")
    expected = table["sky_centroid"]
    np.testing.assert_allclose(frame[["ra", "dec"]], np.stack((expected.ra.deg, expected.dec.deg), axis=1))


def test_photutils_of_older_versions():
    old = pd.DataFrame({"label": [3], "xcentroid": [5.0], "ycentroid": [6.0], "bbox_xmin": [2], "bbox_xmax": [8]})
    frame, _ = load(old.assign(semimajor_sigma=2.0, semiminor_sigma=1.0, orientation=45.0), "photutils")
    assert (frame.id[0], frame.x[0], frame.x_min[0], frame.x_max[0], frame.a_pix[0]) == (3, 5, 2, 9, 2)


def test_lsst_takes_primary_objects_their_fluxes_and_moments(caplog):
    table = pd.DataFrame({"objectId": [1, 2, 3], "coord_ra": [10.0, 10.1, 10.2], "coord_dec": [-1.0, -1.1, -1.2]})
    table = table.assign(
        x=[5.0, 6.0, 7.0], y=1.0, detect_isPrimary=[True, False, True], refExtendedness=[0.0, 1.0, 1.0]
    )
    table = table.assign(shape_xx=[4.0, 4.0, 5.0], shape_yy=[1.0, 1.0, 5.0], shape_xy=[0.0, 0.0, 3.0])
    for band in "gri":
        table[f"{band}_cModelFlux"], table[f"{band}_cModelFluxErr"] = [100.0, 1.0, 300.0], 10.0
        table[f"{band}_psfFlux"], table[f"{band}_psfFluxErr"] = 1.0, 1.0
    frame, _ = load(table, "lsst")
    assert frame.id.tolist() == [1, 3] and frame.table_row.tolist() == [0, 2]
    assert frame.flux_r.tolist() == [100, 300] and frame.fluxerr_i.tolist() == [10, 10]
    assert frame.mag_g[0] == pytest.approx(31.4 - 5) and frame.class_name.tolist() == ["star", "galaxy"]
    np.testing.assert_allclose(frame.a_pix, [2, np.sqrt(8)])
    np.testing.assert_allclose(frame.b_pix, [1, np.sqrt(2)])
    np.testing.assert_allclose(frame.theta_deg, [0, 45])
    all_rows, _ = load(table.drop(columns="detect_isPrimary"), "lsst")
    assert len(all_rows) == 3 and "no column detect_isPrimary: rows are not selected" in caplog.text
    in_radians = ColumnMap.load("lsst").apply(
        np.radians(table[["coord_ra", "coord_dec"]]), {"coord_ra": "rad", "coord_dec": "rad"}
    )
    np.testing.assert_allclose(in_radians.ra, table.coord_ra)


def test_eazy_new_and_old(tmp_path):
    Table(
        {"id": [1, 2], "ra": [1.0, 2.0], "dec": [0.0, 0.0], "z_spec": [0.5, -1.0], "z_phot": [0.52, -1.0],
         "z500": [0.53, 0.0], "z160": [0.48, 0.0], "z840": [0.6, 0.0]}
    ).write(tmp_path / "f.zout.fits")  # fmt: skip
    frame, _ = load(tmp_path / "f.zout.fits", "eazy")
    np.testing.assert_allclose(frame.redshift, [0.5, np.nan])
    np.testing.assert_allclose(frame.z_mode, [0.52, np.nan], rtol=1e-6)
    np.testing.assert_allclose(frame.z_median[0], 0.53, rtol=1e-6)
    old = tmp_path / "f.zout.cat"
    old.write_text(
        "# id z_spec z_a z_m1 chi_a l68 u68 odds z_peak\n# EAZY 1.0\n1 0.3 0.31 0.33 2.0 0.2 0.4 0.97 0.32\n"
    )
    frame, _ = load(old, "eazy")
    assert (frame.z_mode[0], frame.z_mean[0], frame.z_q160[0]) == pytest.approx((0.32, 0.33, 0.2))


def test_lephare_new_and_old():
    new = pd.DataFrame(
        {
            "IDENT": [1, 2],
            "Z_BEST": [0.5, -99.0],
            "Z_MED": [0.6, -99],
            "Z_MED68_LOW": [0.4, -99],
            "ZSPEC": [0.55, -99.9],
        }
    )
    frame, _ = load(new.assign(Z_MED68_HIGH=[0.8, -99], PDZ_BEST=[95.0, 0.0]), "lephare")
    np.testing.assert_allclose(frame.z_mode, [0.5, np.nan])
    np.testing.assert_allclose(frame.redshift, [0.55, np.nan], rtol=1e-6)
    assert (frame.z_median[0], frame.z_q160[0], frame.z_q840[0], frame.z_odds[0]) == pytest.approx(
        (0.6, 0.4, 0.8, 0.95)
    )
    old = pd.DataFrame({"IDENT": [7], "Z_BEST": [0.5], "Z_ML": [0.61], "Z_ML68_LOW": [0.41], "Z_BEST68_LOW": [0.3]})
    frame, _ = load(old, "lephare")
    assert (frame.z_median[0], frame.z_q160[0]) == pytest.approx((0.61, 0.41))


def test_deepdisc_on_jades():
    table = pd.DataFrame(
        {"ID": [3], "RA": [53.1], "DEC": [-27.8], "z_phot": [2.1], "z_spec": [2.0], "z_low": [1.9], "z_high": [2.3]}
    )
    frame, _ = load(table.assign(F444W_KRON=100.0, F444W_KRON_e=5.0), "deepdisc_jades")
    assert (frame.z_mode[0], frame.redshift[0], frame.z_q160[0]) == pytest.approx((2.1, 2.0, 1.9))
    assert (frame.flux_F444W[0], frame.fluxerr_F444W[0], frame.id[0]) == (100, 5, 3)


def test_real_eazy_catalogue(shared_data):
    frame, _ = load(shared_data / "data/catalogues/specz/hdfn_fs99_eazy.cat", "eazy")
    assert len(frame) > 1000 and np.nanmin(frame.redshift) >= 0 and 100 < np.isfinite(frame.redshift).sum() < 300


def test_the_first_alternative_that_the_table_has_is_taken():
    choices = {"columns": {"x": ["X2 - 1", "X1 - 1"], "y": "Y"}, "optional": True}
    table = pd.DataFrame({"X1": [5.0], "Y": [2.0]})
    made = ColumnMap.from_mapping(choices, "here")
    assert made.apply(table).x.tolist() == [4.0]
    assert made.apply(table.assign(X2=8.0)).x.tolist() == [7.0]
    assert list(made.apply(table[["Y"]])) == ["y"]
    strict = ColumnMap.from_mapping({"columns": choices["columns"]}, "here")
    with pytest.raises(InputError, match="here: x: .*X2"):
        strict.apply(table[["Y"]])
    with pytest.raises(InputError, match="optional is 'yes'; it is true or false"):
        ColumnMap.from_mapping({**choices, "optional": "yes"}, "here")


def test_maps_go_to_the_catalogues_in_order():
    assert each("sep", 2) == ["sep", None]
    assert each([None, "lsst"], 3) == [None, "lsst", None]
    assert each(["", "lsst"], 2) == [None, "lsst"]
    with pytest.raises(InputError, match="3 column maps are given for 2 catalogues"):
        each(["a", "b", "c"], 2)


def test_ids_that_are_names_stay_text():
    frame, _ = load(pd.DataFrame({"ID": ["J1", "J2"], "RA": [1.0, 2.0], "DEC": [0.0, 0.0]}), "deepdisc_jades")
    assert frame.catalogue_id.tolist() == ["J1", "J2"] and "id" not in frame
