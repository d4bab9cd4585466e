"""A stand-in for the little of detectron2 that `deepdisc.interop.detectron2` touches: same names, calls and semantics.

Its networks are trivial, so that tests know what must come out. It says nothing about the real detectron2.
"""

import importlib
import sys
import types

import torch
from torch import nn


# ------------------------------------------------------------------------------------------- detectron2.structures
class Boxes:
    """Boxes (N, 4) x0, y0, x1, y1."""

    def __init__(self, tensor):
        self.tensor = torch.as_tensor(tensor, dtype=torch.float32).reshape(-1, 4)

    def __len__(self):
        return len(self.tensor)

    def __getitem__(self, item):
        return Boxes(self.tensor[item])

    def to(self, device):
        return Boxes(self.tensor.to(device))

    @staticmethod
    def cat(items):
        return Boxes(torch.cat([item.tensor for item in items]))

    def scale(self, x, y):
        self.tensor = self.tensor * torch.tensor([x, y, x, y])

    def nonempty(self):
        return (self.tensor[:, 2:] > self.tensor[:, :2]).all(1)


class BitMasks:
    """Masks (N, h, w) of the whole image."""

    def __init__(self, tensor):
        self.tensor = torch.as_tensor(tensor).to(torch.bool)

    def __len__(self):
        return len(self.tensor)

    def __getitem__(self, item):
        return BitMasks(self.tensor[item])


class PolygonMasks:
    """For each object a list of polygons."""

    def __init__(self, polygons):
        self.polygons = [list(parts) for parts in polygons]

    def __len__(self):
        return len(self.polygons)


class Instances:
    """Fields of one length; indexing and `to` reach into each of them."""

    def __init__(self, image_size, **fields):
        self.image_size = image_size
        self._fields = {}
        for name, value in fields.items():
            self.set(name, value)

    def set(self, name, value):
        if self._fields:
            assert len(value) == len(self), f"{name} has length {len(value)}, the instances {len(self)}"
        self._fields[name] = value

    def get(self, name):
        return self._fields[name]

    def has(self, name):
        return name in self._fields

    def get_fields(self):
        return self._fields

    def __getattr__(self, name):
        if name == "_fields" or name not in self._fields:
            raise AttributeError(name)
        return self._fields[name]

    def __len__(self):
        for value in self._fields.values():
            return len(value)
        raise NotImplementedError("empty Instances have no length")

    def __getitem__(self, item):
        item = slice(item, None, len(self)) if type(item) is int else item
        return Instances(self.image_size, **{name: value[item] for name, value in self._fields.items()})

    def to(self, *where):
        moved = {name: value.to(*where) if hasattr(value, "to") else value for name, value in self._fields.items()}
        return Instances(self.image_size, **moved)

    @staticmethod
    def cat(items):
        joined = Instances(items[0].image_size)
        for name in items[0].get_fields():
            values = [item.get(name) for item in items]
            if isinstance(values[0], torch.Tensor):
                values = torch.cat(values)
            elif isinstance(values[0], list):
                values = sum(values, [])
            else:
                values = type(values[0]).cat(values)
            joined.set(name, values)
        return joined


class ImageList:
    """Images padded to one size."""

    def __init__(self, tensor, image_sizes):
        self.tensor, self.image_sizes = tensor, image_sizes


def detector_postprocess(results, height, width):
    """Scale results to another image size and drop empty boxes."""
    y, x = height / results.image_size[0], width / results.image_size[1]
    results = Instances((height, width), **results.get_fields())
    results.pred_boxes.scale(x, y)
    return results[results.pred_boxes.nonempty()]


# --------------------------------------------------------------------------------------------- detectron2.modeling
class StandardROIHeads(nn.Module):
    """Takes every proposal as a detection; in training matches each to the first object whose box it lies in."""

    def __init__(self, *, num_classes, box_in_features=("p2",)):
        super().__init__()
        self.num_classes, self.box_in_features = num_classes, box_in_features

    def label_and_sample_proposals(self, proposals, targets):
        sampled = []
        for found, truth in zip(proposals, targets, strict=True):
            boxes = found.proposal_boxes.tensor
            classes = torch.full((len(boxes),), self.num_classes)
            found = found[torch.arange(len(boxes))]
            if len(truth):
                true = truth.gt_boxes.tensor
                inside = (boxes[:, None, :2] >= true[:, :2]).all(2) & (boxes[:, None, 2:] <= true[:, 2:]).all(2)
                match = inside.float().argmax(1)
                classes = torch.where(inside.any(1), truth.gt_classes[match], classes)
                for name, value in truth.get_fields().items():
                    if name.startswith("gt_") and name != "gt_classes":
                        found.set(name, value[match])
            found.set("gt_classes", classes)
            sampled.append(found)
        return sampled

    def forward(self, images, features, proposals, targets=None):
        del images
        maps = [features[name] for name in self.box_in_features]
        if self.training:
            return self.label_and_sample_proposals(proposals, targets), {"loss_cls": maps[0].sum() * 0}
        found = [
            Instances(
                x.image_size,
                pred_boxes=x.proposal_boxes,
                scores=torch.ones(len(x)),
                pred_classes=torch.zeros(len(x), dtype=torch.int64),
            )
            for x in proposals
        ]
        return self.forward_with_given_boxes(features, found), {}

    def forward_with_given_boxes(self, features, instances):
        assert not self.training and instances[0].has("pred_boxes") and instances[0].has("pred_classes")
        for found in instances:
            found.set("pred_masks", torch.zeros(len(found), 1, 28, 28))
        return instances


class CascadeROIHeads(StandardROIHeads):
    """Three stages, of which only the names of the losses are to be seen."""

    def forward(self, images, features, proposals, targets=None):
        instances, losses = super().forward(images, features, proposals, targets)
        return instances, {f"{name}_stage{k}": value for name, value in losses.items() for k in range(3)}


class GeneralizedRCNN(nn.Module):
    """Normalises, pads, and lets one convolution be the backbone; proposals are the records' own."""

    def __init__(self, roi_heads, num_bands, padded=64):
        super().__init__()
        self.roi_heads, self.padded = roi_heads, padded
        self.backbone = nn.Conv2d(num_bands, 4, 4, stride=4)

    def preprocess_image(self, batched_inputs):
        images = [(record["image"] - 1.0) / 2.0 for record in batched_inputs]
        tensor = torch.zeros(len(images), len(images[0]), self.padded, self.padded)
        for target, image in zip(tensor, images, strict=True):
            target[:, : image.shape[1], : image.shape[2]] = image
        return ImageList(tensor, [tuple(image.shape[1:]) for image in images])

    def forward(self, batched_inputs):
        images = self.preprocess_image(batched_inputs)
        features = {"p2": self.backbone(images.tensor)}
        proposals = [record["proposals"] for record in batched_inputs]
        if self.training:
            targets = [record["instances"] for record in batched_inputs]
            return self.roi_heads(images, features, proposals, targets)[1]
        return [{"instances": found} for found in self.roi_heads(images, features, proposals)[0]]


# ----------------------------------------------------------------------------------------------- detectron2.config
def instantiate(cfg):
    """Build a lazy call and those among its arguments; a mapping that is none comes back as it is."""
    if isinstance(cfg, list):
        return [instantiate(item) for item in cfg]
    if not hasattr(cfg, "keys") or "_target_" not in cfg:
        return cfg
    arguments = {name: instantiate(cfg[name]) for name in cfg if name != "_target_"}
    target = cfg["_target_"]
    if isinstance(target, str):
        module, _, name = target.rpartition(".")
        target = getattr(importlib.import_module(module), name)
    return target(**arguments)


def install(monkeypatch):
    """Put the stand-in where `import detectron2` finds it."""
    names = {
        "structures": (Boxes, BitMasks, PolygonMasks, Instances, ImageList),
        "modeling": (GeneralizedRCNN,),
        "modeling.roi_heads": (StandardROIHeads, CascadeROIHeads),
        "config": (instantiate,),
    }
    monkeypatch.setitem(sys.modules, "detectron2", types.ModuleType("detectron2"))
    for name, members in names.items():
        module = types.ModuleType(f"detectron2.{name}")
        for member in members:
            setattr(module, member.__name__, member)
        monkeypatch.setitem(sys.modules, f"detectron2.{name}", module)
