"""Parameter names of other programs, translated into detectron2's, which are ours.

Known are Caffe2 (Detectron, and the ImageNet backbones that detectron2 starts from), torchvision (ResNet, and the
ResNet-FPN of its detectors), timm (ResNet, MViTv2) and pycls (MViTv2). What has no counterpart here, such as the
classifier of ImageNet, is set aside by name. Everything else keeps its name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate

from torch import Tensor

from deepdisc.errors import InputError

RGB = ("red", "green", "blue")
BGR = ("blue", "green", "red")
BOTTOM_UP = "backbone.bottom_up."
CAFFE2 = "Caffe2 (Detectron)"
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.|model\.)+")


@dataclass(frozen=True)
class Origin:
    """Which program wrote a file, and what follows from that.

    Attributes:
        program: in words.
        stride_in_1x1: where its ResNets have their strides (see `BottleneckBlock`); None where nothing tells.
        sure: False where that is only a guess from the pixel statistics.
        bands: what its first convolution reads, in order; None where nothing tells.
        affine_norms: its batch norms are scale and shift alone, which include the statistics.
        left_out: names of tensors that have no counterpart here.
        notes: what the user should know.
    """

    program: str
    stride_in_1x1: bool | None = None
    sure: bool = True
    bands: tuple[str, ...] | None = None
    affine_norms: bool = False
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class _Translation:
    """Tensors under their new names, and the old names of those without one."""

    origin: Origin
    tensors: dict[str, Tensor] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def add(self, old: str, new: str | None, value: Tensor) -> None:
        if new is None:
            self.left_out.append(old)
        else:
            self.tensors[new] = value

    def result(self) -> tuple[dict[str, Tensor], Origin]:
        return self.tensors, replace(self.origin, left_out=tuple(self.left_out))


def translate(tensors: Mapping[str, Tensor], author: str | None = None) -> tuple[dict[str, Tensor], Origin]:
    """Give tensors detectron2's names, layouts and order of classes.

    Args:
        tensors: by the names of any known program.
        author: "__author__" of a model-zoo file.

    Returns:
        The tensors by detectron2's names, and where they come from.

    Raises:
        InputError: a network of a known program that is none of ours.
    """
    tensors = {_WRAPPERS.sub("", name): value for name, value in tensors.items()}
    names = "\n".join(tensors)
    if re.search(r"^(res\d_\d+_branch|res_conv1_bn|fpn_inner_|conv_rpn_)", names, re.MULTILINE):
        return _from_caffe2(tensors)
    if re.search(r"^(backbone\.)?body\.layer1\.", names, re.MULTILINE):
        return _from_torchvision_detector(tensors)
    if re.search(r"^(backbone\.|encoder\.)?layer1\.0\.conv1\.weight$", names, re.MULTILINE):
        return _from_resnet(tensors)
    if re.search(r"^stages\.0\.blocks\.0\.attn\.pool_q\.", names, re.MULTILINE):
        return _from_timm_mvit(tensors)
    if re.search(r"^blocks\.0\.attn\.pool_q\.", names, re.MULTILINE):
        return _from_pycls(tensors)
    return _from_detectron2(tensors, author)


# --------------------------------------------------------------------------------------------------------- detectron2
_IMAGENET_MEAN = (123.675, 116.28, 103.53)  # red, green, blue
# settings, and the classifier of ImageNet as detectron2's converters name it
_NOT_OURS = re.compile(r"(^|\.)(pixel_mean|pixel_std|cell_anchors\.\d+|stem\.fc\.(weight|bias))$")


def pixel_statistics(tensors: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """The "pixel_mean" and "pixel_std" that older detectron2 files hold among the weights, one value per band."""
    return {
        part: [round(float(x), 3) for x in value.flatten()]
        for name, value in tensors.items()
        if (part := name.rpartition(".")[2]) in ("pixel_mean", "pixel_std")
    }


def _from_detectron2(tensors: Mapping[str, Tensor], author: str | None) -> tuple[dict[str, Tensor], Origin]:
    """Settings and a classifier are set aside; the pixel statistics may tell the colours and the kind of ResNet."""
    found = pixel_statistics(tensors)
    mean, std = found.get("pixel_mean", []), found.get("pixel_std", [])
    order, strides, sure = None, None, False
    if len(mean) == 3 and all(abs(a - b) < 1 for a, b in zip(mean, _IMAGENET_MEAN, strict=True)):
        order = RGB
    elif len(mean) == 3 and all(abs(a - b) < 1 for a, b in zip(mean, reversed(_IMAGENET_MEAN), strict=True)):
        order = BGR
    if order and std:  # MSRA's weights were made for images with another mean only, torchvision's also divide
        strides = all(value == 1 for value in std)
    program = "detectron2"
    if author == "torchvision":
        program, order, strides, sure = "torchvision (converted for detectron2)", RGB, False, True
    if author == "Caffe2":
        program, order, strides = "Caffe2 (converted for detectron2)", order or BGR, True
    translation = _Translation(Origin(program, strides, sure, order))
    for name, value in tensors.items():
        translation.add(name, None if _NOT_OURS.search(name) else name, value)
    return translation.result()


# ------------------------------------------------------------------------------------------------------------- Caffe2
_CAFFE2_PARTS = {
    "w": "weight", "b": "bias", "bn_s": "norm.weight", "bn_b": "norm.bias", "gn_s": "norm.weight",
    "gn_b": "norm.bias", "bn_rm": "norm.running_mean", "bn_riv": "norm.running_var",
}  # fmt: skip
_CAFFE2_NAME = re.compile(rf"(?P<layer>.+?)_(?P<part>{'|'.join(_CAFFE2_PARTS)})")
# of a training; the classifier of ImageNet; a bias that no network of Detectron's has
_CAFFE2_LEFT_OUT = re.compile(r"_momentum$|^lr$|^(pred|fc1000)_[wb]$|^conv1_b$")
_CAFFE2_CONVS = {"branch1": "shortcut", "branch2a": "conv1", "branch2b": "conv2", "branch2c": "conv3"}
_CAFFE2_LAYERS = [
    (r"(?:res_)?conv1", lambda m: f"{BOTTOM_UP}stem.conv1"),
    (r"res(\d)_(\d+)_(branch\w+)", lambda m: f"{BOTTOM_UP}res{m[1]}.{m[2]}.{_CAFFE2_CONVS.get(m[3], m[3])}"),
    (r"fpn_inner_res(\d)_\d+_sum(?:_lateral)?", lambda m: f"backbone.fpn_lateral{m[1]}"),
    (r"fpn_res(\d)_\d+_sum", lambda m: f"backbone.fpn_output{m[1]}"),
    (r"conv_rpn(?:_fpn\d)?", lambda m: "proposal_generator.rpn_head.conv"),
    (r"rpn_cls_logits(?:_fpn\d)?", lambda m: "proposal_generator.rpn_head.objectness_logits"),
    (r"rpn_bbox_pred(?:_fpn\d)?", lambda m: "proposal_generator.rpn_head.anchor_deltas"),
    (r"fc([67])", lambda m: f"roi_heads.box_head.fc{int(m[1]) - 5}"),
    (r"head_conv(\d)", lambda m: f"roi_heads.box_head.conv{m[1]}"),
    (r"cls_score|bbox_pred", lambda m: f"roi_heads.box_predictor.{m[0]}"),
    (r"_\[mask\]_fcn(\d)", lambda m: f"roi_heads.mask_head.mask_fcn{m[1]}"),
    (r"conv5_mask", lambda m: "roi_heads.mask_head.deconv"),
    (r"mask_fcn_logits", lambda m: "roi_heads.mask_head.predictor"),
]


def _from_caffe2(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Origin]:
    """Detectron's blobs: BGR images, strides in the 1x1 convolutions, background as the first class."""
    is_affine = any(name.endswith("_bn_s") for name in tensors)
    notes = ()
    if "conv1_b" in tensors and tensors["conv1_b"].any():
        notes = ("conv1_b, a bias before the first norm, is not zero; left out, as Detectron and detectron2 do",)
    translation = _Translation(Origin(CAFFE2, True, bands=BGR, affine_norms=is_affine, notes=notes))
    for old, value in tensors.items():
        new = None if _CAFFE2_LEFT_OUT.search(old) else _caffe2_name(old)
        translation.add(old, new, value if new is None else _background_last(new, value))
    return translation.result()


def _caffe2_name(old: str) -> str:
    found = _CAFFE2_NAME.fullmatch(old)
    if found:
        for pattern, new in _CAFFE2_LAYERS:
            if layer := re.fullmatch(pattern, found["layer"]):
                return f"{new(layer)}.{_CAFFE2_PARTS[found['part']]}"
    return old


def _background_last(name: str, value: Tensor) -> Tensor:
    """Rows of the classes in our order: the background is the last class, and has neither boxes nor a mask."""
    if ".cls_score." in name:
        return value.roll(-1, dims=0)
    background = 4 if ".bbox_pred." in name else 1 if ".mask_head.predictor." in name else 0
    return value[background:] if len(value) > background else value


# -------------------------------------------------------------------------------------- ResNets of torchvision, timm
_RESNET_LAYERS = [
    (r"conv1\.(\w+)", lambda m: f"stem.conv1.{m[1]}"),
    (r"bn1\.(\w+)", lambda m: f"stem.conv1.norm.{m[1]}"),
    (r"layer(\d)\.(\d+)\.conv(\d)\.(\w+)", lambda m: f"res{int(m[1]) + 1}.{m[2]}.conv{m[3]}.{m[4]}"),
    (r"layer(\d)\.(\d+)\.bn(\d)\.(\w+)", lambda m: f"res{int(m[1]) + 1}.{m[2]}.conv{m[3]}.norm.{m[4]}"),
    (r"layer(\d)\.(\d+)\.downsample\.0\.(\w+)", lambda m: f"res{int(m[1]) + 1}.{m[2]}.shortcut.{m[3]}"),
    (r"layer(\d)\.(\d+)\.downsample\.1\.(\w+)", lambda m: f"res{int(m[1]) + 1}.{m[2]}.shortcut.norm.{m[3]}"),
    (r"layer(\d)\.(.+)", lambda m: f"res{int(m[1]) + 1}.{m[2]}"),
]


def _resnet_name(old: str) -> str | None:
    """Name of a parameter of torchvision's ResNet in ours; None for its classifier."""
    for pattern, new in _RESNET_LAYERS:
        if found := re.fullmatch(pattern, old):
            return BOTTOM_UP + new(found)
    return None if re.fullmatch(r"(fc|head)\.\w+", old) else old


def _from_resnet(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Origin]:
    """A backbone of torchvision or timm: RGB images, strides in the 3x3 convolutions."""
    tensors = {re.sub(r"^(backbone|encoder)\.", "", name): value for name, value in tensors.items()}
    if "conv1.0.weight" in tensors or any(".downsample.2." in name for name in tensors):
        raise InputError(
            "this is a ResNet-D (deep stem, pooled shortcuts), another network than the ResNet here; take the weights "
            "of a plain one, such as timm's resnet50"
        )
    translation = _Translation(Origin("torchvision or timm (ResNet)", stride_in_1x1=False, bands=RGB))
    for old, value in tensors.items():
        translation.add(old, _resnet_name(old), value)
    return translation.result()


def _from_torchvision_detector(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Origin]:
    """The ResNet-FPN of torchvision's detectors, whose maps are the same as ours; its heads are not."""
    levels = _levels(tensors)
    notes = [
        "of torchvision's detector only the ResNet-FPN is taken: its heads were trained with rounded anchors and with "
        "regions pooled half a pixel beside detectron2's, and would not give the same detections here"
    ]
    if not any(name.endswith("num_batches_tracked") for name in tensors):
        notes.append(
            "torchvision's released detectors with frozen norms (maskrcnn_resnet50_fpn) divide by the deviation "
            "without the 1e-5 that is added here, which changes their maps slightly"
        )
    if levels and min(levels.values()) > 2:
        notes.append(f"its FPN begins at level {min(levels.values())} (RetinaNet, FCOS): the finer ones start fresh")
    origin = Origin("torchvision (detector)", stride_in_1x1=False, bands=RGB, notes=tuple(notes))
    translation = _Translation(origin)
    for old, value in tensors.items():
        name = old.removeprefix("backbone.")
        # .0 is the convolution and .1 its norm; before torchvision 0.13 there was the convolution alone
        fpn = re.fullmatch(r"fpn\.(inner|layer)_blocks\.(\d+)(\.0|\.1)?\.(\w+)", name)
        if fpn:
            kind = "lateral" if fpn[1] == "inner" else "output"
            norm = ".norm" if fpn[3] == ".1" else ""
            translation.add(old, f"backbone.fpn_{kind}{levels[int(fpn[2])]}{norm}.{fpn[4]}", value)
        elif name.startswith("body."):
            translation.add(old, _resnet_name(name.removeprefix("body.")), value)
        else:
            translation.add(old, None, value)
    return translation.result()


def _levels(tensors: Mapping[str, Tensor]) -> dict[int, int]:
    """Level (logarithm of the stride) of each lateral convolution of torchvision's FPN, by the width it reads.

    Raises:
        InputError: a convolution that reads no stage of the ResNet.
    """
    widths: dict[int, int] = {}
    for name, value in tensors.items():
        if found := re.fullmatch(r"(?:backbone\.)?body\.layer(\d)\.\d+\.conv\d\.weight", name):
            widths[int(found[1])] = len(value)  # the last convolution of the last block wins
    levels = {}
    for name, value in tensors.items():
        if found := re.fullmatch(r"(?:backbone\.)?fpn\.inner_blocks\.(\d+)(?:\.0)?\.weight", name):
            stage = next((stage for stage, width in widths.items() if width == value.shape[1]), None)
            if stage is None:
                raise InputError(
                    f"{name} reads {value.shape[1]} channels, as no stage of its ResNet has; take the weights "
                    "of the ResNet alone"
                )
            levels[int(found[1])] = stage + 1
    return levels


# -------------------------------------------------------------------------------------------------------------- MViTv2
def _from_timm_mvit(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Origin]:
    """timm numbers the blocks of each stage from 0, detectron2 all in a row."""
    pattern = re.compile(r"stages\.(\d+)\.blocks\.(\d+)\.(.+)")
    blocks = {(int(found[1]), int(found[2])) for name in tensors if (found := pattern.fullmatch(name))}
    depths = Counter(stage for stage, _ in blocks)
    first = [0, *accumulate(depths[stage] for stage in range(max(depths)))]
    translation = _Translation(Origin("timm (MViTv2)", bands=RGB))
    for old, value in tensors.items():
        new = None if re.match(r"(norm|head)\.", old) else old
        if found := pattern.fullmatch(old):
            inner = found[3].replace("shortcut_proj_attn.", "proj.")
            new = f"{BOTTOM_UP}blocks.{first[int(found[1])] + int(found[2])}.{inner}"
        elif old.startswith("patch_embed."):
            new = BOTTOM_UP + old
        translation.add(old, new, value)
    return translation.result()


def _from_pycls(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Origin]:
    """pycls' MViTv2 has detectron2's names, without those of the classifier."""
    translation = _Translation(Origin("pycls (MViTv2)", bands=RGB))
    for old, value in tensors.items():
        is_backbone = re.match(r"(patch_embed|blocks)\.", old)
        new = BOTTOM_UP + old if is_backbone else None if re.match(r"(norm|head)\.", old) else old
        translation.add(old, new, value)
    return translation.result()
