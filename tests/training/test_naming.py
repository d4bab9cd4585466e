"""Files of other programs: every tensor arrives where it computes the same."""

import pickle
from dataclasses import replace

import pytest
import timm
import torch
import torchvision
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor, resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from weight_files import equal, narrow_detector, write, write_caffe2, write_converted_torchvision

from deepdisc.backbones.fpn import FPN
from deepdisc.backbones.mvit import MViT
from deepdisc.backbones.resnet import ResNet
from deepdisc.errors import InputError
from deepdisc.training.loading import load_weights
from deepdisc.training.naming import translate
from deepdisc.training.weights import read_weights


def detector(*overrides):
    """A narrow Mask R-CNN R50-FPN of five classes."""
    return narrow_detector("num_classes=5", *overrides)


def randomised(model):
    """Weights far from where they start, and plausible statistics of the norms."""
    torch.manual_seed(0)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif value.is_floating_point():
            value.add_(torch.randn_like(value) * 0.05)
    return model.eval()


def saved(tmp_path, state, name="a.pth"):
    torch.save(state, tmp_path / name)
    return tmp_path / name


def narrow_resnet50():
    """timm's, which has torchvision's names."""
    return timm.models.resnet.ResNet(timm.models.resnet.Bottleneck, (3, 4, 6, 3), channels=(4, 8, 16, 32))


# Caffe2 ---------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def original():
    """Norms without statistics: mean 0, variance 1."""
    model = randomised(detector())
    for name, value in model.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            value.fill_(float(name.endswith("var")))
    return model


def test_caffe2_names_norms_and_the_order_of_classes(original, tmp_path):
    path = write_caffe2(original.state_dict(), tmp_path / "a.pkl")
    weights = read_weights(path)
    assert weights.origin.program == "Caffe2 (Detectron)" and weights.bands == ("blue", "green", "red")
    model = detector()
    report = load_weights(model, weights, strict=True)
    assert equal(model.state_dict(), original.state_dict())
    assert len(report.adapted) == 2 * 53 and "frozen norm without statistics" in report.adapted[0]
    assert {"fc1000_w", "fc1000_b", "conv1_b", "lr", "conv1_w_momentum"} < set(report.left_out)
    assert not any("conv1_b" in note for note in report.notes)


def test_an_imagenet_backbone_of_caffe2_has_no_blobs_key(original, tmp_path):
    blobs = pickle.loads(write_caffe2(original.state_dict(), tmp_path / "a.pkl").read_bytes())["blobs"]
    backbone = {name: value for name, value in blobs.items() if name.startswith(("res", "conv1_", "fc1000"))}
    backbone["conv1_b"] += 1
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(backbone, protocol=2))
    model = detector()
    report = load_weights(model, read_weights(tmp_path / "R-50.pkl"), strict=False)
    bottom_up = model.backbone.bottom_up.state_dict()
    assert equal(bottom_up, original.backbone.bottom_up.state_dict())
    assert len(report.missing) == len(model.state_dict()) - len(bottom_up) and not report.unexpected
    assert any("conv1_b, a bias before the first norm, is not zero; left out" in note for note in report.notes)
    alone = ResNet(50, stem_out_channels=8)
    load_weights(alone, read_weights(tmp_path / "R-50.pkl"), strict=True)
    assert equal(alone.state_dict(), bottom_up)


def test_strides_in_another_place_than_the_files_are_refused(original, tmp_path):
    path = write_caffe2(original.state_dict(), tmp_path / "a.pkl")
    model = detector("model.backbone.bottom_up.stride_in_1x1=False")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    line = r"Caffe2 \(Detectron\) have their strides in the 1x1 .* set model.backbone.bottom_up.stride_in_1x1=True"
    for strict in (True, False):
        with pytest.raises(InputError, match=line):
            load_weights(model, read_weights(path), strict=strict)
    assert equal(model.state_dict(), before)


def test_frozen_norms_of_caffe2_go_into_frozen_norms_only(original, tmp_path):
    weights = read_weights(write_caffe2(original.state_dict(), tmp_path / "a.pkl"))
    for norm in ("BN", "GN"):
        # widths that 32 groups divide
        model = ResNet(50, stem_out_channels=32, norm=norm)
        given = ResNet(50, stem_out_channels=32).state_dict()
        tensors = {name: value for name, value in given.items() if "running" not in name}
        before = copied(model)
        for strict in (True, False):
            with pytest.raises(
                InputError, match='stem.conv1.norm has no statistics: it is a frozen batch norm.*norm="FrozenBN"'
            ):
                load_weights(model, replace(weights, tensors=tensors), strict=strict)
        assert equal(model.state_dict(), before)


def copied(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_group_norms_of_caffe2_are_not_taken_for_frozen_ones(original, tmp_path):
    blobs = pickle.loads(write_caffe2(original.state_dict(), tmp_path / "a.pkl").read_bytes())["blobs"]
    groups = {name.replace("_bn_", "_gn_"): value for name, value in blobs.items()}
    (tmp_path / "gn.pkl").write_bytes(pickle.dumps({"blobs": groups}))
    with pytest.raises(InputError, match='has group norms: .* set model.backbone.bottom_up.norm="GN"'):
        load_weights(detector(), read_weights(tmp_path / "gn.pkl"), strict=False)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("theirs", "ours", "name", "message"),
    [
        ("GN", "FrozenBN", "a.pth", 'has group norms: .*stem.conv1.norm has no statistics.*set .*norm="GN"'),
        ("GN", "BN", "a.pth", 'has group norms: .*stem.conv1.norm has no statistics.*set .*norm="GN"'),
        ("GN", "BN", "a.pkl", 'stem.conv1.norm has no statistics.*"FrozenBN" .*group norms "GN"'),
        ("FrozenBN", "GN", "a.pth", 'has batch norms: .*stem.conv1.norm has statistics.*="FrozenBN" or "BN"'),
        ("FrozenBN", "GN", "a.pkl", 'has batch norms: .*stem.conv1.norm has statistics.*="FrozenBN" or "BN"'),
        ("BN", "GN", "a.pth", 'has batch norms: .*stem.conv1.norm has statistics.*set .*norm="FrozenBN" or "BN"'),
    ],
)
def test_group_norms_and_batch_norms_are_told_apart(tmp_path, theirs, ours, message, name, strict):
    path = write(
        ResNet(18, stem_out_channels=32, norm=theirs), tmp_path / name, "pkl" if name.endswith("pkl") else "detectron2"
    )
    model = ResNet(18, stem_out_channels=32, norm=ours)
    before = copied(model)
    with pytest.raises(InputError, match=message):
        load_weights(model, read_weights(path), strict=strict)
    assert equal(model.state_dict(), before)


@pytest.mark.parametrize("norms", [("GN", "GN"), ("BN", "FrozenBN"), ("FrozenBN", "BN")])
def test_norms_of_one_kind_are_loaded(tmp_path, norms):
    theirs, ours = (ResNet(18, stem_out_channels=32, norm=norm) for norm in norms)
    randomised(theirs)
    report = load_weights(ours, read_weights(write(theirs, tmp_path / "a.pkl", "pkl")), strict=True)
    theirs, ours = (
        {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
        for model in (theirs, ours)
    )
    assert equal(ours, theirs) and len(report.matched) == len(ours) and not report.adapted


def test_group_norms_of_a_head_are_told_apart_while_the_backbone_fits(tmp_path):
    widths = ["model.backbone.out_channels=32", "model.roi_heads.mask_head.conv_dim=32"]
    path = write(detector(*widths, 'model.roi_heads.mask_head.norm="GN"'), tmp_path / "a.pth", "detectron2")
    with pytest.raises(InputError, match="group norms: roi_heads.mask_head.mask_fcn1.norm has no statistics"):
        load_weights(detector(*widths, 'model.roi_heads.mask_head.norm="BN"'), read_weights(path), strict=False)


# detectron2 and DeepDISC ----------------------------------------------------------------------------------------------
RGB_MEAN, RGB_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


@pytest.mark.parametrize(
    ("mean", "std", "bands", "in_1x1"),
    [
        (RGB_MEAN[::-1], [1.0, 1.0, 1.0], ("blue", "green", "red"), True),
        (RGB_MEAN[::-1], RGB_STD[::-1], ("blue", "green", "red"), False),
        (RGB_MEAN, RGB_STD, ("red", "green", "blue"), False),
        ([0.1, 0.2, 0.3], [1.0, 1.0, 1.0], None, None),
    ],
)
def test_pixel_statistics_tell_colours_and_warn_of_strides(original, tmp_path, mean, std, bands, in_1x1):
    extra = {"pixel_mean": torch.tensor(mean).view(3, 1, 1), "pixel_std": torch.tensor(std).view(3, 1, 1)}
    path = saved(tmp_path, {"model": {**original.state_dict(), **extra}})
    weights = read_weights(path)
    assert weights.bands == bands and weights.origin.stride_in_1x1 is in_1x1
    report = load_weights(detector("model.backbone.bottom_up.stride_in_1x1=False"), weights, strict=True)
    notes = "\n".join(report.notes)
    assert ("pixel_std suggests strides in the 1x1" in notes) == (in_1x1 is True)
    assert ("does not tell where its ResNet has its strides" in notes) == (in_1x1 is None)
    assert f"model.pixel_mean={mean} (here [0.0])" in notes


def test_an_imagenet_backbone_of_torchvision_as_detectron2_converts_it(tmp_path):
    theirs = randomised(narrow_resnet50())
    path = write_converted_torchvision(theirs.state_dict(), tmp_path / "R-50.pkl")
    (tmp_path / "plain.pth").write_bytes(saved(tmp_path, theirs.state_dict()).read_bytes())
    ours = ResNet(50, res2_out_channels=16, stride_in_1x1=False)
    report = load_weights(ours, read_weights(path), strict=True)
    assert report.left_out == ["stem.fc.weight", "stem.fc.bias"] and not report.notes
    assert len(report.matched) == len(ours.state_dict()) and read_weights(path).bands == ("red", "green", "blue")
    plain = ResNet(50, res2_out_channels=16, stride_in_1x1=False)
    load_weights(plain, read_weights(tmp_path / "plain.pth"), strict=True)
    assert equal(ours.state_dict(), plain.state_dict())
    with pytest.raises(InputError, match="strides in the 3x3 convolutions; set model.*stride_in_1x1=False"):
        load_weights(ResNet(50, res2_out_channels=16), read_weights(path), strict=False)


def test_deepdisc_files_have_wrappers_and_heads_of_their_own(original, tmp_path):
    state = {f"module.{name}": value for name, value in original.state_dict().items()}
    state |= {
        "module.roi_heads.redshift_fc.0.weight": torch.ones(4, 4),
        "module.roi_heads.redshift_fc.0.bias": torch.ones(4),
    }
    path = saved(tmp_path, {"model": state, "iteration": 3})
    model = detector()
    report = load_weights(model, read_weights(path), strict=False)
    assert equal(model.state_dict(), original.state_dict())
    assert report.unexpected == ["roi_heads.redshift_fc.0.weight", "roi_heads.redshift_fc.0.bias"]
    with pytest.raises(InputError, match=r"2 unexpected \(roi_heads.redshift_fc.0.weight"):
        load_weights(model, read_weights(path), strict=True)


# torchvision and timm -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_resnets_compute_the_same_maps(library, tmp_path):
    theirs = randomised(narrow_resnet50() if library == "timm" else torchvision.models.resnet18(weights=None))
    path = saved(tmp_path, theirs.state_dict())
    ours = ResNet(50, res2_out_channels=16, stride_in_1x1=False) if library == "timm" else ResNet(18)
    report = load_weights(ours.eval(), read_weights(path), strict=True)
    assert report.left_out == ["fc.weight", "fc.bias"]
    ours.double(), theirs.double()  # rounding must not hide a misplaced tensor, nor look like one
    image = torch.randn(1, 3, 32, 64, dtype=torch.float64)
    with torch.no_grad():
        x = theirs.maxpool(torch.relu(theirs.bn1(theirs.conv1(image))))
        for stage, found in enumerate(ours(image).values(), start=1):
            x = getattr(theirs, f"layer{stage}")(x)
            torch.testing.assert_close(found, x)
    if library == "timm":
        with pytest.raises(InputError, match="have their strides in the 3x3 convolutions"):
            load_weights(ResNet(50, res2_out_channels=16), read_weights(path), strict=True)


def test_of_torchvisions_detector_the_feature_pyramid_is_taken(tmp_path):
    theirs = randomised(MaskRCNN(resnet_fpn_backbone(backbone_name="resnet18", weights=None), num_classes=3))
    path = saved(tmp_path, theirs.state_dict())
    ours = FPN(ResNet(18, stride_in_1x1=False)).eval()
    wrapped = torch.nn.ModuleDict({"backbone": ours})
    report = load_weights(wrapped, read_weights(path), strict=True)
    assert not report.missing and any(name.startswith("roi_heads.mask_head") for name in report.left_out)
    assert any("only the ResNet-FPN is taken" in note for note in report.notes)
    ours.double(), theirs.double()  # rounding must not hide a misplaced tensor, nor look like one
    image = torch.randn(1, 3, 32, 64, dtype=torch.float64)
    with torch.no_grad():
        for found, expected in zip(ours(image).values(), theirs.backbone(image).values(), strict=True):
            torch.testing.assert_close(found, expected)
    wrapped["roi_heads"] = torch.nn.Linear(2, 2)
    with pytest.raises(InputError, match=r"missing \(roi_heads.weight.*only the ResNet-FPN is taken"):
        load_weights(wrapped, read_weights(path), strict=True)


def torchvision_fpn(stages, norm=None):
    """The ResNet-FPN of a detector with BatchNorm2d, on the stages that it reads."""
    resnet = torchvision.models.resnet18(weights=None)
    extra = LastLevelP6P7(256, 256) if stages[0] == 2 else None
    return randomised(_resnet_fpn_extractor(resnet, 5, stages, extra, norm_layer=norm))


def assert_maps_alike(ours, theirs, levels):
    ours.double().eval(), theirs.double()  # rounding must not hide a misplaced tensor, nor look like one
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        found, expected = ours(image), list(theirs(image).values())
    for level, value in zip(levels, expected, strict=False):
        torch.testing.assert_close(found[level], value)


def test_the_pyramid_of_retinanet_and_fcos_begins_at_level_3(tmp_path):
    theirs = torchvision_fpn([2, 3, 4])
    path = saved(tmp_path, {f"backbone.{name}": value for name, value in theirs.state_dict().items()})
    ours = FPN(ResNet(18, stride_in_1x1=False))
    report = load_weights(nn.ModuleDict({"backbone": ours}), read_weights(path), strict=False)
    finest = [f"backbone.fpn_{kind}2.{part}" for kind in ("lateral", "output") for part in ("weight", "bias")]
    assert report.missing == finest and not report.unexpected and not report.mismatched
    assert "backbone.fpn.extra_blocks.p6.weight" in report.left_out
    assert any("its FPN begins at level 3 (RetinaNet, FCOS)" in note for note in report.notes)
    assert_maps_alike(ours, theirs, ["p3", "p4", "p5"])


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_the_pyramid_of_torchvisions_second_version_has_norms(tmp_path, norm):
    theirs = torchvision_fpn([1, 2, 3, 4], nn.BatchNorm2d)
    path = saved(tmp_path, {f"backbone.{name}": value for name, value in theirs.state_dict().items()})
    ours = FPN(ResNet(18, stride_in_1x1=False, norm="BN"), norm=norm)
    report = load_weights(nn.ModuleDict({"backbone": ours}), read_weights(path), strict=True)
    assert not any("1e-5" in note for note in report.notes)
    assert_maps_alike(ours, theirs, ["p2", "p3", "p4", "p5"])
    plain = nn.ModuleDict({"backbone": FPN(ResNet(18, stride_in_1x1=False))})
    with pytest.raises(InputError, match='fpn_lateral2 has a norm in the file .* set model.backbone.norm="BN"'):
        load_weights(plain, read_weights(path), strict=False)


@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "fcos_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"])
def test_the_names_of_torchvisions_detectors(name):
    """Only names and shapes: the weights are never made."""
    with torch.device("meta"):
        state = getattr(torchvision.models.detection, name)(weights=None, weights_backbone=None).state_dict()
        ours = FPN(ResNet(50), norm="BN" if name.endswith("v2") else None).state_dict()
    found, origin = translate(state)
    shapes = {f"backbone.{key}": value.shape for key, value in ours.items()}
    assert all(shapes.get(key) == value.shape for key, value in found.items() if "num_batches" not in key)
    assert {key for key in shapes if key.startswith(("backbone.fpn_lateral3", "backbone.fpn_output5"))} <= found.keys()
    assert origin.left_out


def test_a_resnet_d_is_refused(tmp_path):
    path = saved(tmp_path, timm.create_model("resnet26d").state_dict())
    with pytest.raises(InputError, match="a.pth: this is a ResNet-D"):
        read_weights(path)


def test_mvit_of_timm_and_pycls(tmp_path):
    theirs = MultiScaleVit(MultiScaleVitCfg(depths=(1, 2, 5, 2), embed_dim=8))
    from_timm, from_pycls = MViT(embed_dim=8), MViT(embed_dim=8)
    report = load_weights(from_timm, read_weights(saved(tmp_path, theirs.state_dict())), strict=False)
    assert {name.partition("_")[0] for name in report.missing} == {"scale2", "scale3", "scale4", "scale5"}
    assert not report.mismatched and not report.unexpected and not report.adapted
    assert report.left_out == ["norm.weight", "norm.bias", "head.fc.weight", "head.fc.bias"]
    last = theirs.stages[3].blocks[0].shortcut_proj_attn.weight
    assert torch.equal(from_timm.blocks[8].proj.weight, last)
    state = {name: value for name, value in from_timm.state_dict().items() if not name.startswith("scale")}
    head = {"norm.weight": torch.ones(64), "head.projection.weight": torch.ones(9, 64)}
    path = saved(tmp_path, {"epoch": 3, "model_state": state | head, "cfg": "TRAIN: {}"}, "IN1k_MViTv2_T.pyth")
    report = load_weights(from_pycls, read_weights(path), strict=False)
    assert report.left_out == list(head) and len(report.missing) == 8
    assert equal({name: from_pycls.state_dict()[name] for name in state}, state)


def test_position_tables_of_another_image_size_are_interpolated(tmp_path):
    state = MViT(embed_dim=8).state_dict()
    ramp = torch.linspace(0, 1, 55)[:, None].expand(55, 8).clone()
    state["blocks.0.attn.rel_pos_h"] = ramp
    model = MViT(embed_dim=8)
    report = load_weights(model, read_weights(saved(tmp_path, state)), strict=False)
    assert report.adapted == ["blocks.0.attn.rel_pos_h (55 -> 111 positions, interpolated)"]
    found = model.blocks[0].attn.rel_pos_h
    assert found.shape == (111, 8) and found.diff(dim=0).min() >= 0 and found.diff(dim=0).max() < 0.02
    with pytest.raises(InputError, match=r"another architecture: 1 tensors of the backbone differ \(blocks.0.attn"):
        load_weights(MViT(embed_dim=8), read_weights(tmp_path / "a.pth"), strict=True)
