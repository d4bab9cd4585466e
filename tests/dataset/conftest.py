"""A small sky of blobs, prepared and exported once for all tests here."""

import blob_sky
import pytest

from deepdisc.data.coco import export
from deepdisc.data.prepare import prepare


@pytest.fixture(scope="session")
def three_fields(tmp_path_factory):
    """A recipe of three fields, one per split."""
    folder = tmp_path_factory.mktemp("sky")
    entries = [blob_sky.write_field(folder / f"field_{i}", seed=i, ra=150.0 + i) for i in range(3)]
    for entry, split in zip(entries, ("train", "val", "test"), strict=True):
        entry["split"] = split
    return blob_sky.write_recipe(folder, entries)


@pytest.fixture(scope="session")
def dataset(three_fields, tmp_path_factory):
    """The data set made from it, with tiles of at most 128 pixels."""
    return prepare(three_fields, tmp_path_factory.mktemp("data") / "blobs", tile_size=128)


@pytest.fixture(scope="session")
def exported(dataset, tmp_path_factory):
    """Its annotations as COCO JSON."""
    return export(dataset, tmp_path_factory.mktemp("coco") / "annotations")
