"""Files of weights: detectron2's and DeepDISC's .pth, the model zoo's .pkl, Caffe2, torchvision, timm, pycls, our own.

`read_weights` returns them all under detectron2's names; `deepdisc.training.loading` puts them into a model.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from deepdisc.config import from_yaml, to_yaml
from deepdisc.errors import InputError, first_line
from deepdisc.files import atomic_path
from deepdisc.training.checkpoint import save_state
from deepdisc.training.naming import Origin, pixel_statistics, translate
from deepdisc.training.pickles import load_pickle, load_torch

# Those that become float32 with all their meaning.
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_COUNTER = re.compile(r"(^|\.)(num_batches_tracked|n_averaged|iteration|epoch|step)$")
_VARIANCE = re.compile(r"(\.running_var|_bn_riv)$")
_DEEPEST = 50  # a config has some ten levels
SUFFIXES = (".pth", ".pt", ".pkl", ".pyth", ".safetensors")
# Heads of our own; detectron2 has no name for them.
_OUR_HEADS = "roi_heads.heads."


@dataclass
class Weights:
    """A state dict read from a file, and what the file says about itself.

    Attributes:
        tensors: by detectron2's name.
        source: the file.
        config: YAML text of the config that built the model, or None.
        about: further metadata (pixel scale, iteration ...), pixel_mean and pixel_std of older detectron2 files.
        origin: the program that wrote it, and what follows from that.
    """

    tensors: dict[str, Tensor]
    source: Path
    config: str | None = None
    about: dict[str, Any] = field(default_factory=dict)
    origin: Origin = field(default_factory=lambda: Origin("detectron2"))

    def __post_init__(self):
        self.source = Path(self.source)

    def setting(self, key: str) -> Any:
        """The value of a key of the config that the file carries; None without one."""
        if self._settings is None:
            return None
        try:
            value = OmegaConf.select(self._settings, key)
        except OmegaConfBaseException:  # a link to nothing
            return None
        return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value

    @cached_property
    def _settings(self) -> DictConfig | None:
        try:
            return None if self.config is None else read_config(self.config, f"config inside {self.source}")
        except InputError:  # another program's text under that name
            return None

    @property
    def bands(self) -> tuple[str, ...] | None:
        """What its first convolution reads, in order; None where nothing tells."""
        named = self.setting("bands")
        return tuple(map(str, named)) if named else self.origin.bands


def read_config(text: str, source: str) -> DictConfig:
    """Read the YAML of a config that came with a checkpoint.

    Raises:
        InputError: it is none, or would grow without bound: aliases are copied each time they are named, and `to_yaml`
            writes none.
    """
    depth = 0
    try:
        for event in yaml.parse(text, yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise InputError(f"{source}: not a config: it has the YAML alias *{event.anchor}; write it out")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise InputError(f"{source}: not a config: its keys are more than {_DEEPEST} levels deep")
    except yaml.YAMLError:
        pass  # told below, with the line
    return from_yaml(text, source)


def read_weights(path: str | Path) -> Weights:
    """Read weights of any known program; nothing in the file is executed.

    .safetensors; .pkl (plain pickle: model zoo, Caffe2); anything else as what torch.save writes, with the state dict
    at the top or under "model", "state_dict" or "model_state". Of a checkpoint with averaged weights (EMA) these are
    taken.

    Raises:
        InputError: missing, unreadable, without weights, or a network that is none of ours; a tensor that holds no
            weights (see `_check_tensor`), or two of one name.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    if path.suffix == ".safetensors":
        state, config, about = _read_safetensors(path)
        author = None
    else:
        contents = load_pickle(path) if path.suffix == ".pkl" else load_torch(path)
        if not isinstance(contents, dict):
            raise InputError(f"{path}: holds a {type(contents).__name__}, not weights")
        config = contents.get("config") if isinstance(contents.get("config"), str) else None
        about = {"iteration": _count(contents.get("iteration"))}
        author = contents.get("__author__")
        state = _state_dict(contents)
    tensors = {str(name): _tensor(value) for name, value in state.items() if isinstance(value, Tensor | np.ndarray)}
    if not tensors:
        raise InputError(f"{path}: holds no weights; expected a state dict, or one under 'model'")
    for name, value in tensors.items():
        _check_tensor(path, name, value)
    try:
        translated, origin = translate(tensors, author)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if len(translated) + len(origin.left_out) < len(tensors):
        kept = {id(value) for value in translated.values()}
        lost = [name for name, x in tensors.items() if id(x) not in kept and not name.endswith(origin.left_out)]
        name = next(iter(lost), "a tensor")
        raise InputError(f"{path}: {name} is there twice, under another prefix, too; save one of them")
    return Weights(translated, path, config, about | pixel_statistics(tensors), origin)


def _check_tensor(path: Path, name: str, value: Tensor) -> None:
    """Refuse a tensor that is no weights.

    Raises:
        InputError: not dense; of another kind of number than those that float32 can stand for, counters excepted; too
            large for float32; a variance below zero. That it is finite is checked where it is needed.
    """
    what = f"{path}: {name}"
    is_plain = value.layout == torch.strided and not (value.is_meta or value.is_quantized)
    # an expanded tensor, a few bytes of the file that would fill the memory
    if not is_plain or value.numel() * value.element_size() > max(value.untyped_storage().nbytes(), 2**20):
        raise InputError(f"{what} is no plain dense tensor; save the weights as such")
    if value.dtype in _INTEGERS and (_COUNTER.search(name) or value.ndim == 0):
        return
    kind = str(value.dtype).removeprefix("torch.")
    if value.dtype not in _FLOATS:
        raise InputError(f"{what} is of type {kind}, weights are float32, float64, float16 or bfloat16; convert it")
    if value.dtype == torch.float64 and bool((value.float().isinf() & value.isfinite()).any()):
        raise InputError(
            f"{what} is of type {kind} and holds values beyond float32 (3.4e38), in which a model computes"
        )
    if _VARIANCE.search(name) and bool((value < 0).any()):
        raise InputError(f"{what}, a variance, is negative ({float(value.min()):g}); the file is damaged")


def _count(value: Any) -> int | None:
    """An iteration as a plain number, None for anything else."""
    if isinstance(value, Tensor | np.ndarray) and math.prod(value.shape) == 1:
        value = value.item()
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _state_dict(contents: Mapping[str, Any]) -> Mapping[str, Any]:
    """The weights among the parts of a checkpoint: the average if there is one."""
    averaged = contents.get("ema")
    nested = averaged.get("state_dict", averaged) if isinstance(averaged, Mapping) else None
    if _holds_tensors(nested):
        return {name: value for name, value in nested.items() if name != "n_averaged"}
    for part in ("model", "state_dict", "model_state", "blobs"):
        if isinstance(contents.get(part), Mapping):
            return contents[part]
    return contents


def _holds_tensors(node: Any) -> bool:
    return isinstance(node, Mapping) and any(isinstance(value, Tensor | np.ndarray) for value in node.values())


def _tensor(value: Tensor | np.ndarray) -> Tensor:
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value.detach()


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], str | None, dict[str, Any]]:
    try:
        with safetensors.safe_open(path, framework="pt") as handle:
            about = dict(handle.metadata() or {})
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path}: cannot be read as safetensors: {first_line(error)}") from error
    if "weights_sha256" in about and about["weights_sha256"] != weights_sha256(tensors):
        raise InputError(f"{path}: its weights are damaged (checksum differs); get the file again")
    return tensors, about.pop("config", None), about


def weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of the tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------------------- writing
def export_safetensors(model: nn.Module, cfg: DictConfig, path: str | Path, **about: str) -> None:
    """Write a model with its config, bands, pixel scale, classes and a checksum in the file's metadata.

    Args:
        model: whose weights are written (the averaged ones, if the training kept them).
        cfg: its complete config.
        path: .safetensors file.
        about: further metadata.
    """
    tensors = _plain_tensors(model)
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


def export_detectron2(model: nn.Module, path: str | Path, keep_heads: bool = False) -> list[str]:
    """Write a model as detectron2's checkpointer reads it: {"model": plain tensors by detectron2's names}.

    Args:
        model: whose weights are written.
        path: .pth file.
        keep_heads: also write our measurement heads, under their own names.

    Returns:
        The names of the tensors of our own heads.
    """
    tensors = _plain_tensors(model)
    ours = [name for name in tensors if name.startswith(_OUR_HEADS)]
    if not keep_heads:
        tensors = {name: value for name, value in tensors.items() if name not in ours}
    save_state({"model": tensors}, path)
    return ours


def _plain_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in model.state_dict().items()
    }
