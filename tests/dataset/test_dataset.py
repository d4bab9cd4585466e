"""Samples, sampler and loaders."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from deepdisc.data import dataset as dataset_module
from deepdisc.data.dataset import (
    InfiniteSampler,
    NoiseAugmentation,
    TileDataset,
    TrainLoader,
    eval_loader,
    read_tile,
    train_loader,
)
from deepdisc.errors import InputError


def equal(a, b):
    """Whether two samples are the same, labels and masks included."""
    if not all(torch.equal(a[name], b[name]) for name in ("image", "variance", "mask", "ebv")):
        return False
    first, second = a["instances"], b["instances"]
    return (
        torch.equal(first.gt_boxes, second.gt_boxes)
        and torch.equal(first.gt_classes, second.gt_classes)
        and torch.equal(first.gt_masks.to_dense(), second.gt_masks.to_dense())
        and torch.equal(first.gt_redshift.nan_to_num(-1), second.gt_redshift.nan_to_num(-1))
        and (a["tile"], a["window"]) == (b["tile"], b["window"])
    )


def test_a_sample_is_what_the_detector_takes(dataset):
    sample = TileDataset(dataset, "train", crop_size=64, augment=True)[0]
    assert sample["image"].shape == sample["variance"].shape == sample["mask"].shape == (2, 64, 64)
    assert sample["image"].dtype == sample["variance"].dtype == torch.float32 and sample["mask"].dtype == torch.bool
    assert sample["ebv"] == pytest.approx(0.03)
    objects = sample["instances"]
    assert objects.image_size == (64, 64) and len(objects) > 2
    assert objects.gt_boxes.dtype == torch.float32 and objects.gt_classes.dtype == torch.int64
    assert objects.gt_has_redshift.dtype == torch.bool
    stars = objects.gt_classes == 1
    assert torch.equal(objects.gt_has_redshift, ~stars)


def test_masks_lie_in_their_boxes_and_boxes_in_the_crop(dataset):
    data = TileDataset(dataset, "train", crop_size=64, augment=True)
    for draw in range(10):
        objects = data[(draw % len(data), draw)]["instances"]
        tight = objects.gt_masks.boxes()
        assert (tight[:, :2] >= objects.gt_boxes[:, :2]).all() and (tight[:, 2:] <= objects.gt_boxes[:, 2:]).all()
        assert (objects.gt_boxes >= 0).all() and (objects.gt_boxes <= 64).all()
        assert (objects.gt_masks.areas() > 0).all()


def test_the_brightest_pixel_of_a_mask_is_bright_in_the_image(dataset):
    sample = TileDataset(dataset, "train", crop_size=96, augment=True)[(1, 5)]
    inside = torch.stack([sample["image"][1][mask].max() for mask in sample["instances"].gt_masks.to_dense()])
    # 5 sigma of the noise in r; blobs peak at 500 / (2 pi 2.5^2) = 13 nJy at least
    assert (inside > 10).all()


def test_samples_follow_from_seed_draw_and_index_alone(dataset):
    noise = NoiseAugmentation(probability=1.0, max_factor=2.0, label_snr=5.0)
    options = {"crop_size": 64, "augment": True, "noise": noise}
    data, again = (TileDataset(dataset, "train", seed=3, **options) for _ in range(2))
    np.random.seed(1)
    torch.manual_seed(1)
    assert equal(data[(2, 17)], again[(2, 17)])
    assert not equal(data[(2, 17)], data[(2, 18)])
    assert not equal(data[(2, 17)], TileDataset(dataset, "train", seed=4, **options)[(2, 17)])


def test_the_cache_changes_nothing(dataset):
    plain, cached = (TileDataset(dataset, "train", crop_size=64, augment=True, cache=cache) for cache in (False, True))
    before = cached[(0, 1)]["image"].clone()
    assert all(equal(plain[(i % 4, i)], cached[(i % 4, i)]) for i in range(8))
    assert torch.equal(cached[(0, 1)]["image"], before), "samples must not share memory with the cache"


def test_a_sample_reads_its_tile_once(dataset, monkeypatch):
    data, read = TileDataset(dataset, "train", crop_size=64, augment=True), []
    monkeypatch.setattr(dataset_module, "read_tile", lambda *args: read.append(args) or read_tile(*args))
    data[(0, 3)]
    assert len(read) == 1


def test_evaluation_windows_cover_each_tile_once(dataset):
    data = TileDataset(dataset, "val", crop_size=50)
    count = {row.tile: np.zeros((row.height, row.width), int) for row in data.tiles.itertuples()}
    for sample in (data[i] for i in range(len(data))):
        y0, x0, y1, x1 = sample["window"]
        count[sample["tile"]][y0:y1, x0:x1] += 1
        assert max(y1 - y0, x1 - x0) <= 50
    assert all((hits == 1).all() for hits in count.values())
    assert len(TileDataset(dataset, "val")) == len(data.tiles)


def test_bands_are_chosen_by_name_and_in_order(dataset):
    both, swapped, one = (TileDataset(dataset, "val", bands=bands)[0]["image"] for bands in (None, "rg", ["r"]))
    assert torch.equal(both.flip(0), swapped) and torch.equal(one, both[1:])


def rewrite_truth(dataset, tmp_path, change):
    root = tmp_path / "copy"
    shutil.copytree(dataset, root)
    truth = pd.read_parquet(root / "truth.parquet")
    change(truth).to_parquet(root / "truth.parquet")
    return root


def test_faint_objects_are_not_labelled(dataset, tmp_path):
    all_labelled = len(TileDataset(dataset, "val")[0]["instances"])
    odd = rewrite_truth(dataset, tmp_path, lambda t: t.assign(flags=np.where(t.id % 2, 128, 0)))
    labelled = TileDataset(odd, "val")[0]["instances"]
    assert 0 < len(labelled) < all_labelled


def test_objects_cut_by_the_border_lose_their_label_when_little_is_left(dataset):
    labels = {"redshift": "redshift", "area": "area_pix"}
    shares = {}
    for limit in (0.0, 0.6):
        data = TileDataset(dataset, "val", crop_size=32, min_visible=limit, labels=labels)
        objects = [data[i]["instances"] for i in range(len(data))]
        shares[limit] = torch.cat([found.gt_masks.areas() / found.gt_area for found in objects])
    assert shares[0.0].min() < 0.3 and shares[0.6].min() >= 0.6
    assert (shares[0.0] >= 0.6).sum() == len(shares[0.6])


def test_noise_lowers_depth_and_drops_labels(dataset):
    noise = NoiseAugmentation(probability=1.0, max_factor=4.0, label_snr=25.0)
    plain, noisy = (TileDataset(dataset, "train", crop_size=96, augment=True, noise=n) for n in (None, noise))
    ratios, fewer = [], 0
    for draw in range(8):
        a, b = plain[(draw % 4, draw)], noisy[(draw % 4, draw)]
        ratio = b["variance"] / a["variance"]
        assert ratio.max() == pytest.approx(float(ratio.min()), rel=1e-5)
        ratios.append(float(ratio.max()))
        assert a["window"] == b["window"]
        fewer += len(a["instances"]) - len(b["instances"])
    assert min(ratios) >= 1 and max(ratios) <= 16 and max(ratios) > 2
    assert fewer > 0


def test_an_empty_crop_is_a_sample_too(dataset, tmp_path):
    empty = rewrite_truth(dataset, tmp_path, lambda truth: truth[:0])
    objects = TileDataset(empty, "train", crop_size=64, augment=True)[0]["instances"]
    assert len(objects) == 0 and objects.gt_boxes.shape == (0, 4) and objects.gt_has_redshift.dtype == torch.bool


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "validation"}, "no split 'validation'; there are \\['test', 'train', 'val'\\]"),
        ({"bands": ["g", "R"]}, "no band 'R', only g, r; the nearest is 'r'"),
        ({"labels": {"z": "redshfit"}}, "no column 'redshfit'; the nearest is 'redshift'"),
        ({"crop_size": 4}, "crop_size=4 is too small"),
    ],
)
def test_what_a_data_set_lacks_is_named(dataset, arguments, message):
    with pytest.raises(InputError, match=message):
        TileDataset(dataset, **{"split": "val", **arguments})


def test_missing_and_damaged_data_sets_are_named(dataset, tmp_path):
    with pytest.raises(InputError, match="no data set at .*deepdisc prepare"):
        TileDataset(tmp_path, "train")
    root = tmp_path / "copy"
    shutil.copytree(dataset, root)
    tile = root / "tiles" / "00000.fits"
    tile.write_bytes(tile.read_bytes()[:5000])
    with pytest.raises(InputError, match="00000.fits: cannot be read"):
        TileDataset(root, "train")[0]
    (root / "split.parquet").unlink()
    with pytest.raises(InputError, match="lacks split.parquet"):
        TileDataset(root, "train")


# ------------------------------------------------------------------------------------------------------- sampler
def take(sampler, count):
    iterator = iter(sampler)
    return [next(iterator) for _ in range(count)]


def test_the_sampler_gives_every_index_once_per_epoch():
    drawn = take(InfiniteSampler(7, seed=1), 21)
    epochs = [[index for index, _ in drawn[i : i + 7]] for i in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert [draw for _, draw in drawn] == list(range(21))


def test_the_sampler_continues_where_it_was():
    whole = take(InfiniteSampler(5, seed=2), 12)
    later = InfiniteSampler(5, seed=2)
    later.load_state_dict({"draws": 8})
    assert take(later, 4) == whole[8:]
    assert later.state_dict() == {"draws": 8}


def test_processes_share_the_samples():
    whole = take(InfiniteSampler(5, seed=2), 12)
    parts = [take(InfiniteSampler(5, seed=2, rank=rank, world_size=3), 4) for rank in range(3)]
    assert [sample for group in zip(*parts, strict=True) for sample in group] == whole


def batches(loader, count):
    iterator = iter(loader)
    return [next(iterator) for _ in range(count)]


def same_batches(a, b):
    return all(equal(x, y) for first, second in zip(a, b, strict=True) for x, y in zip(first, second, strict=True))


def test_worker_processes_change_neither_samples_nor_the_saved_position(dataset):
    data = TileDataset(dataset, "train", crop_size=48, augment=True, seed=1)
    here, workers = (TrainLoader(data, 3, num_workers=n, seed=1) for n in (0, 2))
    reference = batches(here, 5)
    assert same_batches(reference, batches(workers, 5))
    # prefetched batches must not count
    assert workers.state_dict() == here.state_dict() == {"draws": 15}
    resumed = TrainLoader(data, 3, num_workers=1, seed=1)
    resumed.load_state_dict({"draws": 6})
    assert same_batches(reference[2:], batches(resumed, 3))


def test_starting_a_loader_leaves_the_random_generators_alone(dataset):
    data = TileDataset(dataset, "train", crop_size=48, augment=True)
    state = torch.get_rng_state()
    batches(TrainLoader(data, 2), 2)
    list(eval_loader(TileDataset(dataset, "val", crop_size=64), 4))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_evaluation_loader_gives_each_sample_once_over_all_processes(dataset):
    data = TileDataset(dataset, "val", crop_size=48)
    seen = [
        (sample["tile"], sample["window"])
        for rank in range(2)
        for batch in eval_loader(data, 4, rank=rank, world_size=2)
        for sample in batch
    ]
    assert len(seen) == len(set(seen)) == len(data)


def test_impossible_loader_settings_are_named(dataset):
    data = TileDataset(dataset, "train", crop_size=48, augment=True)
    with pytest.raises(InputError, match="batch_size=3 must be a multiple of the number of processes, 2"):
        train_loader(data, 3, world_size=2)
    with pytest.raises(InputError, match="num_workers=1000"):
        batches(TrainLoader(data, 2, num_workers=1000), 1)
    with pytest.raises(InputError, match="batch_size=0"):
        TrainLoader(data, 0)
