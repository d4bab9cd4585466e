"""What detectron2's config must say for a model that was built here: what its state dict does not hold.

Both configs are brought into detectron2's terms, and what differs from a config that detectron2 has is listed.
Legend: *node* = arguments of a lazy call, by name; *settings* = values of a whole model by detectron2's key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from deepdisc.config import load
from deepdisc.detector.pooling import feature_stride
from deepdisc.lazy import TARGET, is_lazy_call, join, locate, parameters

Node = dict[str, Any]
# ours, and the same in detectron2
_DEFAULTS = {
    "resnet_fpn": "configs/common/models/mask_rcnn_fpn.py",
    "cascade_resnet_fpn": "configs/common/models/cascade_rcnn.py",
    "mvitv2_fpn": "projects/MViTv2/configs/cascade_mask_rcnn_mvitv2_t_3x.py",
    "mvitv2_s_fpn": "projects/MViTv2/configs/cascade_mask_rcnn_mvitv2_s_3x.py",
    "mvitv2_b_fpn": "projects/MViTv2/configs/cascade_mask_rcnn_mvitv2_b_3x.py",
}
# said even if they are detectron2's defaults: nothing fails, or everything does, if they are wrong
_ALWAYS = re.compile(r"pixel_(mean|std)|.*\.(stem\.in_channels|in_chans|stride_in_1x1)|roi_heads\.num_classes")
# without a counterpart: they change no number, or `_CANNOT` speaks of them
_OURS_ALONE = ("checkpoint_activations", "chunk_size", "heads", "one_class_per_object", "stem_max_pool", "stretch")
_CANNOT = {
    "stretch": (None, "the stretch: give it images that are stretched already"),
    "backbone.bottom_up.stem_max_pool": (True, "a stem without max-pool: a stem class of your own"),
    "roi_heads.box_predictor.one_class_per_object": (False, "one class per object: an object may come twice"),
}
_REMARKS = {"stages.out_channels": "  # widths other than the paper's: stages by ResNet.make_stage"}


def detectron2_notes(cfg: DictConfig, heads: Sequence[str] = (), keep_heads: bool = False) -> list[str]:
    """What detectron2's config must say for an exported model, and what detectron2 cannot do, in lines.

    Args:
        cfg: of the model.
        heads: names of the tensors of our measurement heads.
        keep_heads: whether they are written.
    """
    settings = _settings(cfg.model)
    defaults = {name: _settings(load(f"configs/common/{name}.py").model) for name in _DEFAULTS}
    nearest = min(defaults, key=lambda name: len(_differing(settings, defaults[name], both=True)))
    lines = [f"detectron2's config must have, beyond its {_DEFAULTS[nearest]}:"]
    for key, value in _collapsed(settings, _differing(settings, defaults[nearest])).items():
        remark = next((text for end, text in _REMARKS.items() if key.endswith(end)), "")
        lines.append(f"  model.{key} = {value!r}{remark}")
    if cfg.get("bands"):
        lines.append(f"  images of the bands {', '.join(cfg.bands)}, in this order")
    stages = OmegaConf.select(cfg.model, "roi_heads.box_predictors") or []
    for key, (default, text) in _CANNOT.items():
        # of a cascade, the last predictor detects
        key = key.replace("box_predictor.", f"box_predictors[{len(stages) - 1}].") if stages else key
        if OmegaConf.select(cfg.model, key, default=default) != default:
            lines.append(f"detectron2 does not have {text} (model.{key})")
    if heads:
        names = sorted({name.split(".")[2] for name in heads})
        fate = "written under our names, for deepdisc.interop.detectron2" if keep_heads else "left out (--keep-heads)"
        lines.append(f"measurement heads {', '.join(names)}: {fate}")
    return lines


def _differing(settings: Mapping[str, Any], defaults: Mapping[str, Any], both: bool = False) -> list[str]:
    """Keys of `settings` (or of either) whose value is another in `defaults`, or is to be said in any case."""
    keys = [*settings, *(defaults.keys() - settings.keys() if both else ())]
    absent = object()
    return [key for key in keys if settings.get(key, absent) != defaults.get(key, absent) or _ALWAYS.fullmatch(key)]


def _collapsed(settings: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """These settings; one that is the same for all items of a list (the stages of a cascade) is said once."""
    found = {}
    for key in keys:
        start, *rest = re.split(r"\[\d+\]", key)
        alike = [key]
        if rest:
            alike = [x for x in settings if re.fullmatch(rf"{re.escape(start)}\[\d+\]{re.escape(rest[0])}", x)]
        if len(alike) > 1 and all(x in keys and settings[x] == settings[key] for x in alike):
            found[f"{start}[*]{rest[0]}"] = settings[key]
        else:
            found[key] = settings[key]
    return found


def _settings(model: DictConfig) -> dict[str, Any]:
    """All settings of a model, those that its config leaves out too."""
    found = {}
    for key, value in _flattened(OmegaConf.to_container(model, resolve=True), ""):
        key = key.replace("mask_head.pooler", "mask_pooler")
        found[re.sub(r"(box|mask)_pooler\.in_features", r"\1_in_features", key)] = value
    bands = found.get("backbone.bottom_up.stem.in_channels", found.get("backbone.bottom_up.in_chans", 1))
    for name in ("pixel_mean", "pixel_std"):
        if len(found.get(name, ())) == 1:  # detectron2 wants one for each band
            found[name] = found[name] * bands
    return found


def _flattened(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    if is_lazy_call(node):
        package, _, kind = node[TARGET].rpartition(".")
        known = parameters(locate(node[TARGET], key)) or {}
        defaults = {name: found.default for name, found in known.items() if found.default is not found.empty}
        node = {name: value for name, value in {**defaults, **node}.items() if name not in (TARGET, *_OURS_ALONE)}
        if key:
            yield key, kind
        if package.startswith("deepdisc."):  # another's class of that name has other arguments
            node = _IN_DETECTRON2.get(kind, dict)(node)
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _flattened(value, join(key, name))
    elif isinstance(node, list) and any(isinstance(item, Mapping) for item in node):
        for index, item in enumerate(node):
            yield from _flattened(item, f"{key}[{index}]")
    else:
        yield key, list(node) if isinstance(node, tuple) else node


# ------------------------------------------------------------------------------------------------- arguments, by class
def _renamed(node: Node, **names: str | None) -> Node:
    """The same under other names, without those of which the new name is None."""
    return {names.get(old, old): value for old, value in node.items() if names.get(old, old) is not None}


def _resnet(node: Node) -> Node:
    is_deep = node["depth"] >= 50
    width = node["res2_out_channels"] or node["stem_out_channels"] * (4 if is_deep else 1)
    renamed = {
        "stem.in_channels": node["in_channels"],
        "stem.out_channels": node["stem_out_channels"],
        "stem.norm": node["norm"],
        "stages.depth": node["depth"],
        "stages.out_channels": [width * 2**stage for stage in range(4)],
        "stages.norm": node["norm"],
        "freeze_at": node["freeze_at"],
    }
    return renamed | ({"stages.stride_in_1x1": node["stride_in_1x1"]} if is_deep else {})


def _mvit(node: Node) -> Node:
    return _renamed(node, in_channels="in_chans", freeze_at=None)


def _rpn(node: Node) -> Node:
    strides = [feature_stride(name) for name in node["in_features"]]
    return {**_renamed(node, box_coder="box2box_transform"), "anchor_generator.strides": strides}


def _rpn_head(node: Node) -> Node:
    return {**_renamed(node, num_conv=None), "conv_dims": [-1] * node["num_conv"]}


def _pooler(node: Node) -> Node:
    return {**node, "scales": [1 / feature_stride(name) for name in node["in_features"]]}


def _box_head(node: Node) -> Node:
    return {
        "input_shape.channels": node["in_channels"],
        "input_shape.height": node["input_size"],
        "input_shape.width": node["input_size"],
        "conv_dims": [node["conv_dim"]] * node["num_conv"],
        "fc_dims": [node["fc_dim"]] * node["num_fc"],
        "conv_norm": node["norm"],
    }


def _box_predictor(node: Node) -> Node:
    return _renamed(node, in_dim="input_shape.channels", box_coder="box2box_transform", num_classes=None)


def _mask_head(node: Node) -> Node:
    convs = [node["conv_dim"]] * (node["num_conv"] + 1)  # the deconvolution, too
    renamed = _renamed(node, in_channels="input_shape.channels", norm="conv_norm", conv_dim=None, num_conv=None)
    return {**_renamed(renamed, num_classes=None), "conv_dims": convs}


_IN_DETECTRON2: dict[str, Callable[[Node], Node]] = {
    "ResNet": _resnet,
    "MViT": _mvit,
    "RPN": _rpn,
    "RPNHead": _rpn_head,
    "ROIPooler": _pooler,
    "BoxHead": _box_head,
    "BoxPredictor": _box_predictor,
    "MaskHead": _mask_head,
}
