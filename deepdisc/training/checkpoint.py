"""Training states on disk: everything that a run needs to go on exactly.

A checkpoint of ours is a .pth with "model" (detectron2's key: state dict), "ema" (averaged weights, when on),
"optimizer", "iteration", "rng", "sampler", "hooks" and "config" (YAML text). It holds only tensors and plain values, so
that it is read without executing anything.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from deepdisc.errors import InputError, first_line
from deepdisc.files import atomic_path
from deepdisc.training.pickles import load_torch

_NUMBERED = re.compile(r"model_(\d+)\.pth$")
FINAL = "model_final.pth"
BEST = "model_best.pth"


def save_state(state: Mapping[str, Any], path: str | Path) -> None:
    """Write a training state; nothing half-written is left."""
    with atomic_path(path) as temporary:
        try:
            torch.save(dict(state), temporary)
        except RuntimeError as error:  # torch's zip writer reports a full disk so
            raise OSError(first_line(error)) from error


def load_state(path: str | Path) -> dict[str, Any]:
    """Read a training state or any other .pth onto the CPU.

    Raises:
        InputError: missing, truncated, not a checkpoint, or one that would execute something.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    state = load_torch(path)
    if not isinstance(state, dict):
        raise InputError(f"{path}: holds a {type(state).__name__}, not a checkpoint")
    return state


def numbered(folder: str | Path) -> list[Path]:
    """Checkpoints from which a training can go on, newest first: model_final.pth and model_NNNNNNN.pth."""
    folder = Path(folder)
    found = [path for path in folder.glob("model_*.pth") if _NUMBERED.search(path.name)]
    found.sort(key=lambda path: int(_NUMBERED.search(path.name)[1]), reverse=True)
    return [path for path in (folder / FINAL,) if path.is_file()] + found


def load_newest(folder: str | Path) -> tuple[dict[str, Any], Path] | None:
    """The newest readable training state of a run and its file; None when there is no checkpoint at all.

    A damaged file is passed over with a warning.

    Raises:
        InputError: there are checkpoints, but none can be read.
    """
    candidates = numbered(folder)
    for path in candidates:
        try:
            return load_state(path), path
        except InputError as error:
            warnings.warn(f"{error}; trying the checkpoint before it", stacklevel=2)
    if candidates:
        raise InputError(f"none of the {len(candidates)} checkpoints in {folder} can be read; start without --resume")
    return None
