"""From a config to checkpoints: one process or several, from the beginning or resumed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import nn

from deepdisc.config import from_yaml, instantiate, save, to_yaml
from deepdisc.errors import InputError
from deepdisc.files import write_json
from deepdisc.training import distributed
from deepdisc.training.checkpoint import BEST, FINAL, load_newest, numbered
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
from deepdisc.training.loading import load_weights
from deepdisc.training.phases import long_warmups, read_phases
from deepdisc.training.randomness import seed_everything
from deepdisc.training.trainer import Trainer
from deepdisc.training.validation import evaluate_losses
from deepdisc.training.weights import read_weights

TRACKERS = {"tensorboard": TensorBoardHook, "wandb": WandbHook}


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
    for key in ("model", "data", "optim", "train"):
        if key not in cfg:
            raise InputError(
                f"this config has no {key!r}: it describes only a part of a training; start from configs/ugriz_r18.py "
                "or another one beside it"
            )
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
        _check_classes(cfg, val)
        if eval_only:
            _evaluate_only(cfg, model, val, local)
            return
        loader = instantiate(cfg.data.train, **share)
        _check_classes(cfg, loader)
        _tell_scale(cfg, loader)
        trainer = build_trainer(cfg, model, loader, val, local)
        start(trainer, cfg, resume)
        for text in long_warmups(trainer.phases):
            _say(f"warning: {text}")
        trainer.train()


def _check_classes(cfg: DictConfig, loader: Iterable | None) -> None:
    """Compare the config's classes with those of the data set behind a loader: labels are only their indices.

    Raises:
        InputError: other names, another order or another number.
    """
    dataset, about = _described(loader)
    stored = about.get("class_names")
    if stored is None:
        return
    stated, remedy = cfg.get("class_names"), f"set class_names=[{','.join(stored)}]"
    if stated is not None and list(stated) != list(stored):
        raise InputError(
            f"class_names=[{','.join(map(str, stated))}], but the data set {dataset.root} has [{','.join(stored)}]: "
            f"its labels are indices into that list; {remedy}"
        )
    number = cfg.get("num_classes")
    if number is not None and number != len(stored):
        raise InputError(f"num_classes={number}, but the data set {dataset.root} has {len(stored)} classes; {remedy}")


def _tell_scale(cfg: DictConfig, loader: Iterable) -> None:
    """Warn when the model will carry another pixel scale than that of its training data."""
    dataset, about = _described(loader)
    measured, stated = about.get("pixel_scale_arcsec"), cfg.get("pixel_scale_arcsec")
    if measured is not None and stated is not None and abs(measured / stated - 1) > 0.01:
        _say(
            f"warning: {dataset.root} has {measured:.4g} arcsec per pixel, the config says "
            f"pixel_scale_arcsec={stated:g}, which the model will carry: set it to that of the data"
        )


def _described(loader: Iterable | None) -> tuple[Any, Mapping[str, Any]]:
    """The data set behind a loader and what it says of itself; nothing for a loader of one's own."""
    dataset = getattr(loader, "dataset", None)
    return dataset, getattr(dataset, "description", {})


def build_trainer(
    cfg: DictConfig, model: nn.Module, loader: Iterable, val: Iterable | None, device: torch.device
) -> Trainer:
    """Assemble optimiser, schedule and hooks of a config around a model and its data."""
    settings = cfg.train
    return Trainer(
        model,
        loader,
        instantiate(cfg.optim.optimizer, model=model),
        read_phases(cfg.optim.get("phases") or [], cfg.optim.schedule, settings.max_iter),
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
        _check_same_run(cfg, state, path)
        trainer.load_state_dict(state, str(path))
        _say(f"resuming from {path} at iteration {trainer.iteration}")
    elif resume:
        _say(f"no checkpoint in {folder}: starting from the beginning")
    if found is None and cfg.train.init_checkpoint is not None:
        weights, adapter = read_weights(cfg.train.init_checkpoint), instantiate(cfg.train.init_bands)
        load_weights(trainer.plain_model, weights, strict=False, bands=cfg.get("bands"), adapter=adapter)
        if trainer.ema is not None:
            trainer.ema.module.load_state_dict(trainer.plain_model.state_dict())
    # Not before: a run that cannot be resumed must keep the config it was made with.
    if distributed.is_main():
        save(cfg, folder / "config.yaml")


# What the saved weights and the optimiser's state mean: with other values they would load and be misread.
_FIXED = ("bands", "class_names", "optim.optimizer._target_", "optim.optimizer.name")


def _check_same_run(cfg: DictConfig, state: Mapping[str, Any], path: Path) -> None:
    """Compare a config with that of the run that is to be resumed.

    Raises:
        InputError: other bands, classes or optimiser.
    """
    if "config" not in state:
        return
    saved = from_yaml(state["config"], str(path))
    for key in _FIXED:
        old, new = (OmegaConf.select(config, key) for config in (saved, cfg))
        if old != new:
            raise InputError(
                f"cannot resume from {path} with {key}={new}: the run has {key}={old}; use its config.yaml, or start "
                f"another run from its weights with train.init_checkpoint={path}"
            )


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
    load_weights(model, read_weights(checkpoint), strict=True, bands=cfg.get("bands"))
    losses = evaluate_losses(model, val, device, cfg.train.precision)
    if distributed.is_main():
        write_json(folder / "eval_losses.json", {"checkpoint": Path(checkpoint).name, **losses})
    _say(", ".join(f"{name} {value:.4f}" for name, value in losses.items()))


def _limit_threads(num_workers: int) -> None:
    """Leave a core to each loading process: more threads than cores slow everything down many times."""
    cores = os.cpu_count() or 1
    torch.set_num_threads(max(1, min(torch.get_num_threads(), (cores - num_workers) // distributed.world_size())))
