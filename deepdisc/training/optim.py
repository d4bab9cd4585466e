"""Optimisers and learning-rate schedules.

A schedule is a function iteration -> factor of every group's base learning rate; it has no state, so resuming needs
only the iteration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from deepdisc.errors import InputError, nearest

_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)
_POSITION_TABLES = ("rel_pos_h", "rel_pos_w", "pos_embed")
OPTIMIZERS = ("adamw", "sgd")


def parameter_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    lr_factors: Mapping[str, float] | None = None,
    layer_decay: float = 1.0,
) -> list[dict]:
    """Group the parameters that learn by learning rate and weight decay.

    Norm layers, position tables, biases and other parameters with fewer than two dimensions are not decayed.
    (detectron2's default optimiser decays biases like weights.)

    Args:
        model: frozen parameters (requires_grad False) are left out.
        lr: base learning rate.
        weight_decay: of all others.
        lr_factors: name prefix of a module -> factor of its learning rate; 0 freezes it. The longest prefix wins.
        layer_decay: factor from a layer of the bottom-up network to the one below it, times the factor above.

    Returns:
        Groups as torch optimisers take them, each with "params", "lr", "weight_decay" and "names".

    Raises:
        InputError: a prefix matches no parameter, a layer_decay out of range or for a model without layers, or nothing
            is left to learn.
    """
    undecayed = {id(p) for module in model.modules() if isinstance(module, _NORMS) for p in module.parameters()}
    factors = _rate_factors(model, lr_factors or {}, layer_decay)
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        factor = factors[name]
        if factor == 0:
            parameter.requires_grad_(False)
        if not parameter.requires_grad:
            continue
        exempt = parameter.ndim < 2 or id(parameter) in undecayed or name.rpartition(".")[2] in _POSITION_TABLES
        decay = 0.0 if exempt else weight_decay
        group = groups.setdefault(
            (factor, decay), {"params": [], "names": [], "lr": lr * factor, "weight_decay": decay}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise InputError("nothing to train: every parameter is frozen (lr_factors, freeze_at)")
    return list(groups.values())


def _rate_factors(model: nn.Module, lr_factors: Mapping[str, float], layer_decay: float) -> dict[str, float]:
    """Factor of the learning rate of every parameter, by name."""
    names = [name for name, _ in model.named_parameters()]
    for prefix, factor in lr_factors.items():
        if not (_is_number(factor) and 0 <= factor < math.inf):
            raise InputError(f"lr_factors: {prefix}={factor!r} must be a number that is not negative; 0 freezes")
        if not any(is_under(name, prefix) for name in names):
            raise unknown_prefix("lr_factors", prefix, model)
    factors = _layer_factors(model, layer_decay)
    for name in names:
        matching = [prefix for prefix in lr_factors if is_under(name, prefix)]
        own = float(lr_factors[max(matching, key=len)]) if matching else 1.0
        factors[name] = own * factors.get(name, 1.0)
    return factors


def _layer_factors(model: nn.Module, decay: float) -> dict[str, float]:
    """Layer-wise decay (Bao et al. 2021, arXiv:2106.08254, app. H): decay ** (number of layers above a parameter)."""
    if not 0 < decay <= 1:
        raise InputError(f"layer_decay={decay} must be above 0 and at most 1; 1 gives all layers the same rate")
    if decay == 1:
        return {}
    networks = {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "num_layers") and hasattr(module, "layer_of")
    }
    if not networks:
        raise InputError(
            f"layer_decay={decay}: no network in this model counts its layers, as ResNet and MViT do (num_layers, "
            "layer_of); use layer_decay=1, and lr_factors for single modules"
        )
    return {
        f"{prefix}.{name}" if prefix else name: decay ** (network.num_layers + 1 - network.layer_of(name))
        for prefix, network in networks.items()
        for name, _ in network.named_parameters()
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_under(name: str, prefix: str) -> bool:
    """Whether a parameter belongs to the module `prefix` (or is that parameter)."""
    return name == prefix or name.startswith(prefix + ".")


def unknown_prefix(key: str, prefix: str, model: nn.Module) -> InputError:
    """The error for a setting `key` that names a module which the model lacks."""
    close = nearest(prefix, [name for name, _ in model.named_modules() if name])
    hint = f"; the nearest module is {close!r}" if close else ""
    return InputError(f"{key}: no parameter is below {prefix!r}{hint}")


def build_optimizer(
    model: nn.Module,
    name: str = "adamw",
    lr: float = 1e-3,
    weight_decay: float = 0.05,
    momentum: float = 0.9,
    betas: Sequence[float] = (0.9, 0.999),
    lr_factors: Mapping[str, float] | None = None,
    layer_decay: float = 1.0,
) -> torch.optim.Optimizer:
    """Build AdamW ("adamw", uses `betas`) or SGD ("sgd", uses `momentum`); see `parameter_groups` for the rest.

    Raises:
        InputError: a setting out of its range, an unknown name, and what `parameter_groups` raises.
    """
    if not (0 < lr < math.inf and 0 <= weight_decay < math.inf):
        raise InputError(f"lr={lr} must be positive and weight_decay={weight_decay} not negative, both finite")
    if not (_is_number(momentum) and 0 <= momentum < 1):
        raise InputError(f"optim.optimizer.momentum={momentum} must be below 1 and not negative")
    pair = isinstance(betas, Sequence) and len(betas) == 2
    if not pair or not all(_is_number(beta) and 0 <= beta < 1 for beta in betas):
        raise InputError(f"optim.optimizer.betas={betas} must be two numbers below 1 and not negative: [0.9, 0.999]")
    groups = parameter_groups(model, lr, weight_decay, lr_factors, layer_decay)
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
