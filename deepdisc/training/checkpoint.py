"""Weights and training states on disk: detectron2's .pth and .pkl, safetensors, and our own checkpoints.

A checkpoint of ours is a .pth with "model" (detectron2's key: state dict), "ema" (averaged weights, when on),
"optimizer", "iteration", "rng", "sampler", "hooks" and "config" (YAML text). It holds only tensors and plain values, so
that it is read without executing anything.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from deepdisc.config import to_yaml
from deepdisc.errors import InputError
from deepdisc.files import atomic_path

# Settings that detectron2 keeps in its state dict and we in the configuration, and a counter that no layer reads.
_NOT_WEIGHTS = re.compile(r"(^|\.)(pixel_mean|pixel_std|cell_anchors\.\d+|num_batches_tracked)$")
_NUMBERED = re.compile(r"model_(\d+)\.pth$")
FINAL = "model_final.pth"
BEST = "model_best.pth"


# ------------------------------------------------------------------------------------------------ training states
def save_state(state: Mapping[str, Any], path: str | Path) -> None:
    """Write a training state; nothing half-written is left."""
    with atomic_path(path) as temporary:
        try:
            torch.save(dict(state), temporary)
        except RuntimeError as error:  # torch's zip writer reports a full disk so
            raise OSError(f"{str(error).splitlines()[0]}") from error


def load_state(path: str | Path) -> dict[str, Any]:
    """Read a training state or any other .pth onto the CPU.

    Raises:
        InputError: missing, truncated, or not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    try:
        # Older detectron2 schedulers leave NumPy scalars in their state.
        with torch.serialization.safe_globals([np._core.multiarray.scalar, np.dtype, np.dtypes.Float64DType]):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler stumbles over foreign bytes with any kind of exception
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: cannot be read as a checkpoint, truncated or not one: {reason}") from error
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


# -------------------------------------------------------------------------------------------------------- weights
@dataclass
class Weights:
    """A state dict read from a file, and what the file says about itself.

    Attributes:
        tensors: by name.
        source: the file.
        config: YAML text of the config that built the model, or None.
        about: further metadata (bands, pixel scale, iteration ...).
    """

    tensors: dict[str, Tensor]
    source: Path
    config: str | None = None
    about: dict[str, Any] = field(default_factory=dict)


def read_weights(path: str | Path) -> Weights:
    """Read weights from .pth ({"model": ...} or a bare state dict), .pkl (detectron2's zoo) or .safetensors.

    Of a checkpoint with averaged weights (EMA) these are taken.

    Raises:
        InputError: missing, unreadable, or without weights.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    state = _read_pickle(path) if path.suffix == ".pkl" else load_state(path)
    if "ema" in state and state["ema"] is not None:
        tensors = {name.removeprefix("module."): value for name, value in state["ema"].items() if name != "n_averaged"}
    else:
        tensors = state.get("model", state.get("state_dict", state))
    tensors = {
        str(name): torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in tensors.items()
        if isinstance(value, Tensor | np.ndarray)
    }
    if not tensors:
        raise InputError(f"{path}: holds no weights; expected a state dict, or one under 'model'")
    config = state.get("config") if isinstance(state.get("config"), str) else None
    return Weights(tensors, path, config, {"iteration": state.get("iteration")})


def _read_safetensors(path: Path) -> Weights:
    try:
        with safetensors.safe_open(path, framework="pt") as handle:
            about = dict(handle.metadata() or {})
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path}: cannot be read as safetensors: {str(error).splitlines()[0]}") from error
    if "weights_sha256" in about and about["weights_sha256"] != weights_sha256(tensors):
        raise InputError(f"{path}: its weights are damaged (checksum differs); get the file again")
    return Weights(tensors, path, about.pop("config", None), about)


class _PlainUnpickler(pickle.Unpickler):
    """Reads pickles of NumPy arrays and plain values; anything else could execute code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.split(".")[0], name) in {
            ("numpy", "ndarray"), ("numpy", "dtype"), ("numpy", "_reconstruct"), ("numpy", "scalar"),
            ("numpy", "_frombuffer"), ("collections", "OrderedDict"), ("_codecs", "encode"),
        }:  # fmt: skip
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a weight file")


def _read_pickle(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as handle:
            state = _PlainUnpickler(handle, encoding="latin1").load()
    except Exception as error:  # as in load_state
        raise InputError(f"{path}: cannot be read as detectron2's .pkl weights: {error}") from error
    if not isinstance(state, dict):
        raise InputError(f"{path}: holds a {type(state).__name__}, not weights")
    return state


@dataclass
class LoadReport:
    """What became of each tensor of the model and of the file."""

    matched: list[str] = field(default_factory=list)
    adapted: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """One line with the counts and the first names of what does not fit."""
        text = f"{len(self.matched)} tensors match, {len(self.adapted)} adapted"
        for kind in ("mismatched", "missing", "unexpected"):
            names = getattr(self, kind)
            if names:
                text += f", {len(names)} {kind} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
        return text

    def table(self, source: str) -> Table:
        """The same for printing, with up to eight names of each kind."""
        table = Table("", "tensors", "which", title=f"weights from {source}")
        meaning = {
            "matched": "matched",
            "adapted": "adapted to the bands",
            "mismatched": "another shape: not loaded",
            "missing": "not in the file: as initialised",
            "unexpected": "not in the model: ignored",
        }
        for kind, text in meaning.items():
            names = getattr(self, kind)
            listed = [] if kind == "matched" else names
            more = [f"... and {len(names) - 8} more"] if len(listed) > 8 else []
            table.add_row(text, str(len(names)), "\n".join(listed[:8] + more))
        return table


def load_weights(model: nn.Module, weights: Weights, *, strict: bool) -> LoadReport:
    """Copy weights into a model.

    Names need not have the model's prefix (a backbone's weights find their place in the detector). A first convolution
    for another number of bands is adapted: each band gets the mean over the file's bands, scaled to keep the sum.

    Args:
        model: changed in place.
        weights: from `read_weights`.
        strict: True: every tensor must match exactly. False (fine-tuning): what fits is taken, a table is printed.

    Raises:
        InputError: strict and something differs; or nothing fits, or less than half of the file's tensors: a
            checkpoint of another architecture. The model is then unchanged.
    """
    own = model.state_dict()
    given = _with_prefix({name: value for name, value in weights.tensors.items() if not _NOT_WEIGHTS.search(name)}, own)
    report, accepted = LoadReport(), {}
    for name, value in given.items():
        if name not in own:
            report.unexpected.append(name)
        elif own[name].shape == value.shape:
            report.matched.append(name)
            accepted[name] = value
        elif not strict and _other_bands(own[name], value):
            report.adapted.append(f"{name} ({value.shape[1]} -> {own[name].shape[1]} bands)")
            accepted[name] = adapt_bands(value, own[name].shape[1])
        else:
            report.mismatched.append(f"{name} {tuple(value.shape)} -> {tuple(own[name].shape)}")
    report.missing = [name for name in own if name not in given and not _NOT_WEIGHTS.search(name)]
    _judge(report, weights.source, strict)
    model.load_state_dict(accepted, strict=False)
    if not strict:
        Console(stderr=True).print(report.table(weights.source.name))
    return report


def _judge(report: LoadReport, source: Path, strict: bool) -> None:
    wrong = len(report.mismatched) + len(report.unexpected)
    if strict and (wrong or report.missing):
        raise InputError(
            f"{source} is a checkpoint of another architecture than this config's: {report.summary()}; use the config "
            "that is saved beside the checkpoint"
        )
    if not report.matched:
        raise InputError(f"{source}: nothing in it fits this model: {report.summary()}")
    if wrong > len(report.matched):
        raise InputError(f"{source} is a checkpoint of another architecture: {report.summary()}")


def _with_prefix(given: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Prepend the prefix (of the model's names, or of a DistributedDataParallel) under which most tensors match."""
    given = {name.removeprefix("module."): value for name, value in given.items()}
    if any(name in own for name in given):
        return given
    prefixes = Counter(target[: -len(name)] for name in given for target in own if target.endswith("." + name))
    if not prefixes:
        return given
    prefix = prefixes.most_common(1)[0][0]
    return {prefix + name: value for name, value in given.items()}


def _other_bands(own: Tensor, given: Tensor) -> bool:
    """Whether two convolution kernels differ only in a small number of input channels."""
    same = own.ndim == given.ndim == 4 and own.shape[0] == given.shape[0] and own.shape[2:] == given.shape[2:]
    return same and max(own.shape[1], given.shape[1]) < 32


def adapt_bands(kernel: Tensor, num_bands: int) -> Tensor:
    """A first convolution (O, B, k, k) for another number of bands; its response to grey images is unchanged."""
    mean = kernel.float().mean(dim=1, keepdim=True)
    return (mean * kernel.shape[1] / num_bands).expand(-1, num_bands, -1, -1).clone()


# --------------------------------------------------------------------------------------------------------- export
def weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of the tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()


def export_safetensors(model: nn.Module, cfg: DictConfig, path: str | Path, **about: str) -> None:
    """Write a model with its config, bands, pixel scale, classes and a checksum in the file's metadata.

    Args:
        model: whose weights are written (the averaged ones, if the training kept them).
        cfg: its complete config.
        path: .safetensors file.
        about: further metadata.
    """
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    metadata = {
        "format": "pt",
        "config": to_yaml(cfg),
        "bands": ",".join(cfg.bands),
        "pixel_scale_arcsec": str(cfg.get("pixel_scale_arcsec")),
        "class_names": ",".join(cfg.class_names),
        "weights_sha256": weights_sha256(tensors),
        **about,
    }
    with atomic_path(path) as temporary:
        try:
            safetensors.torch.save_file(tensors, temporary, metadata)
        except safetensors.SafetensorError as error:  # a full disk, not an OSError there
            raise OSError(str(error)) from error
