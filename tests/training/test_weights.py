"""Weights in and out: formats, what fits, what is refused."""

from pathlib import Path

import pytest
import safetensors
import torch
from tiny_model import TinyDetector, config
from torch import nn
from weight_files import equal, write

from deepdisc.backbones.stem import BandAdapter
from deepdisc.errors import InputError
from deepdisc.training.checkpoint import save_state
from deepdisc.training.loading import load_weights
from deepdisc.training.weights import Weights, export_safetensors, read_weights


@pytest.fixture
def model():
    torch.manual_seed(1)
    return TinyDetector()


@pytest.fixture
def cfg(tmp_path):
    return config(tmp_path / "data", tmp_path / "run")


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
    assert report.adapted == ["first.weight (2 -> 5 bands: unnamed -> unnamed)"]
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
