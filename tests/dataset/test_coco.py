"""Data sets as COCO JSON, checked with pycocotools, and annotations of other programs as data sets."""

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


@pytest.fixture(scope="module")
def exported(dataset, tmp_path_factory):
    return export(dataset, tmp_path_factory.mktemp("coco") / "annotations")


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


# --------------------------------------------------------------------------------------------------------- import
BANDS = ["g", "r", "i"]
OPTIONS = {"bands": BANDS, "pixel_scale": 0.2, "zero_points": "nJy", "fractions": {"train": 1.0}}


@pytest.fixture
def small(tmp_path):
    """Two arrays of noise in three bands, and the contents of a COCO file with two objects in the first."""
    rng = np.random.default_rng(0)
    for i in range(2):
        np.save(tmp_path / f"{i}.npy", rng.normal(5, 1, (3, 64, 80)).astype(np.float32))
    return {
        "categories": [{"id": 7, "name": "star"}, {"id": 3, "name": "galaxy"}],
        "images": [{"id": i, "file_name": f"{i}.npy", "height": 64, "width": 80} for i in range(2)],
        "annotations": [
            {"id": 5, "image_id": 0, "category_id": 3, "bbox": [10, 20, 8, 6], "redshift": 0.4, "flux_r": 12.5}
            | {"segmentation": [[10, 20, 18, 20, 18, 26, 10, 26]], "colour": "red"},
            {"id": 9, "image_id": 0, "category_id": 7, "bbox": [70, 50, 10, 14], "redshift": None}
            | {"segmentation": {"size": [64, 80], "counts": [70 * 64 + 50, 14, 640 - 64]}},
        ],
    }


def write(folder, content):
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return path


def samples(root):
    return list(TileDataset(root, "train", labels={"redshift": "redshift"}))


def test_a_coco_file_becomes_a_data_set(small, tmp_path, caplog):
    root = prepare_annotations(write(tmp_path, small), tmp_path / "out", **OPTIONS)
    about = yaml.safe_load((root / "dataset.yaml").read_text())
    assert about["class_names"] == ["galaxy", "star"] and about["bands"] == BANDS, "classes in the order of their ids"
    first, second = samples(root)
    assert torch.equal(first["image"], torch.from_numpy(np.load(tmp_path / "0.npy")))
    assert first["variance"].mean().item() == pytest.approx(1, rel=0.1), "the noise of the image, measured"
    objects = first["instances"]
    assert objects.gt_boxes.tolist() == [[10, 20, 18, 26], [70, 50, 80, 64]]
    assert objects.gt_classes.tolist() == [0, 1]
    assert objects.gt_masks.areas().tolist() == [48, 14]
    assert objects.gt_redshift[0] == pytest.approx(0.4) and objects.gt_has_redshift.tolist() == [True, False]
    assert len(second["instances"]) == 0
    truth = pd.read_parquet(root / "truth.parquet")
    assert truth.id.tolist() == [5, 9] and truth.flux_r[0] == 12.5 and np.isnan(truth.flux_r[1])
    assert "no column is known for are left out: colour" in caplog.text


def test_the_other_order_of_axes_and_of_classes(small, tmp_path):
    for i in range(2):
        np.save(tmp_path / f"{i}.npy", np.moveaxis(np.load(tmp_path / f"{i}.npy"), 0, 2).astype(np.float64))
    root = prepare_annotations(write(tmp_path, small), tmp_path / "out", class_names=["star", "galaxy"], **OPTIONS)
    assert samples(root)[0]["image"].shape == (3, 64, 80)
    assert samples(root)[0]["instances"].gt_classes.tolist() == [1, 0]


def test_an_array_that_could_be_either_is_decided_by_the_stated_size(small, tmp_path):
    rng = np.random.default_rng(1)
    array = rng.normal(5, 1, (3, 40, 3)).astype(np.float32)
    np.save(tmp_path / "0.npy", array)
    small["images"] = [{"id": 0, "file_name": "0.npy", "height": 3, "width": 40}]
    small["annotations"] = []
    root = prepare_annotations(write(tmp_path, small), tmp_path / "out", **OPTIONS)
    assert torch.equal(samples(root)[0]["image"], torch.from_numpy(array).permute(2, 0, 1))


def test_fits_cubes_and_multi_extension_files_with_zero_points(small, tmp_path):
    cube = np.load(tmp_path / "0.npy")
    fitsio.write(str(tmp_path / "cube.fits"), cube)
    with fitsio.FITS(str(tmp_path / "extensions.fits"), "rw", clobber=True) as fits:
        for band, plane in zip(BANDS, cube, strict=True):
            fits.write(plane, extname=band)
    for image, name in zip(small["images"], ("cube.fits", "extensions.fits"), strict=True):
        image["file_name"] = f"elsewhere/{name}"  # only the last part is the same here
    options = {**OPTIONS, "zero_points": 31.4 - 2.5}  # ten nJy
    root = prepare_annotations(write(tmp_path, small), tmp_path / "out", images=tmp_path, **options)
    for sample in samples(root):
        assert torch.allclose(sample["image"], 10 * torch.from_numpy(cube), rtol=1e-5)


def test_both_kinds_of_boxes_and_none(small, tmp_path):
    one, other = small["annotations"]
    one |= {"bbox": [9, 19, 18.5, 26], "bbox_mode": 0}
    del other["bbox"]
    root = prepare_annotations(write(tmp_path, small), tmp_path / "out", **OPTIONS)
    assert samples(root)[0]["instances"].gt_boxes.tolist() == [[9, 19, 18.5, 26], [70, 50, 71, 64]]


def test_where_outlines_overlap_the_smallest_object_keeps_its_pixels(small, tmp_path, caplog):
    inner = {**small["annotations"][0], "id": 6, "bbox": [12, 22, 2, 2], "object_id": 0}
    inner["segmentation"] = [[12, 22, 14, 22, 14, 24, 12, 24]]
    small["annotations"].insert(0, inner)
    root = prepare_annotations(write(tmp_path, small), tmp_path / "out", **OPTIONS)
    by_area = dict(zip([6, 5, 9], [4, 44, 14], strict=True))
    truth = pd.read_parquet(root / "truth.parquet")
    assert dict(zip(truth.id, truth.area_pix, strict=True)) == by_area
    assert "1 objects lose pixels to smaller ones" in caplog.text


def test_crowds_are_left_out_and_objects_without_a_pixel_have_no_label(small, tmp_path, caplog):
    small["annotations"][0]["iscrowd"] = 1
    small["annotations"][1]["segmentation"] = [[70.1, 50.1, 70.2, 50.1, 70.2, 50.2]]
    root = prepare_annotations(write(tmp_path, small), tmp_path / "out", **OPTIONS)
    assert len(samples(root)[0]["instances"]) == 0
    assert pd.read_parquet(root / "truth.parquet").id.tolist() == [9]
    assert "1 objects with iscrowd 1 are left out" in caplog.text and "1 objects have no pixel" in caplog.text


def test_ids_that_cannot_be_ours_are_replaced(small, tmp_path):
    for i, annotation in enumerate(small["annotations"]):
        annotation["id"] = f"object-{i}"
    root = prepare_annotations(write(tmp_path, small), tmp_path / "out", **OPTIONS)
    assert pd.read_parquet(root / "truth.parquet").id.tolist() == [1, 2]


# ------------------------------------------------------------------------------------------------------ bad input
def change(**values):
    return lambda content: content["annotations"][0].update(values)


def change_image(**values):
    return lambda content: content["images"][0].update(values)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c.pop("images"), "needs the list `images`"),
        (lambda c: c.update(images=[]), "annotation 5 is of image 0, which is not listed"),
        (lambda c: c.update(images=[], annotations=[]), "it lists no image"),
        (lambda c: c.update(categories=[]), "it lists no category"),
        (lambda c: c["categories"].append({"id": 3, "name": "quasar"}), "category 3 'quasar' is listed twice"),
        (lambda c: c["categories"].append({"name": "quasar"}), "needs a number `id` and a `name`"),
        (lambda c: c["annotations"].append(3), r"annotations\[2\] is 3, not a mapping"),
        (lambda c: c["annotations"].append(c["annotations"][0]), "annotation id 5 occurs twice"),
        (lambda c: c["images"].append({**c["images"][0], "file_name": "2.npy"}), "image id 0 occurs twice"),
        (lambda c: c["images"].append({**c["images"][0], "id": 2}), "file_name '0.npy' occurs twice"),
        (change_image(id=None), "annotation 5 is of image 0, which is not listed"),
        (change_image(file_name=None), "image 0 has no `file_name`"),
        (change_image(file_name="3.npy"), "image 3.npy: there is no such file in .*--images"),
        (change_image(height=65), "image 0.npy: it is stated to be 80 x 65 pixels, but its file has 80 x 64"),
        (change_image(width="80"), "height 64 and width '80' must be numbers"),
        (change_image(bands="gri"), "`bands` is 'gri'; it is a list of names"),
        (change_image(bands=["g", "r"]), r"0.npy: of shape \(3, 64, 80\), but 2 bands are named"),
        (change(image_id=4), "annotation 5 is of image 4, which is not listed"),
        (change(image_id=[0]), r"annotation 5 is of image \[0\]"),
        (change(category_id=1), "annotation 5: category_id 1 is unknown; there are 7 star, 3 galaxy"),
        (change(bbox=[90, 20, 8, 6]), "annotation 5: its box x 90 to 98, y 20 to 26 is outside its image of 80 x 64"),
        (change(bbox=[10, 20, 8]), r"bbox \[10, 20, 8\] is not four numbers"),
        (change(bbox=[10, 20, float("nan"), 3]), "is not four numbers"),
        (change(bbox=[10, 20, 0, 6]), "is empty or inverted"),
        (change(bbox=[10, 20, 8, 6], bbox_mode=0), r"bbox \[10, 20, 8, 6\] is empty or inverted \(bbox_mode 0\)"),
        (change(bbox_mode=4), "bbox_mode is 4; it is 0"),
        (change(segmentation=None), "annotation 5 has no `segmentation`"),
        (change(segmentation=[[1, 2, 3, 4]]), r"annotation 5: polygon \[1, 2, 3, 4\] is malformed"),
        (change(segmentation={"size": [80, 64], "counts": "0"}), r"is of size \[80, 64\], its image of \[64, 80\]"),
        (change(bbox=None, segmentation=[[0, 0, 0.1, 0, 0.1, 0.1]]), "neither a bbox nor a pixel"),
        (change(iscrowd="no"), "annotation 5: iscrowd is 'no'; it is 0 or 1"),
        (change(redshift="0.4"), "annotation 5: redshift is '0.4'; it must be a number, or null"),
    ],
)
def test_what_is_wrong_in_a_coco_file_is_named(small, tmp_path, spoil, message):
    spoil(small)
    with pytest.raises(InputError, match=message):
        prepare_annotations(write(tmp_path, small), tmp_path / "out", **OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.npy", "1.npy", "annotations.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bands": None}, "0.npy: an array does not say its bands, pixel scale or unit; give --bands"),
        ({"pixel_scale": None}, "give --pixel-scale"),
        ({"zero_points": None}, "give --zero-point"),
        ({"class_names": ["star", "quasar"]}, "--classes star,quasar: .* has the categories star,galaxy"),
        ({"bands": ["g", "r", "i", "z"]}, "4 bands are named"),
        ({"images": "nowhere"}, "there is no such file in nowhere"),
    ],
)
def test_what_the_caller_must_say_is_named(small, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        prepare_annotations(write(tmp_path, small), tmp_path / "out", **{**OPTIONS, **options})


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("0.npy", b"", "0.npy: cannot be read as a .npy array"),
        ("0.npy", b"no array", "0.npy: cannot be read as a .npy array"),
        ("0.fits", b"no FITS", "image 0.fits: .*0.fits"),
        ("0.jpg", b"no image", "image 0.jpg: .*0.jpg"),
    ],
)
def test_damaged_images_are_named(small, tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    small["images"][0]["file_name"] = name
    with pytest.raises(InputError, match=message):
        prepare_annotations(write(tmp_path, small), tmp_path / "out", **OPTIONS)


def test_arrays_of_other_shapes_and_types_are_named(small, tmp_path):
    for array in (np.zeros((64, 80)), np.zeros((3, 64, 80), complex), np.zeros((3, 0, 80)), np.array([{}])):
        np.save(tmp_path / "0.npy", array, allow_pickle=True)
        with pytest.raises(InputError, match="0.npy: (it holds no image|cannot be read)"):
            prepare_annotations(write(tmp_path, small), tmp_path / "out", **OPTIONS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('"text"', "neither a COCO file .* nor a list"),
        ("[]", "--classes"),
        ("[1]", "--classes"),
    ],
)
def test_files_that_are_no_annotations_are_named(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        prepare_annotations(path, tmp_path / "out", **OPTIONS)
    with pytest.raises(InputError, match="cannot read the annotations"):
        prepare_annotations(tmp_path / "none.json", tmp_path / "out", **OPTIONS)


def test_dataset_dicts_need_classes_and_box_modes(small, tmp_path):
    record = {"file_name": "0.npy", "image_id": 0, "height": 64, "width": 80, "annotations": small["annotations"]}
    for annotation in small["annotations"]:
        annotation["category_id"] = 1
    options = {**OPTIONS, "images": tmp_path, "class_names": ["star", "galaxy"]}
    with pytest.raises(InputError, match="annotation 5: bbox_mode is None; it is 0"):
        prepare_annotations([record], tmp_path / "out", **options)
    for annotation in small["annotations"]:
        annotation["bbox_mode"] = 1
    with pytest.raises(InputError, match="image 0.npy: its `annotations` must be a list"):
        prepare_annotations([{**record, "annotations": None}], tmp_path / "out", **options)
    with pytest.raises(InputError, match="annotation 5: category_id 1 is unknown; there are 0 star"):
        prepare_annotations([record], tmp_path / "out", **{**options, "class_names": ["star"]})
    root = prepare_annotations([record], tmp_path / "out", **options)
    assert samples(root)[0]["instances"].gt_classes.tolist() == [1, 1]


def test_a_folder_needs_a_training_split_and_no_fractions(small, exported, tmp_path):
    write(tmp_path, small)
    with pytest.raises(InputError, match="a folder of annotations holds train.json"):
        prepare_annotations(tmp_path, tmp_path / "out", **OPTIONS)
    with pytest.raises(InputError, match="its files are the splits already; leave --split out"):
        prepare_annotations(exported, tmp_path / "out", fractions={"train": 1})


# --------------------------------------------------------------------------------------------------- command line
def test_the_command_line_takes_a_data_set_there_and_back(dataset, tmp_path, capsys):
    annotations, again = tmp_path / "annotations", tmp_path / "again"
    assert cli.main(["export", str(dataset), "--output", str(annotations), "--polygons"]) == 0
    assert cli.main(["prepare", str(annotations), "--images", str(dataset), "--output", str(again)]) == 0
    assert capsys.readouterr().out == f"{annotations}\n{again}\n"
    assert_same_samples(dataset, again)


def test_the_command_line_passes_what_it_is_told(small, tmp_path, capsys):
    path = write(tmp_path, small)
    base = ["prepare", str(path), "--output", str(tmp_path / "out"), "--split", "train=1"]
    told = ["--bands", "g,r,i", "--pixel-scale", "0.2", "--zero-point", "nJy", "--classes", "star,galaxy"]
    assert cli.main([*base, *told]) == 0
    assert yaml.safe_load((tmp_path / "out" / "dataset.yaml").read_text())["class_names"] == ["star", "galaxy"]
    assert cli.main([*base, *told]) == 2
    assert "exists already" in capsys.readouterr().err


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
