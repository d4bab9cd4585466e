"""The recipe of model_zoo/README.md: a 3-band checkpoint of detectron2's model zoo, fine-tuned to nine bands."""

import math
import re
import shlex

import blob_sky
import pytest
import torch
import yaml
from runs import records
from weight_files import NARROW, equal, narrow_detector, write, write_caffe2

from deepdisc.backbones.stem import BandAdapter
from deepdisc.config import load
from deepdisc.data.dataset import TileDataset
from deepdisc.data.prepare import prepare
from deepdisc.model_zoo import adapt_model, export, load_model
from deepdisc.training import train
from deepdisc.training.weights import read_weights

STEM = "backbone.bottom_up.stem.conv1.weight"
SHORT = [
    "data.crop_size=64", "data.batch_size=2", "train.device=cpu", "train.ema_decay=0", "train.max_iter=2",
    "train.eval_period=2", "train.log_period=1", "model.roi_heads.batch_size_per_image=16",
    "optim.schedule.warmup_iters=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def text(repository):
    return (repository / "model_zoo" / "README.md").read_text()


def of_the_text(text, start, *lines):
    """The config of the command in the text that begins like this, its data and checkpoint replaced by `lines`."""
    command = re.search(rf"^deepdisc train {re.escape(start)}.*?[^\\]$", text, re.DOTALL | re.MULTILINE)[0]
    path, *overrides = shlex.split(command.removeprefix("deepdisc train --config-file ").replace("\\\n", " "))
    return load(path, [*overrides, *lines])


NINE = "--config-file configs/mask_rcnn_r50.py"


@pytest.fixture(scope="module")
def nine_bands(tmp_path_factory):
    """A data set of nine bands, whose pixels are those of the two bands of blobs in turn."""
    folder = tmp_path_factory.mktemp("nine")
    entries = []
    for i, split in enumerate(("train", "val", "test")):
        entry = blob_sky.write_field(folder / f"field_{i}", shape=(64, 64), count=8, seed=i)
        path = folder / entry["mosaic"]
        mosaic = yaml.safe_load(path.read_text())
        mosaic["bands"] = {band: mosaic["bands"]["gr"[j % 2]] for j, band in enumerate("ugrizyJHK")}
        path.write_text(yaml.safe_dump(mosaic))
        entries.append(entry | {"split": split})
    return prepare(blob_sky.write_recipe(folder, entries), folder / "dataset", tile_size=64)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """A narrow Mask R-CNN R50-FPN for COCO, in both forms of the model zoo; its norms have mean 0 and variance 1."""
    torch.manual_seed(0)
    original = narrow_detector()
    for name, value in original.state_dict().items():
        if name.endswith("running_var"):
            value.fill_(1.0)
    folder = tmp_path_factory.mktemp("zoo")
    return {
        "original": original,
        "pkl": write(original, folder / "model_final.pkl", "pkl"),
        "caffe2": write_caffe2(original.state_dict(), folder / "caffe2.pkl"),
    }


@pytest.mark.parametrize("kind", ["pkl", "caffe2"])
def test_the_recipe_of_the_text(kind, text, zoo, nine_bands, tmp_path, capsys, monkeypatch):
    """Trains through both phases (one iteration of each), then predicts and goes back to detectron2."""
    lines = [f"data.path={nine_bands}", f"train.output_dir={tmp_path / 'run'}", f"train.init_checkpoint={zoo[kind]}"]
    cfg = of_the_text(text, NINE, *NARROW, *SHORT, *lines)
    monkeypatch.setenv("COLUMNS", "200")
    # as long as only the heads learn, the backbone is what was loaded
    cfg.optim.phases[0].iters = 1
    first = train_and_load(cfg, tmp_path / "heads", max_iter=1)
    printed = capsys.readouterr().err
    assert "(3 -> 9 bands: u,g,r,i,z,y,J,H,K by wavelength from blue,green,red)" in printed
    assert "80 classes in the file, 2 in the model" in printed and "cls_score.weight" in printed
    old = zoo["original"].state_dict()
    wavelengths = dict(cfg.train.init_bands.wavelengths_um)
    adapted = BandAdapter("wavelength", wavelengths)(old[STEM], ("blue", "green", "red"), list(cfg.bands))
    assert torch.equal(first[STEM], adapted)
    rest = [name for name in old if name.startswith("backbone") and name != STEM]
    assert equal({name: first[name] for name in rest}, {name: old[name] for name in rest})
    assert not torch.equal(first["roi_heads.box_head.fc1.weight"], old["roi_heads.box_head.fc1.weight"])
    # the whole recipe
    best = train(cfg)
    losses = [record["loss"] for record in records(tmp_path / "run") if "loss" in record]
    assert losses and all(map(math.isfinite, losses))
    model, found = load_model(best)
    state = model.state_dict()
    assert not torch.equal(state[STEM], adapted) and list(found.bands) == list("ugrizyJHK")
    norms = [name for name in old if ".norm." in name]
    assert equal({name: state[name] for name in norms}, {name: old[name] for name in norms})
    assert model.roi_heads.box_predictor.test_score_thresh == 0.5  # what the text says of `predict`
    instances = predicted(model, nine_bands)
    assert torch.isfinite(instances.pred_boxes).all() and torch.isfinite(instances.scores).all()
    written = read_weights(export(best, tmp_path / "model.pth", to="detectron2"))
    assert equal(written.tensors, dict(state))


def train_and_load(cfg, folder, max_iter):
    """The weights after a part of the recipe."""
    part = cfg.copy()
    part.train.max_iter, part.train.output_dir = max_iter, str(folder)
    part.optim.phases = [{**part.optim.phases[0], "iters": max_iter}]
    return read_weights(train(part)).tensors


def predicted(model, dataset):
    sample = TileDataset(dataset, "test")[0]
    model.roi_heads.box_predictor.test_score_thresh = 0.0
    with torch.no_grad():
        return model([sample])[0]["instances"]


@pytest.fixture(scope="module")
def own_config(text, tmp_path_factory):
    """The config of the text, as a file elsewhere."""
    path = tmp_path_factory.mktemp("own") / "two_bands.py"
    path.write_text(re.search(r"```python\n(\"\"\".*?)```", text, re.DOTALL)[1])
    return path


def test_a_config_of_ones_own_from_python(own_config, zoo):
    model, report = adapt_model(zoo["caffe2"], load(own_config, NARROW))
    assert report.adapted[0].startswith(f"{STEM} (3 -> 2 bands: r,i by wavelength") and not model.training
    assert model.roi_heads.box_predictor.cls_score.out_features == 4
    with torch.no_grad():
        record = {"image": torch.randn(2, 64, 64), "variance": torch.ones(2, 64, 64)}
        found = model([record])[0]["instances"]
    assert len(found) and (found.scores > model.roi_heads.final_predictor.test_score_thresh).all()
    other = load(own_config, [*NARROW, "bands=[g,r,i,z]"])
    assert other.model.backbone.bottom_up.in_channels == 4


def test_a_shipped_model_in_other_bands(text):
    cfg = of_the_text(text, "--config-file configs/ugriz_r18.py")
    _, report = adapt_model(cfg.train.init_checkpoint, cfg)
    assert report.adapted == [f"{STEM} (5 -> 3 bands: r,i,z by name; u,g dropped)"]
    assert report.mismatched and all(text.startswith("roi_heads.heads.") for text in report.mismatched)
