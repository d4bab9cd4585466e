"""Weights of the losses that are learned with the model (Kendall, Gal & Cipolla 2018, arXiv:1705.07115).

In a config, for example::

    from deepdisc.detector.loss_weights import LossWeights
    model.loss_weights = L(LossWeights)(
        groups={"proposals": ["loss_rpn_*"], "box": ["loss_cls*", "loss_box_reg*"], "mask": ["loss_mask"],
                "shear": ["loss_shear*"]}
    )

A negative log-likelihood (the losses of the flux head and, by default, of the redshift head) needs no such weight: it
already contains the uncertainty that it learns, in the unit in which the others are put here. Leave it out: its weight
is then 1, or the head's own `loss_weight`.

Legend: L_g = sum of the losses of group g; s_g = its learned log-scale.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from deepdisc.errors import InputError

logger = logging.getLogger(__name__)


class LossWeights(nn.Module):
    """Replaces L_g by `exp(-s_g) L_g + s_g` (eqs. 5 to 10, for a Laplace likelihood) for each group.

    Its minimum over s_g is at `exp(s_g) = L_g`: each group ends with about the same share of the gradient, whatever its
    unit. A group whose losses are exactly 0 in a batch, for want of labels, leaves its weight alone. The parameters
    begin at weight 1, are part of the checkpoint, and, being scalars, are not decayed; `optim.optimizer.lr_factors`
    ({"loss_weights": 10}) lets them move faster than the rest.

    Args:
        groups: name -> names of losses, with * for any text. Losses in no group keep the weight 1.
        max_weight: weights stay below this and above its inverse, so that a loss that comes near zero, or is negative,
            cannot take everything.

    Raises:
        InputError: no group, an empty one, a name with a dot, or a max_weight of 1 or less.
    """

    def __init__(self, groups: Mapping[str, Sequence[str]], max_weight: float = 100.0):
        super().__init__()
        if not 1 < max_weight < math.inf:
            raise InputError(f"loss_weights.max_weight={max_weight} must be finite and above 1")
        for name, patterns in groups.items():
            if isinstance(patterns, str) or not patterns or "." in name:
                raise InputError(f"loss_weights.groups.{name}={patterns} must be a list of losses: box: [loss_cls*]")
        if not groups:
            raise InputError("loss_weights.groups is empty: name groups of losses, or set model.loss_weights=null")
        self.groups = {name: tuple(patterns) for name, patterns in groups.items()}
        self.limit = math.log(max_weight)
        self.log_scale = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in self.groups})
        self._warned = False

    def _scale(self, name: str) -> Tensor:
        """s_g, kept within the limits smoothly so that it can always come back."""
        return self.limit * torch.tanh(self.log_scale[name] / self.limit)

    def weights(self) -> dict[str, float]:
        """The present factor exp(-s_g) of each group."""
        return {name: math.exp(-self._scale(name).item()) for name in self.groups}

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """What the weighting adds to the plain sum of the losses: sum over groups of `(exp(-s_g) - 1) L_g + s_g`.

        A term of its own, so that all others are logged as they are.

        Args:
            losses: scalars by name.

        Raises:
            InputError: a group without any loss, or a loss in two groups.
        """
        members = self._members(losses)
        if not self._warned:
            self._warn_of_likelihoods([losses[name] for names in members.values() for name in names])
        terms = []
        for name, chosen in members.items():
            total, scale = sum(losses[loss].float() for loss in chosen), self._scale(name)
            terms.append((total != 0) * (torch.expm1(-scale) * total + scale))
        return sum(terms)

    def _warn_of_likelihoods(self, losses: list[Tensor]) -> None:
        if torch.stack([loss.detach().float() for loss in losses]).min() < 0:
            self._warned = True
            logger.warning(
                "a loss in loss_weights.groups is negative, so its weight will grow to max_weight: leave logarithms of "
                "likelihoods out of the groups, they need no weight (said once)"
            )

    def _members(self, losses: Mapping[str, Tensor]) -> dict[str, list[str]]:
        """Names of the losses of each group."""
        found = {
            group: [name for name in losses if any(fnmatchcase(name, pattern) for pattern in patterns)]
            for group, patterns in self.groups.items()
        }
        taken: dict[str, str] = {}
        for group, names in found.items():
            if not names:
                raise InputError(
                    f"loss_weights.groups.{group}={list(self.groups[group])} is none of the model's losses "
                    f"{', '.join(losses)}"
                )
            for name in names:
                if name in taken:
                    raise InputError(f"loss_weights.groups: {name!r} is both in {taken[name]!r} and in {group!r}")
                taken[name] = group
        return found
