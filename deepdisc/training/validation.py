"""The losses on data that the model does not learn from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from deepdisc.errors import InputError
from deepdisc.training import distributed
from deepdisc.training.precision import PRECISIONS, autocast
from deepdisc.training.randomness import random_state, set_random_state


@torch.no_grad()
def evaluate_losses(
    model: nn.Module,
    loader: Iterable[list[dict[str, Any]]],
    device: torch.device | str = "cpu",
    precision: str | torch.dtype | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Mean losses over all batches, weighted by their images.

    The random choices inside the losses (which proposals are sampled) are the same at every call, so that values of
    different iterations compare; the global generators are left as they were.

    Args:
        model: with `losses(batch)`, callable in evaluation mode: norm layers use and keep their running statistics.
        loader: finite.
        device: of the model.
        precision: as in `Trainer`, or a dtype.
        seed: of the random choices.

    Returns:
        "val_loss", the sum, and "val_<name>" of each loss.

    Raises:
        InputError: the loader is empty.
    """
    device = torch.device(device)
    precision = PRECISIONS[precision] if isinstance(precision, str) else precision
    was_training = model.training
    model.eval()
    state = random_state()
    totals: dict[str, float] = {}
    images = 0
    try:
        for number, batch in enumerate(loader):
            torch.manual_seed(seed + number)
            with autocast(device, precision):
                losses = model.losses(batch)
            for name, loss in losses.items():
                totals[name] = totals.get(name, 0.0) + float(loss) * len(batch)
            images += len(batch)
    finally:
        set_random_state(state)
        model.train(was_training)
    summed = distributed.sum_over_processes({**totals, "": float(images)})
    images = summed.pop("")
    if not images:
        raise InputError(
            "the validation set is empty; prepare the data with a val split, or set data.val = None in the config"
        )
    means = {name: value / images for name, value in summed.items()}
    return {"val_loss": sum(means.values()), **{f"val_{name}": value for name, value in means.items()}}
