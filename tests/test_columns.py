"""Foreign catalogues: every kind of file, units, sentinels, classes; and what is refused."""

import gzip

import numpy as np
import pandas as pd
import pytest
from astropy.table import Table

from deepdisc.columns import ColumnMap
from deepdisc.errors import InputError
from deepdisc.tables import read_table

FLUX_NJY = 3630.780547701014  # of 22.5 mag: 10 ** (0.4 * 8.9)


def table():
    made = Table(
        {
            "NUMBER": np.array([7, 8, 9]),
            "RA": [150.0, 150.1, -999.0],
            "DEC": [2.0, 2.1, -999.0],
            "f_r": np.array([1.0, -99.0, 3.0]),
            "e_r": np.array([0.1, 0.2, -99.0]),
            "m_i": np.array([22.5, 99.0, 20.0]),
            "type": [6, 3, 3],
        }
    )
    made["f_r"].unit, made["e_r"].unit = "uJy", "uJy"
    return made


COLUMNS = {
    "id": "NUMBER",
    "ra": "RA",
    "dec": "DEC",
    "flux_r": {"column": "f_r", "error": "e_r", "unit": "uJy"},
    "mag_i": "m_i",
    "class": {"star": "type == 6", "galaxy": True},
}


def mapped(content=None, frame=None, units=None, bands=None, **columns):
    content = {"columns": {**COLUMNS, **columns}} | (content or {})
    frame = table().to_pandas() if frame is None else frame
    return ColumnMap.from_mapping(content, "here").apply(frame, units, bands)


def write(path):
    """The table above in the format of the file's name."""
    made, frame = table(), table().to_pandas()
    name = path.name.removesuffix(".gz")
    if name.endswith((".fits", ".vot", ".ecsv")):
        made.write(path, format={"f": "fits", "v": "votable", "e": "ascii.ecsv"}[name.split(".")[1][0]])
    elif name.endswith(".parquet"):
        frame.to_parquet(path)
    elif name.endswith(".csv"):
        frame.to_csv(path, index=False)
    elif name == "eazy.cat":
        lines = ["# " + " ".join(frame.columns), "# id x y F1 E1 F2 t"]
        path.write_text("\n".join([*lines, frame.to_string(header=False, index=False), ""]))
    elif name == "sextractor.cat":
        lines = [f"#{i:4d} {name:20s} what it is {'[deg]' if name == 'RA' else ''}" for i, name in enumerate(frame, 1)]
        path.write_text("\n".join([*lines, frame.to_string(header=False, index=False), ""]))
    else:
        text = frame.to_string(index=False)
        opened = gzip.open(path, "wt") if path.suffix == ".gz" else open(path, "w")
        with opened as file:
            file.write(text + "\n")


@pytest.mark.parametrize(
    "name",
    ["c.fits", "c.fits.gz", "c.vot", "c.ecsv", "c.parquet", "c.csv", "c.csv.gz", "c.ascii", "c.txt.gz", "eazy.cat",
     "sextractor.cat"],
)  # fmt: skip
def test_every_kind_of_file_gives_the_same_columns(tmp_path, name):
    write(tmp_path / name)
    frame, units = read_table(tmp_path / name)
    assert list(frame.columns) == table().colnames
    found = mapped(frame=frame, units=units)
    assert found.catalogue_id.tolist() == ["7", "8", "9"]
    np.testing.assert_allclose(found.flux_r, [1000, np.nan, 3000])
    np.testing.assert_allclose(found.fluxerr_r, [100, 200, np.nan])
    np.testing.assert_allclose(found.mag_i, [22.5, np.nan, 20])
    np.testing.assert_allclose(found.flux_i.iloc[0], FLUX_NJY)
    np.testing.assert_allclose(found.ra, [150, 150.1, np.nan])
    np.testing.assert_allclose(found.mag_r.iloc[0], 31.4 - 7.5)
    assert found.class_name.tolist() == ["star", "galaxy", "galaxy"]


def test_fits_extensions_are_named_and_masked_integers_are_missing(tmp_path):
    from astropy.io import fits

    second = Table({"ID": np.array([1, 2]), "F200W": [5.0, 6.0]})
    masked = Table({"z": np.ma.array([3, 4], mask=[False, True])})
    hdus = [fits.PrimaryHDU(), fits.BinTableHDU(table(), name="SIZE"), fits.BinTableHDU(second, name="KRON")]
    fits.HDUList([*hdus, fits.BinTableHDU(masked, name="Z")]).writeto(tmp_path / "c.fits")
    assert list(read_table(tmp_path / "c.fits")[0]) == table().colnames
    assert read_table(f"{tmp_path}/c.fits[kron]")[0].F200W.tolist() == [5, 6]
    assert read_table(f"{tmp_path}/c.fits[2]")[0].ID.tolist() == [1, 2]
    np.testing.assert_array_equal(read_table(f"{tmp_path}/c.fits[Z]")[0].z, [3, np.nan])
    with pytest.raises(InputError, match="has no table KORN, only SIZE, KRON, Z; the nearest is KRON"):
        read_table(f"{tmp_path}/c.fits[KORN]")
    fits.PrimaryHDU(np.zeros((3, 3))).writeto(tmp_path / "i.fits")
    with pytest.raises(InputError, match="holds no table; is it an image?"):
        read_table(tmp_path / "i.fits")


def test_names_of_text_tables_are_needed(tmp_path):
    (tmp_path / "c.txt").write_text("1 2 3\n4 5 6\n")
    with pytest.raises(InputError, match="its columns have no names"):
        read_table(tmp_path / "c.txt")
    (tmp_path / "c.txt").write_text("# nothing\n")
    with pytest.raises(InputError, match="holds no row"):
        read_table(tmp_path / "c.txt")
    with pytest.raises(InputError, match="unknown kind of catalogue"):
        (tmp_path / "c.sav").write_text("x")
        read_table(tmp_path / "c.sav")


def test_units_come_from_the_map_then_the_file_and_else_are_an_error():
    stated = mapped(frame=table().to_pandas(), flux_r={"column": "f_r", "zero_point": 22.5})
    np.testing.assert_allclose(stated.flux_r.iloc[0], FLUX_NJY)
    from_file = mapped(units={"f_r": "mJy"}, flux_r="f_r")
    np.testing.assert_allclose(from_file.flux_r.iloc[0], 1e6)
    cgs = mapped(units={"f_r": "erg / (Hz s cm2)"}, flux_r="f_r")
    np.testing.assert_allclose(cgs.flux_r.iloc[0], 1e32)
    magnitude = mapped(flux_i={"column": "m_i", "unit": "mag", "error": "e_r"})
    np.testing.assert_allclose(magnitude.fluxerr_i.iloc[0], FLUX_NJY * 0.1 * 0.4 * np.log(10))
    for columns, message in (
        ({"flux_r": "f_r"}, "flux_r: neither the file nor the recipe says the flux's unit"),
        ({"flux_r": {"column": "f_r", "unit": "counts"}}, "flux_r: the unit 'counts' is unknown or cannot become nJy"),
        ({"a": "e_r"}, "a: neither the file nor the recipe says the unit"),
        ({"hlr_arcsec": "e_r"}, "hlr_arcsec: neither the file nor the recipe says the unit"),
        ({"mag_r": {"column": "f_r", "unit": "nJy"}}, "the unit 'nJy' is no magnitude; call it flux_r"),
        ({"flux_r": {"column": "f_r", "unit": "nJy", "zero_point": 1}}, "unit and zero_point are both given"),
    ):
        with pytest.raises(InputError, match=message):
            mapped(**columns)


def test_angles_are_converted():
    frame = pd.DataFrame({"ra": [10.0], "dec": [1.0], "a": [0.001], "b": [3.0], "t": [np.pi / 2]})
    columns = {"ra": {"column": "ra", "unit": "hourangle"}, "dec": "dec", "a": {"column": "a", "unit": "deg"}}
    columns |= {"b": {"column": "b", "unit": "pix"}, "theta": {"column": "t", "unit": "rad"}}
    found = ColumnMap.from_mapping({"columns": columns}, "here").apply(frame)
    assert found.ra[0] == pytest.approx(150) and found.theta_deg[0] == pytest.approx(90)
    galactic = {"columns": {"ra": "ra", "dec": "dec"}, "sky_frame": "galactic"}
    centre = ColumnMap.from_mapping(galactic, "here").apply(pd.DataFrame({"ra": [0.0], "dec": [0.0]}))
    assert (centre.ra[0], centre.dec[0]) == (pytest.approx(266.405, abs=1e-3), pytest.approx(-28.936, abs=1e-3))
    assert found.a_arcsec[0] == pytest.approx(3.6) and found.b_pix[0] == 3


def test_bands_are_those_of_the_file_or_those_asked_for():
    frame = pd.DataFrame({"F090W_KRON": [1.0], "F090W_KRON_e": [0.1], "F200W_KRON": [2.0], "F200W_KRON_e": [0.1]})
    frame["ID_KRON"] = 5
    template = {"flux_{band}": {"column": "{band}_KRON", "error": "{band}_KRON_e", "unit": "nJy"}}
    made = ColumnMap.from_mapping({"columns": template}, "here")
    assert set(made.apply(frame)) == {f"{k}_{b}" for k in ("flux", "mag", "fluxerr") for b in ("F090W", "F200W")}
    assert [name for name in made.apply(frame, bands=["F200W"]) if name.startswith("flux_")] == ["flux_F200W"]
    with pytest.raises(InputError, match=r"no column fits '\{band\}_KRON' for a band of r, i"):
        made.apply(frame, bands=["r", "i"])
    lower = ColumnMap.from_mapping({"columns": {"flux_{band}": {"column": "{BAND}_KRON", "unit": "nJy"}}}, "here")
    assert "flux_f200w" in lower.apply(frame, bands=["f200w"])


def test_a_band_that_only_the_mosaic_has_is_told(caplog):
    template = {"flux_{band}": {"column": "f_{band}", "unit": "nJy"}}
    ColumnMap.from_mapping({"columns": template}, "here").apply(table().to_pandas(), bands=["r", "z"])
    assert "here: no flux_{band} for z" in caplog.text


def test_rows_are_selected_and_stated_sentinels_replace_the_usual_ones():
    found = mapped({"where": "type == 3", "missing": [3]})
    assert found.index.tolist() == [1, 2] and found.attrs["rows"] == 3
    np.testing.assert_allclose(found.flux_r, [-99000, np.nan])
    assert found.mag_i.iloc[0] == 99


def test_classes_without_a_condition_that_holds_are_left_open():
    assert mapped(**{"class": {"star": "type == 6"}}).class_name.isna().tolist() == [False, True, True]
    assert mapped(**{"class": "galaxy"}).class_name.tolist() == ["galaxy"] * 3


def test_exchanged_ra_and_dec_show_in_impossible_declinations():
    with pytest.raises(InputError, match="here: dec: 2 of 3 declinations are beyond 90.*are ra and dec exchanged"):
        mapped(frame=table().to_pandas().assign(RA=[1, 2, 3], DEC=[150.0, 151, 5]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"columns": {"rightascension": "RA"}}, "'rightascension' is none of ours"),
        ({"columns": {}}, "`columns:` maps our names"),
        ({"columns": {"ra": "RA"}, "were": "x"}, "unknown key 'were'; the nearest is 'where'"),
        ({"columns": {"ra": {"col": "RA"}}}, "ra: unknown key 'col'; there are column, unit"),
        ({"columns": {"class": 3}}, "class is 3; give a name, or conditions"),
        ({"columns": {"ra": "RA"}, "missing": ["x"]}, "missing is .* it is a list of numbers"),
        ({"columns": {"ra": "RA"}, "where": 3}, "where is 3; it is a condition"),
        ({"columns": {"ra": {"column": "RA", "zero_point": "x"}}}, "zero_point is 'x'"),
        ({"columns": {"flux_r": {"column": ["a"]}}}, "give a column's name or an expression"),
    ],
)
def test_bad_maps_are_named(content, message):
    with pytest.raises(InputError, match=message):
        ColumnMap.from_mapping(content, "here")


def test_a_map_in_a_file_of_its_own(tmp_path):
    (tmp_path / "m.yaml").write_text("description: mine\ncolumns: {ra: RA, dec: DEC}\n")
    assert list(ColumnMap.load(tmp_path / "m.yaml").apply(table().to_pandas())) == ["ra", "dec"]
    with pytest.raises(InputError, match="no column map at"):
        ColumnMap.load(tmp_path / "none.yaml")


def test_text_where_numbers_belong_is_named():
    with pytest.raises(InputError, match="here: mag_i: the column holds 'faint', which is no number"):
        mapped(frame=table().to_pandas().assign(m_i=["faint", "1", "2"]))
