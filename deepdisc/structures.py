"""The containers that flow through the program: objects of one image, their masks, a padded batch, and box arithmetic.

Legend: N objects; boxes are float (N, 4) `x0, y0, x1, y1` in pixel-edge coordinates (pixel i covers [i, i+1)) of the
image they belong to; `gt_` = true, `pred_` = predicted, `proposal_` = from the region proposal network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor


# ---------------------------------------------------------------------------------------------------------- boxes
def box_area(boxes: Tensor) -> Tensor:
    """Area (N,) of boxes (N, 4) in pixels; may be negative for inverted boxes, as in detectron2."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def box_intersection(a: Tensor, b: Tensor) -> Tensor:
    """Pairwise intersection areas (N, M) of boxes (N, 4) and (M, 4)."""
    low = torch.maximum(a[:, None, :2], b[None, :, :2])
    high = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    size = (high - low).clamp(min=0)
    return size[..., 0] * size[..., 1]


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Pairwise intersection over union (N, M); exactly 0 where the boxes do not overlap."""
    intersection = box_intersection(a, b)
    union = box_area(a)[:, None] + box_area(b)[None, :] - intersection
    return torch.where(intersection > 0, intersection / union, torch.zeros_like(intersection))


def box_centers(boxes: Tensor) -> Tensor:
    """Centres (N, 2) as (x, y), pixel-edge coordinates."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def clip_boxes(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Clip boxes (..., 4) to an image of (height, width)."""
    height, width = image_size
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack(
        (x0.clamp(0, width), y0.clamp(0, height), x1.clamp(0, width), y1.clamp(0, height)),
        dim=-1,
    )


def nonempty(boxes: Tensor, threshold: float = 0.0) -> Tensor:
    """Bool (N,): both sides strictly longer than `threshold` pixels."""
    return (boxes[:, 2] - boxes[:, 0] > threshold) & (boxes[:, 3] - boxes[:, 1] > threshold)


def sample_map(value: Tensor | float, boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Values (N,) at the box centres of a quantity that varies slowly over an image (E(B-V), say).

    Args:
        value: a scalar, or a coarse grid (gh, gw) whose cells cover the image evenly.
        boxes: (N, 4) in the pixels of that image.
        image_size: (height, width).
    """
    value = torch.as_tensor(value, dtype=torch.float32, device=boxes.device)
    if value.ndim == 0:
        return value.expand(len(boxes)).clone()
    height, width = image_size
    centers = box_centers(boxes.float())
    grid = centers / centers.new_tensor([width, height]) * 2 - 1
    sampled = torch.nn.functional.grid_sample(
        value[None, None], grid[None, None], mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled[0, 0, 0]


# ---------------------------------------------------------------------------------------------------------- masks
class RegionMasks:
    """Masks of N objects, each stored only inside its own region: memory grows with the objects, not with the image.

    They are kept on the CPU.

    Attributes:
        regions: (N, 4) int64 `x0, y0, x1, y1`, pixel edges, within the image.
        crops: list of N bool tensors of shape (y1 - y0, x1 - x0).
        image_size: (height, width) of the image they lie in.
    """

    def __init__(self, regions: Tensor, crops: Sequence[Tensor], image_size: tuple[int, int]):
        self.regions = regions.cpu().to(torch.int64).reshape(-1, 4)
        self.crops = [crop.cpu() for crop in crops]
        self.image_size = (int(image_size[0]), int(image_size[1]))
        assert len(self.crops) == len(self.regions)

    @classmethod
    def empty(cls, image_size: tuple[int, int]) -> RegionMasks:
        """No masks in an image of this size."""
        return cls(torch.zeros((0, 4), dtype=torch.int64), [], image_size)

    @classmethod
    def from_dense(cls, masks: Tensor) -> RegionMasks:
        """From full-image masks (N, H, W), bool; a mask without any pixel gets an empty region."""
        regions, crops = [], []
        for mask in masks.bool():
            rows = torch.nonzero(mask.any(dim=1)).flatten()
            columns = torch.nonzero(mask.any(dim=0)).flatten()
            if len(rows) == 0:
                region = [0, 0, 0, 0]
            else:
                region = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
            regions.append(region)
            crops.append(mask[region[1] : region[3], region[0] : region[2]].clone())
        return cls(torch.tensor(regions, dtype=torch.int64).reshape(-1, 4), crops, tuple(masks.shape[-2:]))

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, index: int | slice | Tensor | Sequence[int]) -> RegionMasks:
        picked = _positions(index, len(self))
        return RegionMasks(self.regions[picked], [self.crops[i] for i in picked], self.image_size)

    @staticmethod
    def cat(items: Sequence[RegionMasks]) -> RegionMasks:
        """Concatenate masks of the same image."""
        regions = torch.cat([item.regions for item in items])
        return RegionMasks(regions, [crop for item in items for crop in item.crops], items[0].image_size)

    def to(self, device: torch.device | str) -> RegionMasks:
        """Themselves: masks stay on the CPU, where all that is done with them is cheaper than moving them."""
        del device
        return self

    def areas(self) -> Tensor:
        """Number of set pixels (N,), int64."""
        return torch.tensor([int(crop.sum()) for crop in self.crops], dtype=torch.int64)

    def boxes(self) -> Tensor:
        """Tight float boxes (N, 4); zeros for a mask without pixels."""
        boxes = torch.zeros((len(self), 4))
        for i, crop in enumerate(self.crops):
            rows = torch.nonzero(crop.any(dim=1)).flatten()
            if len(rows) == 0:
                continue
            columns = torch.nonzero(crop.any(dim=0)).flatten()
            x0, y0 = self.regions[i, 0], self.regions[i, 1]
            boxes[i] = torch.stack((x0 + columns[0], y0 + rows[0], x0 + columns[-1] + 1, y0 + rows[-1] + 1)).float()
        return boxes

    def to_dense(self) -> Tensor:
        """Full-image masks (N, H, W), bool. For small images and tests: this is what the class exists to avoid."""
        dense = torch.zeros((len(self), *self.image_size), dtype=torch.bool)
        for i, crop in enumerate(self.crops):
            x0, y0, x1, y1 = self.regions[i].tolist()
            dense[i, y0:y1, x0:x1] = crop
        return dense

    def shift(self, dx: int, dy: int, image_size: tuple[int, int]) -> RegionMasks:
        """The masks in an image whose pixel (0, 0) is this image's (-dx, -dy); parts outside are cut off."""
        height, width = image_size
        regions, crops = [], []
        for region, crop in zip(self.regions.tolist(), self.crops, strict=True):
            x0, y0, x1, y1 = region[0] + dx, region[1] + dy, region[2] + dx, region[3] + dy
            u0, v0, u1, v1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
            if u1 <= u0 or v1 <= v0:
                regions.append([0, 0, 0, 0])
                crops.append(crop[:0, :0])
            else:
                regions.append([u0, v0, u1, v1])
                crops.append(crop[v0 - y0 : v1 - y0, u0 - x0 : u1 - x0])
        return RegionMasks(torch.tensor(regions, dtype=torch.int64).reshape(-1, 4), crops, image_size)

    def __repr__(self) -> str:
        return f"RegionMasks({len(self)} masks in {self.image_size[0]}x{self.image_size[1]})"


class PolygonMasks:
    """Masks of N objects as polygons, the way COCO files have them; exact at any resolution.

    Attributes:
        polygons: for each object a list of float64 arrays `x0, y0, x1, y1, ...`, pixel-edge coordinates; an object may
            have several parts, but no holes.
        image_size: (height, width) of the image they lie in.
    """

    def __init__(self, polygons: Sequence[Sequence[Any]], image_size: tuple[int, int]):
        self.polygons = [[np.asarray(part, dtype=np.float64).reshape(-1) for part in parts] for parts in polygons]
        self.image_size = (int(image_size[0]), int(image_size[1]))
        for parts in self.polygons:
            for part in parts:
                if len(part) % 2 or len(part) < 6:
                    raise ValueError(f"a polygon needs x, y of three points or more, not {len(part)} numbers")

    def __len__(self) -> int:
        return len(self.polygons)

    def __getitem__(self, index: int | slice | Tensor | Sequence[int]) -> PolygonMasks:
        return PolygonMasks([self.polygons[i] for i in _positions(index, len(self))], self.image_size)

    @staticmethod
    def cat(items: Sequence[PolygonMasks]) -> PolygonMasks:
        """Concatenate masks of the same image."""
        return PolygonMasks([parts for item in items for parts in item.polygons], items[0].image_size)

    def to(self, device: torch.device | str) -> PolygonMasks:
        """Themselves: polygons stay on the CPU."""
        del device
        return self

    def rasterize_in_boxes(self, boxes: Tensor, side: int) -> Tensor:
        """Masks (N, side, side), bool, of the objects inside boxes (N, 4) stretched to `side` pixels."""
        masks = torch.zeros((len(self), side, side), dtype=torch.bool)
        for mask, parts, (x0, y0, x1, y1) in zip(masks, self.polygons, boxes.cpu().double().numpy(), strict=True):
            scale = side / np.maximum([x1 - x0, y1 - y0], 0.1)  # as detectron2: no box is thinner than 0.1 pixel
            moved = [((part.reshape(-1, 2) - [x0, y0]) * scale).reshape(-1) for part in parts]
            mask[:] = torch.from_numpy(_fill_polygons(moved, side, side))
        return masks

    def __repr__(self) -> str:
        return f"PolygonMasks({len(self)} masks in {self.image_size[0]}x{self.image_size[1]})"


def _fill_polygons(parts: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """Bool (height, width): pixels within any of the polygons."""
    if not parts:
        return np.zeros((height, width), dtype=bool)
    return rle.decode(rle.merge(rle.frPyObjects([part.tolist() for part in parts], height, width))).astype(bool)


def _positions(index: Any, length: int) -> list[int]:
    """Turn an int, slice, bool or integer tensor into a list of positions."""
    if isinstance(index, int):
        index = [index]
    if isinstance(index, slice):
        return list(range(length))[index]
    index = torch.as_tensor(index)
    if index.dtype == torch.bool:
        assert len(index) == length
        return torch.nonzero(index).flatten().tolist()
    return [int(i) % length if length else int(i) for i in index.flatten().tolist()]


# ------------------------------------------------------------------------------------------------------ instances
class Instances:
    """The objects of one image: any number of fields, all of the same length, as attributes (detectron2's idea).

    A field is a tensor (N, ...), a list, or any object with `len` and indexing, such as `RegionMasks` and `Mixture`.

    Example:
        >>> objects = Instances((64, 64), gt_boxes=torch.tensor([[1.0, 2.0, 5.0, 6.0]]))
        >>> len(objects), objects.has("gt_classes")
        (1, False)
    """

    def __init__(self, image_size: tuple[int, int], **fields: Any):
        object.__setattr__(self, "image_size", (int(image_size[0]), int(image_size[1])))
        object.__setattr__(self, "_fields", {})
        for name, value in fields.items():
            self.set(name, value)

    def set(self, name: str, value: Any) -> None:
        """Add or replace a field.

        Raises:
            ValueError: its length differs from that of the other fields.
        """
        others = [other for other in self._fields if other != name]
        if others and len(value) != len(self):
            raise ValueError(f"field {name!r} has length {len(value)}, but {others[0]!r} has {len(self)}")
        self._fields[name] = value

    def get(self, name: str) -> Any:
        """The field `name`; KeyError names those that exist."""
        if name not in self._fields:
            raise KeyError(f"no field {name!r}; there are {sorted(self._fields)}")
        return self._fields[name]

    def has(self, name: str) -> bool:
        """Whether the field exists."""
        return name in self._fields

    def remove(self, name: str) -> None:
        """Delete a field."""
        del self._fields[name]

    def fields(self) -> dict[str, Any]:
        """All fields, by name."""
        return dict(self._fields)

    def __setattr__(self, name: str, value: Any) -> None:
        self.set(name, value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._fields:
            known = sorted(self.__dict__.get("_fields", {}))
            raise AttributeError(f"Instances has no field {name!r}; there are {known}")
        return self._fields[name]

    def __getstate__(self) -> dict:
        return {"image_size": self.image_size, "fields": self._fields}

    def __setstate__(self, state: dict) -> None:
        object.__setattr__(self, "image_size", state["image_size"])
        object.__setattr__(self, "_fields", state["fields"])

    def __len__(self) -> int:
        for value in self._fields.values():
            return len(value)
        return 0

    def __getitem__(self, index: int | slice | Tensor) -> Instances:
        picked = Instances(self.image_size)
        if isinstance(index, int):
            index = slice(index, index + 1 or None)
        for name, value in self._fields.items():
            if isinstance(value, list):
                value = [value[i] for i in _positions(index, len(value))]
            elif isinstance(value, Tensor) and isinstance(index, Tensor):
                value = value[index.to(value.device)]
            else:
                value = value[index]
            picked._fields[name] = value
        return picked

    def to(self, device: torch.device | str) -> Instances:
        """All fields that can move, on another device."""
        moved = {name: value.to(device) if hasattr(value, "to") else value for name, value in self._fields.items()}
        return Instances(self.image_size, **moved)

    @staticmethod
    def cat(items: Sequence[Instances]) -> Instances:
        """Concatenate objects of images of the same size that have the same fields."""
        assert items and all(set(item._fields) == set(items[0]._fields) for item in items)
        joined = Instances(items[0].image_size)
        for name, first in items[0]._fields.items():
            values = [item._fields[name] for item in items]
            if isinstance(first, Tensor):
                joined._fields[name] = torch.cat(values)
            elif isinstance(first, list):
                joined._fields[name] = [element for value in values for element in value]
            else:
                joined._fields[name] = type(first).cat(values)
        return joined

    def __repr__(self) -> str:
        return f"Instances({len(self)} in {self.image_size[0]}x{self.image_size[1]}: {', '.join(self._fields)})"


# ---------------------------------------------------------------------------------------------------------- batch
@dataclass
class ImageBatch:
    """Images of unlike sizes as one tensor, zero-padded at the right and bottom.

    Attributes:
        tensor: (N, C, H, W).
        image_sizes: (height, width) of each image before padding.
    """

    tensor: Tensor
    image_sizes: list[tuple[int, int]]

    @classmethod
    def from_list(cls, images: Sequence[Tensor], divisibility: int = 1) -> ImageBatch:
        """Stack images (C, h, w); the common size is the largest one, rounded up to a multiple of `divisibility`."""
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        height = -(-max(size[0] for size in sizes) // divisibility) * divisibility
        width = -(-max(size[1] for size in sizes) // divisibility) * divisibility
        tensor = images[0].new_zeros((len(images), images[0].shape[0], height, width))
        for target, image in zip(tensor, images, strict=True):
            target[:, : image.shape[-2], : image.shape[-1]] = image
        return cls(tensor, sizes)

    def __len__(self) -> int:
        return len(self.image_sizes)
