"""Our measurement heads and data inside detectron2, for those who have it installed.

`StandardMeasuringROIHeads` and `CascadeMeasuringROIHeads` are detectron2's ROI heads with further heads of the form of
`deepdisc.heads.head.Head`; `MeasuringRCNN` is its GeneralizedRCNN that also hands on E(B-V) and the measured pixels.
In a LazyConfig of detectron2, with its LazyCall as L::

    from deepdisc.interop.detectron2 import MeasuringRCNN, StandardMeasuringROIHeads
    model._target_ = MeasuringRCNN
    model.roi_heads._target_ = StandardMeasuringROIHeads
    model.roi_heads.heads = {"redshift": L(RedshiftHead)(pooler=L(ROIPooler)(output_size=7, in_features=["p2", "p3",
                             "p4", "p5"]), in_channels=256)}

State-dict keys of the heads are those of our own detector (`roi_heads.heads.redshift...`). Only detectron2's public
interface is used: `forward` and `forward_with_given_boxes` of its ROI heads, `preprocess_image` of its GeneralizedRCNN,
and its containers. This was tested with a stand-in of that interface; the tests with detectron2 itself run only where
it is installed.

Legend: "theirs" are objects of detectron2, "ours" those of `deepdisc.structures`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from deepdisc.data.annotations import XYWH_ABS
from deepdisc.data.coco import split_to_coco
from deepdisc.detector.roi_heads import check_order
from deepdisc.errors import InputError
from deepdisc.psf import PSF_SIDE
from deepdisc.structures import Instances, PolygonMasks, RegionMasks, sample_map


def _theirs(module: str) -> ModuleType:
    """A module of detectron2.

    Raises:
        InputError: detectron2 is not installed.
    """
    try:
        return importlib.import_module(f"detectron2.{module}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "detectron2":
            raise
        raise InputError(
            "this needs detectron2, which is not installed: no package index has it, follow its own installation "
            "instructions; deepdisc itself does not need it"
        ) from error


# ------------------------------------------------------------------------------------------------------ ROI heads
class FeatureMaps(dict):
    """The feature maps that heads receive: "p2", "p3", ..., "image" and, from `MeasuringRCNN`, the measured pixels.

    Attributes:
        ebv: E(B-V) of each image, a scalar or a coarse grid; None where nobody said it (then 0).
    """

    def __init__(self, maps: Mapping[str, Tensor], ebv: Sequence[Tensor] | None = None):
        super().__init__(maps)
        self.ebv = ebv

    def __missing__(self, name: str) -> Tensor:
        raise InputError(
            f"a head needs {name!r}, which detectron2 does not hand to it; there are {', '.join(self)}: use "
            "MeasuringRCNN as the model and give its records `variance`, or a head without it (photometry=None)"
        )


class MeasuringMixin:
    """Detectron2's ROI heads with further heads of ours, `heads={name: head}`.

    For ROI heads of one's own: `class Mine(MeasuringMixin, MyROIHeads)`.
    """

    def __init__(self, *args: Any, heads: Mapping[str, Any] | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        build = _theirs("config").instantiate  # which leaves lazy calls inside a plain mapping alone
        self.heads = nn.ModuleDict({name: build(head) for name, head in (heads or {}).items()})
        check_order(self.heads)

    def forward(self, images, features: Mapping[str, Tensor], proposals: list, targets: list | None = None):
        """As detectron2's, with the losses or the `pred_*` fields of our heads added."""
        maps = {**features, "image": images.tensor, **getattr(images, "pixels", {})}
        maps = FeatureMaps(maps, getattr(images, "ebv", None))
        instances, losses = super().forward(images, maps, proposals, targets)
        if self.training:
            objects = self._objects(instances, "proposal_boxes", maps)
            objects = [_foreground(found, self.num_classes) for found in objects]
            for head in self.heads.values():
                losses.update(head.losses(maps, objects))
        return instances, losses

    def forward_with_given_boxes(self, features: Mapping[str, Tensor], instances: list) -> list:
        """As detectron2's, with the `pred_*` fields of our heads added to each image's instances."""
        instances = super().forward_with_given_boxes(features, instances)
        maps = features if isinstance(features, FeatureMaps) else FeatureMaps(features)
        ours = self._objects(instances, "pred_boxes", maps)
        known = [set(objects.fields()) for objects in ours]
        for head in self.heads.values():
            ours = head.predict(maps, ours)
        for head in self.heads.values():
            ours = head.calibrate(ours)
        for theirs, objects, before in zip(instances, ours, known, strict=True):
            for name, value in objects.fields().items():
                if name not in before:
                    theirs.set(name, value)
        return instances

    @staticmethod
    def _objects(instances: list, box_field: str, maps: FeatureMaps) -> list[Instances]:
        """Ours, without masks (detectron2's own head has those), with `ebv` at the box centres."""
        found = []
        for i, theirs in enumerate(instances):
            objects = from_instances(theirs, masks=False)
            ebv = 0.0 if maps.ebv is None else maps.ebv[i]
            objects.ebv = sample_map(ebv, objects.get(box_field), objects.image_size)
            found.append(objects)
        return found


def _foreground(objects: Instances, num_classes: int) -> Instances:
    """The sampled proposals of one image that match an object, with `gt_object`: a true box stands for its object."""
    if not objects.has("gt_classes"):  # without any `gt_` field there is none in the image
        return objects[:0]
    found = objects[(objects.gt_classes >= 0) & (objects.gt_classes < num_classes)]
    if found.has("gt_boxes"):
        found.gt_object = torch.unique(found.gt_boxes, dim=0, return_inverse=True)[1]
    return found


class RecordMixin:
    """Detectron2's GeneralizedRCNN that hands to our heads what records say beside the image.

    Records may have `ebv`, a scalar or a coarse grid, `variance` and `mask` (True = no data) of the image's shape, and
    `psf` (see `deepdisc.psf`).
    """

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]):
        """As detectron2's; the images also carry `ebv` and, where every record has a variance, `pixels`."""
        images = super().preprocess_image(batched_inputs)
        device = images.tensor.device
        images.ebv = [torch.as_tensor(record.get("ebv", 0.0), device=device) for record in batched_inputs]
        if all(record.get("variance") is not None for record in batched_inputs):
            images.pixels = _measured_pixels(batched_inputs, images.tensor)
        return images


def _measured_pixels(records: list[dict[str, Any]], padded: Tensor) -> dict[str, Tensor]:
    """What `Head` describes: "flux", "variance", "valid" (N, C, H, W), zero where masked or padded, and "psf"."""
    pixels = {
        "flux": torch.zeros(padded.shape, device=padded.device),
        "variance": torch.zeros(padded.shape, device=padded.device),
        "valid": torch.zeros(padded.shape, dtype=torch.bool, device=padded.device),
        "psf": torch.zeros((*padded.shape[:2], PSF_SIDE, PSF_SIDE), device=padded.device),
    }
    for i, record in enumerate(records):
        flux, variance = record["image"].to(padded.device), record["variance"].to(padded.device)
        if flux.shape != variance.shape:
            raise InputError(f"variance is {tuple(variance.shape)}, the image {tuple(flux.shape)}: they must agree")
        valid = torch.isfinite(flux) & torch.isfinite(variance) & (variance > 0)
        if record.get("mask") is not None:
            valid &= ~record["mask"].to(padded.device)
        inside = (i, slice(None), slice(0, flux.shape[1]), slice(0, flux.shape[2]))
        pixels["flux"][inside] = flux.where(valid, 0.0)
        pixels["variance"][inside] = variance.where(valid, 0.0)
        pixels["valid"][inside] = valid
        if record.get("psf") is not None:
            if record["psf"].shape != pixels["psf"].shape[1:]:
                raise InputError(f"psf is {tuple(record['psf'].shape)}, it must be {tuple(pixels['psf'].shape[1:])}")
            pixels["psf"][i] = record["psf"]
    return pixels


_CLASSES = {
    "StandardMeasuringROIHeads": ("modeling.roi_heads", "StandardROIHeads", MeasuringMixin),
    "CascadeMeasuringROIHeads": ("modeling.roi_heads", "CascadeROIHeads", MeasuringMixin),
    "MeasuringRCNN": ("modeling", "GeneralizedRCNN", RecordMixin),
}


def __getattr__(name: str) -> Any:
    """Make the classes that need detectron2 when they are first asked for."""
    if name not in _CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, base, mixin = _CLASSES[name]
    return _joined(name, mixin, getattr(_theirs(module), base))


@functools.cache
def _joined(name: str, mixin: type, base: type) -> type:
    return type(name, (mixin, base), {"__module__": __name__, "__doc__": mixin.__doc__})


# ----------------------------------------------------------------------------------------------------- converters
def to_instances(ours: Instances) -> Any:
    """Our instances as theirs: boxes as Boxes, true outlines as BitMasks or PolygonMasks, predicted as (N, h, w) bool.

    Raises:
        InputError: detectron2 is not installed.
    """
    structures = _theirs("structures")
    theirs = structures.Instances(ours.image_size)
    for name, value in ours.fields().items():
        if name.endswith("_boxes"):
            value = structures.Boxes(value)
        elif isinstance(value, RegionMasks):
            value = structures.BitMasks(value.to_dense()) if name == "gt_masks" else value.to_dense()
        elif isinstance(value, PolygonMasks):
            value = structures.PolygonMasks(value.polygons)
        theirs.set(name, value)
    return theirs


def from_instances(theirs: Any, masks: bool = True) -> Instances:
    """Their instances as ours; a label `gt_<name>` of numbers gets its `gt_has_<name>`, finite or not.

    Args:
        theirs: detectron2's Instances: targets, proposals or results.
        masks: with `gt_masks` and `pred_masks`.

    Raises:
        InputError: masks that are not those of the whole image.
    """
    ours = Instances(theirs.image_size)
    for name, value in theirs.get_fields().items():
        if name not in ("gt_masks", "pred_masks"):
            ours.set(name, value.tensor if name.endswith("_boxes") else value)
        elif masks:
            ours.set(name, _masks(value, ours.image_size, name))
    for name, value in ours.fields().items():
        label = name.removeprefix("gt_")
        number = isinstance(value, Tensor) and value.is_floating_point() and name not in ("gt_boxes", label)
        if number and not ours.has(f"gt_has_{label}"):
            ours.set(f"gt_has_{label}", torch.isfinite(value).flatten(1).all(1) if value.ndim > 1 else value.isfinite())
    return ours


def _masks(value: Any, image_size: tuple[int, int], name: str) -> RegionMasks | PolygonMasks:
    """From BitMasks, PolygonMasks or a tensor (N, h, w)."""
    if hasattr(value, "polygons"):
        return PolygonMasks(value.polygons, image_size)
    dense = getattr(value, "tensor", value)
    if dense.ndim != 3 or tuple(dense.shape[1:]) != tuple(image_size):
        raise InputError(
            f"{name} is {tuple(dense.shape)}, the image {tuple(image_size)}: paste the masks into the image first, by "
            "detectron2's detector_postprocess"
        )
    return RegionMasks.from_dense(dense)


def to_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """A sample of `TileDataset` as the dict that a model of detectron2 takes.

    Returns:
        image, height, width, image_id (the tile's number) and instances, where there are any, in their form; whatever
        else the sample has (variance, mask, ebv, window) as it is.
    """
    theirs = dict(record)
    height, width = (int(side) for side in record["image"].shape[-2:])
    theirs |= {"height": height, "width": width}
    if "tile" in theirs:
        theirs["image_id"] = theirs.pop("tile")
    if "instances" in theirs:
        theirs["instances"] = to_instances(record["instances"])
    return theirs


def from_record(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """What a mapper of detectron2 made, or a result of its model, as a record of ours."""
    ours = {name: value for name, value in theirs.items() if name not in ("height", "width", "image_id")}
    if "image_id" in theirs:
        ours["tile"] = theirs["image_id"]
    if "instances" in ours:
        ours["instances"] = from_instances(ours["instances"])
    return ours


def dataset_dicts(root: str | Path, split: str, *, polygons: bool = False) -> list[dict[str, Any]]:
    """One split of a data set as detectron2's standard dataset dicts; it need not be installed.

    `deepdisc.data.coco.prepare_annotations` makes a data set of such dicts. Boxes are in BoxMode.XYWH_ABS (1),
    category_id is our class_id, outlines are run-length codes (INPUT.MASK_FORMAT "bitmask").

    Args:
        root: folder written by `prepare`.
        split: "train", "val" or "test".
        polygons: outlines as polygons where they have no holes (MASK_FORMAT "polygon" takes no others).

    Raises:
        InputError: no data set there, or no such split.
    """
    content = split_to_coco(root, split, polygons)
    images = {}
    for image in content["images"]:
        name = str((Path(root) / image["file_name"]).resolve())
        images[image["id"]] = {**image, "file_name": name, "image_id": image["id"], "annotations": []}
        del images[image["id"]]["id"]
    for annotation in content["annotations"]:
        own = {name: value for name, value in annotation.items() if name not in ("id", "image_id")}
        own |= {"bbox_mode": XYWH_ABS, "category_id": annotation["category_id"] - 1}
        images[annotation["image_id"]]["annotations"].append(own)
    return list(images.values())
