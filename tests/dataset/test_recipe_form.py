"""The form of recipes: keys, paths, fields by pattern, changes from the command line, outlines."""

import blob_sky
import fitsio
import numpy as np
import pandas as pd
import pytest
import yaml

from deepdisc.data.outlines import to_rle
from deepdisc.data.prepare import prepare
from deepdisc.data.recipe import read_recipe
from deepdisc.errors import InputError


def write(folder, **contents):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(contents))
    return path


FIELD = {"mosaic": "m.yaml", "catalogue": {"file": "c.csv", "columns": {"ra": "ra", "dec": "dec"}}, "detect": {}}


def test_paths_start_from_the_folder_of_the_data(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    mosaic = {"ebv": {"sfd": "dust"}, "bands": {"g": {"image": "g.fits[SCI]", "weight": "w.fits"}}}
    recipe = write(tmp_path, data="elsewhere", fields=[FIELD | {"mosaic": mosaic, "segmentation": "s.fits"}])
    [field] = read_recipe(recipe).fields
    folder = str(tmp_path / "elsewhere")
    assert field.mosaic.bands[0].image == f"{folder}/g.fits[SCI]" and field.mosaic.bands[0].noise == f"{folder}/w.fits"
    assert field.mosaic.ebv == {"sfd": f"{folder}/dust", "scale": 1.0}
    assert field.survey.catalogues[0].files == (f"{folder}/c.csv",)
    assert str(field.survey.segmentation) == f"{folder}/s.fits"


def test_the_command_line_changes_keys_and_names_the_data(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    recipe = write(tmp_path, fields=[FIELD])
    monkeypatch.chdir(tmp_path)
    changed = read_recipe(recipe, ["data=here", "fields.0.detect.threshold=7", "splits.block_pix=300", "bands=[g, r]"])
    assert changed.fields[0].mosaic == str(tmp_path / "here" / "m.yaml")
    assert changed.fields[0].survey.detection.threshold == 7
    assert changed.splits.block_pix == 300 and changed.bands == ("g", "r")
    for text, message in (
        ("data=none", "no folder .*none; say where the data are: data=FOLDER"),
        ("data", "'data' is not KEY=VALUE"),
        ("fields.7.name=x", "the recipe has no '7' there"),
        ("fields.0.detect.treshold=7", "unknown key 'treshold'; the nearest is 'threshold'"),
    ):
        with pytest.raises(InputError, match=message):
            read_recipe(recipe, [text])


def test_a_pattern_stands_for_a_field_for_each_file(tmp_path):
    for name in ("a_1_x.fits", "a_22_y.fits", "b.fits"):
        (tmp_path / name).write_bytes(b"")
    entry = {
        "each": "a_{id}_{kind}.fits",
        "name": "{kind}{id}",
        "mosaic": {"bands": {"g": {"image": "{file}[SCI]", "zero_point": 25}}},
        "catalogue": {"file": "c.csv", "where": "id == {id}", "columns": {"mag_{band}": "{band}"}},
        "detect": {},
    }  # fmt: skip
    first, second = read_recipe(write(tmp_path, fields=[entry])).fields
    assert (first.name, second.name) == ("x1", "y22")
    assert second.mosaic.bands[0].image == str(tmp_path / "a_22_y.fits[SCI]")
    assert second.survey.catalogues[0].columns.where == "id == 22"
    assert list(second.survey.catalogues[0].columns.columns) == ["mag_{band}"]  # other braces stay
    with pytest.raises(InputError, match=r"no file z_\{id\}.fits in .*: data=FOLDER"):
        read_recipe(write(tmp_path, fields=[entry | {"each": "z_{id}.fits"}]))
    with pytest.raises(InputError, match="'same' is listed more than once"):
        read_recipe(write(tmp_path, fields=[entry | {"name": "same"}]))


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"splits": {"block_pix": 10, "block_arcmin": 1}}, "block_pix and block_arcmin are both given"),
        ({"splits": {"guard_pix": -1}}, "guard_pix is -1; it must not be negative"),
        ({"splits": {"blok_pix": 1}}, "splits: unknown key 'blok_pix'; the nearest is 'block_pix'"),
        ({"splits": [1]}, "it is a mapping of fractions, block_pix"),
        ({"data": 3}, "data is 3; it is the folder"),
        ({"fields": [{"mosaic": "m.yaml"}]}, "`truth` is missing; give truth and segmentation, or a catalogue and"),
        ({"fields": [FIELD | {"mosaic": None}]}, "`mosaic` is missing"),
        ({"fields": [FIELD | {"regrid": 3}]}, "regrid is 3; it is the band"),
        ({"fields": [FIELD | {"each": 3}]}, "each is 3; it is a pattern"),
        ({"fields": [FIELD | {"ebv": {"sdf": "x"}}]}, r"ebv is .*a map of the sky is \{sfd: FOLDER\}"),
        ({"fields": [FIELD | {"ebv": [1]}]}, "ebv is .* must be a number"),
        ({"fields": [FIELD | {"catalogue": "c.csv"}]}, "catalogue.0. is 'c.csv'; it is a mapping of file, columns"),
        (
            {"fields": [{"mosaic": "m", "truth": "t", "segmentation": "s", "regrid": "r"}]},
            "are for fields with a catalog",
        ),
        ({"fields": [{"mosaic": "m", "truth": "t", "segmentation": "s", "detect": {}}]}, "exclude each other"),
    ],
)
def test_bad_forms_are_named(tmp_path, contents, message):
    with pytest.raises(InputError, match=message):
        read_recipe(write(tmp_path, **({"fields": [FIELD]} | contents)))


def test_a_column_map_of_its_own_with_another_selection(tmp_path):
    (tmp_path / "m.yaml").write_text(yaml.safe_dump({"where": "a > 1", "columns": {"ra": "R", "dec": "D"}}))
    entry = FIELD | {"catalogue": {"file": "c.csv", "columns": "m.yaml", "where": "a > 2"}}
    [field] = read_recipe(write(tmp_path, fields=[entry])).fields
    columns = field.survey.catalogues[0].columns
    assert columns.where == "a > 2" and columns.columns["ra"][0].column == "R"


def test_whole_outlines_come_along_in_the_pixels_of_their_tiles(tmp_path):
    entry = blob_sky.write_field(tmp_path / "f", shape=(128, 192), count=20)
    rows = []
    for i in range(1, 21):
        mask = np.zeros((9, 7), bool)
        mask[:i, 1:5] = True
        code = to_rle(mask)["counts"].encode()
        rows.append({"id": i, "y0": 5 * i, "x0": 8 * i, "height": 9, "width": 7, "rle": code})
    pd.DataFrame(rows).to_parquet(tmp_path / "f" / "outlines.parquet")
    recipe = blob_sky.write_recipe(tmp_path, [entry | {"outlines": "f/outlines.parquet"}])
    root = prepare(recipe, tmp_path / "out", fractions={"train": 1.0}, tile_size=64)
    whole, tiles = pd.read_parquet(root / "outlines.parquet"), pd.read_parquet(root / "split.parquet").set_index("tile")
    truth = pd.read_parquet(root / "truth.parquet")
    assert set(zip(whole.tile, whole.id, strict=True)) == set(zip(truth.tile, truth.id, strict=True))
    place = tiles.loc[whole.tile]
    assert ((whole.y0.to_numpy() + place.y0.to_numpy()) == 5 * whole.id).all()
    assert ((whole.x0.to_numpy() + place.x0.to_numpy()) == 8 * whole.id).all()
    pd.DataFrame(rows).drop(columns="rle").to_parquet(tmp_path / "f" / "outlines.parquet")
    with pytest.raises(InputError, match="lacks rle; a table of outlines has id, y0"):
        prepare(recipe, tmp_path / "again", fractions={"train": 1.0})


def test_bands_on_other_grids_are_brought_onto_one(tmp_path):
    pytest.importorskip("reproject")
    import imitations
    from astropy.io import fits

    sky = imitations.Sky("gr", shape=(150, 170), scale_arcsec=0.2, ra=150.0, dec=2.0)
    moved = sky.header.copy()
    moved["CRPIX1"] += 4
    fits.PrimaryHDU(sky.image("r"), sky.header).writeto(tmp_path / "r.fits")
    fits.PrimaryHDU(np.roll(sky.image("g"), 4, axis=1), moved).writeto(tmp_path / "g.fits")
    fits.PrimaryHDU(sky.segmentation).writeto(tmp_path / "seg.fits")
    sky.truth.to_csv(tmp_path / "c.csv")
    columns = {"id": "id", "ra": "ra", "dec": "dec", "class": "galaxy"}
    entry = {
        "mosaic": {"bands": {"g": {"image": "g.fits", "unit": "nJy"}, "r": {"image": "r.fits", "unit": "nJy"}}},
        "regrid": "r", "segmentation": "seg.fits", "catalogue": {"file": "c.csv", "columns": columns},
    }  # fmt: skip
    root = prepare(write(tmp_path, fields=[entry]), tmp_path / "out", fractions={"train": 1.0}, tile_size=512)
    image, mask = (fitsio.read(str(root / "tiles/00000.fits"), ext=name) for name in ("IMAGE", "MASK"))
    good = ~mask[0].astype(bool)
    assert good[:, 8:-8].all()
    np.testing.assert_allclose(image[0][good], sky.image("g")[good], atol=0.05)
    # Nothing of the work is left behind.
    assert {path.name for path in root.iterdir()} == {"dataset.yaml", "split.parquet", "truth.parquet", "tiles"}
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.yaml", "r.fits", "g.fits", "seg.fits", "c.csv", "out"}
