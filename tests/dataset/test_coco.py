"""Data sets as COCO JSON, checked with pycocotools, and back."""

import contextlib
import io
import json
import shutil

import fitsio
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from deepdisc import cli
from deepdisc.data.coco import export, prepare_annotations
from deepdisc.data.dataset import TileDataset
from deepdisc.errors import InputError
from deepdisc.interop.detectron2 import dataset_dicts

LABELS = {"redshift": "redshift", "flux": "flux_r", "x": "x", "snr": "snr"}


def read(path):
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def quietly(make, *args):
    with contextlib.redirect_stdout(io.StringIO()):
        return make(*args)


def assert_same_samples(first, second, splits=("train", "val", "test")):
    """Pixels, boxes, classes, masks and labels of two data sets are equal."""
    for split in splits:
        a, b = (TileDataset(root, split, labels=LABELS) for root in (first, second))
        assert len(a) == len(b) and a.description["class_names"] == b.description["class_names"]
        for one, other in zip(a, b, strict=True):
            assert all(torch.equal(one[name], other[name]) for name in ("image", "variance", "mask", "ebv"))
            one, other = one["instances"], other["instances"]
            assert set(one.fields()) == set(other.fields()) and len(one) > 0
            for name, value in one.fields().items():
                if name == "gt_masks":
                    assert torch.equal(value.to_dense(), other.gt_masks.to_dense())
                else:
                    assert torch.equal(value.nan_to_num(-1.0), other.get(name).nan_to_num(-1.0)), name


# --------------------------------------------------------------------------------------------------------- export
def test_an_export_says_what_the_data_set_says(dataset, exported):
    assert sorted(path.name for path in exported.iterdir()) == ["test.json", "train.json", "val.json"]
    truth = pd.read_parquet(dataset / "truth.parquet")
    content = read(exported / "train.json")
    assert content["categories"] == [{"id": 1, "name": "galaxy"}, {"id": 2, "name": "star"}]
    assert content["info"] == {"description": "blobs", "unit": "nJy", "pixel_scale_arcsec": 0.2, "bands": ["g", "r"]}
    tiles = {image["id"]: image for image in content["images"]}
    maps = {i: fitsio.read(str(dataset / image["file_name"]), ext="SEGMENTATION") for i, image in tiles.items()}
    assert all(maps[i].shape == (image["height"], image["width"]) for i, image in tiles.items())
    assert [a["id"] for a in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
    for annotation in content["annotations"]:
        own = maps[annotation["image_id"]] == annotation["object_id"]
        assert np.array_equal(coco_mask.decode(annotation["segmentation"]), own)
        assert annotation["area"] == own.sum() and annotation["iscrowd"] == 0
        x0, y0, width, height = annotation["bbox"]
        rows, columns = np.nonzero(own)
        assert x0 <= columns.min() and columns.max() + 1 <= x0 + width <= own.shape[1]
        assert y0 <= rows.min() and rows.max() + 1 <= y0 + height <= own.shape[0]
        row = truth[(truth.tile == annotation["image_id"]) & (truth.id == annotation["object_id"])].iloc[0]
        assert annotation["category_id"] == row.class_id + 1
        assert annotation["redshift"] == (None if np.isnan(row.redshift) else row.redshift)
        assert (annotation["flux_r"], annotation["x"], annotation["ra"]) == (row.flux_r, row.x, row.ra)


@pytest.mark.parametrize("polygons", [False, True])
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_pycocotools_loads_it_and_the_truth_scores_one_against_itself(dataset, tmp_path, kind, polygons):
    folder = export(dataset, tmp_path / "annotations", polygons=polygons)
    truth = quietly(COCO, folder / "train.json")
    found = []
    for annotation in truth.dataset["annotations"]:
        outline = coco_mask.encode(np.asfortranarray(truth.annToMask(annotation)))
        found.append({key: annotation[key] for key in ("image_id", "category_id", "bbox")} | {"segmentation": outline})
        found[-1]["score"] = 1 / annotation["id"]
    assert len(found) > 50
    found = quietly(truth.loadRes, found)
    scores = COCOeval(truth, found, kind)
    scores.params.maxDets = [1, 10, 1000]
    quietly(scores.evaluate)
    quietly(scores.accumulate)
    precision = scores.eval["precision"][..., 0, -1]  # all areas, all detections
    assert precision.min() == precision.max() == 1


def test_objects_that_a_training_does_not_label_are_left_out(dataset, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(dataset, root)
    truth = pd.read_parquet(root / "truth.parquet")
    truth["flags"] = np.where(truth.id % 2, 128, 0).astype(np.int32)
    truth.to_parquet(root / "truth.parquet")
    content = read(export(root, tmp_path / "annotations") / "val.json")
    labelled = TileDataset(root, "val", labels={})
    assert len(content["annotations"]) == sum(len(sample["instances"]) for sample in labelled)
    assert all(a["object_id"] % 2 == 0 for a in content["annotations"])


def test_outlines_with_holes_stay_codes_among_polygons(dataset, tmp_path, caplog):
    root = tmp_path / "copy"
    shutil.copytree(dataset, root)
    data = TileDataset(root, "val", labels={})
    areas = data[0]["instances"].gt_masks.areas()
    window = data[0]["instances"].gt_masks.regions[areas.argmax()].tolist()
    with fitsio.FITS(str(root / data.tiles.file[0]), "rw") as fits:
        segmentation = fits["SEGMENTATION"].read()
        segmentation[(window[1] + window[3]) // 2, (window[0] + window[2]) // 2] = 0
        fits["SEGMENTATION"].write(segmentation)
    with caplog.at_level("INFO"):
        content = read(export(root, tmp_path / "annotations", polygons=True) / "val.json")
    assert "val: 1 of" in caplog.text
    kinds = [type(a["segmentation"]) for a in content["annotations"]]
    assert kinds.count(dict) == 1 and kinds.count(list) == len(kinds) - 1
    assert_same_samples(root, prepare_annotations(tmp_path / "annotations", tmp_path / "again", images=root))


def test_an_export_is_whole_or_not_there(dataset, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="there exists already"):
        export(dataset, tmp_path / "there")
    with pytest.raises(InputError, match="no data set at"):
        export(tmp_path / "there", tmp_path / "new")
    root = tmp_path / "copy"
    shutil.copytree(dataset, root)
    tile = root / TileDataset(root, "val").tiles.file[0]
    tile.write_bytes(tile.read_bytes()[:3000])
    with pytest.raises(InputError, match="cannot be read"):
        export(root, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "there"]


# ----------------------------------------------------------------------------------------------------- round trip
def test_there_and_back_changes_nothing(dataset, exported, tmp_path):
    again = prepare_annotations(exported, tmp_path / "again", images=dataset)
    assert_same_samples(dataset, again)
    ids = [pd.read_parquet(root / "truth.parquet").sort_values(["field", "id"]).id for root in (dataset, again)]
    assert set(ids[1]) <= set(ids[0])
    about = yaml.safe_load((again / "dataset.yaml").read_text())
    assert [part["file"] for part in about["provenance"]["recipe"]["annotations"]] == [
        "train.json", "val.json", "test.json"
    ]  # fmt: skip
    assert about["provenance"]["fields"][0]["conditions"] == {"file_name": "tiles/00000.fits", "image_id": 0}


def test_masked_pixels_and_reddening_come_back(dataset, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(dataset, root)
    for name in TileDataset(root, "val").tiles.file:
        with fitsio.FITS(str(root / name), "rw") as fits:
            planes = {part: fits[part].read() for part in ("IMAGE", "VARIANCE", "MASK")}
            for part, value in (("IMAGE", 0), ("VARIANCE", 1), ("MASK", 1)):  # as `prepare` writes masked pixels
                planes[part][1, 3:20, 30:50] = value
                fits[part].write(planes[part])
            fits["EBV"].write(np.full((1, 1), 0.25, np.float32))
    again = prepare_annotations(export(root, tmp_path / "annotations"), tmp_path / "again", images=root)
    sample = TileDataset(again, "val")[0]
    assert sample["mask"].sum() == 17 * 20 and sample["ebv"] == 0.25
    assert_same_samples(root, again)


def test_bands_are_chosen_by_name_where_the_annotations_name_them(dataset, exported, tmp_path):
    again = prepare_annotations(exported, tmp_path / "again", images=dataset, bands=["r"])
    both, one = (TileDataset(root, "val")[0]["image"] for root in (dataset, again))
    assert torch.equal(one, both[1:])
    with pytest.raises(InputError, match="no band 'i'"):
        prepare_annotations(exported, tmp_path / "other", images=dataset, bands=["i"])


def test_an_image_is_in_one_split_only(dataset, exported, tmp_path):
    shutil.copytree(exported, tmp_path / "annotations")
    shutil.copy(exported / "train.json", tmp_path / "annotations" / "val.json")
    with pytest.raises(InputError, match="val.json: image tiles/00000.fits: the same file is listed twice"):
        prepare_annotations(tmp_path / "annotations", tmp_path / "again", images=dataset)


def test_polygons_come_back_exactly_too(dataset, tmp_path):
    folder = export(dataset, tmp_path / "annotations", polygons=True)
    assert_same_samples(dataset, prepare_annotations(folder, tmp_path / "again", images=dataset))


def test_dataset_dicts_of_detectron2_come_back(dataset, tmp_path):
    dicts = dataset_dicts(dataset, "train")
    first = dicts[0]["annotations"][0]
    assert set(dicts[0]) >= {"file_name", "height", "width", "image_id", "annotations"} and "id" not in dicts[0]
    assert first["bbox_mode"] == 1 and {a["category_id"] for d in dicts for a in d["annotations"]} == {0, 1}
    options = {"bands": ["g", "r"], "pixel_scale": 0.2, "class_names": ["galaxy", "star"], "fractions": {"train": 1}}
    assert_same_samples(dataset, prepare_annotations(dicts, tmp_path / "again", **options), ["train"])
    file = tmp_path / "train.json"
    file.write_text(json.dumps(dicts))
    assert_same_samples(dataset, prepare_annotations(file, tmp_path / "from_file", **options), ["train"])


# --------------------------------------------------------------------------------------------------- command line
def test_the_command_line_takes_a_data_set_there_and_back(dataset, tmp_path, capsys):
    annotations, again = tmp_path / "annotations", tmp_path / "again"
    assert cli.main(["export", str(dataset), "--output", str(annotations), "--polygons"]) == 0
    assert cli.main(["prepare", str(annotations), "--images", str(dataset), "--output", str(again)]) == 0
    assert capsys.readouterr().out == f"{annotations}\n{again}\n"
    assert_same_samples(dataset, again)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "r.yaml", "--bands", "g,r"], "--bands: the recipe says this"),
        (["prepare", "r.yaml", "--zero-point", "27"], "--zero-point: the recipe says this"),
        (["prepare", "none.json"], "cannot read the annotations none.json"),
        (["prepare", "a.json", "--bands", "g,,r"], "'g,,r' is not a list of names"),
        (["prepare", "a.json", "--classes", "star,star"], "each once"),
        (["export", "model.pth", "--to", "coco"], "no data set at model.pth"),
        (["export", "model.pth", "--polygons"], "--polygons: only the annotations of a data set"),
        (["export", "data", "--to", "coco", "a.b=1"], "a.b=1: a data set has no settings"),
        (["export", "data", "--to", "voc"], "invalid choice: 'voc'"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*arguments, "--output", "out"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
