"""Phases of a training: which parts of the model learn, for how many iterations, at which learning rate.

Legend: *prefix* = name of a module or parameter, which stands for everything below it ("roi_heads"); *learnable* = held
by the optimiser, so neither `freeze_at` nor a factor of 0 has frozen it for good.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from deepdisc.config import instantiate
from deepdisc.errors import InputError, nearest
from deepdisc.training.optim import is_under, unknown_prefix


@dataclass(frozen=True)
class Phase:
    """The iterations `start` to `end` - 1 of a training.

    Attributes:
        schedule: iteration, counted from `start` -> factor of the base learning rate.
        lr: base learning rate; None for the optimiser's.
        train: prefixes of what learns; none for everything that is learnable.
    """

    start: int
    end: int
    schedule: Callable[[int], float]
    lr: float | None = None
    train: tuple[str, ...] = ()

    def rate_factor(self, iteration: int, optimizer: torch.optim.Optimizer) -> float:
        """Factor of the optimiser's own rates at this iteration of the training."""
        base = 1.0 if self.lr is None else self.lr / optimizer.defaults["lr"]
        return base * self.schedule(iteration - self.start)

    def freeze_others(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Let learn what this phase trains and nothing else."""
        for name, parameter in _learnable(model, optimizer).items():
            parameter.requires_grad_(not self.train or any(is_under(name, prefix) for prefix in self.train))


def read_phases(settings: Sequence[Mapping[str, Any]], schedule: DictConfig, max_iter: int) -> list[Phase]:
    """Read optim.phases.

    Each phase runs `schedule` anew, over its own length and at its own rate.

    Args:
        settings: mappings with "iters", "lr", "train" and "warmup_iters" (instead of the schedule's), none of them
            needed except "iters" in all phases but the last, which ends at `max_iter`. Empty for one phase.
        schedule: lazy call of a schedule; one with `max_iter` gets the phase's length.
        max_iter: length of the training.

    Raises:
        InputError: an unknown key, a value out of range, or lengths that do not add up to `max_iter`.
    """
    if type(max_iter) is not int or max_iter < 1:
        raise InputError(f"train.max_iter={max_iter} must be an integer of at least 1")
    if not settings:
        return [Phase(0, max_iter, instantiate(schedule))]
    phases: list[Phase] = []
    start = 0
    for index, setting in enumerate(settings):
        key, last = f"optim.phases.{index}", index == len(settings) - 1
        _check_setting(setting, key)
        if setting.get("iters") is None and not last:
            raise InputError(f"{key}: give iters; only the last phase can do without, it ends at train.max_iter")
        end = max_iter if setting.get("iters") is None else start + setting["iters"]
        if not start < end <= max_iter or (last and end != max_iter):
            raise InputError(
                f"{key} runs from iteration {start} to {end}, train.max_iter is {max_iter}: set it to the sum of all "
                "iters, or leave out those of the last phase"
            )
        given = {"max_iter": end - start} if "max_iter" in schedule else {}
        if setting.get("warmup_iters") is not None:
            given["warmup_iters"] = setting["warmup_iters"]
        train = tuple(setting.get("train") or ())
        phases.append(Phase(start, end, instantiate(schedule, **given), setting.get("lr"), train))
        start = end
    return phases


def _check_setting(setting: Any, key: str) -> None:
    known = ("iters", "lr", "train", "warmup_iters")
    if not isinstance(setting, Mapping):
        raise InputError(f"{key}={setting!r} is not a mapping of {', '.join(known)}")
    for name in setting:
        if name not in known:
            close = nearest(str(name), known)
            hint = f"; nearest: {close!r}" if close else ""
            raise InputError(f"{key}.{name} is not one of {', '.join(known)}{hint}")
    for name, kinds, least in (("iters", int, 1), ("warmup_iters", int, 0), ("lr", int | float, 0)):
        value = setting.get(name)
        if value is None:
            continue
        right = isinstance(value, kinds) and not isinstance(value, bool) and least <= value < math.inf
        if not right or (name == "lr" and value == 0):
            wanted = "a positive number" if name == "lr" else f"an integer of at least {least}"
            raise InputError(f"{key}.{name}={value!r} must be {wanted}")
    train = setting.get("train")
    if isinstance(train, str):
        raise InputError(f"{key}.train={train!r} must be a list of module names: [{train}]")
    if train is not None and not (isinstance(train, Sequence) and all(isinstance(name, str) for name in train)):
        raise InputError(f"{key}.train={train} must be a list of module names such as roi_heads")


def long_warmups(phases: Sequence[Phase]) -> list[str]:
    """Say which phases end while their learning rate still rises."""
    found = []
    for index, phase in enumerate(phases):
        warmup, length = getattr(phase.schedule, "warmup_iters", 0), phase.end - phase.start
        if warmup > length:
            key = f"optim.phases.{index}" if len(phases) > 1 else "optim.schedule"
            found.append(f"{key}: its warm-up of {warmup} iterations is longer than its {length}")
    return found


def check_prefixes(phases: Sequence[Phase], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Find misspelt names before the first step.

    Raises:
        InputError: a phase trains a module that does not exist, or of which nothing is learnable.
    """
    names = [name for name, _ in model.named_parameters()]
    learnable = _learnable(model, optimizer)
    for index, phase in enumerate(phases):
        for prefix in phase.train:
            key = f"optim.phases.{index}.train"
            if not any(is_under(name, prefix) for name in names):
                raise unknown_prefix(key, prefix, model)
            if not any(is_under(name, prefix) for name in learnable):
                raise InputError(f"{key}: freeze_at or lr_factors freezes all of {prefix!r}; leave it out")


def _learnable(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in held}


def frozen_norms(model: nn.Module) -> list[nn.Module]:
    """Batch norms whose parameters do not learn: in training mode their running statistics would move all the same."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return [norm for norm in norms if norm.affine and not norm.weight.requires_grad]


def describe_learning(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """One line: how many parameters learn, in how many groups, and how many do not."""
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in model.parameters()) - learning
    groups = sum(any(parameter.requires_grad for parameter in group["params"]) for group in optimizer.param_groups)
    return f"learn: {_count(learning)} parameters in {groups} groups, frozen {_count(frozen)}"


def _count(number: int) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)
