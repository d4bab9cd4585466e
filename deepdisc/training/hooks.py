"""What happens around the steps of a training: logging, validation, checkpoints, progress, experiment trackers."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from deepdisc.errors import InputError, require_extra
from deepdisc.files import write_failure, write_text
from deepdisc.training import distributed
from deepdisc.training.checkpoint import BEST, FINAL, numbered, save_state
from deepdisc.training.phases import describe_learning

if TYPE_CHECKING:
    from deepdisc.training.trainer import Trainer


class Hook:
    """Called by the trainer; override what is needed."""

    @property
    def name(self) -> str:
        """Under which the hook's state is saved."""
        return type(self).__name__

    def before_train(self, trainer: Trainer) -> None:
        """Once, before the first step."""

    def on_phase(self, trainer: Trainer) -> None:
        """Before the first step of each phase (or the first after resuming within it)."""

    def after_step(self, trainer: Trainer) -> None:
        """After each step; `trainer.iteration` counts it already."""

    def on_record(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """For each record that a hook emits."""

    def after_train(self, trainer: Trainer) -> None:
        """Once, when the last step is done."""

    def on_interrupt(self, trainer: Trainer) -> None:
        """When the user stops the run, between two steps."""

    def close(self, trainer: Trainer) -> None:
        """Once, however the run ended."""

    def state_dict(self) -> dict[str, Any]:
        """What must survive resuming."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""


def _due(trainer: Trainer, period: int) -> bool:
    return trainer.iteration % period == 0 or trainer.iteration == trainer.max_iter


def _check_period(name: str, value: int) -> int:
    if value < 1:
        raise InputError(f"train.{name}={value} must be at least 1")
    return value


class LogHook(Hook):
    """Every `period` steps emits mean losses, learning rate, throughput and time left."""

    def __init__(self, period: int):
        self.period = _check_period("log_period", period)
        self._steps: list[dict[str, float]] = []

    def after_step(self, trainer: Trainer) -> None:
        """Collect the step's numbers, emit when due."""
        self._steps.append(trainer.last)
        if not _due(trainer, self.period):
            return
        steps, self._steps = self._steps, []
        columns: dict[str, list[float]] = {}
        for name, value in (item for step in steps for item in step.items()):
            columns.setdefault(name, []).append(value)
        # a step that was skipped has no grad_norm
        record = {name: sum(values) / len(values) for name, values in columns.items()}
        images = record.pop("images")
        record["lr"] = steps[-1]["lr"]
        record["images_per_s"] = images / record["step_s"]
        record["eta_s"] = record["step_s"] * (trainer.max_iter - trainer.iteration)
        trainer.emit(record)


class ValidationHook(Hook):
    """Every `period` steps emits the mean losses over all validation batches, by the EMA weights if there are any."""

    def __init__(self, loader: Iterable, period: int, evaluate: Callable[..., dict[str, float]]):
        self.loader, self.period, self.evaluate = loader, _check_period("eval_period", period), evaluate

    def after_step(self, trainer: Trainer) -> None:
        """Validate when due."""
        if _due(trainer, self.period):
            start = time.perf_counter()
            losses = self.evaluate(trainer.best_model, self.loader, trainer.device, trainer.precision)
            trainer.emit({**losses, "val_s": time.perf_counter() - start})


class CheckpointHook(Hook):
    """Writes model_NNNNNNN.pth every `period` steps and keeps the last `keep`; model_best.pth; model_final.pth.

    Args:
        folder: where.
        config: YAML text that goes into every checkpoint.
        period: in steps.
        keep: how many numbered checkpoints to keep.
        best_metric: name in the validation records; smaller is better. None for no model_best.pth.
    """

    def __init__(self, folder: Path, config: str, period: int, keep: int, best_metric: str | None):
        self.folder, self.config, self.best_metric = Path(folder), config, best_metric
        self.period, self.keep = _check_period("checkpoint_period", period), _check_period("keep_checkpoints", keep)
        self.best: float | None = None
        self._saved_at = -1

    def after_step(self, trainer: Trainer) -> None:
        """Save when due."""
        if trainer.iteration % self.period == 0 and trainer.iteration < trainer.max_iter:
            self._save_numbered(trainer)

    def on_record(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Save as the best when the metric is smaller than ever."""
        if self.best_metric is None or "val_loss" not in record:
            return
        if self.best_metric not in record:
            names = ", ".join(name for name in record if name.startswith("val_"))
            raise InputError(f"train.best_metric={self.best_metric!r} is not measured; there are {names}")
        if self.best is None or record[self.best_metric] < self.best:
            self.best = record[self.best_metric]
            self._save(trainer, self.folder / BEST)

    def before_train(self, trainer: Trainer) -> None:
        """The end of a shorter run becomes a numbered checkpoint: model_final.pth is always the newest."""
        final, target = self.folder / FINAL, self._numbered(trainer.iteration)
        if distributed.is_main() and trainer.iteration < trainer.max_iter and final.is_file():
            final.unlink() if target.is_file() else final.replace(target)
        distributed.barrier()

    def after_train(self, trainer: Trainer) -> None:
        """Save the end, unless it is saved already."""
        if not (self.folder / FINAL).is_file():
            self._save(trainer, self.folder / FINAL)

    def on_interrupt(self, trainer: Trainer) -> None:
        """Save where the run stopped, so that --resume loses nothing."""
        if trainer.iteration not in (0, self._saved_at):
            self._save_numbered(trainer)

    def _numbered(self, iteration: int) -> Path:
        return self.folder / f"model_{iteration:07d}.pth"

    def _save_numbered(self, trainer: Trainer) -> None:
        self._save(trainer, self._numbered(trainer.iteration))
        self._saved_at = trainer.iteration
        if distributed.is_main():
            for old in [path for path in numbered(self.folder) if path.name != FINAL][self.keep :]:
                old.unlink()

    def _save(self, trainer: Trainer, path: Path) -> None:
        state = trainer.state_dict()
        if distributed.is_main():
            save_state({**state, "config": self.config}, path)
        distributed.barrier()

    def state_dict(self) -> dict[str, Any]:
        """The best value so far."""
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        self.best = state["best"]


class MetricsFile(Hook):
    """Appends every record to a file of JSON lines; what a resumed run repeats is removed first."""

    def __init__(self, path: Path):
        self.path = Path(path)

    def before_train(self, trainer: Trainer) -> None:
        """Drop records of steps that will be done again."""
        kept = []
        if self.path.is_file():
            lines = self.path.read_text().splitlines()
            # The last line may be cut off when the run was killed while writing.
            complete = [line for line in lines if line.startswith("{") and line.endswith("}")]
            kept = [line for line in complete if json.loads(line)["iteration"] <= trainer.iteration]
        write_text(self.path, "".join(line + "\n" for line in kept))

    def on_record(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Write one line."""
        try:
            with open(self.path, "a") as handle:
                handle.write(json.dumps(record) + "\n")
        except OSError as error:
            raise write_failure(self.path, error) from error


class ProgressHook(Hook):
    """A progress bar with the time left on a terminal; a line per record elsewhere."""

    def __init__(self, max_iter: int):
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        columns = (
            TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )  # fmt: skip
        self.progress = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.progress.add_task("", total=max_iter)

    def before_train(self, trainer: Trainer) -> None:
        """Show the bar."""
        self.progress.start()
        self.progress.update(self.task, completed=trainer.iteration)

    def on_phase(self, trainer: Trainer) -> None:
        """Say what learns."""
        text = describe_learning(trainer.plain_model, trainer.optimizer)
        if len(trainer.phases) > 1:
            number = trainer.phases.index(trainer.phase) + 1
            text = f"phase {number} of {len(trainer.phases)}, until iteration {trainer.phase.end}: {text}"
        self.console.print(text)

    def after_step(self, trainer: Trainer) -> None:
        """Advance."""
        self.progress.update(self.task, completed=trainer.iteration)

    def on_record(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Show the losses beside the bar, or print them."""
        losses = " ".join(f"{key.replace('loss_', '')} {value:.3f}" for key, value in record.items() if "loss" in key)
        if "val_loss" in record:
            self.console.print(f"iteration {record['iteration']}: {losses} ({record['val_s']:.0f} s)")
        elif self.console.is_terminal:
            self.progress.update(self.task, description=losses)
        else:
            wait = record["data_s"] / record["step_s"]
            minutes, seconds = divmod(int(record["eta_s"]), 60)
            self.console.print(
                f"iteration {record['iteration']}/{trainer.max_iter}: {losses} | lr {_rates(trainer)} "
                f"{record['step_s']:.3f} s/step, {record['images_per_s']:.1f} images/s, data wait {wait:.0%}, "
                f"ETA {minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
            )

    def close(self, trainer: Trainer) -> None:
        """Leave the terminal as it was."""
        self.progress.stop()


def _rates(trainer: Trainer) -> str:
    """The learning rate of what learns in this phase, or the smallest and the largest."""
    groups = [group for group in trainer.optimizer.param_groups if any(p.requires_grad for p in group["params"])]
    rates = dict.fromkeys(f"{rate(group['lr'] for group in groups):.2e}" for rate in (min, max))
    return " to ".join(rates)


class _Tracker(Hook):
    """Passes records to an experiment tracker; if that fails the run goes on without it."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self._lost = False

    def on_record(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Write the record."""
        self._guarded(self._write, record)

    def close(self, trainer: Trainer) -> None:
        """Finish the tracker's files."""
        self._guarded(self._finish)

    def before_train(self, trainer: Trainer) -> None:
        """Start the tracker."""
        self._guarded(self._begin)

    def _guarded(self, function: Callable, *arguments: Any) -> None:
        if self._lost:
            return
        try:
            function(*arguments)
        except Exception as error:  # a tracker may raise anything: full disk, network, its own faults
            self._lost = True
            warnings.warn(f"{self.name} failed ({error}); the training goes on without it", stacklevel=3)

    def _begin(self) -> None:
        raise NotImplementedError

    def _write(self, record: dict[str, Any]) -> None:
        raise NotImplementedError

    def _finish(self) -> None:
        raise NotImplementedError


class TensorBoardHook(_Tracker):
    """Writes event files for TensorBoard into `folder`/tensorboard.

    Raises:
        InputError: the extra `track` is not installed.
    """

    def __init__(self, folder: Path):
        super().__init__(folder)
        require_extra("tensorboard", "track")

    def _begin(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.folder / "tensorboard"))

    def _write(self, record: dict[str, Any]) -> None:
        for name, value in record.items():
            if name != "iteration":
                self.writer.add_scalar(name, value, record["iteration"])

    def _finish(self) -> None:
        self.writer.close()


class WandbHook(_Tracker):
    """Writes a Weights & Biases run into `folder`/wandb; offline unless the variable WANDB_MODE says otherwise.

    Raises:
        InputError: the extra `track` is not installed.
    """

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.wandb = require_extra("wandb", "track")

    def _begin(self) -> None:
        mode = os.environ.get("WANDB_MODE", "offline")
        self.run = self.wandb.init(project="deepdisc", dir=str(self.folder), mode=mode, name=self.folder.name)

    def _write(self, record: dict[str, Any]) -> None:
        self.run.log({key: value for key, value in record.items() if key != "iteration"}, step=record["iteration"])

    def _finish(self) -> None:
        self.run.finish(quiet=True)
