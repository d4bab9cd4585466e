"""Models by name: those listed in model_zoo/models.yaml, and checkpoints of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from torch import nn

from deepdisc.backbones.stem import BandAdapter
from deepdisc.config import instantiate, load, shipped
from deepdisc.detectron2_settings import detectron2_notes
from deepdisc.errors import InputError, first_line, nearest
from deepdisc.files import refuse_to_overwrite, sha256
from deepdisc.lazy import TARGET, is_lazy_call, join, locate
from deepdisc.overrides import apply_override
from deepdisc.training.loading import Adapter, LoadReport, load_weights
from deepdisc.training.weights import (
    SUFFIXES,
    Weights,
    export_detectron2,
    export_safetensors,
    read_config,
    read_weights,
)

REQUIRED = ("config", "weights", "sha256", "bands", "pixel_scale_arcsec", "training_set", "command", "scores")
FORMATS = {"safetensors": ".safetensors", "detectron2": ".pth"}  # of `export`, and their suffixes
# To build a config is to call what it names, and a checkpoint may come from anybody: networks of these modules, and
# these other classes, which read and write no files. Add modules ("mine.") and classes ("mine.Part") of your own here.
TRUSTED = (
    "deepdisc.backbones.",
    "deepdisc.detector.",
    "deepdisc.heads.",
    "torch.nn.modules.",
    "deepdisc.detector.box_coder.BoxCoder",
    "deepdisc.detector.matcher.Matcher",
)
_LEARNED = (
    "bands", "num_bands", "class_names", "num_classes", "anchor_generator", "box_coder", "stride_in_1x1"
)  # fmt: skip


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
        InputError: unknown name, unreadable file, no config, a config that names anything but the classes of `TRUSTED`
            or cannot be built, or weights of another architecture than the config's.
    """
    weights = _read(name_or_path)
    cfg, source = _config_of(weights)
    model = _build(cfg, source, weights)
    load_weights(model, weights, strict=True, bands=cfg.get("bands"))
    # faster convolutions on any device; the order in memory, not the weights
    return model.to(device, memory_format=torch.channels_last).eval(), cfg


def adapt_model(
    name_or_path: str | Path, cfg: DictConfig, adapter: Adapter | None = None
) -> tuple[nn.Module, LoadReport]:
    """Build the model of a config and start it from a checkpoint that was made for other bands, classes or heads.

    For example a 3-band detectron2 file in a 9-band model::

        cfg = load("configs/common/resnet_fpn.py", ["num_bands=9", "num_classes=2"])
        model, report = adapt_model("model_final_f10217.pkl", cfg, BandAdapter("repeat"))

    Args:
        name_or_path: as for `load_model`; no config is needed.
        cfg: with `model`, and `bands` where bands are to be found by name.
        adapter: how the first convolution is made; by default as cfg.train.init_bands says, else by the mean.

    Returns:
        The model, on the CPU in evaluation mode, and what became of each tensor.

    Raises:
        InputError: see `deepdisc.training.loading.load_weights`.
    """
    if adapter is None:
        settings = OmegaConf.select(cfg, "train.init_bands")
        adapter = BandAdapter() if settings is None else instantiate(settings)
    model = instantiate(cfg.model)
    report = load_weights(model, _read(name_or_path), strict=False, bands=cfg.get("bands"), adapter=adapter)
    return model.eval(), report


def weights_path(name_or_path: str | Path) -> Path:
    """The file that a path, or the name of a model of models.yaml, stands for; InputError when there is none."""
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.suffix in SUFFIXES:
        raise InputError(f"no checkpoint at {path}; `deepdisc models list` names those that are shipped")
    return verify(str(name_or_path))


def _read(name_or_path: str | Path) -> Weights:
    return read_weights(weights_path(name_or_path))


def _config_of(weights: Weights) -> tuple[DictConfig, str]:
    """The config inside a checkpoint or beside it, and which it is, in words."""
    path = weights.source
    beside = path.parent / "config.yaml"
    if weights.config is not None:
        source = f"config inside {path}"
        return read_config(weights.config, source), source
    if beside.is_file():
        read_config(beside.read_text(encoding="utf-8", errors="replace"), str(beside))
        return load(beside), str(beside)
    raise InputError(
        f"{path} holds no config and there is no config.yaml beside it; put there the config it was trained with"
    )


def _build(cfg: DictConfig, source: str, weights: Weights) -> nn.Module:
    """Build the model of a stranger's config, once all that it would call is known to be harmless."""
    try:
        node = cfg.get("model")
        node = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    except OmegaConfBaseException as error:
        raise InputError(f"{source}: {first_line(error)}") from error
    if not is_lazy_call(node):
        raise InputError(f"{source}: its model is no network: {TARGET} and arguments are needed, found {node!r:.60}")
    _check_trusted(node, source)
    if not issubclass(locate(node[TARGET], source), nn.Module):
        raise InputError(f"{source}: its model, {node[TARGET]}, is no network (torch.nn.Module)")
    try:
        _check_size(node, weights)
        return instantiate({"model": node})["model"]  # not cfg.model: what is built is what was checked
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    except Exception as error:  # a constructor stumbles over foreign values with any kind of exception
        raise InputError(f"{source}: its model cannot be built: {first_line(error)}") from error


def _check_trusted(node: Any, source: str) -> None:
    """Refuse a resolved config that would call anything but the classes of `TRUSTED`."""
    if isinstance(node, Mapping) and TARGET in node and not _is_trusted(node[TARGET], source):
        raise InputError(
            f"{source}: it would call {node[TARGET]!r}, which is no network of {', '.join(TRUSTED[:4])}; a checkpoint "
            "from a stranger could run anything that way: if it is your own, add its module to "
            "deepdisc.model_zoo.TRUSTED"
        )
    items = node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ()
    for item in items:
        _check_trusted(item, source)


def _is_trusted(name: Any, source: str) -> bool:
    """Whether it is a class of `TRUSTED`; of another module nothing is even imported."""
    if not (isinstance(name, str) and name.startswith((*TRUSTED, "torch.nn."))):
        return False
    target = locate(name, f"{source}: model")
    if not isinstance(target, type):
        return False
    modules = tuple(item for item in TRUSTED if item.endswith("."))
    full_name = f"{target.__module__}.{target.__qualname__}"
    return full_name in TRUSTED or (issubclass(target, nn.Module) and full_name.startswith(modules))


def _check_size(model: Mapping[str, Any], weights: Weights) -> None:
    """Refuse a network far larger than its weights before it takes the memory."""
    try:
        with torch.device("meta"):
            planned = instantiate(model)
    except Exception:  # not every constructor can do without memory
        return
    count = sum(tensor.numel() for tensor in planned.state_dict().values())
    given = sum(tensor.numel() for tensor in weights.tensors.values())
    if count > 10 * given + 1e8:
        raise InputError(
            f"its model has {count} parameters, {weights.source} has {given}; use the config that belongs to it"
        )


def export(
    checkpoint: str | Path,
    output: str | Path,
    overrides: Sequence[str] = (),
    to: str = "safetensors",
    keep_heads: bool = False,
) -> Path:
    """Write a checkpoint's weights (averaged, if it has such) for this program or for detectron2.

    Args:
        checkpoint: name or path, see `load_model`.
        output: the file to write.
        overrides: "key=value" changes of the config that the file will carry: thresholds and the like.
        to: "safetensors": weights and config in one file, which `load_model` reads. "detectron2": {"model": ...} under
            detectron2's keys; what its config must say is printed.
        keep_heads: "detectron2": our measurement heads, too, for `deepdisc.interop.detectron2`; the other always has
            them.

    Raises:
        InputError: an unknown format, or `output` with another suffix than its, or existing; an unknown key, or one
            that the weights do not fit any more, or overrides where the format has none.
    """
    output = Path(output)
    if to not in FORMATS:
        raise InputError(f"to={to!r} is no format of a model: choose one of {', '.join(FORMATS)}")
    suffix = FORMATS[to]
    if output.suffix != suffix:
        other = "; --to detectron2 writes .pth" if output.suffix == ".pth" else ""
        raise InputError(f"--output {output}: the exported model is a {suffix} file; give it that suffix{other}")
    if overrides and to == "detectron2":
        raise InputError(f"{overrides[0]}: detectron2's file holds no settings; change them in its config")
    refuse_to_overwrite([output])
    model, cfg = load_model(checkpoint)
    if to == "detectron2":
        heads = export_detectron2(model, output, keep_heads)
        notes = "\n".join(detectron2_notes(cfg, heads, keep_heads))
        Console(stderr=True, soft_wrap=True).print(notes, highlight=False, markup=False)
        return output
    learned = dict(_learned(cfg))
    for text in overrides:
        apply_override(cfg, text)
        if dict(_learned(cfg)) != learned:
            raise InputError(
                f"{text}: {checkpoint} was trained with what stands there, and its weights mean nothing else; leave it "
                "out, or fine-tune it to the change with train.init_checkpoint=FILE"
            )
    changed = instantiate(cfg.model)
    try:
        changed.load_state_dict(model.state_dict())
    except RuntimeError as error:
        raise InputError(f"{' '.join(overrides)}: {checkpoint} has another architecture; train anew with it") from error
    export_safetensors(changed, cfg, output)
    return output


def _learned(cfg: DictConfig) -> Iterator[tuple[str, Any]]:
    """The settings, by key, that give the weights their meaning without changing their shapes."""
    try:
        pending = [("", OmegaConf.to_container(cfg, resolve=True))]
    except OmegaConfBaseException as error:
        raise InputError(f"the config has a link to nothing: {first_line(error)}") from error
    while pending:
        key, node = pending.pop()
        if key.rpartition(".")[2] in _LEARNED:
            yield key, node
        items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
        pending += [(join(key, name), item) for name, item in items]
