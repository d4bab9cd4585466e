"""The training loop.

Legend: *iteration* = number of completed steps; *record* = dict of numbers that hooks write (always with "iteration").
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from deepdisc.errors import InputError, first_line
from deepdisc.training import distributed
from deepdisc.training.hooks import Hook
from deepdisc.training.interrupt import interrupt_flag
from deepdisc.training.phases import Phase, check_prefixes, frozen_norms
from deepdisc.training.precision import MIN_SCALE, PRECISIONS, autocast, gradient_scaler
from deepdisc.training.randomness import random_state, set_random_state


class TrainingDivergedError(InputError):
    """A loss or gradient is not finite, or gradients overflow float16 again and again."""


class Trainer:
    """Steps through a stream of batches and calls the hooks.

    Args:
        model: list of samples -> dict of named losses, in training mode.
        loader: endless; with `state_dict` and `load_state_dict` its position is saved and restored.
        optimizer: its groups' learning rates are the base rates.
        phases: one after the other; the end of the last is the end of the training.
        device: of the model.
        hooks: called in order.
        precision: "float32", or "bfloat16" or "float16" for autocast. In float16 the loss is scaled; a step whose
            gradients overflow is skipped and halves the scale.
        clip_grad_norm: gradients of a larger total norm are scaled down to it; 0 for no limit.
        ema_decay: keep an exponential average of the weights with this decay; 0 for none.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[list[dict[str, Any]]],
        optimizer: torch.optim.Optimizer,
        phases: Sequence[Phase],
        device: torch.device | str = "cpu",
        hooks: Sequence[Hook] = (),
        precision: str = "float32",
        clip_grad_norm: float = 0.0,
        ema_decay: float = 0.0,
    ):
        if precision not in PRECISIONS:
            raise InputError(f"train.precision={precision!r} is not one of {', '.join(PRECISIONS)}")
        if not 0 <= ema_decay < 1:
            raise InputError(f"train.ema_decay={ema_decay} must be below 1 and not negative; 0 keeps no average")
        if not clip_grad_norm >= 0:  # also NaN
            raise InputError(f"optim.clip_grad_norm={clip_grad_norm} must not be negative; 0 sets no limit")
        self.device = torch.device(device)
        check_prefixes(phases, model, optimizer)
        self.model = model
        self.loader, self.optimizer = loader, optimizer
        self.phases, self.max_iter = list(phases), phases[-1].end
        self.phase: Phase | None = None
        self.precision = PRECISIONS[precision]
        self.scaler = gradient_scaler(self.device, self.precision)
        self.clip_grad_norm = clip_grad_norm or math.inf
        self.ema = None
        if ema_decay:
            self.ema = AveragedModel(model, multi_avg_fn=_average(ema_decay), use_buffers=True)
        self.hooks = list(hooks)
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        self._still: list[nn.Module] = []  # norms that keep their statistics in this phase
        self.iteration = 0
        self.last: dict[str, float] = {}  # losses and timing of the latest step

    @property
    def plain_model(self) -> nn.Module:
        """The model that learns, without the wrapper for several processes."""
        return distributed.unwrap(self.model)

    @property
    def best_model(self) -> nn.Module:
        """The weights to judge and to export: the average if there is one."""
        return self.plain_model if self.ema is None else self.ema.module

    def train(self) -> None:
        """Run until `max_iter`.

        Raises:
            TrainingDivergedError: a loss or gradient is not finite, or gradients overflow float16 again and again.
            KeyboardInterrupt: on the first SIGINT after the step in progress and a checkpoint, on the second at once.
        """
        try:
            with interrupt_flag() as interrupted:
                self._call("before_train")
                # Random numbers drawn while the loader starts must not change the training.
                state = random_state()
                batches = iter(self.loader)
                set_random_state(state)
                while self.iteration < self.max_iter:
                    if interrupted.is_set():
                        self._call("on_interrupt")
                        raise KeyboardInterrupt
                    self.step(batches)
                    self._call("after_step")
                self._call("after_train")
        finally:
            self._call("close")

    def step(self, batches: Iterable[list[dict[str, Any]]]) -> None:
        """One optimiser step on the next batch; its numbers go to `last`."""
        start = time.perf_counter()
        batch = next(batches)
        loaded = time.perf_counter()
        if self.phase is None or self.iteration >= self.phase.end:
            self._enter_phase()
        self.model.train()
        for norm in self._still:
            norm.eval()
        factor = self.phase.rate_factor(self.iteration, self.optimizer)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        losses = self._losses(batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(sum(losses.values())).backward()
        # One transfer for all terms: on a GPU each would wait for the device.
        terms = torch.stack([loss.detach().float() for loss in losses.values()]).tolist()
        values = dict(zip(losses, terms, strict=True))
        values |= self._update(values, batch)
        self.iteration += 1
        self.last = {
            "loss": sum(values[name] for name in losses),
            **values,
            "lr": max(group["lr"] for group in self.optimizer.param_groups),
            "data_s": loaded - start,
            "step_s": time.perf_counter() - start,
            "images": len(batch) * distributed.world_size(),
        }

    def _enter_phase(self) -> None:
        self.phase = next(phase for phase in self.phases if self.iteration < phase.end)
        model = self.plain_model
        self.phase.freeze_others(model, self.optimizer)
        self._still = frozen_norms(model)
        # Anew, so that only gradients of what learns travel; it also gives all processes the weights of the first.
        self.model = distributed.wrap(model, self.device)
        self._call("on_phase")

    def _update(self, values: Mapping[str, float], batch: list[dict[str, Any]]) -> dict[str, float]:
        """Move the weights along the gradients, unless these overflow float16; returns more numbers for the record."""
        scaled = self.scaler.is_enabled()
        self.scaler.unscale_(self.optimizer)
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad_norm))
        self._check_finite(values if scaled else {**values, "grad_norm": norm}, batch)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        skipped = not math.isfinite(norm)
        if self.ema is not None and not skipped:
            self.ema.update_parameters(self.plain_model)
        if not scaled:
            return {"grad_norm": norm}
        scale = self.scaler.get_scale()
        if scale < MIN_SCALE:
            raise TrainingDivergedError(self._diverged(f"gradients overflow float16 even at a scale of {scale}", batch))
        return {"grad_scale": scale, "skipped": float(skipped), **({} if skipped else {"grad_norm": norm})}

    def _losses(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        try:
            with autocast(self.device, self.precision):
                losses = self.model(batch)
        except FloatingPointError as error:
            raise TrainingDivergedError(self._diverged(str(error), batch)) from error
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):  # of torch's batch norm, before it computes anything
                raise
            raise InputError(
                f"a batch norm cannot learn from a single pixel ({first_line(error)}): raise data.crop_size or "
                "data.batch_size, or choose another norm: GN or FrozenBN"
            ) from error
        assert losses, "the model returned no losses"
        return losses

    def _check_finite(self, values: Mapping[str, float], batch: list[dict[str, Any]]) -> None:
        if not all(math.isfinite(value) for value in values.values()):
            terms = ", ".join(f"{name}={value:.4g}" for name, value in values.items())
            raise TrainingDivergedError(self._diverged(terms, batch))

    def _diverged(self, what: str, batch: list[dict[str, Any]]) -> str:
        tiles = ", ".join(f"{sample.get('tile', '?')}{list(sample.get('window', ()))}" for sample in batch)
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        wider = "train with train.precision=bfloat16, whose range is wider, " if self.scaler.is_enabled() else ""
        return (
            f"training diverged at iteration {self.iteration}: {what}; tiles [window]: {tiles}; learning rate "
            f"{rate:.3g}; {wider}lower the learning rate, lengthen the warm-up or clip gradients, and look at these "
            "tiles"
        )

    def emit(self, record: dict[str, Any]) -> None:
        """Hand a record to all hooks."""
        record = {"iteration": self.iteration, **record}
        for hook in self.hooks:
            hook.on_record(self, record)

    def _call(self, name: str) -> None:
        for hook in self.hooks:
            getattr(hook, name)(self)

    def state_dict(self) -> dict[str, Any]:
        """Everything a run needs to go on exactly; all processes must call it together."""
        state = {
            "model": self.plain_model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "iteration": self.iteration,
            "rng": distributed.gather_objects(random_state()),
            "hooks": {hook.name: hook.state_dict() for hook in self.hooks if hook.state_dict()},
        }
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        if self.scaler.is_enabled():
            state["scaler"] = self.scaler.state_dict()
        if hasattr(self.loader, "state_dict"):
            state["sampler"] = self.loader.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any], source: str) -> None:
        """Go on from a saved state.

        Raises:
            InputError: it is of another model or lacks a part; names `source`.
        """
        if (self.ema is not None) != ("ema" in state):
            has = "averages" if "ema" in state else "does not average"
            raise InputError(f"{source} {has} its weights, train.ema_decay says otherwise; use the run's config.yaml")
        try:
            self.plain_model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
            # A run may go on in another precision; from float32 the scale begins anew.
            if self.scaler.is_enabled() and "scaler" in state:
                self.scaler.load_state_dict(state["scaler"])
            self.iteration = int(state["iteration"])
            self.phase = None
            generators = state["rng"]
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"cannot resume from {source}: it is of another model or optimiser: {reason}") from error
        if hasattr(self.loader, "load_state_dict"):
            self.loader.load_state_dict(state["sampler"])
        for hook in self.hooks:
            if hook.name in state["hooks"]:
                hook.load_state_dict(state["hooks"][hook.name])
        if distributed.rank() < len(generators):
            set_random_state(generators[distributed.rank()])


def _average(decay: float) -> Callable[..., None]:
    """An exponential average whose memory grows with the number of steps, up to `decay`."""

    def update(averaged: Any, current: Any, count: Any) -> None:
        # At a fixed decay the random first weights would stay in the average for thousands of steps.
        warm = min(decay, (1 + int(count)) / (10 + int(count)))
        get_ema_multi_avg_fn(warm)(averaged, current, count)

    return update
