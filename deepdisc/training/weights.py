"""Files of weights: detectron2's and DeepDISC's .pth, the model zoo's .pkl, Caffe2, torchvision, timm, pycls, our own.

`read_weights` returns them all under detectron2's names; `deepdisc.training.loading` puts them into a model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from deepdisc.config import from_yaml, to_yaml
from deepdisc.errors import InputError, first_line
from deepdisc.files import atomic_path
from deepdisc.training.checkpoint import save_state
from deepdisc.training.naming import Origin, pixel_statistics, translate
from deepdisc.training.pickles import load_pickle, load_torch

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
            return None if self.config is None else from_yaml(self.config, f"config inside {self.source}")
        except InputError:  # another program's text under that name
            return None

    @property
    def bands(self) -> tuple[str, ...] | None:
        """What its first convolution reads, in order; None where nothing tells."""
        named = self.setting("bands")
        return tuple(map(str, named)) if named else self.origin.bands


def read_weights(path: str | Path) -> Weights:
    """Read weights of any known program; nothing in the file is executed.

    .safetensors; .pkl (plain pickle: model zoo, Caffe2); anything else as what torch.save writes, with the state dict
    at the top or under "model", "state_dict" or "model_state". Of a checkpoint with averaged weights (EMA) these are
    taken.

    Raises:
        InputError: missing, unreadable, without weights, or a network that is none of ours.
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
        about = {"iteration": contents.get("iteration")}
        author = contents.get("__author__")
        state = _state_dict(contents)
    tensors = {str(name): _tensor(value) for name, value in state.items() if isinstance(value, Tensor | np.ndarray)}
    if not tensors:
        raise InputError(f"{path}: holds no weights; expected a state dict, or one under 'model'")
    for name, value in tensors.items():
        if value.layout != torch.strided or value.is_meta or value.is_quantized:
            raise InputError(f"{path}: {name} is no plain dense tensor; save the weights as such")
    try:
        translated, origin = translate(tensors, author)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return Weights(translated, path, config, about | pixel_statistics(tensors), origin)


def _state_dict(contents: Mapping[str, Any]) -> Mapping[str, Any]:
    """The weights among the parts of a checkpoint: the average if there is one."""
    averaged = contents.get("ema")
    if isinstance(averaged, Mapping):
        return {name.removeprefix("module."): value for name, value in averaged.items() if name != "n_averaged"}
    for part in ("model", "state_dict", "model_state", "blobs"):
        if isinstance(contents.get(part), Mapping):
            return contents[part]
    return contents


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
