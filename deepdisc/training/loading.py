"""Weights into a model: what fits, what is adapted, what is left, and why a file is refused.

Legend: *own* = state dict of the model; *given* = tensors of the file under the model's names; *stem* = the first
convolution, whose input channels are the bands.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepdisc.errors import InputError
from deepdisc.training.compatibility import affine_norms, judge, notes, shared_norms
from deepdisc.training.load_report import LoadReport, listed
from deepdisc.training.naming import BOTTOM_UP, RGB
from deepdisc.training.weights import Weights

_COUNTER = re.compile(r"(^|\.)num_batches_tracked$")  # no layer reads it
_STEM = re.compile(r"(^|\.)(stem\.conv1|patch_embed\.proj)\.weight$")
_POSITIONS = re.compile(r"\.rel_pos_[hw]$")


class Adapter(Protocol):
    """Makes a first convolution for other bands; see `deepdisc.backbones.stem.BandAdapter`."""

    method: str
    file_bands: Sequence[str] | None
    has_wavelengths: bool

    def __call__(self, kernel: Tensor, file_bands: Sequence[str] | None, bands: Sequence[str] | int) -> Tensor:
        """(O, M, k, k), names of the file's bands, those of the model's or their number -> (O, N, k, k)."""


@runtime_checkable
class ReadsBands(Protocol):
    """A part of the model behind the stem that has inputs for single bands, such as a head with photometry."""

    def band_weights(self, order: Sequence[int]) -> Mapping[str, Tensor]:
        """By name of a weight (O, I): the matrix (I, I) that, multiplied from the right, fits it to other bands.

        Args:
            order: for each of the model's bands, its place among those of the file; a permutation.
        """


@runtime_checkable
class FittedAfterTraining(Protocol):
    """A part of the model that `deepdisc calibrate` sets for given weights; see `deepdisc.heads.calibration`."""

    fitted_after_training: bool


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
    if bands is not None and len(set(bands)) < len(bands):
        raise InputError(f"bands={listed(bands)}: a band is named twice; name each band of the images once")
    own = model.state_dict()
    report = LoadReport(left_out=list(weights.origin.left_out))
    given = _aligned(weights.tensors, own)
    later = _fitted_after_training(model)
    if not strict:
        _leave_calibration(given, later, report)
    stem = _stem(own, bands)
    accepted: dict[str, Tensor] = {}
    adapted: dict[str, Tensor | None] = {}
    if adapter is not None and not strict:
        adapted = _adapt_bands(model, weights, given, stem, bands, adapter, report)
    for name, value in given.items():
        if name not in adapted:
            _place(name, value, own, strict, report, accepted)
    accepted |= {name: value for name, value in adapted.items() if value is not None}
    statistics = _statistics_of_affine_norms(weights, given, own)
    report.adapted += [f"{name} (frozen norm without statistics)" for name in statistics]
    accepted |= statistics
    needed = [name for name in own if name not in later and not _COUNTER.search(name)]
    report.missing = [name for name in needed if name not in given and name not in accepted]
    judge(report, weights, given, own, stem, strict, bands)
    _check_finite(accepted, weights)
    report.notes += notes(model, weights, given, own, report)
    model.load_state_dict(accepted, strict=False)
    report.print(weights.source.name)
    return report


def _fitted_after_training(model: nn.Module) -> set[str]:
    """Names of the tensors that start as identity, so that a file need not have them."""
    parts = [(prefix, part) for prefix, part in model.named_modules() if isinstance(part, FittedAfterTraining)]
    return {f"{prefix}.{name}" if prefix else name for prefix, part in parts for name in part.state_dict()}


def _leave_calibration(given: dict[str, Tensor], later: set[str], report: LoadReport) -> None:
    """Begin a training without the calibration of the weights that it starts from."""
    found = [name for name in given if name in later]
    for name in found:
        del given[name]
    if found:
        report.left_out += found
        report.notes.append("the file's calibration is for its own weights: left out; run `deepdisc calibrate` later")


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
    weights: Weights, given: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Mean 0 and variance 1 for the model's frozen norms of which the file has scale and shift alone."""
    found = {}
    for norm in shared_norms(given, own) if affine_norms(weights, given) else ():
        mean, variance = f"{norm}.running_mean", f"{norm}.running_var"
        is_frozen = mean in own and f"{norm}.num_batches_tracked" not in own
        if is_frozen and mean not in given:
            found[mean], found[variance] = torch.zeros_like(own[mean]), torch.ones_like(own[variance])
    return found


def _check_finite(tensors: Mapping[str, Tensor], weights: Weights) -> None:
    for name, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            count = int((~torch.isfinite(value)).sum())
            raise InputError(
                f"{weights.source}: {count} of the {value.numel()} weights of {name} are NaN or infinite; its training "
                "diverged or the file is damaged: take an earlier checkpoint"
            )


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


def _adapt_bands(
    model: nn.Module,
    weights: Weights,
    given: Mapping[str, Tensor],
    stem: str | None,
    bands: Sequence[str] | None,
    adapter: Adapter,
    report: LoadReport,
) -> dict[str, Tensor | None]:
    """What reads the bands, for those of the model, by name; None for a weight that starts fresh.

    Empty where the bands are the file's, or stand for them one by one.
    """
    own = model.state_dict()
    if stem not in given or stem not in own or not _differ_in_bands_only(given[stem], own[stem]):
        return {}
    wanted, count = own[stem].shape[1], given[stem].shape[1]
    if bands is not None and len(bands) != wanted:
        raise InputError(f"bands names {len(bands)} bands ({','.join(bands)}), but the model's stem reads {wanted}")
    known = adapter.file_bands or weights.bands
    by_wavelength = adapter.method == "wavelength" and adapter.has_wavelengths
    is_unnamed = known is None and not by_wavelength
    is_photograph = known is not None and set(known) == set(RGB) and not (adapter.file_bands or by_wavelength)
    if count == wanted and (bands is None or is_unnamed or is_photograph or tuple(known or ()) == tuple(bands)):
        if bands is not None and tuple(known or ()) != tuple(bands):
            what = f"reads {listed(known)}" if known else "does not name its bands"
            report.notes.append(
                f"the file's stem {what}; the model's {listed(bands)} take them in their order, unless "
                "train.init_bands.file_bands and wavelengths_um tell otherwise"
            )
        return {}
    made = adapter(given[stem], known, wanted if bands is None else list(bands))
    report.adapted.append(f"{stem} ({_band_changes(count, wanted, known, bands, adapter.method)})")
    if not dict(model.named_parameters(remove_duplicate=False))[stem].requires_grad:
        report.notes.append(
            f"{stem} is adapted, but does not learn (model.backbone.bottom_up.freeze_at, optim.optimizer.lr_factors)"
        )
    return {stem: made, **_adapt_inputs(model, given, known, bands, report)}


def _adapt_inputs(
    model: nn.Module,
    given: Mapping[str, Tensor],
    known: Sequence[str] | None,
    bands: Sequence[str] | None,
    report: LoadReport,
) -> dict[str, Tensor | None]:
    """The same for the parts behind the stem that read the bands: re-ordered by name, or fresh for other bands."""
    found: dict[str, Tensor | None] = {}
    if known is None or bands is None or len(known) != len(bands):  # another number has another shape
        return found
    is_same = set(known) == set(bands)
    order = [known.index(band) for band in bands] if is_same else range(len(bands))
    for prefix, part in model.named_modules():
        for key, mixing in part.band_weights(order).items() if isinstance(part, ReadsBands) else ():
            name = f"{prefix}.{key}" if prefix else key
            value = given.get(name)
            if value is None or value.shape[1:] != mixing.shape[:1]:
                continue
            if is_same:
                report.adapted.append(f"{name} ({listed(known)} -> {listed(bands)} by name)")
                found[name] = (value.double() @ mixing.to(value.device, torch.float64)).to(value.dtype)
            else:
                report.other_bands.append(name)
                found[name] = None
    return found


def _band_changes(
    count: int, wanted: int, known: Sequence[str] | None, bands: Sequence[str] | None, method: str
) -> str:
    """How a first convolution came from `count` to `wanted` bands, in words."""
    text = f"{count} -> {wanted} bands"
    if known is None or bands is None:
        return f"{text} by {method}"
    kept = [band for band in bands if band in known]
    if not kept:
        return f"{text}: {listed(bands)} by {method} from {listed(known)}"
    made = [band for band in bands if band not in known]
    dropped = [band for band in known if band not in bands]
    parts = {"by name": kept, f"by {method}": made, "dropped": dropped}
    return f"{text}: {'; '.join(f'{listed(names)} {how}' for how, names in parts.items() if names)}"
