"""`deepdisc inspect`: what a checkpoint or an annotation file is."""

import json

import pytest
import torch
import yaml

from deepdisc import cli
from deepdisc.backbones.mvit import MViT
from deepdisc.backbones.resnet import ResNet
from deepdisc.config import instantiate, load
from deepdisc.errors import InputError
from deepdisc.inspection import inspect
from deepdisc.model_zoo import export, weights_path

NARROW = ["model.backbone.bottom_up.stem_out_channels=8", "model.backbone.out_channels=8",
          "model.roi_heads.box_head.fc_dim=8", "model.roi_heads.mask_head.conv_dim=8"]  # fmt: skip


def test_a_model_of_ours_and_its_export_are_told_apart(tmp_path, capsys):
    ours = inspect(weights_path("ugriz_r18"))
    assert ours["program"] == "deepdisc" and ours["config"]["bands"] == list("ugriz")
    theirs = inspect(export("ugriz_r18", tmp_path / "a.pth", to="detectron2"))
    assert theirs["program"] == "detectron2" and theirs["config"] is None
    for found in (ours, theirs):
        assert found["bands_of_first_convolution"] == 5 and found["classes"] == 2
        assert found["backbone"] == "ResNet-18 (2, 2, 2, 2 blocks per stage)"
    capsys.readouterr()
    assert cli.main(["inspect", str(tmp_path / "a.pth")]) == 0
    assert "classes: 2\n" in capsys.readouterr().out


def test_a_training_state_is_ours(tmp_path):
    torch.save({"model": {"w": torch.ones(2)}, "config": "model: {_target_: mine.Net}", "iteration": 3},
               tmp_path / "a.pth")  # fmt: skip
    found = inspect(tmp_path / "a.pth")
    assert found["program"] == "deepdisc" and found["iteration"] == 3 and found["parameters"] == 2
    assert not {"backbone", "classes", "bands_of_first_convolution"} & found.keys()


@pytest.mark.parametrize(
    ("network", "backbone"),
    [
        (lambda: ResNet(34, in_channels=7, stem_out_channels=8), "ResNet-34 (3, 4, 6, 3 blocks per stage)"),
        (lambda: ResNet(50, in_channels=7, stem_out_channels=8), "ResNet-50 (3, 4, 6, 3 blocks per stage)"),
        (lambda: MViT(in_channels=7, embed_dim=16, depth=4, last_block_indexes=(0, 1, 2, 3)), "MViT with 4 blocks"),
    ],
)
def test_a_foreign_backbone_is_described_by_its_shapes(tmp_path, network, backbone):
    torch.save(network().state_dict(), tmp_path / "a.pth")
    found = inspect(tmp_path / "a.pth")
    assert found["backbone"] == backbone and found["bands_of_first_convolution"] == 7 and "classes" not in found


def test_the_classes_of_a_cascade_are_counted(tmp_path):
    network = instantiate(load("configs/common/cascade_resnet_fpn.py", [NARROW[0], NARROW[1], "num_classes=4"]).model)
    torch.save(network.state_dict(), tmp_path / "a.pth")
    assert inspect(tmp_path / "a.pth")["classes"] == 4


@pytest.mark.parametrize("text", ["model: [yaml", "model: !!python/object/apply:os.getcwd []", "[" * 20000])
def test_a_broken_config_inside_a_checkpoint_is_the_users_error(tmp_path, capsys, text):
    torch.save({"model": {"w": torch.ones(2)}, "config": text}, tmp_path / "a.pth")
    assert cli.main(["inspect", str(tmp_path / "a.pth")]) == 2
    error = capsys.readouterr().err.strip()
    assert "config inside" in error and "not valid YAML" in error and "\n" not in error


def test_an_iteration_that_is_a_tensor_is_printed_as_a_number(tmp_path, capsys):
    torch.save({"model": {"w": torch.ones(2)}, "iteration": torch.tensor(4)}, tmp_path / "a.pth")
    assert cli.main(["inspect", str(tmp_path / "a.pth")]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["iteration"] == 4


def test_a_coco_file_is_counted(tmp_path):
    content = {
        "images": [{"id": 1}, {"id": 2}],
        "annotations": [{"category_id": 1}, {"category_id": 1}, {"category_id": 9}, "x"],
        "categories": [{"id": 1, "name": "galaxy"}, {"id": 2, "name": "star"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert inspect(tmp_path / "a.json") == {
        "kind": "COCO annotations", "images": 2, "annotations": 4,
        "categories": {"galaxy": 2, "star": 0}, "of_unknown_category": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot be read as JSON"), ("[" * 100_000, "cannot be read as JSON"), ("[1]", "only COCO annotations"),
     ('{"images": 3, "annotations": []}', "only COCO annotations")],
)  # fmt: skip
def test_another_json_file_is_named(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=f"a.json: .*{message}"):
        inspect(tmp_path / "a.json")
