"""The schema, the flags, and catalogues on disk."""

import errno
import os

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from astropy.table import Table

from deepdisc import catalog
from deepdisc.errors import InputError, nearest, require_extra


def example(n: int = 5) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "id": np.arange(1, n + 1),
            "x": rng.uniform(0, 100, n),
            "y": rng.uniform(0, 100, n),
            "x_min": np.full(n, 1.0, np.float32),
            "y_min": np.full(n, 2.0, np.float32),
            "x_max": np.full(n, 6.0, np.float32),
            "y_max": np.full(n, 9.0, np.float32),
            "class_name": ["galaxy", "star"] * (n // 2) + ["galaxy"] * (n % 2),
            "flags": np.full(n, 5, np.int32),
            "flux_r": rng.normal(100, 50, n),
            "z_weights": list(np.full((n, 3), 1 / 3, np.float32)),
        }
    )


@pytest.mark.parametrize("n", [0, 1, 5])
def test_fits_and_parquet_hold_the_same_catalogue(tmp_path, n):
    frame = example(n)
    catalog.write_parquet(frame, tmp_path / "c.parquet", {"bands": ["r"], "model": "tiny"})
    catalog.parquet_to_fits(tmp_path / "c.parquet", tmp_path / "c.fits", rows_per_chunk=2)
    for path in (tmp_path / "c.parquet", tmp_path / "c.fits"):
        back = catalog.read(path)
        assert list(back.columns) == list(frame.columns) and len(back) == n
        for name in frame.columns:
            assert [np.asarray(v).tolist() for v in back[name]] == [np.asarray(v).tolist() for v in frame[name]]
    assert catalog.metadata(tmp_path / "c.parquet") == {"schema_version": 1, "bands": ["r"], "model": "tiny"}


def test_units_and_meanings_travel_in_both_formats(tmp_path):
    catalog.write_parquet(example(), tmp_path / "c.parquet")
    catalog.parquet_to_fits(tmp_path / "c.parquet", tmp_path / "c.fits")
    field = pq.read_schema(tmp_path / "c.parquet").field("flux_r")
    assert field.metadata[b"unit"] == b"nJy" and b"band r" in field.metadata[b"description"]
    table = Table.read(tmp_path / "c.fits")
    assert str(table["flux_r"].unit) == "nJy" and str(table["x"].unit) == "pix"


def test_stream_equals_one_write_and_leaves_nothing_when_it_fails(tmp_path):
    frame = example()
    with catalog.ParquetStream(tmp_path / "s.parquet", list(frame.columns)) as stream:
        stream.append(frame[:2])
        stream.append(frame[2:])
    pd.testing.assert_frame_equal(catalog.read(tmp_path / "s.parquet"), frame, check_dtype=False)
    with pytest.raises(RuntimeError), catalog.ParquetStream(tmp_path / "t.parquet", list(frame.columns)) as stream:
        stream.append(frame[:2])
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["s.parquet"]


@pytest.mark.parametrize("method", ["write_table", "close"])
def test_a_full_disk_is_an_input_error_and_leaves_nothing(tmp_path, monkeypatch, method):
    def full(writer, *args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pq.ParquetWriter, method, full)
    with pytest.raises(InputError, match="cannot write .*c.parquet: No space left on device"):
        catalog.write_parquet(example(), tmp_path / "c.parquet")
    assert list(tmp_path.iterdir()) == []


def test_sentinels_of_other_programs_become_nan_only_where_they_are_measured(tmp_path):
    Table({"id": [99, 2], "x": [99.0, 5.0], "mag_r": [99.0, 21.0], "redshift": [-99.0, 0.5]}).write(tmp_path / "c.csv")
    frame = catalog.read(tmp_path / "c.csv")
    assert frame["x"].tolist() == [99.0, 5.0] and frame["id"].tolist() == [99, 2]
    assert np.isnan(frame["mag_r"][0]) and np.isnan(frame["redshift"][0]) and frame["redshift"][1] == 0.5


def test_validation_names_column_row_and_remedy():
    with pytest.raises(InputError, match="column 'y_mni' is missing.*nearest is 'y_min'"):
        catalog.validate(example(), ["y_mni"])
    frame = example()
    frame.loc[3, "x_max"] = 0
    with pytest.raises(InputError, match="truth.parquet: the box of row 3 is empty or inverted"):
        catalog.validate(frame, ["x"], "truth.parquet")
    frame = example()
    frame.loc[2, "x"] = np.nan
    with pytest.raises(InputError, match="x is not finite in row 2"):
        catalog.validate(frame, ["x"])
    frame = example()
    frame.loc[1, "id"] = 1
    with pytest.raises(InputError, match="id 1 occurs more than once"):
        catalog.validate(frame, ["id"])


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("none.parquet", None, "no catalogue at"),
        ("text.fits", b"not a table", "cannot be read as a catalogue"),
        ("text.parquet", b"not a table", "cannot be read as a catalogue"),
        ("a.xls", b"", "unknown kind of catalogue"),
    ],
)
def test_unreadable_catalogues_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        catalog.read(tmp_path / name)
    assert name in str(caught.value)


def test_flags_are_one_table_of_distinct_bits():
    assert sorted(flag.bit for flag in catalog.FLAGS.values()) == list(range(len(catalog.FLAGS)))
    assert catalog.flag_names(catalog.FLAGS["EDGE"].value | catalog.FLAGS["BLENDED"].value) == ["EDGE", "BLENDED"]


def test_a_column_outside_the_schema_is_refused():
    with pytest.raises(KeyError, match="'colour' is not in the schema"):
        catalog.arrow_schema(["colour"])


def test_a_missing_extra_says_what_to_install():
    with pytest.raises(InputError, match=r'pip install "deepdisc\[sim\]"'):
        require_extra("a_module_that_does_not_exist", "sim")


def test_nearest_name():
    assert nearest("bnads", ["bands", "model"]) == "bands"
    assert nearest("qqqq", ["bands", "model"]) is None
