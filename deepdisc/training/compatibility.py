"""Whether a file of weights is for a model: why it is refused, and what to know where it is not.

Legend: *own* = state dict of the model; *given* = tensors of the file under the model's names; *stem* = the first
convolution, whose input channels are the bands.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from deepdisc.errors import InputError
from deepdisc.training.load_report import LoadReport, listed
from deepdisc.training.naming import CAFFE2
from deepdisc.training.weights import Weights

_BACKBONE = re.compile(r"^(?!roi_heads\.)(.*\.)?(stem|res\d|patch_embed|blocks)\.")  # heads may have stems, too
_BLOCK = re.compile(r"(?:^|\.)(res\d|blocks)\.(\d+)\.")
_CLASSES = re.compile(r"\.(cls_score|bbox_pred|predictor)\.(weight|bias)$")
_STAGE = re.compile(r"roi_heads\.box_head\.(\d)\.")
_STRIDES = "model.backbone.bottom_up.stride_in_1x1"
_GROUPS = 32  # of every group norm of detectron2's


def judge(
    report: LoadReport,
    weights: Weights,
    given: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    stem: str | None,
    strict: bool,
    bands: Sequence[str] | None,
) -> None:
    """Refuse a file that is not for this model; names what differs and the remedy."""
    source = weights.source
    blocks, own_blocks = _blocks(given), _blocks(own)
    if blocks and own_blocks and _kind(blocks) != _kind(own_blocks):
        raise InputError(
            f"{source} holds {_kind(blocks)}, and this config is of {_kind(own_blocks)}: use a config of its kind, "
            f"such as configs/{'cascade_mvitv2_t' if 'blocks' in blocks else 'mask_rcnn_r50'}.py"
        )
    prefix = _added_prefix(weights.tensors, given)
    if not report.matched or (prefix and not _fills(prefix, report, given, own)):
        raise InputError(
            f"{source}: nothing in it fits this model: {report.summary()}; it is taken for a file of "
            f"{weights.origin.program}, and the model's first tensor is {next(iter(own), 'absent')}"
        )
    if strict:
        _judge_bands(weights, given.get(stem), own.get(stem), bands)
    _judge_norms(weights, given, own)
    if blocks and own_blocks and blocks != own_blocks:
        raise InputError(
            f"{source} is a checkpoint of another architecture: its backbone has the blocks {_counts(blocks)}, this "
            f"config's {_counts(own_blocks)}; use the config that belongs to it, or set model.backbone.bottom_up.depth"
        )
    differing = [*report.mismatched, *report.unexpected, *report.missing]
    in_backbone = [text for text in differing if _BACKBONE.search(text.split(" ")[0])]
    if blocks and in_backbone:
        raise InputError(
            f"{source} is a checkpoint of another architecture: {len(in_backbone)} tensors of the backbone differ "
            f"({', '.join(in_backbone[:2])}); use the config that belongs to it, or set model.backbone.bottom_up alike"
        )
    if strict and differing:
        _judge_classes(source, given, own)
        raise InputError(
            f"{source} is a checkpoint of another architecture than this config's: {report.summary()}; use the config "
            f"that is saved beside the checkpoint{''.join(f'; {note}' for note in weights.origin.notes[:1])}"
        )
    if len(report.mismatched) + len(report.unexpected) > len(report.matched):
        raise InputError(f"{source} is a checkpoint of another architecture: {report.summary()}")


def shared_norms(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """The norms inside convolutions, of any kind, that the file and the model share, by their names."""
    return [norm for norm in _norms(given) if f"{norm}.weight" in own]


def _norms(names: Iterable[str]) -> list[str]:
    return [name.removesuffix(".weight") for name in names if name.endswith("norm.weight")]


def affine_norms(weights: Weights, given: Mapping[str, Tensor]) -> bool:
    """Whether the file's norms are frozen batch norms, with their statistics inside scale and shift.

    detectron2 completes any norm without statistics so (mean 0, variance 1). Its group norms have the same two tensors
    and would compute nonsense as batch norms. They are told apart by what the file says, by where it has norms
    (networks with group norms have them in neck and heads too) and by their widths. What is left is taken for frozen in
    .pkl files alone, the form of the model zoo, whose old files are the ones without statistics.
    """
    if weights.origin.affine_norms:
        return True
    norms = [norm for norm in _norms(given) if norm.endswith(".norm")]
    if not norms or weights.origin.program == CAFFE2 or any(f"{norm}.running_mean" in given for norm in norms):
        return False
    stated = weights.setting("model.backbone.bottom_up.norm")
    if stated is not None:
        return stated == "FrozenBN"
    if any(len(given[f"{norm}.weight"]) % _GROUPS for norm in norms):
        return True
    return weights.source.suffix == ".pkl" and all(_BACKBONE.search(norm) for norm in norms)


def _judge_norms(weights: Weights, given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Batch norms and group norms have the same scale and shift: one kind loaded as the other computes nonsense."""
    where = "model.backbone.bottom_up.norm{} and alike those of neck and heads that have norms"
    is_affine, is_sure = affine_norms(weights, given), weights.origin.affine_norms
    for norm in shared_norms(given, own):
        mean = f"{norm}.running_mean"
        theirs, ours, is_live = mean in given, mean in own, f"{norm}.num_batches_tracked" in own
        if is_affine and not theirs and (is_live or (is_sure and not ours)):
            else_ = "" if is_sure else ' (were they group norms "GN")'
            raise InputError(
                f"{weights.source}: {norm} has no statistics: it is a frozen batch norm with them inside scale and "
                f"""shift, and the model's is of another kind: set {where.format('="FrozenBN"')}{else_}"""
            )
        if ours and not theirs and not is_affine:
            raise InputError(
                f"{weights.source} has group norms: {norm} has no statistics, which the model's batch norm needs: set "
                f"""{where.format('="GN"')}; frozen batch norms without statistics are known as such only in """
                ".pkl files, from others add running_mean 0 and running_var 1"
            )
        if theirs and not ours:
            raise InputError(
                f"{weights.source} has batch norms: {norm} has statistics, for which the model's group norm has no "
                f"""place: set {where.format('="FrozenBN" or "BN"')}"""
            )
    for norm in _norms(given):
        conv = norm.removesuffix(".norm")
        if conv != norm and f"{norm}.weight" not in own and f"{conv}.weight" in own:
            kind = "BN" if f"{norm}.running_mean" in given else "GN"
            place = "model.backbone.norm" if conv.startswith("backbone.fpn_") else "norm in the config of that part"
            raise InputError(
                f"{weights.source}: {conv} has a norm in the file and none in the model, which then computes nonsense; "
                f'set {place}="{kind}"'
            )


def _norm_notes(weights: Weights, given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    if weights.origin.affine_norms or not affine_norms(weights, given):
        return []
    if not any(f"{norm}.running_mean" in own for norm in shared_norms(given, own)):
        return []
    return [
        "the norms in the file have no statistics: taken for frozen batch norms that include them (mean 0, variance "
        '1), as detectron2 does; if they are group norms, set model.backbone.bottom_up.norm="GN"'
    ]


def _added_prefix(tensors: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """What was put before the file's names to find them in the model."""
    old, new = next(iter(tensors), ""), next(iter(given), "")
    return new.removesuffix(old) if new.endswith(old) else ""


def _fills(prefix: str, report: LoadReport, given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Whether a file without the model's names is a backbone, or all of the part at its place: else it is chance."""
    if _blocks(given):
        return True
    fitting = {text.split(" ")[0] for text in (*report.matched, *report.adapted)}
    return fitting >= {name for name in own if name.startswith(prefix) and not name.endswith("num_batches_tracked")}


def _judge_bands(weights: Weights, given: Tensor | None, own: Tensor | None, bands: Sequence[str] | None) -> None:
    remedy = (
        "predict with the bands and the config it was trained with, or fine-tune it to others with "
        "train.init_checkpoint=FILE"
    )
    named = weights.setting("bands")
    if named and bands is not None and tuple(named) != tuple(bands):
        raise InputError(
            f"{weights.source} was trained on the bands {listed(named)}, this config's are {listed(bands)}; {remedy}"
        )
    if given is not None and own is not None and given.ndim == own.ndim == 4 and given.shape[1] != own.shape[1]:
        raise InputError(
            f"{weights.source} was trained on {given.shape[1]} bands, this config has {own.shape[1]}"
            f"{f' ({listed(bands)})' if bands else ''}; {remedy}"
        )


def _judge_classes(source: Path, given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    theirs, ours = _num_classes(given), _num_classes(own)
    if theirs is not None and ours is not None and theirs != ours:
        raise InputError(
            f"{source} was trained on {theirs} classes, this config has {ours}; set num_classes={theirs}, or fine-tune "
            "it with train.init_checkpoint=FILE"
        )


def _num_classes(tensors: Mapping[str, Tensor]) -> int | None:
    """Number of classes without the background."""
    return next((len(x) - 1 for name, x in tensors.items() if name.endswith("cls_score.bias")), None)


def _blocks(names: Iterable[str]) -> dict[str, int]:
    """Number of blocks of each stage of the backbone."""
    found = {match.groups() for name in names if (match := _BLOCK.search(name))}
    return dict(sorted(Counter(stage for stage, _ in found).items()))


def _kind(blocks: Mapping[str, int]) -> str:
    return "an MViT" if "blocks" in blocks else "a ResNet"


def _counts(blocks: Mapping[str, int]) -> str:
    return ", ".join(f"{stage} {count}" for stage, count in blocks.items())


# --------------------------------------------------------------------------------------------------------------- notes
def notes(
    model: nn.Module, weights: Weights, given: Mapping[str, Tensor], own: Mapping[str, Tensor], report: LoadReport
) -> list[str]:
    """What the user should know of a file that is accepted.

    Raises:
        InputError: strides of a ResNet elsewhere than in the file's.
    """
    return [
        *weights.origin.notes,
        *_norm_notes(weights, given, own),
        *_class_notes(given, own, report),
        *_cascade_notes(given, own),
        *_pixel_notes(model, weights),
        *_stride_notes(model, weights, given),
    ]


def _class_notes(given: Mapping[str, Tensor], own: Mapping[str, Tensor], report: LoadReport) -> list[str]:
    theirs, ours = _num_classes(given), _num_classes(own)
    if theirs == ours or not any(_CLASSES.search(text.split(" ")[0]) for text in report.mismatched):
        return []
    return [f"{theirs} classes in the file, {ours} in the model: their layers start fresh"]


def _cascade_notes(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Stages of a cascade have numbers, which a single box head has not."""
    stages, own_stages = (len({m[1] for name in x if (m := _STAGE.search(name))}) for x in (given, own))
    has_heads = all(any("roi_heads.box_" in name for name in x) for x in (given, own))
    if not has_heads or stages == own_stages:
        return []
    what = [f"a cascade of {count} stages" if count else "a single stage" for count in (stages, own_stages)]
    return [f"the box heads of the file are those of {what[0]}, the model's of {what[1]}: they start fresh"]


def _pixel_notes(model: nn.Module, weights: Weights) -> list[str]:
    """Whether the images of the file's training were normalised in another way."""
    differing = []
    for name in ("pixel_mean", "pixel_std"):
        theirs = weights.about.get(name) or weights.setting(f"model.{name}")
        ours = getattr(model, name, None)
        if isinstance(theirs, list) and isinstance(ours, Tensor):
            ours = [round(float(x), 3) for x in ours.flatten()]
            if [round(float(x), 3) for x in theirs] != (ours * len(theirs) if len(ours) == 1 else ours):
                differing.append(f"model.{name}={theirs} (here {ours})")
    if not differing:
        return []
    remedy = "set it alike for alike images"
    if getattr(model, "stretch", None) is not None:
        remedy = "with model.stretch the images are not alike, see model_zoo/README.md"
    return [f"the file was trained with {', '.join(differing)}: {remedy}"]


def _stride_notes(model: nn.Module, weights: Weights, given: Mapping[str, Tensor]) -> list[str]:
    """Whether the ResNet has its strides where the file's had them; the wrong place loads and computes nonsense.

    Raises:
        InputError: it has not.
    """
    ours = _stride_in_1x1(model)
    if ours is None or not any(re.search(r"(^|\.)res\d\.\d+\.conv3\.", name) for name in given):
        return []
    stated = weights.setting(_STRIDES)
    theirs, sure = (stated, True) if stated is not None else (weights.origin.stride_in_1x1, weights.origin.sure)
    if theirs is None:
        return [
            f"the file does not tell where its ResNet has its strides; this config has {_STRIDES}={ours} (True: "
            "MSRA's weights, detectron2's default; False: torchvision's and timm's); the wrong one computes nonsense"
        ]
    if theirs == ours:
        return []
    place = "1x1" if theirs else "3x3"
    if not sure:
        return [f"the file's pixel_std suggests strides in the {place} convolutions, as {_STRIDES}={theirs} sets them"]
    whose = "its ResNet has its" if stated is not None else f"ResNets of {weights.origin.program} have their"
    raise InputError(
        f"{weights.source}: {whose} strides in the {place} convolutions; set {_STRIDES}={theirs}, the weights compute "
        "nonsense otherwise"
    )


def _stride_in_1x1(model: nn.Module) -> bool | None:
    """Where the model's bottleneck blocks have their strides; None for a model without such."""
    for block in model.modules():
        convs = [getattr(block, name, None) for name in ("conv1", "conv2", "conv3")]
        if all(isinstance(conv, nn.Conv2d) for conv in convs):
            strides = [max(conv.stride) for conv in convs]
            if max(strides) > 1:
                return strides[0] > 1
    return None
