"""Calibrates a trained model on objects that it did not learn from, and says by how much that helps.

Legend: N objects, Q quantities of a head (the bands of fluxes), C bands.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from deepdisc.bands import label_columns
from deepdisc.calibration.fit import LEAST_OBJECTS, MixtureFit, fit_mixture
from deepdisc.calibration.fit_novelty import fit_novelty
from deepdisc.calibration.fit_shear import ShearFit, fit_shear
from deepdisc.calibration.objects import Matched, Measured, collect, halves
from deepdisc.data.dataset import TileDataset
from deepdisc.errors import InputError
from deepdisc.files import refuse_to_overwrite
from deepdisc.heads.calibration import FittedAfterTraining
from deepdisc.mixture_multivariate import MultivariateMixture
from deepdisc.model_zoo import load_model
from deepdisc.training.weights import export_safetensors

logger = logging.getLogger(__name__)

# Columns of the truth where the model's config does not name others (data.val.dataset.labels and .spin2).
_LABELS = {"redshift": "redshift", "flux": "flux_{band}"}
_SPIN2 = {"shear": ["g1", "g2"]}


@dataclass
class Quantity:
    """One calibrated quantity.

    Attributes:
        head: name of the head.
        name: of the quantity: "flux r", "redshift", "shear".
        count: objects with a known true value.
        fit: what was fitted; None where nothing could be.
        truth: (n,) or (n, 2) true values of the fitted objects.
        reason: why nothing could be fitted.
    """

    head: str
    name: str
    count: int
    fit: MixtureFit | ShearFit | None = None
    truth: Tensor | None = None
    reason: str = ""

    @property
    def form(self) -> str:
        """What was kept: "identity" where nothing was."""
        return "identity" if self.fit is None else self.fit.form


@dataclass
class Calibration:
    """What `calibrate` did.

    Attributes:
        path: the calibrated model.
        quantities: of all heads.
        matched: the objects.
        novelty: names of heads whose statistics were measured.
        about: model, data set, split.
    """

    path: Path
    quantities: list[Quantity]
    matched: Matched
    novelty: list[str] = field(default_factory=list)
    about: dict[str, str] = field(default_factory=dict)


def calibrate(
    name_or_path: str | Path,
    data: str | Path,
    output: str | Path,
    split: str = "val",
    device: str | torch.device = "cpu",
) -> Calibration:
    """Fit the calibrations of every head on a split of a data set and write the calibrated model.

    An earlier calibration of the model is replaced. Neither the model's file nor the data set is changed.

    Args:
        name_or_path: as for `model_zoo.load_model`.
        data: a data set with truth, of objects that the model did not learn from.
        output: the .safetensors file to write.
        split: of the data set.
        device: where the detector runs.

    Raises:
        InputError: nothing to calibrate in the model, no labels for it or too few objects in the data set; `output`
            exists or is no .safetensors.
    """
    output = Path(output)
    if output.suffix != ".safetensors":
        raise InputError(f"--output {output}: the calibrated model is a .safetensors file; give it that suffix")
    refuse_to_overwrite([output])
    model, cfg = load_model(name_or_path, device)
    heads = _heads(model, name_or_path)
    for part in model.modules():
        if isinstance(part, FittedAfterTraining):
            part.reset()
    labels = {key: label for head in heads.values() for key, label in head.calibrated.items()}
    columns, spin2, missing = _labels(cfg, data, set(labels.values()))
    describing = {name: head for name, head in heads.items() if hasattr(head, "description")}
    dataset = TileDataset(data, split, bands=list(cfg.bands), labels=columns, spin2=spin2)
    wanted = {key: label for key, label in labels.items() if label not in missing}
    matched = collect(model, (dataset[i] for i in range(len(dataset))), wanted, describing)
    quantities = []
    for name, head in heads.items():
        for key, label in head.calibrated.items():
            if label in missing:
                quantities.append(Quantity(name, label, 0, reason=f"the truth has no {missing[label]}"))
            else:
                quantities += _calibrate_field(name, head, label, matched.fields[key], matched.tile, list(cfg.bands))
    _refuse_if_nothing(quantities, matched, data, split)
    novelty = [name for name, head in describing.items() if _measure_novelty(head, matched, name)]
    about = {"model": str(name_or_path), "data": str(data), "split": split}
    export_safetensors(model, cfg, output, calibrated_on=f"{Path(data).name}, split {split}")
    return Calibration(output, quantities, matched, novelty, about)


def _heads(model: nn.Module, source: str | Path) -> dict[str, nn.Module]:
    """The heads that can be calibrated, by name."""
    heads = model.roi_heads.all_heads() if hasattr(model, "roi_heads") else {}
    found = {name: head for name, head in heads.items() if head.calibrated or hasattr(head, "description")}
    if not found:
        raise InputError(
            f"model {source} has no head with probabilities to calibrate; it has {', '.join(heads) or 'no heads'}"
        )
    return found


def _labels(cfg: DictConfig, data: str | Path, wanted: set[str]) -> tuple[dict, dict, dict[str, str]]:
    """Columns of the labels, of spin-2 labels, and for labels that the truth lacks the first missing column."""
    path = Path(data) / "truth.parquet"
    if not path.is_file():
        raise InputError(f"no data set at {data}: it has no truth.parquet; give a folder that `deepdisc prepare` wrote")
    present = set(pq.read_schema(path).names)
    configured = OmegaConf.select(cfg, "data.val.dataset")
    named, spin2 = dict(_LABELS), dict(_SPIN2)
    for target, key in ((named, "labels"), (spin2, "spin2")):
        given = configured.get(key) if OmegaConf.is_dict(configured) else None
        target.update(OmegaConf.to_container(given, resolve=True) if given is not None else {})
    columns = {label: names for label, names in named.items() if label in wanted}
    turned = {label: names for label, names in spin2.items() if label in wanted}
    missing = {}
    for label, names in label_columns({**columns, **turned}, list(cfg.bands)).items():
        absent = [name for name in ([names] if isinstance(names, str) else names) if name not in present]
        if absent:
            missing[label] = f"column {absent[0]!r}"
    missing |= dict.fromkeys(wanted - set(columns) - set(turned), "column for it")
    keep = [{label: names for label, names in part.items() if label not in missing} for part in (columns, turned)]
    return *keep, missing


def _calibrate_field(
    head_name: str, head: nn.Module, label: str, measured: Measured, tile: Tensor, bands: Sequence[str]
) -> list[Quantity]:
    """Fit all quantities of one field and set the head's calibration."""
    if not measured.pdfs:
        return [Quantity(head_name, label, 0, reason="no detection has a label")]
    kind = type(measured.pdfs[0])
    pdf, truth, known = kind.cat(measured.pdfs), torch.cat(measured.truth), torch.cat(measured.known)
    if kind is MultivariateMixture:
        return [_calibrate_shear(head_name, head, label, pdf, truth, known, tile)]
    truth, known = truth.reshape(len(truth), -1), known.reshape(len(known), -1)
    pdf = pdf if len(pdf.batch_shape) == 2 else pdf[:, None]
    names = [f"{label} {band}" for band in bands] if label == "flux" else [label]
    quantities = []
    for i, name in enumerate(names):
        rows = torch.nonzero(known[:, i])[:, 0]
        quantities.append(_too_few(head_name, name, len(rows)))
        if len(rows) >= LEAST_OBJECTS:
            fit = fit_mixture(head.calibration, pdf[rows, i], truth[rows, i], halves(tile, rows))
            for key, buffer in head.calibration.named_buffers():
                buffer[i] = fit.values[key][0].to(buffer)
            logger.info("%s: %d objects, %s", name, len(rows), fit.form)
            quantities[-1] = Quantity(head_name, name, len(rows), fit, truth[rows, i])
    return quantities


def _too_few(head: str, name: str, count: int) -> Quantity:
    return Quantity(head, name, count, reason=f"{count} objects, {LEAST_OBJECTS} are needed")


def _calibrate_shear(
    head_name: str, head: nn.Module, label: str, pdf: MultivariateMixture, truth: Tensor, known: Tensor, tile: Tensor
) -> Quantity:
    rows = torch.nonzero(known.reshape(len(known), -1).all(1))[:, 0]
    if len(rows) < LEAST_OBJECTS:
        return _too_few(head_name, label, len(rows))
    fit = fit_shear(pdf[rows], truth[rows], halves(tile, rows), tile[rows])
    head.calibration.load_state_dict(fit.values)
    logger.info("%s: %d objects, %s %s", label, len(rows), fit.form, fit.reason)
    return Quantity(head_name, label, len(rows), fit, truth[rows], fit.reason)


def _measure_novelty(head: nn.Module, matched: Matched, name: str) -> bool:
    """Set the statistics of a head that tells how unlike the known objects an object is."""
    described = matched.descriptions[name]
    if len(described) < LEAST_OBJECTS:
        return False
    head.distance.load_state_dict(fit_novelty(described, halves(matched.tile, torch.arange(len(described)))))
    return True


def _refuse_if_nothing(quantities: Sequence[Quantity], matched: Matched, data: str | Path, split: str) -> None:
    if any(quantity.fit is not None for quantity in quantities):
        return
    most = max((quantity.count for quantity in quantities), default=len(matched.tile))
    if not quantities and most >= LEAST_OBJECTS:
        return
    reasons = "; ".join(dict.fromkeys(f"{quantity.name}: {quantity.reason}" for quantity in quantities))
    raise InputError(
        f"split {split!r} of {data} has too few objects to calibrate with: {LEAST_OBJECTS} matched ones with a label "
        f"are needed, there are {most} (of {matched.objects} true objects and {matched.detections} detections). "
        f"{reasons}. Simulate or prepare more tiles of that split"
    )
