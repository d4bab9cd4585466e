"""MViTv2 against numbers of detectron2, against timm's network with the same weights, and what else must hold of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detector.golden import IMAGE_SIZES, PIXEL_MEAN, PIXEL_STD, fill, make_image
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from deepdisc.backbones.attention import attend, from_windows, relative_positions, to_windows
from deepdisc.backbones.fpn import FPN
from deepdisc.backbones.mvit import MViT
from deepdisc.errors import InputError

STORED = Path(__file__).parents[1] / "data" / "golden" / "mvit.npz"
SIZES = {"tiny": (10, (0, 2, 7, 9)), "small": (16, (0, 2, 13, 15)), "base": (24, (1, 4, 20, 23))}
# five blocks, of which the first and the fourth attend within windows
SHALLOW = {"embed_dim": 8, "depth": 5, "last_block_indexes": (0, 1, 2, 4), "adaptive_window_size": 8}


@pytest.fixture(scope="module")
def stored():
    with np.load(STORED) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def randomised(net: nn.Module) -> nn.Module:
    """The same network with every parameter far from where it starts: norms, biases and tables matter."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            scale = 0.3 if parameter.ndim == 1 or "rel_pos" in name else parameter[0].numel() ** -0.5
            parameter.normal_(1.0 if name.endswith(("norm.weight", "norm1.weight", "norm2.weight")) else 0.0, scale)
    return net


# detectron2's numbers ------------------------------------------------------------------------------------------------


def reference_network() -> MViT:
    net = MViT(in_channels=9, embed_dim=16)
    prefix = "backbone.bottom_up."
    net.load_state_dict({key: torch.from_numpy(fill(prefix + key, v.shape)) for key, v in net.state_dict().items()})
    return net.eval()


def reference_batch(images) -> torch.Tensor:
    mean, std = (torch.tensor(x).reshape(-1, 1, 1) for x in (PIXEL_MEAN, PIXEL_STD))
    batch = torch.zeros(2, 9, 224, 256)
    for i, (height, width) in enumerate(IMAGE_SIZES):
        batch[i, :, :height, :width] = (torch.from_numpy(images[i]) - mean) / std
    return batch


def test_maps_are_detectron2s(stored):
    with torch.no_grad():
        maps = reference_network()(reference_batch([make_image(0), make_image(1)]))
    given = {
        "scale2_every5": maps["scale2"][..., ::5, ::5],
        "scale3_every3": maps["scale3"][..., ::3, ::3],
        "scale4": maps["scale4"],
        "scale5": maps["scale5"],
    }
    for name, value in given.items():
        torch.testing.assert_close(value, stored[f"bottom_up/{name}"], rtol=0, atol=3e-4)


def test_maps_are_detectron2s_everywhere(shared_data):
    folder = shared_data / "golden"
    inputs, wanted = np.load(folder / "inputs.npz"), np.load(folder / "B_tiny" / "eval.npz")
    with torch.no_grad():
        maps = reference_network()(reference_batch([inputs["image_0"], inputs["image_1"]]))
    for name, value in maps.items():
        torch.testing.assert_close(value, torch.from_numpy(wanted[f"bottom_up/{name}"]), rtol=0, atol=3e-4)


def test_keys_are_detectron2s(shared_data):
    import json

    prefix = "backbone.bottom_up."
    keys = json.loads((shared_data / "golden" / "B_tiny" / "keys.json").read_text())
    wanted = {key[len(prefix) :]: tuple(x["shape"]) for key, x in keys.items() if key.startswith(prefix)}
    assert {key: tuple(x.shape) for key, x in MViT(9, embed_dim=16).state_dict().items()} == wanted


@pytest.mark.parametrize("sizes", [(56, 14), (28, 28), (14, 14), (7, 7), (28, 7), (20, 5), (16, 32)])
def test_relative_positions_are_detectron2s(stored, sizes):
    given = relative_positions(stored["relpos/table111"], *sizes)
    torch.testing.assert_close(given, stored[f"relpos/q{sizes[0]}_k{sizes[1]}"], rtol=0, atol=0)


def test_windows_are_detectron2s(stored):
    windows = to_windows(stored["window/x"], (7, 7))
    assert (
        windows.shape[1] * 7 == stored["window/padded_hw"][0] and windows.shape[2] * 7 == stored["window/padded_hw"][1]
    )
    assert torch.equal(windows.flatten(0, 2), stored["window/parts7"])


# timm's network with the same weights --------------------------------------------------------------------------------


def from_timm(state: dict[str, torch.Tensor], depths: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """timm's state dict under our names, without the classifier and its norm."""
    own = {}
    for name, value in state.items():
        parts = name.replace("shortcut_proj_attn", "proj").split(".")
        if parts[0] == "stages":
            own[".".join(["blocks", str(sum(depths[: int(parts[1])]) + int(parts[3])), *parts[4:]])] = value
        elif parts[0] == "patch_embed":
            own[name] = value
    return own


@pytest.mark.parametrize("depths", [(1, 2, 5, 2), (2, 3, 4, 3)])
def test_computes_what_timm_computes_with_the_same_weights(depths):
    """At 224 pixels, where each window is the whole map; timm does not pool keys twice in the global blocks."""
    mvitv2 = pytest.importorskip("timm.models.mvitv2")
    config = mvitv2.MultiScaleVitCfg(depths=depths, embed_dim=16)
    other = randomised(mvitv2.MultiScaleVit(config, img_size=224, in_chans=5, num_classes=0)).eval()
    last = [sum(depths[: i + 1]) - 1 for i in range(4)]
    own = MViT(5, embed_dim=16, depth=sum(depths), last_block_indexes=last)
    missing = own.load_state_dict(from_timm(other.state_dict(), depths), strict=False)
    assert not missing.unexpected_keys and all(key.startswith("scale") for key in missing.missing_keys)
    for i in last[1:3]:
        attention = own.blocks[i].attn
        attention.pool_k.stride = attention.pool_v.stride = tuple(x // 2 for x in attention.pool_k.stride)
    x = torch.randn(2, 5, 224, 224)
    with torch.no_grad():
        maps = own.eval()(x)
        wanted = other.forward_intermediates(x, intermediates_only=True)
    for value, scale in zip(maps.values(), wanted, strict=True):
        scale = F.layer_norm(scale.permute(0, 2, 3, 1), scale.shape[1:2], eps=1e-6).permute(0, 3, 1, 2)
        torch.testing.assert_close(value, scale, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_as_many_parameters_as_timms(size):
    mvitv2 = pytest.importorskip("timm.models.mvitv2")
    depth, last = SIZES[size]
    with torch.device("meta"):
        own = MViT(depth=depth, last_block_indexes=last)
        other = mvitv2.MultiScaleVit(mvitv2.model_cfgs[f"mvitv2_{size}"], num_classes=0)
    names = {name: tuple(value.shape) for name, value in own.state_dict().items() if not name.startswith("scale")}
    renamed = from_timm(other.state_dict(), mvitv2.model_cfgs[f"mvitv2_{size}"].depths)
    assert names == {name: tuple(value.shape) for name, value in renamed.items()}


@pytest.mark.parametrize(("size", "millions"), [("tiny", 23.41), ("small", 34.10), ("base", 50.71)])
def test_number_of_parameters(size, millions):
    with torch.device("meta"):
        own = MViT(depth=SIZES[size][0], last_block_indexes=SIZES[size][1])
    assert sum(p.numel() for p in own.parameters()) == pytest.approx(1e6 * millions, abs=5e3)


# width in and out, heads, stride of queries, stride of keys, window (0 = the whole map), rows of the position tables
BLOCKS_OF_T = [
    (96, 96, 1, 1, 4, 56, 111),
    (96, 192, 2, 2, 2, 56, 55),
    (192, 192, 2, 1, 4, 0, 55),
    (192, 384, 4, 2, 1, 28, 55),
    *[(384, 384, 4, 1, 1, 14, 27)] * 3,
    (384, 384, 4, 1, 2, 0, 27),
    (384, 768, 8, 2, 1, 14, 27),
    (768, 768, 8, 1, 1, 0, 13),
]


def test_blocks_are_the_published_ones():
    with torch.device("meta"):
        blocks = MViT().blocks
    given = []
    for block in blocks:
        attention = block.attn
        heads = attention.proj.in_features // attention.pool_q.in_channels
        stride_q, stride_kv = attention.pool_q.stride[0], attention.pool_k.stride[0]
        widths = (attention.qkv.in_features, attention.proj.out_features)
        window = attention.q_window[0] * stride_q
        assert attention.kv_window[0] * stride_kv == window
        given.append((*widths, heads, stride_q, stride_kv, window, len(attention.rel_pos_h)))
    assert given == BLOCKS_OF_T


# attention -----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 9), st.integers(1, 9))
def test_windows_put_together_are_the_map(height, width, window_height, window_width):
    x = torch.arange(1, 2 * height * width * 3 + 1).reshape(2, height, width, 3)
    windows = to_windows(x, (window_height, window_width))
    assert windows.shape[3:] == (window_height, window_width, 3)
    assert windows.sum() == x.sum()  # nothing but zeros was added
    assert torch.equal(from_windows(windows, (height, width)), x)


@pytest.mark.parametrize(("q_size", "k_size"), [((4, 6), (4, 6)), ((8, 4), (4, 2)), ((2, 3), (4, 6)), ((5, 7), (3, 2))])
def test_attention_is_its_formula(q_size, k_size):
    """Values and gradients, written with the bias of every pair of query and key."""
    torch.manual_seed(0)
    shapes = [(2, *q_size, 6), (2, *k_size, 6), (2, *k_size, 6), (9, 6), (13, 6)]
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def formula(q, k, v, table_y, table_x):
        bias_y = torch.einsum("nyxd,yid->nyxi", q, relative_positions(table_y, q_size[0], k_size[0]))
        bias_x = torch.einsum("nyxd,xjd->nyxj", q, relative_positions(table_x, q_size[1], k_size[1]))
        logits = torch.einsum("nyxd,nijd->nyxij", q, k) / 6**0.5 + bias_y[..., None] + bias_x[..., None, :]
        weights = logits.flatten(-2).softmax(dim=-1).reshape(logits.shape)
        return torch.einsum("nyxij,nijd->nyxd", weights, v)

    given, wanted = attend(*tensors), formula(*tensors)
    torch.testing.assert_close(given, wanted)
    weights = torch.randn_like(wanted)
    for a, b in zip(*(torch.autograd.grad((x * weights).sum(), tensors) for x in (given, wanted)), strict=True):
        torch.testing.assert_close(a, b)


def test_relative_positions_depend_on_the_distance_only():
    table = torch.arange(11.0)[:, None]  # distances -5 ... 5 of six cells
    assert torch.equal(relative_positions(table, 6, 6)[..., 0], torch.arange(6)[:, None] - torch.arange(6.0) + 5)
    # three keys over six queries: each key is at every second one
    assert torch.equal(relative_positions(table, 6, 3)[..., 0], torch.arange(6)[:, None] - 2 * torch.arange(3.0) + 4)
    # no multiples: query 0 lies 5/3 cells before key 1, which is row 10/3 - 5/3, truncated to 1
    rows = relative_positions(table[:9], 5, 3)[..., 0]
    assert rows.tolist() == [[3, 1, 0], [4, 2, 1], [5, 3, 2], [6, 4, 3], [7, 5, 4]]


def reach(block: nn.Module) -> torch.Tensor:
    """Largest change of each cell's output, of 16 x 16 cells, when those from (12, 12) on change."""
    torch.manual_seed(0)
    x = torch.randn(1, 16, 16, 8)
    changed = x.clone()
    changed[:, 12:, 12:] = torch.randn(1, 4, 4, 8)
    with torch.no_grad():
        return (block(x) - block(changed)).abs().amax(dim=(0, 3))


def test_windows_do_not_see_each_other_but_global_blocks_do():
    net = randomised(MViT(1, **SHALLOW)).eval()
    within, everywhere = reach(net.blocks[0]), reach(net.blocks[1])
    assert within[8:, 8:].min() > 0 and within[:8].max() == 0 and within[:, :8].max() == 0
    assert everywhere.shape == (8, 8) and everywhere.min() > 0


def test_without_windows_every_block_sees_the_map():
    net = randomised(MViT(1, **{**SHALLOW, "adaptive_window_size": 0})).eval()
    assert reach(net.blocks[0]).min() > 0


# the network ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (96, 64), (50, 81), (7, 130)])
def test_any_size_of_image(size):
    net = randomised(MViT(3, **SHALLOW)).eval()
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        maps = net(x)
        assert net.strides == {"scale2": 4, "scale3": 8, "scale4": 16, "scale5": 32}
        for name, value in maps.items():
            assert value.shape == (2, net.channels[name], *(-(-side // net.strides[name]) for side in size))
            assert value.isfinite().all()
        single, ordered = net(x[1:]), net(x.to(memory_format=torch.channels_last))
    for name, value in maps.items():
        torch.testing.assert_close(single[name], value[1:], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ordered[name], value, rtol=1e-4, atol=1e-4)


def test_serves_a_pyramid():
    fpn = FPN(MViT(4, **SHALLOW), out_channels=16)
    assert fpn.in_channels == 4 and fpn.size_divisibility == 32
    maps = fpn(torch.randn(1, 4, 64, 96))
    assert {name: value.shape[-1] for name, value in maps.items()} == {"p2": 24, "p3": 12, "p4": 6, "p5": 3, "p6": 2}


def gradients(net, x):
    torch.manual_seed(3)
    net.zero_grad()
    sum(value.square().mean() for value in net(x).values()).backward()
    return {name: p.grad.clone() for name, p in net.named_parameters()}


def test_recomputing_activations_changes_no_gradient():
    """Also where blocks are skipped at random: the second computation draws the same numbers."""
    net = randomised(MViT(3, **SHALLOW, drop_path_rate=0.5, checkpoint_activations=True)).train()
    calls = []
    net.blocks[2].mlp.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(4, 3, 64, 64)
    given = gradients(net, x)
    assert len(calls) == 2
    net.checkpoint_activations = False
    wanted = gradients(net, x)
    assert len(calls) == 3
    for name, value in wanted.items():
        assert value.isfinite().all()
        torch.testing.assert_close(given[name], value)
    learns = {name for name, value in wanted.items() if value.abs().max() > 0}
    # a shift of all keys cancels in the softmax, except where windows are filled with zeros
    assert {name for name in wanted if name not in learns and "norm_k.bias" not in name} == set()


@pytest.mark.parametrize(("freeze_at", "blocks"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 3), (5, 5)])
def test_frozen_parts_do_not_learn(freeze_at, blocks):
    net = MViT(3, **SHALLOW, freeze_at=freeze_at)
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    prefixes = ("patch_embed.",) * (freeze_at > 0) + tuple(f"blocks.{i}." for i in range(blocks))
    assert frozen == {name for name, _ in net.named_parameters() if name.startswith(prefixes)}
    net(torch.randn(1, 3, 32, 32))["scale5"].sum().backward()
    assert all(p.grad is None for p in net.parameters() if not p.requires_grad)


def test_every_parameter_has_a_layer():
    net = MViT(3, **SHALLOW)
    layers = {name: net.layer_of(name) for name, _ in net.named_parameters()}
    assert net.num_layers == 5 and set(layers.values()) == set(range(7))
    assert layers["patch_embed.proj.weight"] == 0
    assert layers["blocks.0.attn.rel_pos_h"] == 1 and layers["blocks.4.mlp.fc2.bias"] == 5
    assert layers["scale2_norm.weight"] == layers["scale5_norm.bias"] == 6


def test_branches_are_skipped_in_training_only():
    plain, net = (randomised(MViT(3, **SHALLOW, drop_path_rate=rate)) for rate in (0.0, 0.6))
    assert [block.drop_path.p for block in net.blocks] == pytest.approx([0.0, 0.15, 0.3, 0.45, 0.6])
    x = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        for name, value in net.eval()(x).items():
            assert torch.equal(value, plain(x)[name])
        net.train()
        first, second = net(x), net(x)
    assert torch.equal(first["scale2"], second["scale2"])
    assert not torch.equal(first["scale5"], second["scale5"])


def test_each_branch_is_skipped_for_each_image_by_itself():
    net = randomised(MViT(1, **SHALLOW, drop_path_rate=0.5)).train()
    torch.manual_seed(0)
    x = torch.randn(1, 2, 2, 64).expand(64, -1, -1, -1)
    with torch.no_grad():
        kinds = net.blocks[4](x).flatten(1).round(decimals=3).unique(dim=0)
    assert len(kinds) == 4  # both branches, one of them, none


def test_bfloat16_stays_close():
    net = randomised(MViT(3, **SHALLOW))
    x = torch.randn(1, 3, 64, 64)
    wanted = net(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        given = net(x)
    for name, value in given.items():
        assert (value.float() - wanted[name]).abs().mean() < 0.03 * wanted[name].abs().mean()
    sum(value.float().mean() for value in given.values()).backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_compiles_as_one_graph():
    net = randomised(MViT(3, **SHALLOW)).eval()
    x = torch.randn(1, 3, 64, 32)
    with torch.no_grad():
        compiled = torch.compile(net, backend="eager", fullgraph=True)(x)
        for name, value in net(x).items():
            torch.testing.assert_close(compiled[name], value)


def test_starts_as_published():
    torch.manual_seed(0)
    net = MViT(3, embed_dim=32)
    for name, value in net.named_parameters():
        if "norm" in name:
            assert (value == (1.0 if name.endswith("weight") else 0.0)).all(), name
        elif name.endswith("bias") and not name.startswith("patch_embed"):
            assert (value == 0).all(), name
        elif "rel_pos" in name or value.ndim == 2:
            assert value.std().item() == pytest.approx(0.02, rel=0.1), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 0}, "in_channels=0 must be at least 1"),
        ({"embed_dim": 10, "num_heads": 4}, "embed_dim=10 must be a positive multiple of num_heads=4"),
        ({"num_heads": 0}, "num_heads=0"),
        ({"depth": 12}, r"last_block_indexes=\[0, 2, 7, 9\] does not fit depth=12: .* depth - 1 = 11"),
        ({"last_block_indexes": (0, 4, 9)}, r"\[0, 4, 9\] does not fit depth=10: give four"),
        ({"last_block_indexes": (0, 5, 5, 9)}, "give four rising"),
        ({"last_block_indexes": (-1, 2, 5, 9)}, "give four rising"),
        ({"adaptive_kv_stride": 0}, "adaptive_kv_stride=0 must be at least 1"),
        ({"adaptive_window_size": 50}, "adaptive_window_size=50 gives block 0 windows of 50 .* multiple of 8"),
        ({"adaptive_window_size": 20}, "adaptive_window_size=20 gives block 8 windows of 5"),
        ({"adaptive_window_size": -8}, "adaptive_window_size=-8 must be at least 8, or 0"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0 must be from 0"),
        ({"freeze_at": 6}, "freeze_at=6 must be from 0"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        MViT(**{"embed_dim": 16, **arguments})
