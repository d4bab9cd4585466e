"""Fields with truth to an on-disk data set."""

import re

import blob_sky
import fitsio
import numpy as np
import pandas as pd
import pytest
import yaml

from deepdisc.data.prepare import prepare, read_recipe
from deepdisc.data.splits import Area, plan_areas, same_sky, tile_edges
from deepdisc.data.truth import read_segmentation, read_truth
from deepdisc.errors import InputError


def pixels(root, name):
    with fitsio.FITS(str(root / name)) as fits:
        return {hdu.get_extname(): hdu.read() for hdu in fits}


def test_tiles_hold_the_field_unchanged(dataset, three_fields):
    tiles = pd.read_parquet(dataset / "split.parquet")
    assert tiles.groupby("split").size().to_dict() == {"test": 4, "train": 4, "val": 4}
    fields = {name: three_fields.parent / name for name in tiles.field.unique()}
    for row in tiles.itertuples():
        tile = pixels(dataset, row.file)
        window = np.s_[row.y0 : row.y0 + row.height, row.x0 : row.x0 + row.width]
        for band, image in zip(blob_sky.BANDS, tile["IMAGE"], strict=True):
            np.testing.assert_array_equal(image, fitsio.read(str(fields[row.field] / f"{band}.fits"))[window])
        np.testing.assert_array_equal(
            tile["SEGMENTATION"], fitsio.read(str(fields[row.field] / "segmentation.fits"))[window]
        )
        assert tile["VARIANCE"][1].max() == tile["VARIANCE"][1].min() == 9.0
        assert not tile["MASK"].any()
        assert tile["EBV"] == pytest.approx(0.03)
    assert (tiles.height * tiles.width).sum() == 3 * 192 * 256


def test_truth_is_in_the_pixels_of_its_tile(dataset):
    truth = pd.read_parquet(dataset / "truth.parquet")
    tiles = pd.read_parquet(dataset / "split.parquet").set_index("tile")
    whole = truth[(truth["flags"] & 1) == 0]
    checked = 0
    for number, rows in whole.groupby("tile"):
        segmentation = pixels(dataset, tiles.file[number])["SEGMENTATION"]
        for row in rows.itertuples():
            own = np.argwhere(segmentation == row.id)
            if len(own):
                assert (own >= [row.y_min, row.x_min]).all() and (own < [row.y_max, row.x_max]).all()
                checked += 1
    assert checked > 100
    assert truth.drop_duplicates(["field", "id"]).groupby("field").size().tolist() == [60, 60, 60]


def test_the_description_says_what_is_inside(dataset):
    about = yaml.safe_load((dataset / "dataset.yaml").read_text())
    assert about["bands"] == ["g", "r"] and about["unit"] == "nJy" and about["pixel_scale_arcsec"] == 0.2
    assert about["class_names"] == ["galaxy", "star"]
    assert about["splits"]["train"]["objects"] == 60 and about["splits"]["train"]["with_redshift"] == 48
    assert about["normalisation"]["r"]["noise_njy"] == pytest.approx(3.0)
    image = np.concatenate([pixels(dataset, f"tiles/{i:05d}.fits")["IMAGE"][1].ravel() for i in range(4)])
    assert about["normalisation"]["r"]["mean_njy"] == pytest.approx(image.mean(dtype=float), rel=1e-4)
    assert about["normalisation"]["r"]["std_njy"] == pytest.approx(image.std(dtype=float), rel=1e-4)


def test_the_same_recipe_and_seed_give_the_same_bytes(three_fields, dataset, tmp_path):
    again = prepare(three_fields, tmp_path / "again", tile_size=128)
    for path in dataset.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (again / path.relative_to(dataset)).read_bytes(), path.name


def test_one_field_is_cut_so_that_no_object_is_in_two_splits(tmp_path):
    entry = blob_sky.write_field(tmp_path / "one", shape=(128, 512), count=150, seed=5)
    recipe = blob_sky.write_recipe(tmp_path, [entry])
    # A narrow gap, so that objects do reach across it.
    root = prepare(
        recipe, tmp_path / "data", tile_size=128, fractions={"train": 0.5, "val": 0.25, "test": 0.25}, guard_pix=2
    )
    tiles = pd.read_parquet(root / "split.parquet")
    truth = pd.read_parquet(root / "truth.parquet").merge(tiles[["tile", "split"]], on="tile")
    assert set(truth.split) == {"train", "val", "test"}
    assert truth.groupby("id").split.nunique().max() == 1
    original = fitsio.read(str(tmp_path / "one" / "segmentation.fits"))
    masked_somewhere = 0
    for row in tiles.itertuples():
        tile = pixels(root, row.file)
        window = original[row.y0 : row.y0 + row.height, row.x0 : row.x0 + row.width]
        own = set(truth[truth.tile == row.tile].id)
        foreign = (window > 0) & ~np.isin(window, list(own))
        assert tile["MASK"][:, foreign].all() and (tile["IMAGE"][:, foreign] == 0).all()
        assert (tile["SEGMENTATION"][foreign] == 0).all()
        masked_somewhere += foreign.sum()
    assert masked_somewhere > 0, "the test needs objects across the gap"


class FakeField:
    def __init__(self, name, shape=(100, 100), positions=None, split=None):
        self.name, self.shape, self.split = name, shape, split
        ra, dec = (np.zeros(0), np.zeros(0)) if positions is None else positions
        self.truth = pd.DataFrame({"ra": ra, "dec": dec})


def sky(seed, ra=150.0, count=200):
    rng = np.random.default_rng(seed)
    return ra + rng.uniform(0, 0.02, count), rng.uniform(0, 0.02, count)


def test_fields_are_dealt_by_area_and_every_split_gets_one():
    fields = [FakeField(f"f{i}", positions=sky(i)) for i in range(10)]
    areas = plan_areas(fields, {"train": 0.8, "val": 0.1, "test": 0.1}, 0, seed=3)
    splits = [area.split for area in areas]
    assert (splits.count("train"), splits.count("val"), splits.count("test")) == (8, 1, 1)
    assert areas[4] == Area(4, areas[4].split, 0, 0, 100, 100)
    assert splits != [area.split for area in plan_areas(fields, {"train": 0.8, "val": 0.1, "test": 0.1}, 0, seed=4)]


def test_fields_of_the_same_sky_stay_together():
    ra, dec = sky(1)
    moved = (ra + 1e-5, dec)  # 0.04 arcsec: another measurement of the same objects
    fields = [FakeField("a", positions=(ra, dec)), FakeField("b", positions=sky(2)), FakeField("c", positions=moved)]
    # b lies in the same place but shows other objects: another draw of a simulation
    assert same_sky(fields) == [[0, 2], [1]]
    areas = plan_areas(fields, {"train": 0.5, "test": 0.5}, 0, seed=0)
    assert areas[0].split == areas[2].split != areas[1].split
    with pytest.raises(InputError, match="a, c show the same sky"):
        plan_areas(fields, {"train": 0.5, "val": 0.2, "test": 0.3}, 0, seed=0)


def test_a_field_too_small_to_be_cut_is_refused():
    with pytest.raises(InputError, match="too small to give 10% of it to 'val'"):
        plan_areas([FakeField("a", shape=(200, 100))], {"train": 0.9, "val": 0.1}, 32, 0)


@pytest.mark.parametrize(("length", "tile"), [(1, 64), (64, 64), (65, 64), (1489, 512), (2048, 512)])
def test_tile_edges_cover_without_overlap(length, tile):
    edges = tile_edges(10, 10 + length, tile)
    assert edges[0][0] == 10 and edges[-1][1] == 10 + length
    assert all(a[1] == b[0] for a, b in zip(edges, edges[1:], strict=False))
    sizes = [stop - start for start, stop in edges]
    assert max(sizes) <= tile and max(sizes) - min(sizes) <= 1


def broken(tmp_path, change_truth=None, **recipe):
    """A recipe of one field whose truth is spoilt."""
    entry = blob_sky.write_field(tmp_path / "f", shape=(96, 96), count=10)
    if change_truth is not None:
        path = tmp_path / "f" / "truth.parquet"
        change_truth(pd.read_parquet(path)).to_parquet(path)
    return blob_sky.write_recipe(tmp_path, [entry], **recipe)


def duplicated(truth):
    return pd.concat([truth, truth.iloc[:1]])


def off_the_image(truth):
    return truth.assign(x_min=truth.x_min + 500, x_max=truth.x_max + 500)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (duplicated, "id 1 occurs more than once"),
        (off_the_image, "outside the 96 x 96 image"),
        (lambda truth: truth.iloc[1:], "segmentation map holds id 1 .* that the catalogue lacks"),
        (lambda truth: truth.assign(id=truth.id + 2**31), "id 2147483658 is too large; number the objects from 1"),
        (lambda truth: truth.assign(class_id=3), "class_id 3.*allow 0 to 1"),
        (lambda truth: truth.assign(x_min=truth.x_max + 1), "empty or inverted"),
        (lambda truth: truth.drop(columns="class_id"), "'class_name' is missing"),
        (lambda truth: truth.rename(columns={"id": "ID"}), "'id' is missing.*nearest is 'ID'"),
    ],
)
def test_bad_truth_is_named(tmp_path, change, message):
    recipe = broken(tmp_path, change)
    with pytest.raises(InputError, match=message):
        prepare(recipe, tmp_path / "out")
    assert not list(tmp_path.glob("*out*")), "something half-written is left"


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"fields": []}, "needs a list `fields`"),
        ({"fields": [{"mosaic": "m.yaml", "truth": "t.parquet"}]}, r"fields\[0\]: `segmentation` is missing"),
        ({"class_names": "galaxy"}, "`class_names` is 'galaxy'; it is a list of names"),
        ({"bands": {"g": "g.fits"}}, "`bands` is {'g': 'g.fits'}; it is a list of names"),
        ({"class_names": []}, r"`class_names` is \[\]; it is a list"),
        ({"feilds": []}, "unknown key 'feilds'; the nearest is 'fields'"),
    ],
)
def test_bad_recipes_are_named(tmp_path, recipe, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"name": "x", "fields": [1]} | recipe))
    with pytest.raises(InputError, match=message):
        prepare(path, tmp_path / "out")


def test_integers_that_only_some_fields_have_are_left_out(tmp_path):
    entries = [
        blob_sky.write_field(tmp_path / "simulated", shape=(96, 96), count=10, population_row=7),
        blob_sky.write_field(tmp_path / "real", shape=(96, 96), count=10, seed=1, ra=10.0, hlr_arcsec=0.5),
    ]
    recipe = blob_sky.write_recipe(tmp_path, entries)
    truth = pd.read_parquet(prepare(recipe, tmp_path / "out", fractions={"train": 0.5, "val": 0.5}) / "truth.parquet")
    assert "population_row" not in truth
    assert truth[truth.field == "real"].hlr_arcsec.eq(0.5).all()
    assert truth[truth.field == "simulated"].hlr_arcsec.isna().all()


def test_the_recipes_that_the_readme_shows_are_recipes(repository, tmp_path):
    readme = (repository / "datasets" / "README.md").read_text(encoding="utf-8")
    blocks = [part.split("```")[0] for part in readme.split("```yaml\n")[1:]]
    mine, every = (block for block in blocks if "\nfields:" in block)
    for name, block in (("mine", mine), ("every", every)):
        (tmp_path / f"{name}.yaml").write_text(block, encoding="utf-8")
    recipe = read_recipe(tmp_path / "every.yaml")
    assert [field.split for field in recipe.fields] == ["train", "val"]
    assert recipe.bands == ("g", "r", "i") and recipe.provenance == {"made_by": "hand"}
    [field] = read_recipe(tmp_path / "mine.yaml").fields
    assert field.survey.redshifts[0].columns.where == "quality >= 3" and field.survey.match.radius_arcsec == 0.7


def test_the_readme_names_every_key_of_a_recipe(repository):
    from dataclasses import fields

    from deepdisc.data import recipe
    from deepdisc.data.detection import Detect
    from deepdisc.data.foreign import Problems
    from deepdisc.data.survey import Matching

    readme = (repository / "datasets" / "README.md").read_text(encoding="utf-8")
    text = readme.split("## I have a mosaic and a catalogue")[1].split("## A data set of tiles")[0]
    words = set(re.findall(r"\w+", text))
    named = [item.name for kind in (Detect, Matching, Problems, recipe.SplitSettings) for item in fields(kind)]
    for key in (*recipe._KEYS, *recipe._FIELD_KEYS, *recipe._SURVEY_KEYS, *recipe._TRUTH_KEYS, *named):
        assert key in words, key
    for path in (repository / "datasets").glob("*.yaml"):
        assert f"`{path.name}`" in text, path.name


def test_the_readme_names_what_a_data_set_consists_of(repository, dataset):
    section = (repository / "datasets" / "README.md").read_text(encoding="utf-8").split("## A data set of tiles")[1]
    columns = pd.read_parquet(dataset / "split.parquet").columns
    about = yaml.safe_load((dataset / "dataset.yaml").read_text())
    for name in (*pixels(dataset, "tiles/00000.fits"), *columns, *about, *about["normalisation"]["r"]):
        assert f"`{name}`" in section, name
    assert "`outlines.parquet`" in section
    for name in dataset.iterdir():
        assert f"`{name.name}" in section, name


def test_missing_recipe_and_existing_output_are_refused(tmp_path, three_fields):
    with pytest.raises(InputError, match="no recipe at"):
        prepare(tmp_path / "none.yaml", tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="exists already"):
        prepare(three_fields, tmp_path / "out")


def test_a_band_that_a_field_lacks_is_named(tmp_path):
    with pytest.raises(InputError, match="z"):
        prepare(broken(tmp_path, bands=["g", "z"]), tmp_path / "out")


def test_a_segmentation_map_of_another_shape_is_refused(tmp_path):
    recipe = broken(tmp_path)
    fitsio.write(str(tmp_path / "f" / "segmentation.fits"), np.zeros((50, 96), np.int32), clobber=True)
    with pytest.raises(InputError, match=r"shape \(50, 96\) differs from the mosaic's \(96, 96\)"):
        prepare(recipe, tmp_path / "out")


def test_ids_that_int32_cannot_hold_are_refused(tmp_path):
    path = tmp_path / "segmentation.fits"
    fitsio.write(str(path), np.full((4, 4), 2**32 + 1, np.int64))
    with pytest.raises(InputError, match="segmentation.fits: id 4294967297 is too large"):
        read_segmentation(path, (4, 4))


def read_classes(tmp_path, class_names, names, redshifts):
    """Redshifts that `read_truth` gives for objects of these classes, one pixel each."""
    count = len(names)
    table = pd.DataFrame({"id": np.arange(1, count + 1), "class_name": names, "redshift": redshifts})
    table.to_parquet(tmp_path / "truth.parquet")
    return read_truth(tmp_path / "truth.parquet", np.arange(count + 1)[None].astype(np.int32), class_names).redshift


def test_only_stars_lose_their_redshift_whatever_the_order_of_the_classes(tmp_path):
    classes = ["star", "spiral", "elliptical"]
    found = read_classes(tmp_path, classes, ["spiral", "star", "elliptical"], [0.3, 0.0, 1.2])
    np.testing.assert_array_equal(found, [0.3, np.nan, 1.2])


@pytest.mark.parametrize("unknown", [-1, -9, -99, -0.01])
def test_negative_redshifts_are_unknown_and_counted(tmp_path, caplog, unknown):
    found = read_classes(tmp_path, ["galaxy"], ["galaxy"] * 3, [unknown, 0, 2])
    np.testing.assert_array_equal(found, [np.nan, 0, 2])
    assert "truth.parquet: 1 negative redshifts are taken as unknown" in caplog.text


def test_boxes_and_positions_are_taken_from_the_map_where_the_catalogue_lacks_them(tmp_path):
    dropped = ["x_min", "y_min", "x_max", "y_max", "x", "y"]
    recipe = broken(tmp_path, lambda truth: truth.drop(columns=dropped))
    root = prepare(recipe, tmp_path / "out", fractions={"train": 1.0})
    segmentation = pixels(root, "tiles/00000.fits")["SEGMENTATION"]
    for row in pd.read_parquet(root / "truth.parquet").itertuples():
        rows, columns = np.nonzero(segmentation == row.id)
        assert [row.x_min, row.y_min, row.x_max, row.y_max] == [
            columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        ]  # fmt: skip
        assert row.x == (columns.min() + columns.max()) / 2
