"""Models by name: those listed in model_zoo/models.yaml, and checkpoints of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from deepdisc.config import from_yaml, instantiate, load, shipped
from deepdisc.errors import InputError, nearest
from deepdisc.files import sha256
from deepdisc.lazy import TARGET, locate
from deepdisc.overrides import apply_override
from deepdisc.training.checkpoint import export_safetensors, load_weights, read_weights

REQUIRED = ("config", "weights", "sha256", "bands", "pixel_scale_arcsec", "training_set", "command", "scores")
# To build a config is to call what it names, and a checkpoint may come from anybody. Add modules of your own here.
TRUSTED = ("deepdisc.", "torch.nn.")


def entries() -> dict[str, dict[str, Any]]:
    """The entries of models.yaml by name; `weights` becomes the path of the file.

    Raises:
        InputError: an entry lacks a key.
    """
    path = shipped("model_zoo/models.yaml")
    found = yaml.safe_load(path.read_text()) or {}
    for name, entry in found.items():
        for key in REQUIRED:
            if key not in entry:
                raise InputError(f"{path}: model {name!r} has no {key!r}")
        entry["weights"] = path.parent / entry["weights"]
    return found


def entry(name: str) -> dict[str, Any]:
    """One entry; InputError names the nearest."""
    found = entries()
    if name not in found:
        close = nearest(name, found)
        hint = f"; the nearest is {close!r}" if close else ""
        raise InputError(f"no model {name!r}, and no file of that name; there are: {', '.join(found) or 'none'}{hint}")
    return found[name]


def verify(name: str) -> Path:
    """Check a shipped model's weights against their SHA-256 and return their path.

    Raises:
        InputError: unknown name, file missing, or another checksum.
    """
    listed = entry(name)
    if not listed["weights"].is_file():
        raise InputError(f"model {name!r}: its weights {listed['weights']} are missing; install the package anew")
    found = sha256(listed["weights"])
    if found != listed["sha256"]:
        raise InputError(
            f"model {name!r}: {listed['weights'].name} has SHA-256 {found[:12]}..., models.yaml says "
            f"{str(listed['sha256'])[:12]}...; install the package anew"
        )
    return listed["weights"]


def load_model(name_or_path: str | Path, device: str | torch.device = "cpu") -> tuple[nn.Module, DictConfig]:
    """Build a trained model.

    Args:
        name_or_path: a name of models.yaml, or a checkpoint (.pth, .pkl, .safetensors) that holds its config or has it
            beside it as config.yaml.
        device: where to put it.

    Returns:
        The model in evaluation mode, and its config.

    Raises:
        InputError: unknown name, unreadable file, no config, a config in the checkpoint that names anything but the
            classes of `TRUSTED` modules, or weights of another architecture than the config's.
    """
    path = Path(name_or_path)
    if not path.is_file():
        if path.suffix in (".pth", ".pkl", ".safetensors"):
            raise InputError(f"no checkpoint at {path}; `deepdisc models list` names those that are shipped")
        path = verify(str(name_or_path))
    weights = read_weights(path)
    beside = path.parent / "config.yaml"
    if weights.config is not None:
        source = f"config inside {path}"
        cfg = from_yaml(weights.config, source)
        try:
            _check_trusted(OmegaConf.to_container(cfg.model, resolve=True), source)
        except OmegaConfBaseException as error:
            raise InputError(f"{source}: {str(error).splitlines()[0]}") from error
    elif beside.is_file():
        cfg = load(beside)
    else:
        raise InputError(
            f"{path} holds no config and there is no config.yaml beside it; put there the config it was trained with"
        )
    model = instantiate(cfg.model)
    load_weights(model, weights, strict=True)
    return model.to(device).eval(), cfg


def _check_trusted(node: Any, source: str) -> None:
    """Refuse a resolved config that would call anything but the classes of `TRUSTED` modules."""
    if isinstance(node, Mapping) and TARGET in node:
        name = str(node[TARGET])
        target = locate(name, source) if name.startswith(TRUSTED) else None
        if not (isinstance(target, type) and f"{target.__module__}.".startswith(TRUSTED)):
            raise InputError(
                f"{source}: it would call {name!r}, which is no class of {' or '.join(TRUSTED)}*; a checkpoint from a "
                "stranger could run anything that way: if it is your own, add its module to deepdisc.model_zoo.TRUSTED"
            )
    items = node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ()
    for item in items:
        _check_trusted(item, source)


def export(checkpoint: str | Path, output: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Write a checkpoint's weights (averaged, if it has such) as one .safetensors file that `load_model` reads.

    Args:
        checkpoint: name or path, see `load_model`.
        output: the file to write.
        overrides: "key=value" changes of the config that the file will carry: thresholds and the like.

    Raises:
        InputError: `output` is no .safetensors, an unknown key, or one that the weights do not fit any more.
    """
    output = Path(output)
    if output.suffix != ".safetensors":
        raise InputError(f"--output {output}: the exported model is a .safetensors file; give it that suffix")
    model, cfg = load_model(checkpoint)
    for text in overrides:
        apply_override(cfg, text)
    changed = instantiate(cfg.model)
    try:
        changed.load_state_dict(model.state_dict())
    except RuntimeError as error:
        raise InputError(f"{' '.join(overrides)}: {checkpoint} has another architecture; train anew with it") from error
    export_safetensors(changed, cfg, output)
    return output
