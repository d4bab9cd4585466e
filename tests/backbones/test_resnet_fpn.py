"""Backbones: shapes, strides, names, frozen parts. Their numbers are compared with detectron2's in tests/detector."""

import pytest
import torch
import torchvision
from torch import nn

from deepdisc.backbones.fpn import FPN
from deepdisc.backbones.layers import FrozenBatchNorm2d
from deepdisc.backbones.resnet import ResNet
from deepdisc.errors import InputError


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_as_many_parameters_as_torchvisions(depth):
    own = sum(p.numel() for p in ResNet(depth, norm="BN").parameters())
    other = getattr(torchvision.models, f"resnet{depth}")()
    other.fc = nn.Identity()
    assert own == sum(p.numel() for p in other.parameters())


@pytest.mark.parametrize("depth", [18, 50])
def test_computes_what_torchvision_computes_with_the_same_weights(depth):
    torch.manual_seed(0)
    other = getattr(torchvision.models, f"resnet{depth}")()
    for module in other.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    own = ResNet(depth, norm="BN", stride_in_1x1=False)
    state = {}
    for name, value in other.state_dict().items():
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        for i in range(1, 5):
            name = name.replace(f"layer{i}.", f"res{i + 1}.")
        name = _norm_name(name) if "bn" in name else name
        if not name.startswith("fc"):
            state[name if name.startswith("res") else f"stem.{name}"] = value
    own.load_state_dict(state)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        given = own.eval()(x)
        y = other.eval().maxpool(other.relu(other.bn1(other.conv1(x))))
        for i in range(1, 5):
            y = getattr(other, f"layer{i}")(y)
            torch.testing.assert_close(given[f"res{i + 1}"], y, rtol=1e-4, atol=1e-4)


def _norm_name(name: str) -> str:
    """torchvision's `bn1.weight` is our `conv1.norm.weight`."""
    head, tail = name.rsplit("bn", 1)
    return f"{head}conv{tail[0]}.norm{tail[1:]}"


@pytest.mark.parametrize(("max_pool", "levels"), [(True, range(2, 7)), (False, range(1, 6))])
def test_levels_are_named_by_their_stride(max_pool, levels):
    fpn = FPN(ResNet(18, in_channels=5, stem_out_channels=8, stem_max_pool=max_pool), out_channels=16)
    assert fpn.strides == {f"p{i}": 2**i for i in levels}
    assert fpn.size_divisibility == 2 ** levels[-2]
    side = 2 * fpn.size_divisibility
    maps = fpn(torch.zeros(1, 5, side, side))
    assert list(maps) == list(fpn.strides)
    for name, stride in fpn.strides.items():
        assert maps[name].shape == (1, 16, side // stride, side // stride)


def test_width_of_the_stages_can_be_chosen():
    assert ResNet(18, stem_out_channels=16).channels == {"res2": 16, "res3": 32, "res4": 64, "res5": 128}
    assert ResNet(50, stem_out_channels=8).channels == {"res2": 32, "res3": 64, "res4": 128, "res5": 256}
    assert ResNet(18, stem_out_channels=16, res2_out_channels=24).channels["res2"] == 24


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_frozen_parts_do_not_learn_nor_follow_the_batch(norm):
    net = ResNet(18, stem_out_channels=8, norm=norm, freeze_at=2)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.train()
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    net(torch.randn(2, 3, 64, 64))["res5"].square().mean().backward()
    optimizer.step()
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert not {name for name in changed if name.startswith(("stem.", "res2."))}
    assert {name for name in changed if name.startswith("res3.")}


def test_stride_of_a_bottleneck_is_where_it_is_asked_for():
    for stride_in_1x1, strides in [(True, (2, 1)), (False, (1, 2))]:
        block = ResNet(50, stem_out_channels=8, stride_in_1x1=stride_in_1x1).res3[0]
        assert (block.conv1.stride[0], block.conv2.stride[0]) == strides


def test_freezing_a_batch_norm_keeps_what_it_computes():
    norm = nn.BatchNorm2d(4)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    frozen = FrozenBatchNorm2d.from_batch_norm(norm)
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(frozen(x), norm.eval()(x))
    assert not list(frozen.parameters())


def test_a_fresh_frozen_norm_is_the_identity():
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(FrozenBatchNorm2d(4)(x), x)


def test_wrong_choices_are_named():
    with pytest.raises(InputError, match=r"depth=20 .* 18, 34, 50, 101"):
        ResNet(20)
    with pytest.raises(InputError, match="norm='LN' .* FrozenBN, BN"):
        ResNet(18, norm="LN")
