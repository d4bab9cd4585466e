"""Blocks of sky for the splits, and that nothing is in two of them."""

import blob_sky
import fitsio
import numpy as np
import pandas as pd
import pytest
import yaml

from deepdisc.data.prepare import prepare
from deepdisc.data.splits import leaks as leaks_of
from deepdisc.data.splits import plan_areas
from deepdisc.errors import InputError

FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}


class Bare:
    """A field as `plan_areas` sees it."""

    def __init__(self, shape, name="f", split=None, ra=None):
        self.shape, self.name, self.split = shape, name, split
        grid = np.linspace(0, 0.01, 12)
        self.truth = pd.DataFrame({"ra": [], "dec": []})
        if ra is not None:
            self.truth = pd.DataFrame({"ra": ra + np.repeat(grid, 12), "dec": np.tile(grid, 12)})


def painted(areas, shape):
    """Number of the split of each pixel, -1 in the guard bands; areas must not overlap."""
    picture = np.full(shape, -1)
    for area in areas:
        part = picture[area.y0 : area.y1, area.x0 : area.x1]
        assert (part == -1).all() and part.size
        part[:] = ("train", "val", "test").index(area.split)
    return picture


@pytest.mark.parametrize("guard", [0, 1, 15, 32])
@pytest.mark.parametrize("seed", range(4))
def test_blocks_of_different_splits_keep_their_distance_in_every_direction(guard, seed):
    picture = painted(plan_areas([Bare((1000, 900))], FRACTIONS, guard, seed, block_pix=200), (1000, 900))
    for number in range(3):
        own, others = picture == number, (picture >= 0) & (picture != number)
        y, x = np.nonzero(own)
        for row in range(-1, 2):  # the nearest pixel of another split, by the larger of the two distances
            for column in range(-1, 2):
                shifted_y, shifted_x = y + row * guard, x + column * guard
                inside = (shifted_y >= 0) & (shifted_y < 1000) & (shifted_x >= 0) & (shifted_x < 900)
                assert not others[shifted_y[inside], shifted_x[inside]].any()
    shares = np.bincount(picture[picture >= 0], minlength=3) / (picture >= 0).sum()
    np.testing.assert_allclose(shares, [0.7, 0.15, 0.15], atol=0.07)


def test_blocks_are_scattered_like_a_chequerboard_and_follow_the_seed():
    plans = [plan_areas([Bare((1000, 1000))], FRACTIONS, 0, seed, block_pix=200) for seed in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]
    rows = {area.y0 for area in plans[0] if area.split != "train"}
    columns = {area.x0 for area in plans[0] if area.split != "train"}
    assert len(rows) > 1 and len(columns) > 1 and len(plans[0]) == 25


def test_without_a_block_size_the_largest_blocks_that_suffice_are_taken():
    areas = plan_areas([Bare((600, 600))], {"train": 0.8, "val": 0.1, "test": 0.1}, 16, 0, largest_block_pix=512)
    assert 10 <= len(areas) <= 16
    whole = plan_areas([Bare((600, 600), f"f{i}", ra=10.0 + i) for i in range(3)], FRACTIONS, 16, 0)
    assert [area.y1 - area.y0 for area in whole] == [600] * 3
    cut = plan_areas([Bare((600, 600), f"f{i}", ra=10.0 + i) for i in range(3)], FRACTIONS, 16, 0, block_pix=200)
    assert len(cut) == 27 and {area.field for area in cut if area.split == "test"} != {0}


def test_fields_of_one_sky_are_neither_cut_nor_put_into_different_splits():
    fields = [Bare((600, 600), "a", ra=10.0), Bare((600, 600), "b", ra=10.0), Bare((600, 600), "c", ra=20.0)]
    with pytest.raises(InputError, match="fields a, b show the same sky.* blocks are asked for"):
        plan_areas(fields, {"train": 0.5, "test": 0.5}, 16, 0, block_pix=200)
    for field, split in zip(fields, ("train", "test", "test"), strict=True):
        field.split = split
    with pytest.raises(
        InputError, match=r"fields a \(train\), b \(test\) show the same sky but are in different splits"
    ):
        plan_areas(fields, FRACTIONS, 16, 0)
    fields[1].split = "train"
    assert [area.split for area in plan_areas(fields, FRACTIONS, 16, 0)] == ["train", "train", "test"]


def test_blocks_smaller_than_their_guard_band_allows_are_refused():
    with pytest.raises(InputError, match="after its guard band of 60, at least 64 are needed"):
        plan_areas([Bare((600, 600))], FRACTIONS, 60, 0, block_pix=100)


def test_no_object_and_no_pixel_is_in_two_splits(tmp_path):
    """A crowded field in small blocks with a guard band narrower than the objects."""
    entry = blob_sky.write_field(tmp_path / "one", shape=(300, 320), count=500, seed=2)
    recipe = blob_sky.write_recipe(tmp_path, [entry], splits={"block_pix": 80, "guard_pix": 2, "fractions": FRACTIONS})
    root = prepare(recipe, tmp_path / "data", tile_size=64)
    tiles = pd.read_parquet(root / "split.parquet")
    truth = pd.read_parquet(root / "truth.parquet")
    assert leaks_of(truth, tiles) == {"objects": 0, "positions": 0}
    original = fitsio.read(str(tmp_path / "one" / "segmentation.fits"))
    seen: dict[str, set] = {}
    covered = np.zeros(original.shape, int)
    hidden = 0
    for row in tiles.itertuples():
        window = np.s_[row.y0 : row.y0 + row.height, row.x0 : row.x0 + row.width]
        covered[window] += 1
        with fitsio.FITS(str(root / row.file)) as tile:
            image, mask, ids = (tile[name].read() for name in ("IMAGE", "MASK", "SEGMENTATION"))
        lit = np.unique(original[window][~mask[0].astype(bool)])
        assert set(lit[lit > 0]) == set(np.unique(ids)[np.unique(ids) > 0])
        assert set(lit[lit > 0]) <= set(truth[truth.tile == row.tile].id)
        seen.setdefault(row.split, set()).update(lit[lit > 0].tolist(), truth[truth.tile == row.tile].id)
        hidden += int((mask[0] > 0).sum())
        assert (image[mask > 0] == 0).all()
    assert covered.max() == 1
    assert not seen["train"] & seen["val"] and not seen["train"] & seen["test"] and not seen["val"] & seen["test"]
    assert hidden > 20, "the test needs objects that reach across the guard band"


def test_leaks_are_found():
    tiles = pd.DataFrame({"tile": [0, 1], "split": ["train", "test"]})
    truth = pd.DataFrame({"tile": [0, 0, 1], "field": ["a", "a", "b"], "id": [1, 2, 1], "ra": [10.0, 10.1, 10.0]})
    truth["dec"] = [5.0, 5.0, 5.0 + 0.2 / 3600]
    assert leaks_of(truth, tiles) == {"objects": 0, "positions": 1}
    assert leaks_of(truth.assign(field="a", dec=[5.0, 5.0, 6.0]), tiles) == {"objects": 1, "positions": 0}


def test_normalisation_is_that_of_the_training_part_alone(tmp_path):
    """The field is three times as noisy where it does not train; nothing of that shows."""
    entry = blob_sky.write_field(tmp_path / "one", shape=(256, 256), count=20, seed=1)
    areas = plan_areas([Bare((256, 256))], FRACTIONS, 0, 5, block_pix=64)
    image = np.random.default_rng(0).normal(0, 2, (256, 256)).astype(np.float32)
    for area in areas:
        if area.split != "train":
            image[area.y0 : area.y1, area.x0 : area.x1] = 1e4
    with fitsio.FITS(str(tmp_path / "one" / "r.fits"), "rw") as file:
        file[0].write(image)
    settings = {"block_pix": 64, "guard_pix": 0, "seed": 5, "fractions": FRACTIONS}
    recipe = blob_sky.write_recipe(tmp_path, [entry], splits=settings)
    about = yaml.safe_load((prepare(recipe, tmp_path / "data", tile_size=64) / "dataset.yaml").read_text())
    r = about["normalisation"]["r"]
    assert abs(r["mean_njy"]) < 0.1 and r["std_njy"] == pytest.approx(2, rel=0.02)
    assert about["provenance"]["block_pix"] == 64 and about["provenance"]["seed"] == 5


def test_shares_given_twice_are_refused(tmp_path):
    entry = blob_sky.write_field(tmp_path / "one", shape=(96, 96), count=5) | {"split": "train"}
    with pytest.raises(InputError, match="its fields say their splits; leave --split out"):
        prepare(blob_sky.write_recipe(tmp_path, [entry]), tmp_path / "data", fractions={"train": 1.0})
