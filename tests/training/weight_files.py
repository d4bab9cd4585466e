"""Files of weights in the forms that other programs write, and a small detector to put in them."""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

from deepdisc.config import instantiate, load

NARROW = [
    "model.backbone.bottom_up.stem_out_channels=8",
    "model.backbone.out_channels=8",
    "model.roi_heads.box_head.fc_dim=8",
    "model.roi_heads.mask_head.conv_dim=8",
]


def narrow_detector(*overrides):
    """A narrow Mask R-CNN R50-FPN."""
    return instantiate(load("configs/common/resnet_fpn.py", [*NARROW, *overrides]).model)


def detector(*overrides):
    """A narrow Mask R-CNN R18-FPN of two classes."""
    return narrow_detector("num_classes=2", "model.backbone.bottom_up.depth=18", *overrides)


def equal(a, b) -> bool:
    """Whether two state dicts are the same, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def write(model, path: Path, kind: str) -> Path:
    """Write a model's state dict as detectron2 ("detectron2", "bare" .pth) or its model zoo ("pkl") does."""
    state = model.state_dict()
    if kind == "detectron2":
        torch.save({"model": state, "optimizer": {"state": {}, "param_groups": []}, "iteration": 7}, path)
    elif kind == "bare":
        torch.save(state, path)
    elif kind == "pkl":
        arrays = OrderedDict((name, value.numpy()) for name, value in state.items())
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "zoo", "matching_heuristics": True}, protocol=2))
    return path


def write_caffe2(state, path: Path) -> Path:
    """Write a Mask R-CNN's state dict as Detectron did: blobs, norms without statistics, background first.

    With what MSRA's ImageNet backbone holds besides: a classifier, and a bias of the first convolution.
    """
    blobs = {}
    for name, value in state.items():
        if name.endswith(("running_mean", "running_var")):
            continue
        if "cls_score" in name:
            value = torch.cat([value[-1:], value[:-1]])
        elif "bbox_pred" in name:
            value = torch.cat([torch.full_like(value[:4], 7.0), value])
        elif "mask_head.predictor" in name:
            value = torch.cat([torch.full_like(value[:1], 7.0), value])
        blobs[caffe2_name(name)] = value.numpy()
        blobs[caffe2_name(name) + "_momentum"] = value.numpy()
    blobs |= {name: np.ones((3, 2), np.float32) for name in ("fc1000_w", "lr")}
    blobs |= {"fc1000_b": np.ones(3, np.float32), "conv1_b": np.zeros(len(blobs["conv1_w"]), np.float32)}
    path.write_bytes(pickle.dumps({"blobs": blobs, "cfg": "MODEL: {}"}, protocol=2))
    return path


def write_converted_torchvision(state, path: Path) -> Path:
    """Write a torchvision ResNet as detectron2's converter does (`R-50.pkl`): all but the stages goes to the stem."""
    renamed = {}
    for name, value in state.items():
        new = re.sub(r"^layer(\d)", lambda found: f"res{int(found[1]) + 1}", name)
        new = new if new != name else f"stem.{name}"
        new = re.sub(r"bn(\d)", r"conv\1.norm", new)
        new = new.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        renamed[new] = value.numpy()
    contents = {"model": renamed, "__author__": "torchvision", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(contents, protocol=2))
    return path


def caffe2_name(name: str) -> str:
    """Detectron's blob of a parameter of Mask R-CNN R50-FPN."""
    layer, part = re.fullmatch(r"(.*?)\.((?:norm\.)?(?:weight|bias))", name).groups()
    last = {"weight": "w", "bias": "b", "norm.weight": "bn_s", "norm.bias": "bn_b"}[part]
    layer = layer.removeprefix("backbone.").removeprefix("bottom_up.")
    blocks = {2: 2, 3: 3, 4: 5, 5: 2}  # the last block of each stage of R50
    if layer == "stem.conv1":
        blob = "conv1" if last == "w" else "res_conv1"
    elif layer.startswith("res"):
        stage, block, conv = layer.split(".")
        branch = "branch1" if conv == "shortcut" else f"branch2{'abc'[int(conv[-1]) - 1]}"
        blob = f"{stage}_{block}_{branch}"
    elif layer.startswith("fpn_"):
        stage = int(layer[-1])
        blob = f"res{stage}_{blocks[stage]}_sum"
        lateral = "_lateral" if stage < 5 else ""
        blob = f"fpn_inner_{blob}{lateral}" if "lateral" in layer else f"fpn_{blob}"
    else:
        blob = {
            "conv": "conv_rpn_fpn2", "objectness_logits": "rpn_cls_logits_fpn2", "anchor_deltas": "rpn_bbox_pred_fpn2",
            "fc1": "fc6", "fc2": "fc7", "cls_score": "cls_score", "bbox_pred": "bbox_pred", "deconv": "conv5_mask",
            "predictor": "mask_fcn_logits", "mask_fcn1": "_[mask]_fcn1", "mask_fcn2": "_[mask]_fcn2",
            "mask_fcn3": "_[mask]_fcn3", "mask_fcn4": "_[mask]_fcn4",
        }[layer.rpartition(".")[2]]  # fmt: skip
    return f"{blob}_{last}"
