"""Samples drawn on the fly: reproducible, the same sky as on disk, and what a detector is trained with."""

import itertools
import pickle

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from torch.utils.data import DataLoader

from deepdisc.data.dataset import SampledDataset
from deepdisc.data.mosaic import Mosaic
from deepdisc.errors import InputError
from deepdisc.simulate import Effects, Exposures, Lensing, Sky, simulate
from deepdisc.simulate.stream import SkyStream

ARRAYS = ("image", "variance", "mask", "segmentation", "ids", "boxes", "psf")
SMALL = Sky(shape=(72, 64), depth_offset=(1.0, 1.0))


def assert_same(one, other):
    for name in ARRAYS:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    for group in ("labels", "spin2"):
        assert one[group].keys() == other[group].keys()
        for name, values in one[group].items():
            np.testing.assert_array_equal(values, other[group][name], err_msg=name)
    assert one["ebv"] == other["ebv"]


def test_a_sample_follows_from_seed_and_number_alone():
    stream = SkyStream(SMALL, seed=3)
    samples = {number: stream.sample(number) for number in (5, 0, 1)}
    again = SkyStream(SMALL, seed=3)
    for number in (0, 1, 5):
        assert_same(samples[number], again.sample(number))
    assert not np.array_equal(samples[0]["image"], samples[1]["image"])
    assert not np.array_equal(samples[0]["image"], SkyStream(SMALL, seed=4).sample(0)["image"])
    assert_same(pickle.loads(pickle.dumps(stream)).sample(1), samples[1])


def test_iterating_counts_on_and_processes_share_the_numbers():
    stream = SkyStream(SMALL, seed=3, start=2)
    for number, sample in zip((2, 3), stream, strict=False):
        assert_same(sample, stream.sample(number))
    loader = DataLoader(SkyStream(SMALL, seed=3), batch_size=None, num_workers=2, collate_fn=lambda sample: sample)
    for number, sample in enumerate(itertools.islice(loader, 3)):
        assert_same(sample, stream.sample(number))


def test_a_sample_is_what_its_description_says():
    sky = Sky(shape=(72, 64), effects=Effects(cosmic_rays=5.0, dead_columns=1.0), depth_offset=(1.0, 1.0))
    labels = {"redshift": "redshift", "size": "disk_hlr_arcsec", "flux": "flux_{band}", "two": ["mag_g", "mag_r"]}
    stream = SkyStream(sky, seed=1, labels=labels)
    sample = stream.sample(0)
    assert sample["image"].shape == sample["variance"].shape == sample["mask"].shape == (5, 72, 64)
    assert sample["image"].dtype == sample["variance"].dtype == np.float32 and sample["mask"].dtype == bool
    assert np.isfinite(sample["image"]).all() and (sample["variance"] > 0).all()
    assert sample["mask"].any() and not sample["image"][sample["mask"]].any()
    assert set(np.unique(sample["segmentation"])) == {0, *sample["ids"]}
    assert {"class_id", "flags", "area_pix", "snr", "neighbours", *labels} == set(sample["labels"])
    count = len(sample["ids"])
    assert sample["labels"]["flux"].shape == (count, 5) and sample["labels"]["two"].shape == (count, 2)
    np.testing.assert_allclose(
        31.4 - 2.5 * np.log10(sample["labels"]["flux"][:, 1:3]), sample["labels"]["two"], atol=1e-4
    )
    assert sample["psf"].shape == (5, 25, 25) and sample["psf"].dtype == np.float32
    assert all(len(values) == len(sample["ids"]) == len(sample["boxes"]) for values in sample["labels"].values())
    assert (sample["labels"]["snr"] >= sky.label_snr).all()
    masked = sample["labels"]["flags"] & 4 > 0
    hit = [sample["mask"][:, sample["segmentation"] == label].any() for label in sample["ids"]]
    np.testing.assert_array_equal(masked, hit)
    assert stream.description["bands"] == list("ugriz") and stream.description["class_names"] == ["galaxy", "star"]


def test_a_sample_is_the_field_that_simulate_writes(tmp_path):
    sky = Sky(shape=(128, 120), fields=2, depth_offset=(1.0, 1.0), lensing=Lensing(g1=(0.1, 0.1), g2=(-0.05, -0.05)))
    simulate(sky, tmp_path, seed=9)
    folder = tmp_path / "field_001"
    truth, segmentation = pd.read_parquet(folder / "truth.parquet"), fits.getdata(folder / "segmentation.fits")
    sample = SkyStream(sky, seed=9, spin2={"shear": ("g1", "g2")}).sample(1)
    assert (sample["segmentation"] == segmentation).mean() > 0.999
    labelled = truth.iloc[: len(sample["ids"])]
    assert len(labelled) > 5 and labelled.id.max() == segmentation.max()
    np.testing.assert_array_equal(sample["labels"]["redshift"], labelled.redshift)
    np.testing.assert_array_equal(sample["labels"]["class_id"], labelled.class_id)
    np.testing.assert_allclose(sample["labels"]["snr"], labelled.snr, rtol=1e-3)
    np.testing.assert_array_equal(sample["labels"]["neighbours"], labelled.neighbours)
    with Mosaic.open(folder / "mosaic.yaml") as mosaic:
        np.testing.assert_allclose(sample["psf"], mosaic.psf_at(0, 0, *sky.shape), atol=2e-4)
    # North is up: along the pixel axes both components have the other sign.
    galaxies = sample["labels"]["class_id"] == 0
    np.testing.assert_allclose(sample["spin2"]["shear"][galaxies], [[-0.1, 0.05]] * galaxies.sum(), atol=1e-4)
    with fits.open(folder / "r.fits") as file:
        noise = np.sqrt(file["VARIANCE"].data.mean())
        # The same sky under noise of its own where photons were counted otherwise.
        assert np.std(sample["image"][2] - file[0].data) < 2 * noise


def test_a_sample_becomes_the_detectors_input():
    dataset = SampledDataset(SkyStream(SMALL, seed=3), length=4)
    one, drawn = dataset[1], dataset.source.sample(1)
    np.testing.assert_array_equal(one["image"], drawn["image"])
    instances = one["instances"]
    assert len(dataset) == 4 and 0 < len(instances) <= len(drawn["ids"])
    np.testing.assert_array_equal(one["psf"], drawn["psf"])
    assert dataset.root == "'synthetic sdss' (drawn, not stored)"
    assert instances.gt_has_redshift.any() and set(instances.gt_classes.tolist()) <= {0, 1}
    np.testing.assert_array_equal(dataset[(0, 1)]["image"], drawn["image"])


def test_an_empty_sky_gives_an_empty_sample():
    sample = SkyStream(Sky(shape=(40, 40), galaxy_density=(0, 0), star_density=(0, 0))).sample(0)
    assert len(sample["ids"]) == 0 and sample["boxes"].shape == (0, 4) and sample["image"].std() > 0
    assert (
        len(
            SampledDataset(SkyStream(Sky(shape=(40, 40), galaxy_density=(0, 0), star_density=(0, 0))), 1)[0][
                "instances"
            ]
        )
        == 0
    )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SkyStream(Sky(exposures=Exposures(number=2))), "sky.exposures: samples without files"),
        (lambda: SkyStream(SMALL, seed=-1), "seed is -1"),
        (lambda: SkyStream(SMALL, labels={"z": "redshit"}).sample(0), "no column 'redshit'; the nearest is 'redshift'"),
    ],
)
def test_what_cannot_be_streamed_is_named(build, message):
    with pytest.raises(InputError, match=message):
        build()
