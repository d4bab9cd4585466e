"""The training loop, and `train`: from a config to checkpoints.

Legend: *iteration* = number of completed steps; *record* = dict of numbers that hooks write (always with "iteration").
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from deepdisc.config import from_yaml, instantiate, save, to_yaml
from deepdisc.errors import InputError
from deepdisc.files import write_json
from deepdisc.training import distributed
from deepdisc.training.checkpoint import BEST, FINAL, load_newest, load_weights, numbered, read_weights
from deepdisc.training.hooks import (
    CheckpointHook,
    Hook,
    LogHook,
    MetricsFile,
    ProgressHook,
    TensorBoardHook,
    ValidationHook,
    WandbHook,
)
from deepdisc.training.interrupt import interrupt_flag

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}
TRACKERS = {"tensorboard": TensorBoardHook, "wandb": WandbHook}


class TrainingDivergedError(InputError):
    """A loss or gradient is not finite."""


class Trainer:
    """Steps through a stream of batches and calls the hooks.

    Args:
        model: list of samples -> dict of named losses, in training mode.
        loader: endless; with `state_dict` and `load_state_dict` its position is saved and restored.
        optimizer: its groups' learning rates are the base rates.
        schedule: iteration -> factor of the base rates.
        max_iter: where to stop.
        device: of the model.
        hooks: called in order.
        precision: "float32", or "bfloat16" for autocast.
        clip_grad_norm: gradients of a larger total norm are scaled down to it; 0 for no limit.
        ema_decay: keep an exponential average of the weights with this decay; 0 for none.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[list[dict[str, Any]]],
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[int], float],
        max_iter: int,
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
        if clip_grad_norm < 0:
            raise InputError(f"optim.clip_grad_norm={clip_grad_norm} must not be negative; 0 sets no limit")
        self.device = torch.device(device)
        self.model = distributed.wrap(model, self.device)
        self.loader, self.optimizer, self.schedule, self.max_iter = loader, optimizer, schedule, max_iter
        self.precision = PRECISIONS[precision]
        self.clip_grad_norm = clip_grad_norm or math.inf
        self.ema = None
        if ema_decay:
            self.ema = AveragedModel(model, multi_avg_fn=_average(ema_decay), use_buffers=True)
        self.hooks = list(hooks)
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
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
            TrainingDivergedError: a loss or gradient is not finite.
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
        self.model.train()
        factor = self.schedule(self.iteration)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        losses = self._losses(batch)
        self.optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        # One transfer for all terms: on a GPU each would wait for the device.
        terms = torch.stack([loss.detach().float() for loss in losses.values()]).tolist()
        values = dict(zip(losses, terms, strict=True))
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad_norm))
        self._check_finite({**values, "grad_norm": norm}, batch)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update_parameters(self.plain_model)
        self.iteration += 1
        self.last = {
            "loss": sum(values.values()),
            **values,
            "grad_norm": norm,
            "lr": max(group["lr"] for group in self.optimizer.param_groups),
            "data_s": loaded - start,
            "step_s": time.perf_counter() - start,
            "images": len(batch) * distributed.world_size(),
        }

    def _losses(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        try:
            with autocast(self.device, self.precision):
                losses = self.model(batch)
        except FloatingPointError as error:
            raise TrainingDivergedError(self._diverged(str(error), batch)) from error
        assert losses, "the model returned no losses"
        return losses

    def _check_finite(self, values: Mapping[str, float], batch: list[dict[str, Any]]) -> None:
        if not all(math.isfinite(value) for value in values.values()):
            terms = ", ".join(f"{name}={value:.4g}" for name, value in values.items())
            raise TrainingDivergedError(self._diverged(terms, batch))

    def _diverged(self, what: str, batch: list[dict[str, Any]]) -> str:
        tiles = ", ".join(f"{sample.get('tile', '?')}{list(sample.get('window', ()))}" for sample in batch)
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        return (
            f"training diverged at iteration {self.iteration}: {what}; tiles [window]: {tiles}; learning rate "
            f"{rate:.3g}; lower the learning rate, lengthen the warm-up or clip gradients, and look at these tiles"
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
            self.iteration = int(state["iteration"])
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


def autocast(device: torch.device, precision: torch.dtype | None) -> torch.autocast:
    """The autocast context of a precision; off for None."""
    return torch.autocast(device.type, dtype=precision or torch.bfloat16, enabled=precision is not None)


def random_state() -> dict[str, Any]:
    """State of the generators of Python, NumPy and torch, as plain values and tensors."""
    version, internal, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    return {
        "python": [version, list(internal), gauss],
        "numpy": [name, keys.tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() and torch.cuda.is_initialized() else None,
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restore what `random_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch; each process differently."""
    seed = seed + 1000 * distributed.rank()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


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


# ---------------------------------------------------------------------------------------------------------- train
def train(cfg: DictConfig, resume: bool = False, eval_only: bool = False, num_gpus: int | None = None) -> Path:
    """Train the model of a config.

    Args:
        cfg: as configs/ugriz_r18.py: `model`, `data` (train, val), `optim` (optimizer, schedule), `train`.
        resume: continue from the newest readable checkpoint in train.output_dir; from the start if there is none.
        eval_only: only compute the validation losses, of train.init_checkpoint or else the newest checkpoint.
        num_gpus: processes, one GPU each; None for all GPUs there are; 0 for the CPU. With train.device=cpu the number
            of processes on the CPU. Ignored under torchrun.

    Returns:
        The best checkpoint (the final one without validation data); with `eval_only` the JSON file of the losses.

    Raises:
        InputError: anything wrong in config, data or checkpoints; the output folder holds a run and `resume` is False.
        TrainingDivergedError: a loss or gradient is not finite.
    """
    device = _choose_device(cfg.train.device, num_gpus)
    processes = 1
    if not distributed.under_torchrun():
        processes = num_gpus or (torch.cuda.device_count() if device == "cuda" else 1)
    folder = Path(cfg.train.output_dir)
    if not (resume or eval_only) and numbered(folder):
        raise InputError(f"{folder} already holds a run; add --resume to continue it, or change train.output_dir")
    if processes > 1:
        distributed.launch(_run, processes, device, (to_yaml(cfg), resume, eval_only, device))
    else:
        _run(to_yaml(cfg), resume, eval_only, device)
    if eval_only:
        return folder / "eval_losses.json"
    return folder / BEST if (folder / BEST).is_file() else folder / FINAL


def _choose_device(wanted: str, num_gpus: int | None) -> str:
    if wanted not in ("auto", "cpu", "cuda"):
        raise InputError(f"train.device={wanted!r} is not one of auto, cpu, cuda")
    if num_gpus is not None and num_gpus < 0:
        raise InputError(f"--num-gpus {num_gpus} must not be negative")
    if num_gpus == 0:
        return "cpu"
    if wanted == "auto":
        if num_gpus and not torch.cuda.is_available():
            raise InputError(f"--num-gpus {num_gpus}: this machine has no GPU; leave it out to train on the CPU")
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("train.device=cuda: this machine has no GPU; use train.device=auto")
    return wanted


def _run(cfg_text: str, resume: bool, eval_only: bool, device: str) -> None:
    """One process of a training."""
    cfg = from_yaml(cfg_text)
    with distributed.joined(device) as local:
        _limit_threads(int(cfg.data.get("num_workers", 0)))
        seed_everything(cfg.train.seed)
        model = instantiate(cfg.model).to(local)
        if cfg.train.channels_last:
            model = model.to(memory_format=torch.channels_last)
        share = {"rank": distributed.rank(), "world_size": distributed.world_size()}
        val = None if cfg.data.val is None else instantiate(cfg.data.val, **share)
        if eval_only:
            _evaluate_only(cfg, model, val, local)
            return
        trainer = build_trainer(cfg, model, instantiate(cfg.data.train, **share), val, local)
        start(trainer, cfg, resume)
        trainer.train()


def build_trainer(
    cfg: DictConfig, model: nn.Module, loader: Iterable, val: Iterable | None, device: torch.device
) -> Trainer:
    """Assemble optimiser, schedule and hooks of a config around a model and its data."""
    settings = cfg.train
    return Trainer(
        model,
        loader,
        instantiate(cfg.optim.optimizer, model=model),
        instantiate(cfg.optim.schedule),
        settings.max_iter,
        device,
        _hooks(cfg, val),
        settings.precision,
        cfg.optim.clip_grad_norm,
        settings.ema_decay,
    )


def _hooks(cfg: DictConfig, val: Iterable | None) -> list[Hook]:
    settings, folder = cfg.train, Path(cfg.train.output_dir)
    hooks: list[Hook] = [LogHook(settings.log_period)]
    if val is not None:
        hooks.append(ValidationHook(val, settings.eval_period, evaluate_losses))
    metric = settings.best_metric if val is not None else None
    hooks.append(CheckpointHook(folder, to_yaml(cfg), settings.checkpoint_period, settings.keep_checkpoints, metric))
    if distributed.is_main():
        hooks += [MetricsFile(folder / "metrics.jsonl"), ProgressHook(settings.max_iter)]
        for name in settings.trackers:
            if name not in TRACKERS:
                raise InputError(f"train.trackers: {name!r} is not one of {', '.join(TRACKERS)}")
            hooks.append(TRACKERS[name](folder))
    return hooks


def start(trainer: Trainer, cfg: DictConfig, resume: bool) -> None:
    """Load the checkpoint to resume from or the weights to start from, then write config.yaml."""
    folder = Path(cfg.train.output_dir)
    found = load_newest(folder) if resume else None
    if found is not None:
        state, path = found
        trainer.load_state_dict(state, str(path))
        _say(f"resuming from {path} at iteration {trainer.iteration}")
    elif resume:
        _say(f"no checkpoint in {folder}: starting from the beginning")
    if found is None and cfg.train.init_checkpoint is not None:
        load_weights(trainer.plain_model, read_weights(cfg.train.init_checkpoint), strict=False)
        if trainer.ema is not None:
            trainer.ema.module.load_state_dict(trainer.plain_model.state_dict())
    # Not before: a run that cannot be resumed must keep the config it was made with.
    if distributed.is_main():
        save(cfg, folder / "config.yaml")


def _say(text: str) -> None:
    if distributed.is_main():
        Console(stderr=True, soft_wrap=True).print(text, highlight=False)


def _evaluate_only(cfg: DictConfig, model: nn.Module, val: Iterable | None, device: torch.device) -> None:
    if val is None:
        raise InputError("--eval-only needs validation data, but data.val is null")
    folder = Path(cfg.train.output_dir)
    checkpoint = cfg.train.init_checkpoint
    if checkpoint is None:
        candidates = numbered(folder)
        if not candidates:
            raise InputError(f"--eval-only: no checkpoint in {folder}; give train.init_checkpoint=FILE")
        checkpoint = candidates[0]
    load_weights(model, read_weights(checkpoint), strict=True)
    losses = evaluate_losses(model, val, device, cfg.train.precision)
    if distributed.is_main():
        write_json(folder / "eval_losses.json", {"checkpoint": Path(checkpoint).name, **losses})
    _say(", ".join(f"{name} {value:.4f}" for name, value in losses.items()))


def _limit_threads(num_workers: int) -> None:
    """Leave a core to each loading process: more threads than cores slow everything down many times."""
    cores = os.cpu_count() or 1
    torch.set_num_threads(max(1, min(torch.get_num_threads(), (cores - num_workers) // distributed.world_size())))
