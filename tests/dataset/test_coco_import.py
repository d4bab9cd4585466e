"""Annotated images of other programs as data sets."""

import json
import re
import shutil

import fitsio
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from deepdisc import cli
from deepdisc.data.coco import prepare_annotations
from deepdisc.data.dataset import TileDataset
from deepdisc.errors import InputError

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


@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_pixels_of_an_array_that_are_not_finite_are_masked(small, tmp_path, axis, bad):
    array = np.load(tmp_path / "0.npy")
    array[1, 30, 40] = bad
    np.save(tmp_path / "0.npy", np.ascontiguousarray(np.moveaxis(array, 0, axis)))
    before = (tmp_path / "0.npy").read_bytes()
    sample = samples(prepare_annotations(write(tmp_path, small), tmp_path / "out", **OPTIONS))[0]
    assert np.argwhere(sample["mask"].numpy()).tolist() == [[1, 30, 40]]
    assert sample["image"][1, 30, 40] == 0 and (tmp_path / "0.npy").read_bytes() == before


def test_each_split_has_its_progress_and_the_data_set_keeps_its_name(dataset, exported, tmp_path, capsys):
    again = prepare_annotations(exported, tmp_path / "again", images=dataset)
    shown = capsys.readouterr().err
    assert [line.split(" images")[0] for line in shown.splitlines() if " images" in line] == ["train", "val", "test"]
    about = yaml.safe_load((again / "dataset.yaml").read_text())
    assert about["name"] == yaml.safe_load((dataset / "dataset.yaml").read_text())["name"] == "blobs"
    assert "fractions" not in about["provenance"], "the files gave the splits"


def test_without_a_description_the_folder_names_the_data_set(small, tmp_path):
    small["info"] = {"description": None}
    about = yaml.safe_load(
        (prepare_annotations(write(tmp_path, small), tmp_path / "out", **OPTIONS) / "dataset.yaml").read_text()
    )
    assert about["name"] == "out" and about["provenance"]["fractions"] == {"train": 1.0}


def test_the_files_of_a_folder_must_have_the_same_categories(dataset, exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "annotations")
    content = json.loads((folder / "val.json").read_text())
    content["categories"].pop()
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] == 1]
    (folder / "val.json").write_text(json.dumps(content))
    message = (
        "train.json has the categories galaxy,star, but .*val.json has the categories galaxy: they must be the same"
    )
    with pytest.raises(InputError, match=message) as error:
        prepare_annotations(folder, tmp_path / "again", images=dataset)
    assert "--classes" not in str(error.value)


# ---------------------------------------------------------------------------------------------- boxes and outlines
def squares(corners, side=10):
    """Annotations of square outlines with these left upper corners, with their boxes as COCO has them."""
    return [
        {"id": i + 1, "image_id": 0, "category_id": 3, "bbox": [x, y, side, side]}
        | {"segmentation": [[x, y, x + side, y, x + side, y + side, x, y + side]]}
        for i, (x, y) in enumerate(corners)
    ]


CORNERS = [(2, 3), (20, 3), (40, 30), (60, 45)]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"bbox": [50, 40, 5, 5]}, "x 50 to 55, y 40 to 45, but that of its outline is x 20 to 30, y 3 to 13$"),
        ({"bbox": [20, 3, 30, 13]}, "x 20 to 50, y 3 to 16, .*; it fits as x0, y0, x1, y1, which is bbox_mode 0$"),
        ({"bbox": [20, 3, 24, 13], "bbox_mode": 0}, "x 20 to 24, y 3 to 13, but"),
    ],
)
def test_a_box_that_is_not_that_of_its_outline_is_told(small, tmp_path, caplog, spoil, message):
    small["annotations"] = squares(CORNERS)
    small["annotations"][1] |= spoil
    prepare_annotations(write(tmp_path, small), tmp_path / "out", **OPTIONS)
    [line] = [record.getMessage() for record in caplog.records if "outlines" in record.getMessage()]
    assert line.startswith("1 of 4 boxes do not fit their outlines, first ") and "annotation 2: " in line
    assert re.search(message, line)


@pytest.mark.parametrize("mode", [0, 1])
def test_boxes_in_the_other_order_are_refused(small, tmp_path, mode):
    small["annotations"] = squares([(7, 7), (11, 11), (13, 12)])
    for item in small["annotations"]:
        x, y, side, _ = item["bbox"]
        item |= {"bbox_mode": mode, "bbox": [x, y, x + side, y + side] if mode else [x, y, 2 * side, 2 * side]}
        if mode == 0:
            item["segmentation"] = [[x, y, x + 20, y, x + 20, y + 20, x, y + 20]]
    with pytest.raises(InputError, match=f"3 of 3 boxes do not fit .*which is bbox_mode {1 - mode}; correct them, or"):
        prepare_annotations(write(tmp_path, small), tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "out").exists()
    for item in small["annotations"]:
        item["bbox_mode"] = 1 - mode
    prepare_annotations(write(tmp_path, small), tmp_path / "out", **OPTIONS)


def test_boxes_that_are_larger_than_what_is_seen_of_an_object_are_not_told(small, tmp_path, caplog):
    """A galaxy behind a star; and one at the border, whose box goes on outside."""
    small["annotations"] = squares(CORNERS)
    small["annotations"][0]["bbox"] = [-9, -9, 21, 22]
    small["annotations"][1]["bbox"] = [15, 1, 30, 25]
    prepare_annotations(write(tmp_path, small), tmp_path / "out", **OPTIONS)
    assert "outlines" not in caplog.text


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
        (change_image(id=None), "image id None is not a number or a name"),
        (lambda c: (c["images"][1].update(id=0), c["annotations"][1].update(image_id=1)), "image id 0 occurs twice"),
        (change(segmentation={"size": 5}), "annotation 5: its run-length code is of size 5"),
        (change(redshift=10**400), "annotation 5: redshift is 10000.*; such a number cannot be stored, give null"),
        (change(redshift=float("inf")), "annotation 5: redshift is inf; such a number cannot be stored"),
        (change(redshift=-1e300), "annotation 5: redshift is -1e.300; such a number cannot be stored"),
        (change(bbox=[10, 20, 10**400, 3]), "is not four numbers"),
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
        ({"bands": None, "pixel_scale": None, "zero_points": None}, "give --bands, --pixel-scale, --zero-point"),
        ({"pixel_scale": None}, "give --pixel-scale"),
        ({"zero_points": None}, "give --zero-point"),
        ({"class_names": ["star", "quasar"]}, "--classes star,quasar, but .* has the categories star,galaxy"),
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
        ("0.npy", b"", "0.npy: it is damaged, or not a .npy array of numbers; write it with numpy.save$"),
        ("0.npy", b"no array", "0.npy: it is damaged, or not a .npy array of numbers; write it with numpy.save$"),
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
        with pytest.raises(
            InputError,
            match="0.npy: (it holds no image|it is damaged, or not a .npy array of numbers; write it with numpy.save$)",
        ):
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


def test_the_command_line_passes_what_it_is_told(small, tmp_path, capsys):
    path = write(tmp_path, small)
    base = ["prepare", str(path), "--output", str(tmp_path / "out"), "--split", "train=1"]
    told = ["--bands", "g,r,i", "--pixel-scale", "0.2", "--zero-point", "nJy", "--classes", "star,galaxy"]
    assert cli.main([*base, *told]) == 0
    assert yaml.safe_load((tmp_path / "out" / "dataset.yaml").read_text())["class_names"] == ["star", "galaxy"]
    assert cli.main([*base, *told]) == 2
    assert "exists already" in capsys.readouterr().err
