"""Weights in and out: formats, architectures that do not fit, exports, the model zoo."""

import pickle
from collections import OrderedDict

import numpy as np
import pytest
import safetensors
import torch
import yaml
from tiny_model import TinyDetector, config
from torch import nn

from deepdisc import model_zoo
from deepdisc.config import load, to_yaml
from deepdisc.errors import InputError
from deepdisc.files import sha256
from deepdisc.model_zoo import load_model
from deepdisc.training import train
from deepdisc.training.checkpoint import (
    Weights,
    adapt_bands,
    export_safetensors,
    load_state,
    load_weights,
    read_weights,
    save_state,
)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def model():
    torch.manual_seed(1)
    return TinyDetector()


@pytest.fixture
def cfg(tmp_path):
    return config(tmp_path / "data", tmp_path / "run")


def write(model, path, kind):
    state = model.state_dict()
    if kind == "detectron2":
        torch.save({"model": state, "optimizer": {"state": {}, "param_groups": []}, "iteration": 7}, path)
    elif kind == "bare":
        torch.save(state, path)
    elif kind == "pkl":
        arrays = OrderedDict((name, value.numpy()) for name, value in state.items())
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "zoo", "matching_heuristics": True}, protocol=2))
    return path


@pytest.mark.parametrize(("kind", "name"), [("detectron2", "a.pth"), ("bare", "a.pth"), ("pkl", "a.pkl")])
def test_detectron2_formats_are_read(model, tmp_path, kind, name):
    path = write(model, tmp_path / name, kind)
    other = TinyDetector()
    report = load_weights(other, read_weights(path), strict=True)
    assert equal(other.state_dict(), model.state_dict())
    assert len(report.matched) == len(model.state_dict()) - 1  # without num_batches_tracked


def test_settings_that_detectron2_keeps_among_the_weights_are_passed_over(model):
    extra = {"pixel_mean": torch.ones(2, 1, 1), "proposal_generator.anchor_generator.cell_anchors.0": torch.ones(3, 4)}
    report = load_weights(TinyDetector(), Weights({**model.state_dict(), **extra}, "x"), strict=True)
    assert not report.unexpected


def test_averaged_weights_are_preferred(model, tmp_path):
    averaged = {f"module.{name}": value + 1 for name, value in model.state_dict().items()}
    save_state({"model": model.state_dict(), "ema": {**averaged, "n_averaged": torch.tensor(3)}}, tmp_path / "a.pth")
    found = read_weights(tmp_path / "a.pth").tensors
    assert torch.equal(found["first.weight"], model.first.weight + 1) and "n_averaged" not in found


def test_a_pickle_that_would_execute_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    for name in ("a.pkl", "a.pth"):
        if name.endswith("pkl"):
            (tmp_path / name).write_bytes(pickle.dumps({"model": Evil()}))
        else:
            torch.save({"model": Evil()}, tmp_path / name)
        with pytest.raises(InputError, match=f"{name}: cannot be read"):
            read_weights(tmp_path / name)
    assert not (tmp_path / "written").exists()


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
    report = load_weights(detector, Weights(model.state_dict(), tmp("R-50.pkl")), strict=False)
    assert equal(dict(detector.backbone["bottom_up"].state_dict()), dict(model.state_dict()) | {
        "norm.num_batches_tracked": detector.backbone["bottom_up"].norm.num_batches_tracked
    })  # fmt: skip
    assert report.missing == ["head.weight", "head.bias"]
    printed = capsys.readouterr().err
    assert "R-50.pkl" in printed and "head.weight" in printed and "not in the file" in printed


def tmp(name):
    from pathlib import Path

    return Path(name)


def test_the_first_convolution_is_adapted_to_other_bands(model):
    five = TinyDetector(bands=5)
    report = load_weights(five, Weights(model.state_dict(), tmp("rgb.pth")), strict=False)
    assert report.adapted == ["first.weight (2 -> 5 bands)"]
    grey = torch.rand(1, 1, 9, 9)
    answers = (m.first(grey.expand(-1, bands, -1, -1)) for m, bands in ((model, 2), (five, 5)))
    torch.testing.assert_close(*answers)
    assert adapt_bands(torch.ones(4, 3, 7, 7), 9).shape == (4, 9, 7, 7)


def test_another_architecture_is_refused_and_changes_nothing(model):
    other = TinyDetector(width=9)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(InputError, match=r"another architecture: 1 tensors match.*6 mismatched \(first.weight"):
        load_weights(other, Weights(model.state_dict(), tmp("a.pth")), strict=False)
    with pytest.raises(InputError, match="another architecture than this config's"):
        load_weights(other, Weights(model.state_dict(), tmp("a.pth")), strict=True)
    with pytest.raises(InputError, match="nothing in it fits this model.*2 unexpected"):
        load_weights(other, Weights({"a": torch.ones(1), "b": torch.ones(1)}, tmp("a.pth")), strict=False)
    assert equal(other.state_dict(), before)


def test_strict_loading_refuses_a_single_missing_tensor(model):
    state = dict(model.state_dict())
    del state["last.bias"]
    with pytest.raises(InputError, match=r"1 missing \(last.bias\)"):
        load_weights(TinyDetector(), Weights(state, tmp("a.pth")), strict=True)


# -------------------------------------------------------------------------------------------------- export and zoo
def test_an_exported_model_is_loaded_with_its_config(model, cfg, tmp_path):
    path = tmp_path / "a.safetensors"
    export_safetensors(model, cfg, path, training_set="blobs")
    found, found_cfg = load_model(path)
    assert not found.training and equal(found.state_dict(), model.state_dict())
    assert to_yaml(found_cfg) == to_yaml(cfg)
    with safetensors.safe_open(path, framework="pt") as handle:
        about = handle.metadata()
    assert about["bands"] == "g,r" and about["pixel_scale_arcsec"] == "0.2" and about["training_set"] == "blobs"


def test_a_full_disk_while_exporting_is_the_users_error(model, cfg, tmp_path, monkeypatch):
    def full(*args):
        raise safetensors.SafetensorError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(InputError, match="cannot write .*a.safetensors: No space left"):
        export_safetensors(model, cfg, tmp_path / "a.safetensors")
    assert not list(tmp_path.glob("*a.safetensors"))


def test_damaged_weights_are_noticed(model, cfg, tmp_path):
    path = tmp_path / "a.safetensors"
    export_safetensors(model, cfg, path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(InputError, match="weights are damaged"):
        load_model(path)


def test_a_checkpoint_of_a_training_is_loaded_and_exported(blobs, tmp_path):
    best = train(config(blobs, tmp_path / "run", "train.max_iter=4"))
    model, cfg = load_model(best)
    assert list(cfg.bands) == ["g", "r"] and not model.training
    exported = model_zoo.export(best, tmp_path / "small.safetensors")
    again, _ = load_model(exported)
    renamed = model_zoo.export(best, tmp_path / "renamed.safetensors", ["pixel_scale_arcsec=0.3"])
    assert load_model(renamed)[1].pixel_scale_arcsec == 0.3
    with pytest.raises(InputError, match="nearest"):
        model_zoo.export(best, tmp_path / "wrong.safetensors", ["pixel_scale=0.3"])
    assert equal(model.state_dict(), again.state_dict())
    assert exported.stat().st_size < best.stat().st_size / 2
    with pytest.raises(InputError, match="is a .safetensors file"):
        model_zoo.export(best, tmp_path / "small.pth")


@pytest.mark.parametrize("target", ["os.makedirs", "deepdisc.cli.os.makedirs", "${other}"])
def test_a_checkpoint_cannot_call_anything_but_our_classes(model, tmp_path, target):
    call = {"_target_": target, "name": str(tmp_path / "made")}
    cfg = {"other": "os.makedirs", "model": {"_target_": "torch.nn.Sequential", "args": [{"deep": call}]}}
    torch.save({"model": model.state_dict(), "config": yaml.safe_dump(cfg)}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"config inside .*a.pth: it would call '.*os.makedirs', which is no class of"):
        load_model(tmp_path / "a.pth")
    assert not (tmp_path / "made").exists()


def test_foreign_weights_take_the_config_beside_them(model, cfg, tmp_path):
    path = write(model, tmp_path / "a.pth", "detectron2")
    with pytest.raises(InputError, match="holds no config and there is no config.yaml beside it"):
        load_model(path)
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    found, _ = load_model(path)
    assert torch.equal(found.first.weight, model.first.weight)
    wider = cfg.copy()
    wider.model.width = 9
    (tmp_path / "config.yaml").write_text(to_yaml(wider))
    with pytest.raises(InputError, match="another architecture than this config's"):
        load_model(path)


@pytest.fixture
def zoo(model, cfg, tmp_path, monkeypatch):
    """A zoo with one model."""
    folder = tmp_path / "model_zoo"
    folder.mkdir()
    export_safetensors(model, cfg, folder / "tiny.safetensors")
    entry = dict.fromkeys(model_zoo.REQUIRED, "x")
    entry |= {"weights": "tiny.safetensors", "sha256": sha256(folder / "tiny.safetensors")}
    (folder / "models.yaml").write_text(yaml.safe_dump({"tiny_gr": entry}))
    monkeypatch.setattr(model_zoo, "shipped", lambda name: tmp_path / name)
    return folder


def test_a_model_is_loaded_by_name(zoo, model):
    found, cfg = load_model("tiny_gr")
    assert equal(found.state_dict(), model.state_dict()) and list(cfg.bands) == ["g", "r"]


def test_unknown_names_and_files_are_told_apart(zoo):
    with pytest.raises(InputError, match="no model 'tiny_rg'.* there are: tiny_gr; the nearest is 'tiny_gr'"):
        load_model("tiny_rg")
    with pytest.raises(InputError, match="no checkpoint at runs/model_best.pth"):
        load_model("runs/model_best.pth")


def test_verify_compares_the_checksum(zoo):
    assert model_zoo.verify("tiny_gr") == zoo / "tiny.safetensors"
    with open(zoo / "tiny.safetensors", "ab") as handle:
        handle.write(b"x")
    with pytest.raises(InputError, match="model 'tiny_gr': tiny.safetensors has SHA-256"):
        model_zoo.verify("tiny_gr")
    (zoo / "tiny.safetensors").unlink()
    with pytest.raises(InputError, match="are missing"):
        model_zoo.verify("tiny_gr")


def test_an_incomplete_entry_is_named(zoo):
    (zoo / "models.yaml").write_text(yaml.safe_dump({"a": {"config": "x"}}))
    with pytest.raises(InputError, match="model 'a' has no 'weights'"):
        model_zoo.entries()


def test_every_shipped_model_is_intact_and_loads():
    assert model_zoo.entries(), "no model is shipped"
    for name, entry in model_zoo.entries().items():
        assert model_zoo.verify(name).stat().st_size < 20e6
        model, cfg = load_model(name)
        assert list(cfg.bands) == list(entry["bands"]) and cfg.pixel_scale_arcsec == entry["pixel_scale_arcsec"]
        load(entry["config"])


def test_the_state_of_a_training_can_be_read_without_executing_anything(blobs, tmp_path):
    best = train(config(blobs, tmp_path, "train.max_iter=2"))
    assert {"model", "ema", "optimizer", "iteration", "rng", "sampler", "hooks", "config"} == set(load_state(best))
    np.testing.assert_equal(load_state(best)["iteration"], 2)


def test_a_full_disk_leaves_nothing_half_written(model, tmp_path, monkeypatch):
    def full(state, path):
        path.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file: No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match="cannot write .*model_final.pth: .*No space left"):
        save_state({"model": model.state_dict()}, tmp_path / "model_final.pth")
    assert not list(tmp_path.iterdir())
