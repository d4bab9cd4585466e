"""Parameter groups and learning-rate schedules against numbers computed by hand."""

import math

import pytest
import torch
from tiny_model import TinyDetector

from deepdisc.errors import InputError
from deepdisc.training.optim import WarmupCosine, WarmupSteps, build_optimizer, parameter_groups

NAN, INF = float("nan"), float("inf")


def settings_by_name(groups):
    return {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["names"]}


def test_norms_and_biases_are_not_decayed():
    found = settings_by_name(parameter_groups(TinyDetector(), lr=0.1, weight_decay=0.05))
    assert found == {
        "first.weight": (0.1, 0.05), "last.weight": (0.1, 0.05), "first.bias": (0.1, 0.0), "last.bias": (0.1, 0.0),
        "norm.weight": (0.1, 0.0), "norm.bias": (0.1, 0.0),
    }  # fmt: skip


class Layered(torch.nn.Module):
    """Two layers between a stem and a last norm, as a bottom-up network counts them."""

    num_layers = 2

    def __init__(self):
        super().__init__()
        self.patch_embed = torch.nn.Conv2d(2, 8, 2)
        self.blocks = torch.nn.ModuleList(torch.nn.MultiheadAttention(8, 2) for _ in range(2))
        for block in self.blocks:
            block.rel_pos_h = torch.nn.Parameter(torch.zeros(3, 4))
            block.rel_pos_w = torch.nn.Parameter(torch.zeros(3, 4))
        self.pos_embed = torch.nn.Parameter(torch.zeros(1, 4, 8))
        self.norms = torch.nn.ModuleDict({"group": torch.nn.GroupNorm(2, 8), "layer": torch.nn.LayerNorm((2, 8))})

    def layer_of(self, name):
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return 0 if name.startswith(("patch_embed", "pos_embed")) else 3


def test_position_tables_and_every_kind_of_norm_are_not_decayed():
    found = settings_by_name(parameter_groups(Layered(), lr=0.1, weight_decay=0.05))
    decayed = {name for name, (_, decay) in found.items() if decay}
    assert decayed == {"patch_embed.weight"} | {
        f"blocks.{i}.{name}" for i in (0, 1) for name in ("in_proj_weight", "out_proj.weight")
    }
    assert {decay for _, decay in found.values()} == {0.0, 0.05}


def test_each_layer_learns_slower_than_the_one_above_it():
    model = torch.nn.ModuleDict({"bottom_up": Layered(), "head": torch.nn.Linear(2, 2)})
    found = settings_by_name(parameter_groups(model, 0.1, 0.05, layer_decay=0.5))
    rates = {
        "head.weight": 0.1, "bottom_up.norms.layer.weight": 0.1, "bottom_up.blocks.1.rel_pos_h": 0.05,
        "bottom_up.blocks.0.in_proj_weight": 0.025, "bottom_up.patch_embed.bias": 0.0125,
        "bottom_up.pos_embed": 0.0125,
    }  # fmt: skip
    assert {name: found[name][0] for name in rates} == pytest.approx(rates)
    assert {rate for rate, _ in found.values()} == {0.1, 0.05, 0.025, 0.0125}


def test_layer_decay_multiplies_the_factors_of_modules():
    model = torch.nn.ModuleDict({"bottom_up": Layered(), "head": torch.nn.Linear(2, 2)})
    factors = {"bottom_up": 0.1, "bottom_up.blocks.1": 0.0}
    found = settings_by_name(parameter_groups(model, 1.0, 0.0, factors, layer_decay=0.5))
    assert found["head.weight"][0] == 1.0
    assert found["bottom_up.blocks.0.rel_pos_h"][0] == pytest.approx(0.1 * 0.25)
    assert "bottom_up.blocks.1.rel_pos_h" not in found and not model["bottom_up"].blocks[1].rel_pos_h.requires_grad


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.1])
def test_a_layer_decay_out_of_range_is_named(decay):
    with pytest.raises(InputError, match=f"layer_decay={decay} must be above 0 and at most 1"):
        parameter_groups(Layered(), 1.0, 0.0, layer_decay=decay)


def test_layer_decay_needs_a_network_that_counts_its_layers():
    with pytest.raises(InputError, match="layer_decay=0.7: no network in this model counts its layers.*lr_factors"):
        parameter_groups(TinyDetector(), 1.0, 0.0, layer_decay=0.7)


@pytest.mark.parametrize(
    ("lr", "weight_decay"), [(0.0, 0.1), (-1.0, 0.1), (0.1, -0.1), (NAN, 0.1), (0.1, NAN), (INF, 0.1)]
)
def test_negative_rates_are_named(lr, weight_decay):
    with pytest.raises(InputError, match=f"lr={lr} must be positive and weight_decay={weight_decay} not negative"):
        build_optimizer(TinyDetector(), lr=lr, weight_decay=weight_decay)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"betas": [2, 3]}, r"betas=\[2, 3\] must be two numbers below 1"),
        ({"betas": [0.9]}, r"betas=\[0.9\] must be two numbers"),
        ({"betas": 0.9}, "betas=0.9 must be two numbers"),
        ({"momentum": "high"}, "momentum=high must be below 1"),
        ({"betas": [0.9, NAN]}, r"betas=\[0.9, nan\] must be two numbers"),
        ({"betas": [0.9, "high"]}, "must be two numbers"),
        ({"momentum": -1}, "momentum=-1 must be below 1 and not negative"),
        ({"momentum": 1.0}, "momentum=1.0 must be below 1"),
        ({"momentum": NAN}, "momentum=nan must be below 1"),
        ({"lr_factors": {"last": -0.1}}, "lr_factors: last=-0.1 must be a number that is not negative"),
        ({"lr_factors": {"last": NAN}}, "lr_factors: last=nan"),
        ({"lr_factors": {"last": "slow"}}, "lr_factors: last='slow'"),
    ],
)
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_settings_out_of_their_range_are_named(name, settings, message):
    with pytest.raises(InputError, match=message):
        build_optimizer(TinyDetector(), name, **settings)


def test_learning_rates_follow_the_longest_matching_module_and_zero_freezes():
    model = torch.nn.ModuleDict({"backbone": TinyDetector(), "head": torch.nn.Linear(2, 2)})
    factors = {"backbone": 0.1, "backbone.last": 0.5, "backbone.first": 0.0}
    found = settings_by_name(parameter_groups(model, 1.0, 0.0, factors))
    assert found["head.weight"][0] == 1.0 and found["backbone.norm.weight"][0] == 0.1
    assert found["backbone.last.bias"][0] == 0.5
    assert "backbone.first.weight" not in found and not model["backbone"].first.weight.requires_grad
    with pytest.raises(InputError, match="every parameter is frozen"):
        parameter_groups(torch.nn.ModuleDict({"a": torch.nn.Linear(1, 1)}), 1.0, 0.0, {"a": 0})


def test_a_prefix_is_a_module_and_not_the_beginning_of_a_name():
    model = torch.nn.ModuleDict({"res2": torch.nn.Linear(1, 1), "res22": torch.nn.Linear(1, 1)})
    found = settings_by_name(parameter_groups(model, 1.0, 0.0, {"res2": 0.5}))
    assert found["res2.weight"][0] == 0.5 and found["res22.weight"][0] == 1.0


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_optimizers_are_built_by_name(name, kind):
    assert isinstance(build_optimizer(TinyDetector(), name, lr=0.1), kind)


def test_cosine_with_warm_up():
    schedule = WarmupCosine(max_iter=110, warmup_iters=10, warmup_factor=0.1, final_factor=0.2)
    assert schedule(0) == pytest.approx(0.1)
    assert schedule(5) == pytest.approx(0.55)
    assert schedule(10) == 1.0
    assert schedule(60) == pytest.approx(0.6)  # half way: the middle of 1 and 0.2
    assert schedule(35) == pytest.approx(0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2)
    assert schedule(110) == pytest.approx(0.2) and schedule(500) == pytest.approx(0.2)


def test_steps_with_warm_up():
    schedule = WarmupSteps(steps=[20, 30], gamma=0.1, warmup_iters=4, warmup_factor=0.0)
    values = [schedule(i) for i in (0, 1, 4, 19, 20, 29, 30)]
    assert values == pytest.approx([0, 0.25, 1, 1, 0.1, 0.1, 0.01])
