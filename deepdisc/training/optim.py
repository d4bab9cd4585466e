"""Optimisers and learning-rate schedules.

A schedule is a function iteration -> factor of every group's base learning rate; it has no state, so resuming needs
only the iteration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from deepdisc.errors import InputError, nearest

_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)
OPTIMIZERS = ("adamw", "sgd")


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, lr_factors: Mapping[str, float] | None = None
) -> list[dict]:
    """Group the parameters that learn by learning rate and weight decay.

    Norm layers, biases and other parameters with fewer than two dimensions are not decayed.

    Args:
        model: frozen parameters (requires_grad False) are left out.
        lr: base learning rate.
        weight_decay: of all others.
        lr_factors: name prefix of a module -> factor of its learning rate; 0 freezes it. The longest prefix wins.

    Returns:
        Groups as torch optimisers take them, each with "params", "lr", "weight_decay" and "names".

    Raises:
        InputError: a prefix matches no parameter, or nothing is left to learn.
    """
    factors = dict(lr_factors or {})
    undecayed = {id(p) for module in model.modules() if isinstance(module, _NORMS) for p in module.parameters()}
    names = [name for name, _ in model.named_parameters()]
    for prefix in factors:
        if not any(_under(name, prefix) for name in names):
            modules = [name for name, _ in model.named_modules() if name]
            close = nearest(prefix, modules)
            hint = f"; the nearest module is {close!r}" if close else ""
            raise InputError(f"lr_factors: no parameter is below {prefix!r}{hint}")
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        matching = [prefix for prefix in factors if _under(name, prefix)]
        factor = float(factors[max(matching, key=len)]) if matching else 1.0
        if factor == 0:
            parameter.requires_grad_(False)
        if not parameter.requires_grad:
            continue
        decay = 0.0 if parameter.ndim < 2 or id(parameter) in undecayed else weight_decay
        group = groups.setdefault(
            (factor, decay), {"params": [], "names": [], "lr": lr * factor, "weight_decay": decay}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise InputError("nothing to train: every parameter is frozen (lr_factors, freeze_at)")
    return list(groups.values())


def _under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def build_optimizer(
    model: nn.Module,
    name: str = "adamw",
    lr: float = 1e-3,
    weight_decay: float = 0.05,
    momentum: float = 0.9,
    betas: Sequence[float] = (0.9, 0.999),
    lr_factors: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """Build AdamW ("adamw", uses `betas`) or SGD ("sgd", uses `momentum`); see `parameter_groups` for the rest."""
    groups = parameter_groups(model, lr, weight_decay, lr_factors)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=tuple(betas))
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum)
    close = nearest(name, OPTIMIZERS)
    raise InputError(
        f"optimizer {name!r} is not one of {', '.join(OPTIMIZERS)}" + (f"; did you mean {close!r}?" if close else "")
    )


@dataclass(frozen=True)
class WarmupCosine:
    """Linear warm-up, then half a cosine down to `final_factor` at `max_iter`."""

    max_iter: int
    warmup_iters: int = 0
    warmup_factor: float = 0.001
    final_factor: float = 0.0

    def __call__(self, iteration: int) -> float:
        """Factor of the base learning rate for this 0-based iteration."""
        share = min(max(iteration - self.warmup_iters, 0) / max(self.max_iter - self.warmup_iters, 1), 1.0)
        cosine = self.final_factor + (1 - self.final_factor) * (1 + math.cos(math.pi * share)) / 2
        return _warmup(iteration, self.warmup_iters, self.warmup_factor) * cosine


@dataclass(frozen=True)
class WarmupSteps:
    """Linear warm-up, then multiplied by `gamma` at each of `steps` (iterations)."""

    steps: Sequence[int]
    gamma: float = 0.1
    warmup_iters: int = 0
    warmup_factor: float = 0.001

    def __call__(self, iteration: int) -> float:
        """Factor of the base learning rate for this 0-based iteration."""
        passed = sum(iteration >= step for step in self.steps)
        return _warmup(iteration, self.warmup_iters, self.warmup_factor) * self.gamma**passed


def _warmup(iteration: int, length: int, factor: float) -> float:
    if iteration >= length:
        return 1.0
    return factor + (1 - factor) * iteration / length
