"""Parameter groups and learning-rate schedules against numbers computed by hand."""

import math

import pytest
import torch
from tiny_model import TinyDetector

from deepdisc.errors import InputError
from deepdisc.training.optim import WarmupCosine, WarmupSteps, build_optimizer, parameter_groups


def settings_by_name(groups):
    return {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["names"]}


def test_norms_and_biases_are_not_decayed():
    found = settings_by_name(parameter_groups(TinyDetector(), lr=0.1, weight_decay=0.05))
    assert found == {
        "first.weight": (0.1, 0.05), "last.weight": (0.1, 0.05), "first.bias": (0.1, 0.0), "last.bias": (0.1, 0.0),
        "norm.weight": (0.1, 0.0), "norm.bias": (0.1, 0.0),
    }  # fmt: skip


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
