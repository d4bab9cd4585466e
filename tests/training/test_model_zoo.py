"""Models by name or file: with their config, checked before anything is built, exported, adapted."""

import pytest
import safetensors
import torch
import yaml
from omegaconf import OmegaConf
from tiny_model import config
from weight_files import equal, write

from deepdisc import cli, model_zoo
from deepdisc.backbones.stem import BandAdapter
from deepdisc.config import instantiate, load, shipped, to_yaml
from deepdisc.errors import InputError
from deepdisc.files import sha256
from deepdisc.model_zoo import adapt_model, load_model
from deepdisc.training import train
from deepdisc.training.loading import load_weights
from deepdisc.training.weights import export_safetensors, read_weights


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


# configs of strangers -------------------------------------------------------------------------------------------------
VICTIM = {"_target_": "deepdisc.inference.regions.RegionWriter", "path": "victim.txt", "grid": "x"}
MAKE = {"_target_": "os.makedirs", "name": "made"}
NESTED = "torch.nn.ModuleDict"
HARMFUL = {
    "function": MAKE,
    "function of ours": {**MAKE, "_target_": "deepdisc.cli.os.makedirs"},
    "what a network imports": {"_target_": "torch.nn.modules.module.functools.partial"},
    "behind a link": {**MAKE, "_target_": "${other}"},
    "written by a link": '${oc.create:"{_target_: os.makedirs, name: made}"}',
    "class that writes": VICTIM,
    "class that writes, inside": {"_target_": NESTED, "modules": {"a": VICTIM}},
    "class that writes, in a list": {"_target_": NESTED, "modules": [["a", VICTIM]]},
    "class of a library in ours": {"_target_": "deepdisc.detector.detector.Tensor"},
    "data": {"_target_": "deepdisc.data.dataset.Dataset", "path": "victim.txt"},
}


@pytest.mark.parametrize("place", ["inside", "beside"])
@pytest.mark.parametrize("attack", list(HARMFUL))
def test_a_config_of_a_stranger_cannot_call_anything_but_networks(tmp_path, attack, place, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "victim.txt").write_text("precious")
    text = yaml.safe_dump({"other": "os.makedirs", "model": HARMFUL[attack]})
    state = {"model": {"w": torch.ones(1)}}
    torch.save(state | ({"config": text} if place == "inside" else {}), tmp_path / "a.pth")
    if place == "beside":
        (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=r"(config inside .*a.pth|config.yaml): it would call '.*', which is no"):
        load_model(tmp_path / "a.pth")
    assert not (tmp_path / "made").exists() and (tmp_path / "victim.txt").read_text() == "precious"


def test_text_that_looks_like_a_link_is_not_followed_at_a_second_look(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call = {"_target_": "torch.nn.ModuleDict", "modules": "\\${oc.create:'{_target_: os.makedirs, name: made}'}"}
    torch.save({"w": torch.ones(1), "config": yaml.safe_dump({"model": call})}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="cannot be built"):
        load_model(tmp_path / "a.pth")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("[1, 2]", r"its model is no network: .* found \[1, 2\]"),
        ("5", "its model is no network: .* found 5"),
        ("{a: 1}", "its model is no network"),
        ("'${nothing}'", "nothing"),
        ("{_target_: deepdisc.detector.matcher.Matcher, thresholds: [0.5], labels: [0, 1],"
         " allow_low_quality_matches: false}", "Matcher, is no network"),
        ("{_target_: torch.nn.Linear, in_features: a, out_features: 2}", "its model cannot be built: "),
        ("{_target_: torch.nn.Linear, in_features: 2}", "needs out_features"),
        ("{_target_: torch.nn.Linear, in_features: 100000000, out_features: 100000000}",
         "its model has 10000000100000000 parameters, .*a.pth has 1; use the config"),
        ("{_target_: torch.nn.Linear, in_features: 10000000000000, out_features: 100000000000000}", "built|parameters"),
    ],
)  # fmt: skip
def test_a_config_that_builds_no_network_is_the_users_error(tmp_path, capsys, model, message):
    torch.save({"model": {"w": torch.ones(1)}, "config": f"model: {model}"}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=rf"config inside .*a.pth: .*{message}") as caught:
        load_model(tmp_path / "a.pth")
    assert "\n" not in str(caught.value)
    assert cli.main(["export", str(tmp_path / "a.pth"), "--output", str(tmp_path / "o.safetensors")]) == 2


ALIASES = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nmodel: *c"


@pytest.mark.parametrize("place", ["inside", "beside"])
@pytest.mark.parametrize(
    ("text", "message"),
    [(ALIASES, r"it has the YAML alias \*a; write it out"), ("[" * 20_000, "more than 50 levels deep"),
     ("model: [yaml", "not valid YAML"), ("model: !!python/object/apply:os.getcwd []", "not valid YAML")],
)  # fmt: skip
def test_a_config_that_would_grow_or_break_is_refused(tmp_path, place, text, message):
    state = {"model": {"w": torch.ones(1)}}
    torch.save(state | ({"config": text} if place == "inside" else {}), tmp_path / "a.pth")
    if place == "beside":
        (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=rf"(config inside .*a.pth|config.yaml).*{message}"):
        load_model(tmp_path / "a.pth")
    assert read_weights(tmp_path / "a.pth").bands is None


def test_every_shipped_architecture_is_trusted():
    for path in sorted(shipped("configs/common").glob("*_fpn.py")):
        node = OmegaConf.to_container(load(path).model, resolve=True)
        model_zoo._check_trusted(node, str(path))


def test_classes_of_ones_own_are_trusted_once_they_are_named(model, cfg, tmp_path, monkeypatch):
    export_safetensors(model, cfg, tmp_path / "a.safetensors")
    monkeypatch.setattr(model_zoo, "TRUSTED", tuple(x for x in model_zoo.TRUSTED if not x.startswith("tiny_model")))
    with pytest.raises(InputError, match="call 'tiny_model.TinyDetector'.* to deepdisc.model_zoo.TRUSTED"):
        load_model(tmp_path / "a.safetensors")
    for own in ("tiny_model.", "tiny_model.TinyDetector"):
        monkeypatch.setattr(model_zoo, "TRUSTED", (*model_zoo.TRUSTED[:6], own))
        load_model(tmp_path / "a.safetensors")


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
        assert model_zoo.verify(name).stat().st_size < 25e6
        model, cfg = load_model(name)
        assert list(cfg.bands) == list(entry["bands"]) and cfg.pixel_scale_arcsec == entry["pixel_scale_arcsec"]
        load(entry["config"])


# other bands, other programs ------------------------------------------------------------------------------------------
def test_a_model_is_adapted_to_other_bands_by_name(model, cfg, tmp_path):
    export_safetensors(model, cfg, tmp_path / "a.safetensors")
    wanted = cfg.copy()
    wanted.bands, wanted.model.bands = ["r", "z", "g"], 3
    found, report = adapt_model(tmp_path / "a.safetensors", wanted)
    assert report.adapted == ["first.weight (2 -> 3 bands: r,g by name; z by mean)"] and not found.training
    old, new = model.first.weight, found.first.weight
    torch.testing.assert_close(new[:, 2] - new[:, 0], old[:, 0] - old[:, 1])
    torch.testing.assert_close(new.sum(1), old.sum(1))
    repeated, _ = adapt_model(tmp_path / "a.safetensors", wanted, BandAdapter("repeat", file_bands=["a", "b"]))
    torch.testing.assert_close(repeated.first.weight[:, 0], repeated.first.weight[:, 2])


def test_the_shipped_model_goes_to_detectron2(tmp_path, capsys):
    model, cfg = load_model("ugriz_r18")
    plain = model_zoo.export("ugriz_r18", tmp_path / "plain.pth", to="detectron2")
    notes = capsys.readouterr().err
    own = {name for name in model.state_dict() if name.startswith("roi_heads.heads.")}
    written = read_weights(plain).tensors
    assert own and written.keys() == model.state_dict().keys() - own
    for text in ("model.roi_heads.num_classes = 2", "anchor_generator.sizes = [[5.0, 8.0], [12.0, 18.0]",
                 "bands u, g, r, i, z, in this order", "does not have the stretch", "a stem without max-pool",
                 "one class per object",
                 "measurement heads flux, redshift, shear: left out (--keep-heads)"):  # fmt: skip
        assert text in notes, text
    whole = model_zoo.export("ugriz_r18", tmp_path / "whole.pth", to="detectron2", keep_heads=True)
    assert equal(read_weights(whole).tensors, dict(model.state_dict()))
    assert "written under our names" in capsys.readouterr().err
    again = instantiate(cfg.model)
    load_weights(again, read_weights(whole), strict=True)
    assert equal(again.state_dict(), model.state_dict())


def test_wrong_exports_are_named(tmp_path):
    with pytest.raises(InputError, match=r"the exported model is a .safetensors file.*--to detectron2 writes .pth"):
        model_zoo.export("ugriz_r18", tmp_path / "a.pth")
    with pytest.raises(InputError, match="the exported model is a .pth file"):
        model_zoo.export("ugriz_r18", tmp_path / "a.pkl", to="detectron2")
    with pytest.raises(InputError, match="num_classes=3: detectron2's file holds no settings"):
        model_zoo.export("ugriz_r18", tmp_path / "a.pth", ["num_classes=3"], to="detectron2")
    with pytest.raises(InputError, match="to='onnx' is no format of a model: choose one of safetensors, detectron2"):
        model_zoo.export("ugriz_r18", tmp_path / "a.onnx", to="onnx")


def test_an_export_overwrites_nothing(model, cfg, tmp_path):
    torch.save({"model": model.state_dict(), "config": to_yaml(cfg)}, tmp_path / "a.pth")
    before = sha256(tmp_path / "a.pth")
    (tmp_path / "b.safetensors").write_text("precious")
    for output, to in (("a.pth", "detectron2"), ("b.safetensors", "safetensors")):
        with pytest.raises(
            InputError, match=f"{output} exists already and is not overwritten; choose another --output"
        ):
            model_zoo.export(tmp_path / "a.pth", tmp_path / output, to=to)
    assert sha256(tmp_path / "a.pth") == before and (tmp_path / "b.safetensors").read_text() == "precious"


@pytest.mark.parametrize(
    "override",
    [
        "bands=[z,i,r,g,u]",
        "class_names=[star,galaxy]",
        "num_classes=1",
        "model.roi_heads.num_classes=3",
        "model.proposal_generator.anchor_generator.sizes=[[1.0,2.0],[3.0,4.0],[5.0,6.0],[7.0,8.0],[9.0,10.0]]",
        "model.proposal_generator.anchor_generator.aspect_ratios=[0.1,1.0,10.0]",
        "model.proposal_generator={anchor_generator: {aspect_ratios: [0.1, 1.0, 10.0]}}",
        "model.roi_heads.box_predictor.box_coder.weights=[1.0,1.0,1.0,1.0]",
    ],
)
def test_an_export_does_not_relabel_what_was_learned(tmp_path, override):
    with pytest.raises(InputError, match="was trained with what stands there") as caught:
        model_zoo.export("ugriz_r18", tmp_path / "a.safetensors", [override])
    assert override in str(caught.value) and not list(tmp_path.iterdir())


def test_an_export_changes_settings_that_are_free(tmp_path):
    free = ["model.roi_heads.box_predictor.test_score_thresh=0.25", "bands=[u,g,r,i,z]"]
    exported = model_zoo.export("ugriz_r18", tmp_path / "a.safetensors", free)
    assert load_model(exported)[1].model.roi_heads.box_predictor.test_score_thresh == 0.25


def test_export_from_the_command_line(tmp_path, capsys):
    command = ["export", "ugriz_r18", "--output", str(tmp_path / "a.pth")]
    assert cli.main([*command, "--to", "detectron2"]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(tmp_path / "a.pth")
    told = printed.err[printed.err.index("detectron2's config must have") :].splitlines()
    assert len(told) > 5 and not any(line.startswith(("[", "'")) or line.endswith("',") for line in told)
    assert cli.main([*command, "--keep-heads"]) == 2
    assert "--keep-heads: only --to detectron2 leaves heads away" in capsys.readouterr().err
