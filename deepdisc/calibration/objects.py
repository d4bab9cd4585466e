"""What a model says about objects whose true values are known.

Legend: N matched objects of all tiles; C bands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from deepdisc.catalog import BOX_COLUMNS, FLAGS
from deepdisc.evaluation.match import IOU_THRESHOLD, Criterion, match_rows
from deepdisc.structures import Instances

_NONE = torch.zeros(0, dtype=torch.int64)


@dataclass
class Measured:
    """One field that a head adds, with its label.

    Attributes:
        pdfs: of each tile, as the head gives them.
        truth: of each tile (n,) or (n, k).
        known: of each tile, bool likewise: measured, and the label is known.
    """

    pdfs: list[Any] = field(default_factory=list)
    truth: list[Tensor] = field(default_factory=list)
    known: list[Tensor] = field(default_factory=list)


@dataclass
class Matched:
    """Detections that were matched one-to-one with true objects.

    Attributes:
        fields: by name of the field.
        tile: (N,) int64, number of the tile of each object.
        descriptions: by name of a head with a `description`: (N, D).
        detections: number of all detections.
        objects: number of all true objects.
    """

    fields: dict[str, Measured]
    tile: Tensor
    descriptions: dict[str, Tensor]
    detections: int
    objects: int


@torch.no_grad()
def collect(
    model: nn.Module, records: Iterable[dict[str, Any]], labels: Mapping[str, str], describing: Mapping[str, nn.Module]
) -> Matched:
    """Detect in every tile and match with its truth: boxes, one-to-one, an intersection over union of at least 0.5.

    Objects cut by their tile's border take no part: their truth is of the whole object.

    Args:
        model: in evaluation mode, calibrations reset.
        records: tiles with `instances`, `tile` and what the model needs.
        labels: field that a head adds -> name of its label.
        describing: heads by name whose `description` is wanted.
    """
    fields = {name: Measured() for name in labels}
    descriptions: dict[str, list[Tensor]] = {name: [] for name in describing}
    seen: dict[str, Tensor] = {}
    hooks = [
        head.description.register_forward_hook(lambda _, __, out, name=name: seen.__setitem__(name, out.cpu()))
        for name, head in describing.items()
    ]
    tiles, detections, objects = [], 0, 0
    try:
        for number, record in enumerate(records):
            found: Instances = model([record])[0]["instances"].to("cpu")
            truth: Instances = record["instances"]
            detections, objects = detections + len(found), objects + len(truth)
            rows, partners = _match(found, truth)
            tiles.append(torch.full((len(rows),), number))
            for name, label in labels.items():
                _append(fields[name], name, found[rows], truth[partners], label)
            for name in describing:
                descriptions[name].append(seen[name][rows])
    finally:
        for hook in hooks:
            hook.remove()
    joined = {name: torch.cat(parts) for name, parts in descriptions.items()}
    return Matched(fields, torch.cat([_NONE, *tiles]), joined, detections, objects)


def _match(found: Instances, truth: Instances) -> tuple[Tensor, Tensor]:
    """Rows of the detections and of the true objects that belong together."""
    if not len(found) or not len(truth):
        return _NONE, _NONE
    boxes = (found.pred_boxes, truth.gt_boxes)
    sides = [pd.DataFrame(part.double().numpy(), columns=list(BOX_COLUMNS)) for part in boxes]
    pairs = match_rows(*sides, Criterion("iou", IOU_THRESHOLD)).pairs
    partners = torch.as_tensor(pairs.truth)
    whole = torch.ones(len(partners), dtype=torch.bool)
    if truth.has("gt_flags"):
        whole = (truth.gt_flags[partners] & FLAGS["EDGE"].value) == 0
    return torch.as_tensor(pairs.pred)[whole], partners[whole]


def _append(measured: Measured, name: str, found: Instances, truth: Instances, label: str) -> None:
    if len(found) == 0:
        return
    values, known = truth.get(f"gt_{label}"), truth.get(f"gt_has_{label}")
    pdf = found.get(name)
    if found.has(f"{name}_measured"):
        known = known & found.get(f"{name}_measured")
    lower = getattr(pdf, "lower", None)
    if lower is not None:  # what lies below the bound has no likelihood
        known = known & (values >= lower)
    measured.pdfs.append(pdf)
    measured.truth.append(values.double())
    measured.known.append(known)


def halves(tile: Tensor, rows: Tensor) -> Tensor:
    """Whether each of these objects belongs to the first half: whole tiles, so that no blend is in both.

    Args:
        tile: (N,) int64.
        rows: (n,) which objects.

    Returns:
        (n,) bool; single objects alternate where one tile holds more than three quarters of them.
    """
    numbers, counts = tile[rows].unique(return_counts=True)
    if len(numbers) < 2 or counts.max() > 0.75 * len(rows):
        return torch.arange(len(rows)) % 2 == 0
    first, total, chosen = 0, 0, []
    for number, count in sorted(zip(numbers.tolist(), counts.tolist(), strict=True), key=lambda pair: -pair[1]):
        if first <= total - first:
            chosen.append(number)
            first += count
        total += count
    return torch.isin(tile[rows], torch.tensor(chosen))
