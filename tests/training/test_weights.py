"""Weights in and out: formats, what fits, what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from tiny_model import TinyDetector
from torch import nn
from weight_files import detector, equal, write

from deepdisc.backbones.resnet import ResNet
from deepdisc.backbones.stem import BandAdapter
from deepdisc.errors import InputError
from deepdisc.training.checkpoint import save_state
from deepdisc.training.loading import load_weights
from deepdisc.training.naming import Origin
from deepdisc.training.weights import Weights, export_detectron2, export_safetensors, read_weights


@pytest.mark.parametrize(("kind", "name"), [("detectron2", "a.pth"), ("bare", "a.pth"), ("pkl", "a.pkl")])
def test_detectron2_formats_are_read(model, tmp_path, kind, name):
    path = write(model, tmp_path / name, kind)
    other = TinyDetector()
    report = load_weights(other, read_weights(path), strict=True)
    assert equal(other.state_dict(), model.state_dict())
    assert report.matched == list(model.state_dict())


def test_settings_that_detectron2_keeps_among_the_weights_are_passed_over(model, tmp_path):
    extra = {"pixel_mean": torch.ones(2, 1, 1), "proposal_generator.anchor_generator.cell_anchors.0": torch.ones(3, 4)}
    torch.save({"model": {**model.state_dict(), **extra}}, tmp_path / "a.pth")
    weights = read_weights(tmp_path / "a.pth")
    assert weights.about["pixel_mean"] == [1.0, 1.0]
    report = load_weights(TinyDetector(), weights, strict=True)
    assert not report.unexpected and report.left_out == list(extra)


def test_averaged_weights_are_preferred(model, tmp_path):
    averaged = {f"module.{name}": value + 1 for name, value in model.state_dict().items()}
    save_state({"model": model.state_dict(), "ema": {**averaged, "n_averaged": torch.tensor(3)}}, tmp_path / "a.pth")
    found = read_weights(tmp_path / "a.pth").tensors
    assert torch.equal(found["first.weight"], model.first.weight + 1) and "n_averaged" not in found


@pytest.mark.parametrize("form", ["only settings", "nested", "empty"])
def test_an_average_of_another_program_is_found_or_passed_over(tmp_path, form):
    averages = {
        "only settings": {"decay": 0.99, "updates": 3},
        "nested": {"decay": 0.99, "state_dict": {"module.w": torch.full((2,), 7.0)}},
        "empty": {},
    }
    torch.save({"model": {"w": torch.ones(2)}, "ema": averages[form]}, tmp_path / "a.pth")
    assert read_weights(tmp_path / "a.pth").tensors["w"].tolist() == ([7, 7] if form == "nested" else [1, 1])


@pytest.mark.parametrize(("given", "wanted"), [(torch.tensor(4), 4), (np.int64(5), 5), ("x", None), (None, None)])
def test_the_iteration_is_a_plain_number(tmp_path, given, wanted):
    torch.save({"model": {"w": torch.ones(2)}, "iteration": given}, tmp_path / "a.pth")
    assert read_weights(tmp_path / "a.pth").about["iteration"] == wanted


NO_WEIGHTS = {
    "complex": ({"w": torch.ones(2, dtype=torch.complex64)}, "w is of type complex64, weights are float32"),
    "int8": ({"w": torch.ones(2, dtype=torch.int8)}, "w is of type int8"),
    "uint16": ({"w": torch.ones(2, dtype=torch.uint16)}, "w is of type uint16"),
    "bool": ({"w": torch.ones(2, dtype=torch.bool)}, "w is of type bool"),
    "bool scalar": ({"w": torch.tensor(True)}, "w is of type bool"),
    "float8": ({"w": torch.ones(2).to(torch.float8_e4m3fn)}, "w is of type float8_e4m3fn"),
    "beyond float32": ({"w": torch.tensor([1.0, -1e39], dtype=torch.float64)}, "w is of type float64 and holds values"),
    "variance": ({"n.running_var": torch.tensor([1.0, -0.5])}, r"n.running_var, a variance, is negative \(-0.5\)"),
    "Caffe2 variance": ({"res_conv1_bn_riv": -torch.ones(2)}, "res_conv1_bn_riv, a variance, is negative"),
    "module.": ({"module.w": torch.ones(2), "w": torch.zeros(2), "b": torch.ones(1)}, "w is there twice"),
    "two wrappers": ({"module.a.w": torch.ones(2), "model.a.w": torch.zeros(2)}, "a.w is there twice"),
    "expanded": ({"w": torch.ones(1).expand(10**14)}, "w is no plain dense tensor"),
}


@pytest.mark.parametrize("kind", list(NO_WEIGHTS))
def test_tensors_that_are_no_weights_are_named(tmp_path, kind):
    tensors, message = NO_WEIGHTS[kind]
    torch.save({"model": tensors}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=f"a.pth: .*{message}"):
        read_weights(tmp_path / "a.pth")


def test_numbers_that_float32_stands_for_are_weights(tmp_path):
    kinds = (torch.float64, torch.float16, torch.bfloat16)
    tensors = {str(kind): torch.ones(2, dtype=kind) for kind in kinds}
    tensors |= {"n.running_var": torch.tensor([0.0, float("nan")]), "inf": torch.tensor(float("inf")).double()}
    tensors |= {"n.num_batches_tracked": torch.tensor(3), "num_batches_tracked": torch.ones(1, dtype=torch.int64)}
    torch.save(tensors, tmp_path / "a.pth")
    assert read_weights(tmp_path / "a.pth").tensors.keys() == tensors.keys()


@pytest.mark.parametrize("name", ["a.pth", "a.pkl", "a.safetensors"])
def test_truncated_text_and_missing_files_are_named(model, cfg, tmp_path, name):
    path = tmp_path / name
    with pytest.raises(InputError, match=f"no checkpoint at .*{name}"):
        read_weights(path)
    path.write_text("this is a text file")
    with pytest.raises(InputError, match=f"{name}: cannot be read"):
        read_weights(path)
    if name.endswith("safetensors"):
        export_safetensors(model, cfg, path)
    else:
        write(model, path, "pkl" if name.endswith("pkl") else "detectron2")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=f"{name}: cannot be read"):
        read_weights(path)


def test_a_file_without_weights_is_named(tmp_path):
    torch.save({"model": {"a": 3}}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="holds no weights"):
        read_weights(tmp_path / "a.pth")


class Wrapped(nn.Module):
    """The tiny detector as a part of a larger model."""

    def __init__(self, **arguments):
        super().__init__()
        self.backbone = nn.ModuleDict({"bottom_up": TinyDetector(**arguments)})
        self.head = nn.Linear(4, 4)


def test_a_backbone_finds_its_place_in_a_detector(model, capsys):
    detector = Wrapped()
    report = load_weights(detector, Weights(model.state_dict(), Path("R-50.pkl")), strict=False)
    assert equal(dict(detector.backbone["bottom_up"].state_dict()), dict(model.state_dict()) | {
        "norm.num_batches_tracked": detector.backbone["bottom_up"].norm.num_batches_tracked
    })  # fmt: skip
    assert report.missing == ["head.weight", "head.bias"]
    printed = capsys.readouterr().err
    assert "R-50.pkl" in printed and "head.weight" in printed and "not in the file" in printed


def test_the_first_convolution_is_adapted_to_other_bands(model):
    five = TinyDetector(bands=5)
    weights = Weights(model.state_dict(), Path("rgb.pth"))
    report = load_weights(five, weights, strict=False, adapter=BandAdapter())
    assert report.adapted == ["first.weight (2 -> 5 bands by mean)"]
    grey = torch.rand(1, 1, 9, 9)
    answers = (m.first(grey.expand(-1, bands, -1, -1)) for m, bands in ((model, 2), (five, 5)))
    torch.testing.assert_close(*answers)


def test_another_architecture_is_refused_and_changes_nothing(model):
    other = TinyDetector(width=9)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(InputError, match=r"another architecture: 2 tensors match.*7 mismatched \(first.weight"):
        load_weights(other, Weights(model.state_dict(), Path("a.pth")), strict=False)
    with pytest.raises(InputError, match="another architecture than this config's"):
        load_weights(other, Weights(model.state_dict(), Path("a.pth")), strict=True)
    with pytest.raises(InputError, match="nothing in it fits this model.*2 unexpected"):
        load_weights(other, Weights({"a": torch.ones(1), "b": torch.ones(1)}, Path("a.pth")), strict=False)
    assert equal(other.state_dict(), before)


def test_strict_loading_refuses_a_single_missing_tensor(model):
    state = dict(model.state_dict())
    del state["last.bias"]
    with pytest.raises(InputError, match=r"1 missing \(last.bias\)"):
        load_weights(TinyDetector(), Weights(state, Path("a.pth")), strict=True)


def test_a_full_disk_while_exporting_is_the_users_error(model, cfg, tmp_path, monkeypatch):
    def full(*args):
        raise safetensors.SafetensorError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(InputError, match="cannot write .*a.safetensors: No space left"):
        export_safetensors(model, cfg, tmp_path / "a.safetensors")
    assert not list(tmp_path.glob("*a.safetensors"))


# refused: bands, classes, architecture, NaN ---------------------------------------------------------------------------
def refused(weights, message, *overrides, strict=True, **arguments):
    """Loading into a detector with these settings is an error, after which the detector is as before."""
    model = detector(*overrides)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match=message):
        load_weights(model, weights, strict=strict, **arguments)
    assert equal(model.state_dict(), before)


def test_another_number_of_bands_is_named_when_predicting(trained):
    message = r"trained.pth was trained on 3 bands, this config has 5 \(u,g,r,i,z\); .* train.init_checkpoint=FILE"
    refused(trained, message, "num_bands=5", bands=list("ugriz"))
    refused(trained, "was trained on 3 bands, this config has 9; ", "num_bands=9")


def test_another_band_list_is_named_when_predicting(trained):
    weights = replace(trained, config="bands: [g, r, i]")
    message = r"was trained on the bands g,r,i, this config's are r,g,i; predict with the bands"
    refused(weights, message, bands=["r", "g", "i"])
    load_weights(detector(), weights, strict=True, bands=["g", "r", "i"])


def test_bands_that_do_not_count_the_models_stem(trained):
    message = r"bands names 2 bands \(g,r\), but the model's stem reads 3"
    refused(trained, message, strict=False, bands=["g", "r"], adapter=BandAdapter())


def test_another_number_of_classes_is_named_when_predicting(trained):
    refused(trained, "was trained on 2 classes, this config has 7; set num_classes=2", "num_classes=7")


def test_another_number_of_classes_starts_these_layers_fresh(trained, capsys):
    model = detector("num_classes=7")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_weights(model, trained, strict=False)
    fresh = {text.split(" ")[0].removeprefix("roi_heads.") for text in report.mismatched}
    layers = ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_head.predictor")
    assert fresh == {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    for name in fresh:
        assert torch.equal(model.state_dict()["roi_heads." + name], before["roi_heads." + name])
    assert "2 classes in the file, 7 in the model: their layers start fresh" in report.notes
    assert "another shape: fresh" in capsys.readouterr().err


@pytest.mark.parametrize("strict", [True, False])
def test_another_depth_is_refused_even_if_most_tensors_match(trained, strict):
    refused(trained, "blocks res2 2, res3 2, res4 2, res5 2, this config's res2 3, res3 4",
            "model.backbone.bottom_up.depth=34", strict=strict)  # fmt: skip


@pytest.mark.parametrize("strict", [True, False])
def test_another_width_of_the_backbone_is_refused(trained, strict):
    message = r"another architecture: \d+ tensors of the backbone differ \(backbone.bottom_up"
    refused(trained, message, "model.backbone.bottom_up.stem_out_channels=16", strict=strict)


def test_blocks_of_another_kind_are_refused(trained):
    message = "(tensors of the backbone differ|another architecture)"
    weights = Weights(ResNet(34, stem_out_channels=8).state_dict(), Path("r34.pth"))
    model = ResNet(50, stem_out_channels=8)
    with pytest.raises(InputError, match=message):
        load_weights(model, weights, strict=False)


def test_another_neck_keeps_the_backbone(trained):
    model = detector("model.backbone.out_channels=16")
    report = load_weights(model, trained, strict=False)
    backbone = {name: value for name, value in trained.tensors.items() if "bottom_up" in name}
    assert set(backbone) <= set(report.matched)
    assert equal({name: model.state_dict()[name] for name in backbone}, backbone)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["backbone.fpn_output3.weight", "backbone.bottom_up.res4.0.conv1.norm.running_var"])
@pytest.mark.parametrize("strict", [True, False])
def test_weights_that_are_not_finite_are_refused(trained, name, value, strict):
    tensors = {key: tensor.clone() for key, tensor in trained.tensors.items()}
    tensors[name][(0,) * tensors[name].ndim] = value
    message = f"bad.pth: 1 of the {tensors[name].numel()} weights of {name} are NaN or infinite"
    refused(Weights(tensors, Path("bad.pth")), message, strict=strict)


def test_nan_in_a_stem_that_is_adapted_is_found(trained):
    tensors = dict(trained.tensors)
    name = "backbone.bottom_up.stem.conv1.weight"
    tensors[name] = torch.full_like(tensors[name], float("nan"))
    refused(Weights(tensors, Path("bad.pth")), f"weights of {name} are NaN", "num_bands=5", strict=False,
            adapter=BandAdapter())  # fmt: skip


def test_nothing_that_fits_is_an_error(trained):
    weights = Weights({"encoder.weight": torch.ones(3)}, Path("other.pth"))
    refused(weights, "other.pth: nothing in it fits this model: .* taken for a file of detectron2", strict=False)


def test_a_config_inside_tells_the_strides():
    text = "model: {backbone: {bottom_up: {stride_in_1x1: false}}}"
    weights = Weights(ResNet(50, stem_out_channels=8).state_dict(), Path("ours.pth"), text)
    with pytest.raises(InputError, match="its ResNet has its strides in the 3x3 .* set model.*stride_in_1x1=False"):
        load_weights(ResNet(50, stem_out_channels=8), weights, strict=False)
    load_weights(ResNet(50, stem_out_channels=8, stride_in_1x1=False), weights, strict=False)


# other bands, by name -------------------------------------------------------------------------------------------------
def test_bands_are_found_by_name_even_if_their_number_is_the_same(trained):
    weights = replace(trained, config="bands: [g, r, i]")
    model = detector()
    report = load_weights(model, weights, strict=False, bands=["i", "r", "g"], adapter=BandAdapter())
    name = "backbone.bottom_up.stem.conv1.weight"
    assert report.adapted == [f"{name} (3 -> 3 bands: i,r,g by name)"]
    assert torch.equal(model.backbone.bottom_up.stem.conv1.weight, trained.tensors[name].flip(1))


def test_named_bands_of_the_user_win_over_the_files_guess(trained):
    weights = replace(trained, origin=Origin("torchvision", bands=("red", "green", "blue")))
    named = BandAdapter(file_bands=["i", "r", "g"])
    model = detector("num_bands=2")
    load_weights(model, weights, strict=False, bands=["g", "r"], adapter=named)
    old, new = trained.tensors["backbone.bottom_up.stem.conv1.weight"], model.backbone.bottom_up.stem.conv1.weight
    torch.testing.assert_close(new[:, 0] - new[:, 1], old[:, 2] - old[:, 1])


def test_three_bands_take_the_colours_of_a_photograph_in_their_order(trained):
    weights = replace(trained, origin=Origin("torchvision", bands=("red", "green", "blue")))
    report = load_weights(detector(), weights, strict=False, bands=["i", "r", "g"], adapter=BandAdapter())
    assert not report.adapted and any("reads red,green,blue" in note for note in report.notes)


def test_every_load_prints_what_became_of_each_tensor(trained, capsys):
    load_weights(detector(), trained, strict=True)
    count = len(trained.tensors)
    assert capsys.readouterr().err.splitlines()[0] == f"{count} tensors match: trained.pth"
    extra = {f"roi_heads.extra.{i}": torch.ones(1) for i in range(12)}
    tensors = {name: value for name, value in trained.tensors.items() if "mask_head" not in name} | extra
    weights = Weights(
        tensors, Path("a.pth"), origin=Origin("detectron2", left_out=("pixel_mean", "_[mask]_fcn1_w_momentum"))
    )
    load_weights(detector("num_bands=5"), weights, strict=False, adapter=BandAdapter())
    printed = capsys.readouterr().err
    for text in ("a.pth", "adapted", "3 -> 5 bands", "not in the file: fresh", "mask_head.mask_fcn1.weight",
                 "not in the model: ignored", "... and 4 more", "not needed: left out",
                 "_[mask]_fcn1_w"):  # fmt: skip
        assert text in printed, text


# detectron2's form ----------------------------------------------------------------------------------------------------
def test_an_export_for_detectron2_holds_its_keys_and_reads_back_bit_for_bit(trained, tmp_path):
    model = detector()
    load_weights(model, trained, strict=True)
    assert export_detectron2(model, tmp_path / "a.pth") == []
    raw = torch.load(tmp_path / "a.pth", weights_only=True)
    assert list(raw) == ["model"] and all(type(x) is torch.Tensor for x in raw["model"].values())
    assert equal(read_weights(tmp_path / "a.pth").tensors, trained.tensors)
