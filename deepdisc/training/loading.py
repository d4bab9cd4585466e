"""Weights into a model: what fits, what is adapted, what is left, and why a file is refused.

Legend: *own* = state dict of the model; *given* = tensors of the file under the model's names; *stem* = the first
convolution, whose input channels are the bands.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from deepdisc.errors import InputError
from deepdisc.training import distributed
from deepdisc.training.naming import BOTTOM_UP, RGB, Origin
from deepdisc.training.weights import Weights

_COUNTER = re.compile(r"(^|\.)num_batches_tracked$")  # no layer reads it
_STEM = re.compile(r"(^|\.)(stem\.conv1|patch_embed\.proj)\.weight$")
_BACKBONE = re.compile(r"(^|\.)(stem|res\d|patch_embed|blocks)\.")
_BLOCK = re.compile(r"(?:^|\.)(res\d|blocks)\.(\d+)\.")
_POSITIONS = re.compile(r"\.rel_pos_[hw]$")
_CLASSES = re.compile(r"\.(cls_score|bbox_pred|predictor)\.(weight|bias)$")
_STRIDES = "model.backbone.bottom_up.stride_in_1x1"


class Adapter(Protocol):
    """Makes a first convolution for other bands; see `deepdisc.backbones.stem.BandAdapter`."""

    method: str
    file_bands: Sequence[str] | None

    def __call__(self, kernel: Tensor, file_bands: Sequence[str] | None, bands: Sequence[str] | int) -> Tensor:
        """(O, M, k, k), names of the file's bands, those of the model's or their number -> (O, N, k, k)."""


@dataclass
class LoadReport:
    """What became of each tensor of the model and of the file; `notes` say what to look at."""

    matched: list[str] = field(default_factory=list)
    adapted: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

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
        table = Table("", "tensors", "which", title=f"weights from {escape(source)}")
        meaning = {
            "matched": "matched",
            "adapted": "adapted",
            "mismatched": "another shape: fresh",
            "missing": "not in the file: fresh",
            "unexpected": "not in the model: ignored",
            "left_out": "no counterpart: left out",
        }
        for kind, text in meaning.items():
            names = getattr(self, kind)
            listed = [] if kind == "matched" else names
            more = [f"... and {len(names) - 8} more"] if len(listed) > 8 else []
            if names or kind == "matched":
                table.add_row(text, str(len(names)), escape("\n".join(listed[:8] + more)))
        return table

    def print(self, source: str) -> None:
        """Table and notes to the standard error output, once for all processes."""
        if distributed.is_main():
            console = Console(stderr=True)
            console.print(self.table(source))
            for note in self.notes:
                console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)


def load_weights(
    model: nn.Module,
    weights: Weights,
    *,
    strict: bool,
    bands: Sequence[str] | None = None,
    adapter: Adapter | None = None,
) -> LoadReport:
    """Copy weights into a model and print what became of each.

    The names need not have the model's prefix: a backbone's weights find their place in the detector.

    Args:
        model: changed in place.
        weights: from `read_weights`.
        strict: True (predicting): every tensor must match. False (fine-tuning): what fits is taken; layers of other
            classes, and heads that the file lacks, start fresh. The backbone must fit in either case.
        bands: names of the model's bands in its order, where they are known.
        adapter: makes the first convolution for other bands, when fine-tuning; see `BandAdapter`.

    Raises:
        InputError: nothing fits; another architecture, band list or number of classes with `strict`; another backbone;
            strides elsewhere than in the file's; a weight that is not finite. The model is then unchanged.
    """
    own = model.state_dict()
    given = _aligned(weights.tensors, own)
    stem = _stem(own, bands)
    report, accepted = LoadReport(left_out=list(weights.origin.left_out)), {}
    for name, value in given.items():
        if name == stem and not strict and adapter is not None and _differ_in_bands_only(value, own[name]):
            accepted[name] = _adapt_stem(name, value, own[name].shape[1], weights, bands, adapter, report)
        else:
            _place(name, value, own, strict, report, accepted)
    statistics = _statistics_of_affine_norms(weights.origin, given, own)
    report.adapted += [f"{name} (frozen norm without statistics)" for name in statistics]
    accepted |= statistics
    report.missing = [name for name in own if name not in given and name not in accepted and not _COUNTER.search(name)]
    _judge(report, weights, given, own, stem, strict, bands)
    _check_finite(accepted, weights.source)
    report.notes += [*weights.origin.notes, *_class_notes(given, own, report), *_pixel_notes(model, weights)]
    report.notes += _stride_notes(model, weights, given)
    model.load_state_dict(accepted, strict=False)
    report.print(weights.source.name)
    return report


def _place(
    name: str,
    value: Tensor,
    own: Mapping[str, Tensor],
    strict: bool,
    report: LoadReport,
    accepted: dict[str, Tensor],
) -> None:
    """Accept a tensor of the file, or say why not."""
    if name not in own:
        if not _COUNTER.search(name):
            report.unexpected.append(name)
        return
    if own[name].shape == value.shape:
        report.matched.append(name)
        accepted[name] = value
    elif not strict and _POSITIONS.search(name) and own[name].shape[1:] == value.shape[1:]:
        report.adapted.append(f"{name} ({len(value)} -> {len(own[name])} positions, interpolated)")
        rows = F.interpolate(value.float().t()[None], size=len(own[name]), mode="linear")[0]
        accepted[name] = rows.t().to(value.dtype)
    else:
        report.mismatched.append(f"{name} {tuple(value.shape)} -> {tuple(own[name].shape)}")


def _statistics_of_affine_norms(
    origin: Origin, given: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Mean 0 and variance 1 for the model's frozen norms of which a Caffe2 file has scale and shift alone.

    detectron2 completes frozen norms of any old file so. Of its own format no published file needs that, but its group
    norms have the same two tensors, and would become frozen norms that compute nonsense: see `_judge_norms`.
    """
    found = {}
    for norm in _norms(given, own) if origin.affine_norms else ():
        mean, variance = f"{norm}.running_mean", f"{norm}.running_var"
        is_frozen = mean in own and f"{norm}.num_batches_tracked" not in own
        if is_frozen and mean not in given:
            found[mean], found[variance] = torch.zeros_like(own[mean]), torch.ones_like(own[variance])
    return found


def _norms(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """The norms, of any kind, that the file and the model share, by their names."""
    names = (name.removesuffix(".weight") for name in given if name.endswith("norm.weight"))
    return [name for name in names if f"{name}.weight" in own]


# ------------------------------------------------------------------------------------------------------ names and bands
def _aligned(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors under the prefix, added or taken away, by which most are found in the model."""
    prefixes = Counter(target[: -len(name)] for name in given for target in own if target.endswith("." + name))
    renamed = [dict(given), {name.removeprefix(BOTTOM_UP): value for name, value in given.items()}]
    renamed += [{prefix + name: value for name, value in given.items()} for prefix, _ in prefixes.most_common(1)]
    return max(renamed, key=lambda tensors: sum(name in own for name in tensors))


def _stem(own: Mapping[str, Tensor], bands: Sequence[str] | None) -> str | None:
    """Name of the first convolution; of a backbone of one's own, the first that could read the bands."""
    named = [name for name in own if _STEM.search(name)]
    could = [name for name, x in own.items() if x.ndim == 4 and (bands is None or x.shape[1] == len(bands))]
    return next(iter(named or could), None)


def _differ_in_bands_only(given: Tensor, own: Tensor) -> bool:
    return given.ndim == own.ndim == 4 and given.shape[:1] + given.shape[2:] == own.shape[:1] + own.shape[2:]


def _adapt_stem(
    name: str,
    value: Tensor,
    wanted: int,
    weights: Weights,
    bands: Sequence[str] | None,
    adapter: Adapter,
    report: LoadReport,
) -> Tensor:
    """The file's first convolution for the model's `wanted` bands, as it is where these are the file's."""
    given = value.shape[1]
    if bands is not None and len(bands) != wanted:
        raise InputError(f"bands names {len(bands)} bands ({','.join(bands)}), but the model's stem reads {wanted}")
    known = adapter.file_bands or weights.bands
    is_photograph = not adapter.file_bands and known is not None and set(known) == set(RGB)
    if given == wanted and (known is None or bands is None or is_photograph or tuple(known) == tuple(bands)):
        report.matched.append(name)
        if is_photograph:
            report.notes.append(f"the file's stem reads {', '.join(known)}, which the model's three bands now take")
        return value
    report.adapted.append(
        f"{name} ({given} -> {wanted} bands by {adapter.method}: {_listed(known)} -> {_listed(bands)})"
    )
    if given == wanted:
        report.notes.append(
            "other layers that read the bands (photometry of a head) still take them in the file's order"
        )
    return adapter(value, known, wanted if bands is None else list(bands))


def _listed(bands: Sequence[str] | None) -> str:
    return "unnamed" if bands is None else ",".join(bands)


# ------------------------------------------------------------------------------------------------------------ refusals
def _judge(
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
    if not report.matched:
        raise InputError(
            f"{source}: nothing in it fits this model: {report.summary()}; it is taken for a file of "
            f"{weights.origin.program}, and the model's first tensor is {next(iter(own), 'absent')}"
        )
    if strict:
        _judge_bands(weights, given.get(stem), own.get(stem), bands)
    _judge_norms(weights, given, own)
    blocks, own_blocks = _blocks(given), _blocks(own)
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


def _judge_norms(weights: Weights, given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Batch norms and group norms have the same scale and shift: one kind loaded as the other computes nonsense."""
    where = "model.backbone.bottom_up.norm{} and alike those of neck and heads that have norms"
    for norm in _norms(given, own):
        mean = f"{norm}.running_mean"
        theirs, ours, is_live = mean in given, mean in own, f"{norm}.num_batches_tracked" in own
        if weights.origin.affine_norms and not theirs and (is_live or not ours):
            raise InputError(
                f"{weights.source}: {norm} is a frozen batch norm, with its statistics inside scale and shift, and the "
                f"""model's is of another kind: set {where.format('="FrozenBN"')}"""
            )
        if ours and not theirs and not weights.origin.affine_norms:
            raise InputError(
                f"{weights.source} has group norms: {norm} has no statistics, which the model's batch norm needs: set "
                f"""{where.format('="GN"')}"""
            )
        if theirs and not ours:
            raise InputError(
                f"{weights.source} has batch norms: {norm} has statistics, for which the model's group norm has no "
                f"""place: set {where.format('="FrozenBN" or "BN"')}"""
            )


def _judge_bands(weights: Weights, given: Tensor | None, own: Tensor | None, bands: Sequence[str] | None) -> None:
    remedy = (
        "predict with the bands and the config it was trained with, or fine-tune it to others with "
        "train.init_checkpoint=FILE"
    )
    named = weights.setting("bands")
    if named and bands is not None and tuple(named) != tuple(bands):
        raise InputError(
            f"{weights.source} was trained on the bands {_listed(named)}, this config's are {_listed(bands)}; {remedy}"
        )
    if given is not None and own is not None and given.ndim == own.ndim == 4 and given.shape[1] != own.shape[1]:
        raise InputError(
            f"{weights.source} was trained on {given.shape[1]} bands, this config has {own.shape[1]}"
            f"{f' ({_listed(bands)})' if bands else ''}; {remedy}"
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


def _counts(blocks: Mapping[str, int]) -> str:
    return ", ".join(f"{stage} {count}" for stage, count in blocks.items())


def _check_finite(tensors: Mapping[str, Tensor], source: Path) -> None:
    for name, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            count = int((~torch.isfinite(value)).sum())
            raise InputError(
                f"{source}: {count} of the {value.numel()} weights of {name} are NaN or infinite; its training "
                "diverged or the file is damaged: take an earlier checkpoint"
            )


# --------------------------------------------------------------------------------------------------------------- notes
def _class_notes(given: Mapping[str, Tensor], own: Mapping[str, Tensor], report: LoadReport) -> list[str]:
    if not any(_CLASSES.search(text.split(" ")[0]) for text in report.mismatched):
        return []
    return [f"{_num_classes(given)} classes in the file, {_num_classes(own)} in the model: their layers start fresh"]


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
    return [f"the file was trained with {', '.join(differing)}: set it alike for alike images"] if differing else []


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
