"""Joining two catalogues: the table, its files, the command."""

import numpy as np
import pandas as pd
import pytest

from deepdisc import cli
from deepdisc.errors import InputError
from deepdisc.evaluation import crossmatch
from deepdisc.tables import read_table

A = pd.DataFrame({"id": [11, 12, 13], "ra": [10.0, 10.01, 10.02], "dec": [0.0, 0.0, 0.0], "mag_r": [20.0, 21.0, 22.0]})
# A pair 0.36 arcsec away, two candidates for the second (0.36 and 0.72 arcsec), one object far from all.
B = pd.DataFrame(
    {"id": ["p", "q", "s", "t"], "ra": [10.0001, 10.0099, 10.0102, 10.05], "dec": 0.0, "z": [0.1, 0.2, 0.3, 0.4]}
)


def test_table_of_pairs_lone_objects_and_doubts():
    table = crossmatch(A, B)
    assert table.id_a.tolist()[:3] == [11, 12, 13] and table.id_b.tolist()[:2] == ["p", "q"]
    assert table.id_a.isna().tolist() == [False, False, False, True, True]
    assert table.id_b.isna().tolist() == [False, False, True, False, False]
    assert table.row_b.tolist()[3:] == [2, 3]
    np.testing.assert_allclose(table.separation_arcsec, [0.36, 0.36, np.nan, np.nan, np.nan], rtol=1e-6)
    np.testing.assert_allclose(table.quality, [0.64, 0.64, np.nan, np.nan, np.nan], rtol=1e-6)
    assert table.ambiguous_a.tolist() == [False, True, False, False, False]
    assert table.ambiguous_b.tolist() == [False, False, False, True, False]
    assert table.group[1] == table.group[3] and table.group.nunique() == 4
    assert (table.group_n_a[1], table.group_n_b[1]) == (1, 2)
    about = table.attrs
    assert (about["matched"], about["ambiguous_a"], about["ambiguous_b"], about["n_b"]) == (2, 1, 1, 4)
    assert about["groups"] == {"0-1": 1, "1-0": 1, "1-1": 1, "1-2": 1}
    assert about["criterion"] == "positions within 1 arcsec"


@pytest.mark.parametrize(("keep", "rows"), [("all", 5), ("matched", 2), ("a", 3), ("b", 4)])
def test_rows_that_are_kept(keep, rows):
    assert len(crossmatch(A, B, keep=keep)) == rows


def test_columns_of_both_are_appended():
    table = crossmatch(A, B, all_columns=True)
    np.testing.assert_allclose(table.mag_r_a, [20, 21, 22, np.nan, np.nan])
    np.testing.assert_allclose(table.z_b, [0.1, 0.2, np.nan, 0.3, 0.4])
    assert list(table.columns).count("id_a") == 1


@pytest.mark.parametrize("suffix", ["parquet", "fits", "ecsv", "csv"])
@pytest.mark.parametrize("all_columns", [False, True])
def test_every_kind_of_file_holds_the_table(tmp_path, suffix, all_columns):
    path = tmp_path / f"joined.{suffix}"
    table = crossmatch(A, B, path, all_columns=all_columns)
    read, units = read_table(path)
    assert list(read.columns) == list(table.columns)
    np.testing.assert_allclose(read.separation_arcsec, table.separation_arcsec)
    assert read.row_b[:2].tolist() == [0, 1] and read.row_b.isna().tolist() == table.row_b.isna().tolist()
    assert [bool(value) for value in read.ambiguous_a] == table.ambiguous_a.tolist()
    assert list(read.id_b[:2]) == ["p", "q"]
    assert units.get("separation_arcsec") == (None if suffix == "csv" else "arcsec")
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_unknown_kinds_are_refused(tmp_path):
    with pytest.raises(InputError, match="cannot write .*joined.txt: unknown kind of table"):
        crossmatch(A, B, tmp_path / "joined.txt")
    with pytest.raises(InputError, match="keep is 'both'; choose one of all, matched, a, b"):
        crossmatch(A, B, keep="both")


def test_without_ids_rows_are_told():
    table = crossmatch(A.drop(columns="id"), B.drop(columns="id"), keep="matched")
    assert "id_a" not in table and table.row_a.tolist() == [0, 1]


def test_an_empty_catalogue_gives_an_empty_join():
    table = crossmatch(A.iloc[:0], B)
    assert len(table) == 4 and table.row_a.isna().all() and table.attrs["matched"] == 0
    assert len(crossmatch(A, B.iloc[:0])) == 3
    assert len(crossmatch(A.iloc[:0], B.iloc[:0], keep="matched")) == 0


def test_the_order_of_rows_does_not_matter():
    rng = np.random.default_rng(0)
    a = pd.DataFrame({"id": np.arange(60), "x": rng.uniform(0, 40, 60), "y": rng.uniform(0, 40, 60)})
    b = a.iloc[rng.permutation(60)[:50]] + rng.normal(0, 0.4, (50, 3)) * [0, 1, 1]
    expected = crossmatch(a, b, keep="matched")
    shuffled = crossmatch(a.sample(frac=1, random_state=1), b.sample(frac=1, random_state=2), keep="matched")
    pairs = [set(zip(t.id_a, t.id_b, strict=True)) for t in (expected, shuffled)]
    assert pairs[0] == pairs[1] and len(pairs[0]) > 40


def test_the_command_joins_files_of_other_programs(tmp_path, capsys):
    sextractor = pd.DataFrame({"NUMBER": [1, 2], "ALPHA_J2000": [10.0, 10.01], "DELTA_J2000": [0.0, 0.0]})
    sextractor.to_csv(tmp_path / "a.csv", index=False)
    B.rename(columns={"ra": "RA", "dec": "DEC", "id": "ID", "z": "z_spec"}).to_csv(tmp_path / "b.csv", index=False)
    command = ["match", str(tmp_path / "a.csv"), str(tmp_path / "b.csv"), "--output", str(tmp_path / "out.csv")]
    assert cli.main([*command, "--columns", "sextractor,deepdisc_jades", "--all-columns", "--keep", "a"]) == 0
    out = capsys.readouterr().out
    assert "2 pairs of 2 and 4 objects: positions within 1 arcsec" in out
    assert "with a second candidate: 1 of A, 1 of B" in out and "blends (A-B): 1-2: 1" in out
    table = pd.read_csv(tmp_path / "out.csv")
    assert table.id_b.tolist() == ["p", "q"] and table.redshift_b.tolist() == pytest.approx([0.1, 0.2])


def test_the_command_names_what_is_wrong(tmp_path, capsys):
    A.to_csv(tmp_path / "a.csv", index=False)
    base = ["match", str(tmp_path / "a.csv"), str(tmp_path / "a.csv"), "--output", str(tmp_path / "o.csv")]
    assert cli.main([*base, "--columns", "sextracto"]) == 2
    assert (
        "no column map sextracto, neither a file nor shipped; shipped are: deepdisc_jades, eazy"
        in capsys.readouterr().err
    )
    assert cli.main([*base, "--match-by", "nearest"]) == 2
    assert "unknown way of matching 'nearest'" in capsys.readouterr().err
    assert cli.main([*base, "--match-by", "masks", "--segmentations", "one"]) == 2
    assert "'one' is not two names" in capsys.readouterr().err
