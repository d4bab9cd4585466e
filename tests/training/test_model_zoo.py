"""Models by name or file: with their config, checked before anything is built, exported, adapted."""

import pytest
import safetensors
import torch
import yaml
from tiny_model import TinyDetector, config
from weight_files import equal, write

from deepdisc import model_zoo
from deepdisc.config import load, to_yaml
from deepdisc.errors import InputError
from deepdisc.files import sha256
from deepdisc.model_zoo import load_model
from deepdisc.training import train
from deepdisc.training.weights import export_safetensors


@pytest.fixture
def model():
    torch.manual_seed(1)
    return TinyDetector()


@pytest.fixture
def cfg(tmp_path):
    return config(tmp_path / "data", tmp_path / "run")


def test_an_exported_model_is_loaded_with_its_config(model, cfg, tmp_path):
    path = tmp_path / "a.safetensors"
    export_safetensors(model, cfg, path, training_set="blobs")
    found, found_cfg = load_model(path)
    assert not found.training and equal(found.state_dict(), model.state_dict())
    assert to_yaml(found_cfg) == to_yaml(cfg)
    with safetensors.safe_open(path, framework="pt") as handle:
        about = handle.metadata()
    assert about["bands"] == "g,r" and about["pixel_scale_arcsec"] == "0.2" and about["training_set"] == "blobs"


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
