"""Weights for other bands, norms and parts: what loading does with them and what it says."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from weight_files import detector, equal, write

from deepdisc.backbones.resnet import ResNet
from deepdisc.backbones.stem import BandAdapter
from deepdisc.config import instantiate, load
from deepdisc.errors import InputError
from deepdisc.model_zoo import adapt_model, load_model
from deepdisc.training.load_report import LoadReport
from deepdisc.training.loading import load_weights
from deepdisc.training.naming import Origin
from deepdisc.training.weights import Weights, read_weights

STEM = "backbone.bottom_up.stem.conv1.weight"
COLORS = "roi_heads.heads.redshift.colors.0.weight"
RGB = ("red", "green", "blue")


# bands ----------------------------------------------------------------------------------------------------------------
def test_the_shipped_model_finds_the_same_redshifts_in_bands_of_another_order():
    model, cfg = load_model("ugriz_r18")
    wanted = cfg.copy()
    wanted.bands = ["z", "g", "u", "i", "r"]
    order = [list(cfg.bands).index(band) for band in wanted.bands]
    moved, report = adapt_model("ugriz_r18", wanted)
    adapted = [text.split(" ")[0] for text in report.adapted]
    assert adapted[0] == STEM and COLORS in adapted
    assert all(name.startswith("roi_heads.heads.") for name in adapted[1:])
    # what `deepdisc calibrate` fits is not taken over
    assert len(report.matched) + len(adapted) == sum(".calibration." not in name for name in model.state_dict())
    assert not any("photometry" in note for note in report.notes)
    torch.manual_seed(0)
    image = torch.randn(5, 64, 64)
    image[:, 30:34, 30:34] += torch.tensor([20.0, 40, 60, 80, 100])[:, None, None]
    record = {"image": image, "variance": torch.rand(5, 64, 64) + 0.5, "ebv": torch.tensor(0.03)}
    permuted = record | {name: record[name][order] for name in ("image", "variance")}
    with torch.no_grad():
        for network in (model, moved):
            network.roi_heads.box_predictor.test_score_thresh = 0.05
        expected, found = (net([item])[0]["instances"] for net, item in ((model, record), (moved, permuted)))
    assert len(expected) and len(found) == len(expected)
    torch.testing.assert_close(found.pred_boxes, expected.pred_boxes, atol=1e-2, rtol=0)
    torch.testing.assert_close(found.pred_redshift.median(), expected.pred_redshift.median(), atol=1e-3, rtol=0)


def test_photometry_of_exchanged_bands_starts_fresh(capsys):
    _, cfg = load_model("ugriz_r18")
    wanted = cfg.copy()
    wanted.bands = ["u", "g", "r", "i", "y"]
    capsys.readouterr()
    torch.manual_seed(7)
    fresh = instantiate(wanted.model).state_dict()[COLORS]
    torch.manual_seed(7)
    model, report = adapt_model("ugriz_r18", wanted)
    assert COLORS in report.other_bands and all(name.startswith("roi_heads.heads.") for name in report.other_bands)
    assert report.adapted == [f"{STEM} (5 -> 5 bands: u,g,r,i by name; y by mean; z dropped)"]
    assert torch.equal(model.state_dict()[COLORS], fresh)
    assert "of other bands: fresh" in capsys.readouterr().err


def test_dropped_bands_are_told():
    _, cfg = load_model("ugriz_r18")
    wanted = cfg.copy()
    wanted.bands = ["r", "i", "z"]
    report = adapt_model("ugriz_r18", wanted)[1]
    assert report.adapted == [f"{STEM} (5 -> 3 bands: r,i,z by name; u,g dropped)"]


@pytest.mark.parametrize(
    ("settings", "is_adapted"),
    [
        ({"method": "wavelength"}, False),
        ({"method": "mean", "wavelengths_um": {"g": 0.48, "r": 0.62, "i": 0.75}}, False),
        ({"method": "wavelength", "wavelengths_um": {"g": 0.46, "r": 0.55, "i": 0.64}}, True),
    ],
)
def test_a_photograph_goes_to_three_bands_by_wavelength_where_these_are_given(trained, settings, is_adapted):
    weights = replace(trained, origin=Origin("torchvision", bands=RGB))
    model = detector()
    report = load_weights(model, weights, strict=False, bands=["g", "r", "i"], adapter=BandAdapter(**settings))
    stem, old = model.state_dict()[STEM], trained.tensors[STEM]
    if is_adapted:
        torch.testing.assert_close(stem, old.flip(1))
        assert report.adapted == [f"{STEM} (3 -> 3 bands: g,r,i by wavelength from red,green,blue)"]
    else:
        assert torch.equal(stem, old) and any(
            "stem reads red,green,blue; the model's g,r,i take" in x for x in report.notes
        )


def test_bands_that_nobody_names_are_taken_in_their_order_but_not_by_wavelength(trained):
    weights = replace(trained, origin=Origin("detectron2"))
    model = detector()
    report = load_weights(model, weights, strict=False, bands=["g", "r", "i"], adapter=BandAdapter("wavelength"))
    assert torch.equal(model.state_dict()[STEM], trained.tensors[STEM])
    assert any("stem does not name its bands; the model's g,r,i take them" in note for note in report.notes)
    places = BandAdapter("wavelength", {"g": 0.48, "r": 0.62, "i": 0.75})
    with pytest.raises(InputError, match="needs the names of the file's"):
        load_weights(detector(), weights, strict=False, bands=["g", "r", "i"], adapter=places)


def test_a_band_that_is_named_twice_is_refused(trained):
    with pytest.raises(InputError, match="bands=u,u,g: a band is named twice"):
        load_weights(detector(), trained, strict=False, bands=["u", "u", "g"], adapter=BandAdapter())


@pytest.mark.parametrize(("freeze_at", "count"), [(0, 0), (1, 1)])
def test_an_adapted_convolution_that_does_not_learn_is_noted(trained, freeze_at, count):
    model = detector("num_bands=5", f"model.backbone.bottom_up.freeze_at={freeze_at}")
    notes = load_weights(model, trained, strict=False, adapter=BandAdapter()).notes
    assert sum("stem.conv1.weight is adapted, but does not learn (model.backbone.bottom_up.freeze_at" in x
               for x in notes) == count  # fmt: skip


# norms ----------------------------------------------------------------------------------------------------------------
def without_statistics(state):
    return {name: value for name, value in state.items() if "running_" not in name and "num_batches" not in name}


def saved(tensors, path, author=None):
    """As detectron2's checkpointer (.pth) or model zoo (.pkl) writes them."""
    if path.suffix == ".pth":
        torch.save({"model": tensors}, path)
    else:
        arrays = {name: value.numpy() for name, value in tensors.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": author}, protocol=2))
    return path


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("width", "name", "author"), [(32, "a.pkl", "Caffe2"), (32, "a.pkl", "zoo"), (8, "a.pkl", "zoo"), (8, "a.pth", "")]
)
def test_frozen_norms_without_statistics_get_mean_0_and_variance_1(tmp_path, width, name, author, strict):
    """No network of group norms has 8 channels; of 32, only the model zoo's form is taken for batch norms."""
    theirs, ours = ResNet(18, stem_out_channels=width), ResNet(18, stem_out_channels=width)
    state = theirs.state_dict()
    for key, value in state.items():
        if key.endswith("running_mean"):
            ours.state_dict()[key].fill_(0.5)
        if key.endswith("running_var"):
            value.fill_(1.0)
    path = saved(without_statistics(state), tmp_path / name, author)
    report = load_weights(ours, read_weights(path), strict=strict)
    assert equal(ours.state_dict(), state)
    assert any("no statistics: taken for frozen batch norms" in note for note in report.notes)
    live = ResNet(18, stem_out_channels=width, norm="BN")
    with pytest.raises(InputError, match='conv1.norm has no statistics: it is a frozen batch norm.*="FrozenBN"'):
        load_weights(live, read_weights(path), strict=strict)


def test_norms_that_may_be_of_either_kind_are_refused_from_other_files(tmp_path):
    state = without_statistics(ResNet(18, stem_out_channels=32).state_dict())
    with pytest.raises(InputError, match='set .*="GN".*; frozen batch norms without statistics are known as such only'):
        load_weights(ResNet(18, stem_out_channels=32), read_weights(saved(state, tmp_path / "a.pth")), strict=False)


def test_a_config_in_the_file_tells_the_norms():
    tensors = without_statistics(ResNet(18, stem_out_channels=32).state_dict())
    for source in (Path("a.pkl"), Path("a.pth")):
        group = Weights(tensors, source, config="model: {backbone: {bottom_up: {norm: GN}}}")
        with pytest.raises(InputError, match="has group norms"):
            load_weights(ResNet(18, stem_out_channels=32), group, strict=False)
        frozen = Weights(tensors, source, config="model: {backbone: {bottom_up: {norm: FrozenBN}}}")
        load_weights(ResNet(18, stem_out_channels=32), frozen, strict=True)


def test_group_norms_of_the_model_zoo_are_known_by_their_heads(tmp_path):
    widths = ["model.backbone.bottom_up.stem_out_channels=32", "model.backbone.out_channels=32"]
    widths += ["model.roi_heads.mask_head.conv_dim=32"]
    group, frozen = ([f"{part}={norm}" for part in ("model.backbone.bottom_up.norm", "model.backbone.norm",
                      "model.roi_heads.mask_head.norm")] for norm in ("GN", "FrozenBN"))  # fmt: skip
    path = write(detector(*widths, *group), tmp_path / "a.pkl", "pkl")
    with pytest.raises(InputError, match="has group norms"):
        load_weights(detector(*widths, *frozen), read_weights(path), strict=False)
    load_weights(detector(*widths, *group), read_weights(path), strict=True)


def test_a_norm_for_which_the_model_has_no_place_is_refused(tmp_path):
    path = write(detector('model.backbone.norm="BN"'), tmp_path / "a.pth", "detectron2")
    with pytest.raises(InputError, match='fpn_lateral2 has a norm in the file .* set model.backbone.norm="BN"'):
        load_weights(detector(), read_weights(path), strict=False)


# unrelated files and parts --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "network",
    [
        nn.Linear(16, 16),
        nn.Linear(8, 8),
        nn.ModuleDict({"fc1": nn.Linear(7, 8), "fc2": nn.Linear(8, 4)}),
        nn.ModuleDict({"fc1": nn.Linear(392, 8), "fc2": nn.Linear(8, 4)}),
    ],
)
def test_an_unrelated_network_is_refused(network):
    model = detector()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match="toy.pth: nothing in it fits this model"):
        load_weights(model, Weights(network.state_dict(), Path("toy.pth")), strict=False)
    assert equal(model.state_dict(), before)


def test_a_whole_part_finds_its_place(trained):
    model = detector()
    part = {"fc1.weight": torch.ones(8, 392), "fc1.bias": torch.ones(8)}
    part |= {"fc2.weight": torch.ones(8, 8), "fc2.bias": torch.ones(8)}
    load_weights(model, Weights(part, Path("head.pth")), strict=False)
    assert torch.equal(model.roi_heads.box_head.fc1.weight, part["fc1.weight"])


def test_the_heads_of_a_cascade_and_of_a_single_stage_are_told_apart(trained):
    cascade = load("configs/common/cascade_resnet_fpn.py", [
        "num_classes=2", "model.backbone.bottom_up.depth=18", "model.backbone.bottom_up.stem_out_channels=8",
        "model.backbone.out_channels=8", "model.roi_heads.mask_head.conv_dim=8",
    ]).model  # fmt: skip
    for i in range(3):
        cascade.roi_heads.box_heads[i].fc_dim = 8
    three = instantiate(cascade)
    line = "the box heads of the file are those of {}, the model's of {}: they start fresh"
    single, stages = "a single stage", "a cascade of 3 stages"
    report = load_weights(three, trained, strict=False)
    assert line.format(single, stages) in report.notes
    report = load_weights(detector(), Weights(three.state_dict(), Path("cascade.pth")), strict=False)
    assert line.format(stages, single) in report.notes
    assert not any("box heads" in note for note in load_weights(detector(), trained, strict=False).notes)


def test_a_resnet_is_no_mvit(trained):
    mvit = load("configs/common/mvitv2_fpn.py", ["model.backbone.bottom_up.embed_dim=8"]).model
    model = instantiate(mvit)
    alone = Weights(ResNet(18, stem_out_channels=8).state_dict(), Path("resnet.pth"))
    with pytest.raises(InputError, match="resnet.pth holds a ResNet, and this config is of an MViT"):
        load_weights(model, alone, strict=False)
    with pytest.raises(InputError, match="trained.pth holds a ResNet, and this config is of an MViT.*mask_rcnn_r50.py"):
        load_weights(model, trained, strict=False)


# words ----------------------------------------------------------------------------------------------------------------
def test_other_widths_are_not_taken_for_other_classes(trained):
    report = load_weights(detector("model.roi_heads.box_head.fc_dim=16"), trained, strict=False)
    assert any("cls_score.weight" in text for text in report.mismatched)
    assert not any("classes" in note for note in report.notes)


@pytest.mark.parametrize(
    ("stretch", "remedy"),
    [([], "set it alike for alike images"), (["stretch"], "with model.stretch the images are not alike")],
)
def test_other_pixel_statistics_mean_little_with_a_stretch(trained, stretch, remedy):
    model = detector()
    if stretch:
        model.stretch = nn.Identity()
    weights = replace(trained, about={"pixel_std": [57.0, 57.0, 57.0]})
    notes = load_weights(model, weights, strict=False).notes
    assert [note.split(": ")[1].split(",")[0] for note in notes if "pixel_std" in note] == [remedy]


def test_long_names_are_folded_not_cut(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    name = "roi_heads.heads.redshift." + "very_long_name." * 8 + "weight"
    LoadReport(missing=[name]).print("a.pth")
    printed = capsys.readouterr().err
    assert "…" not in printed and printed.replace("\n", "").count("very_long") >= 1
    cells = "".join(line.split("│")[3].strip() for line in printed.splitlines() if line.count("│") == 4)
    assert name in cells
