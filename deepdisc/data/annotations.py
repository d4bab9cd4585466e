"""Annotation files of other programs, read and checked: COCO JSON, and lists of detectron2's dataset dicts.

A COCO file is `{"images": [...], "annotations": [...], "categories": [...]}`. A list of detectron2's (and DeepDISC's)
dicts has one entry per image with its `annotations` inside, `category_id` from 0 and a `bbox_mode` for each box.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from deepdisc.errors import InputError
from deepdisc.structures import box_area, box_intersection, box_iou

XYXY_ABS, XYWH_ABS = 0, 1  # detectron2's BoxMode
_ORDERS = {XYXY_ABS: "x0, y0, x1, y1", XYWH_ABS: "x0, y0, width, height"}

logger = logging.getLogger(__name__)


@dataclass
class Annotation:
    """One object of an image.

    Attributes:
        label: what it is called in messages.
        class_id: index of its class.
        box: x0, y0, x1, y1, pixel edges; None where only the outline is given.
        segmentation: as in the file; see `outlines.draw`.
        values: everything else that is known of the object.
        box_mode: how the file writes the box.
    """

    label: str
    class_id: int
    box: tuple[float, float, float, float] | None
    segmentation: Any
    values: dict[str, Any]
    box_mode: int | None = None


@dataclass
class AnnotatedImage:
    """One image with its objects.

    Attributes:
        label: what it is called in messages.
        file_name: of its pixels, as in the file.
        shape: (height, width), None where it is not stated.
        about: the image's entry in the file.
        objects: without those that are crowds.
    """

    label: str
    file_name: str
    shape: tuple[int, int] | None
    about: dict[str, Any]
    objects: list[Annotation] = field(default_factory=list)


@dataclass
class Annotations:
    """What an annotation file holds; `about` is its `info`."""

    images: list[AnnotatedImage]
    class_names: list[str]
    about: dict[str, Any]


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a number that a float64 can hold; the integers of JSON have no limit."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def short(value: Any) -> str:
    """A value of a JSON file for a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_annotations(
    source: str | Path | Mapping | Sequence, class_names: Sequence[str] | None = None, named_by: str = "--classes"
) -> Annotations:
    """Read annotations and check all that can be checked without the pixels.

    Objects with `iscrowd` 1 (a region of unnumbered objects) are left out, as in detectron2's trainings.

    Args:
        source: a JSON file, or its contents.
        class_names: names by index. A COCO file names its own, in the order of their ids; then this can only give
            another order.
        named_by: where `class_names` come from, for messages.

    Raises:
        InputError: no such file, not JSON, or neither of the two forms; an id that occurs twice or belongs to nothing;
            an unknown category; a malformed box.
    """
    label, content = _load(source)
    if isinstance(content, Mapping):
        missing = [key for key in ("images", "annotations", "categories") if not isinstance(content.get(key), list)]
        if missing:
            raise InputError(f"{label}: a COCO file needs the list `{missing[0]}`")
        parts = [{**entry, "annotations": []} for entry in _entries(content["images"], label, "images")]
        _require_distinct([part.get("id") for part in parts], f"{label}: image id")
        _hand_out(content["annotations"], parts, label)
        classes, names = _categories(content["categories"], class_names, named_by, label)
        default_mode, about = XYWH_ABS, content.get("info")
    elif isinstance(content, list):
        if not class_names:
            raise InputError(f"{label}: a list of images does not name its classes; give --classes NAME,NAME by index")
        parts = [{"id": entry.get("image_id"), **entry} for entry in _entries(content, label, "images")]
        _require_distinct([part["id"] for part in parts], f"{label}: image_id")
        names = list(class_names)
        classes, default_mode, about = {i: i for i in range(len(names))}, None, None
    else:
        raise InputError(f"{label}: neither a COCO file {{images, annotations, categories}} nor a list of images")
    if not parts:
        raise InputError(f"{label}: it lists no image")
    _require_distinct([str(part.get("file_name")) for part in parts], f"{label}: file_name")
    images = [_image(part, classes, names, default_mode, label) for part in parts]
    crowds = sum(len(part["annotations"]) for part in parts) - sum(len(image.objects) for image in images)
    if crowds:
        logger.warning("%s: %d objects with iscrowd 1 are left out", label, crowds)
    return Annotations(images, names, about if isinstance(about, dict) else {})


def _load(source: Any) -> tuple[str, Any]:
    if not isinstance(source, str | os.PathLike):
        return "annotations", source
    try:
        return str(source), json.loads(Path(source).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the annotations {source}: {error.strerror or error}; check the path") from error
    except (ValueError, RecursionError) as error:  # JSON's and Unicode's errors are ValueErrors
        raise InputError(f"{source}: not valid JSON: {error}; give a COCO file") from error


def _entries(items: list, label: str, name: str) -> list[dict[str, Any]]:
    for i, item in enumerate(items):
        if not isinstance(item, dict):
            raise InputError(f"{label}: {name}[{i}] is {item!r:.40}, not a mapping")
    return items


def _require_distinct(ids: list, what: str) -> None:
    seen = set()
    for value in ids:
        if not isinstance(value, int | str) or isinstance(value, bool):
            raise InputError(f"{what} {value!r} is not a number or a name; give each its own")
        if value in seen:
            raise InputError(f"{what} {value!r} occurs twice; give each its own")
        seen.add(value)


def _hand_out(items: list, images: list[dict[str, Any]], label: str) -> None:
    """Put each annotation of a COCO file into its image's list."""
    by_id = {image["id"]: image for image in images}
    annotations = _entries(items, label, "annotations")
    _require_distinct([annotation.get("id") for annotation in annotations], f"{label}: annotation id")
    for annotation in annotations:
        owner = annotation.get("image_id")
        if not isinstance(owner, int | str) or owner not in by_id:
            raise InputError(f"{label}: annotation {annotation['id']} is of image {owner!r}, which is not listed")
        by_id[owner]["annotations"].append(annotation)


def _categories(
    items: list, wanted: Sequence[str] | None, named_by: str, label: str
) -> tuple[dict[Any, int], list[str]]:
    """Class index by category id, and the names by class index."""
    named = {}
    for item in _entries(items, label, "categories"):
        if type(item.get("id")) is not int or not isinstance(item.get("name"), str):
            raise InputError(f"{label}: category {item!r:.60} needs a number `id` and a `name`")
        if item["id"] in named or item["name"] in named.values():
            raise InputError(f"{label}: category {item['id']} {item['name']!r} is listed twice")
        named[item["id"]] = item["name"]
    if not named:
        raise InputError(f"{label}: it lists no category")
    names = list(wanted) if wanted else [named[key] for key in sorted(named)]
    if sorted(names) != sorted(named.values()):
        raise InputError(
            f"{named_by} {','.join(names)}, but {label} has the categories {','.join(named.values())}: they must be "
            "the same, also where one has no object"
        )
    return {key: names.index(name) for key, name in named.items()}, names


def _image(
    entry: dict[str, Any], classes: dict[Any, int], names: list[str], default_mode: int | None, source: str
) -> AnnotatedImage:
    name = entry.get("file_name")
    if not isinstance(name, str) or not name:
        raise InputError(f"{source}: image {entry.get('id')!r} has no `file_name`: one file that holds all its bands")
    label = f"{source}: image {name}"
    sides = [entry.get("height"), entry.get("width")]
    if any(side is not None and (type(side) is not int or side < 1) for side in sides):
        raise InputError(f"{label}: height {sides[0]!r} and width {sides[1]!r} must be numbers of pixels")
    if not isinstance(entry.get("annotations"), list):
        raise InputError(f"{label}: its `annotations` must be a list, empty where there is no object")
    about = {key: value for key, value in entry.items() if key != "annotations"}
    image = AnnotatedImage(label, name, None if None in sides else tuple(sides), about)
    for i, item in enumerate(_entries(entry["annotations"], label, "annotations")):
        if item.get("iscrowd", 0) not in (0, 1):
            raise InputError(f"{label}: annotation {item.get('id', i)}: iscrowd is {item['iscrowd']!r}; it is 0 or 1")
        if not item.get("iscrowd"):
            image.objects.append(
                _object(item, classes, names, default_mode, f"{label}: annotation {item.get('id', i)}")
            )
    return image


_OWN_KEYS = {"image_id", "category_id", "bbox", "bbox_mode", "segmentation", "iscrowd", "area"}


def _object(
    item: dict[str, Any], classes: dict[Any, int], names: list[str], default_mode: int | None, label: str
) -> Annotation:
    category = item.get("category_id")
    if type(category) is not int or category not in classes:
        known = ", ".join(f"{key} {names[index]}" for key, index in classes.items())
        raise InputError(f"{label}: category_id {category!r} is unknown; there are {known}")
    if item.get("segmentation") is None:
        raise InputError(f"{label} has no `segmentation`; objects are learned with their outlines")
    mode = item.get("bbox_mode", default_mode)
    box = None if item.get("bbox") is None else _box(item["bbox"], mode, label)
    values = {key: value for key, value in item.items() if key not in _OWN_KEYS}
    return Annotation(label, classes[category], box, item["segmentation"], values, mode)


def _box(values: Any, mode: Any, label: str) -> tuple[float, float, float, float]:
    if mode not in (XYXY_ABS, XYWH_ABS):
        raise InputError(
            f"{label}: bbox_mode is {mode!r}; it is "
            + " or ".join(f"{known} ({order})" for known, order in _ORDERS.items())
            + ", in pixels"
        )
    numbers = isinstance(values, list | tuple) and all(is_number(value) for value in values)
    if not numbers or len(values) != 4:
        raise InputError(f"{label}: bbox {values!r:.60} is not four numbers")
    x0, y0, x1, y1 = (float(value) for value in values)
    if mode == XYWH_ABS:
        x1, y1 = x0 + x1, y0 + y1
    if x1 <= x0 or y1 <= y0:
        raise InputError(f"{label}: bbox {list(values)} is empty or inverted (bbox_mode {mode})")
    return x0, y0, x1, y1


class BoxCheck:
    """Compares the stated boxes of objects with those of their outlines.

    A box may well be larger than its outline, of which another object may hide a part. Suspicious is one that holds
    less than half of the outline's, or whose numbers fit in the other bbox_mode only.
    """

    def __init__(self) -> None:
        self.compared = self.wrong = 0
        self.first = ""

    def add(self, item: Annotation, own: Sequence[float]) -> None:
        """Compare an object's box with that of its outline, `own`: x0, y0, x1, y1; zeros where it has no pixel."""
        if item.box is None or own[2] <= own[0]:
            return
        self.compared += 1
        x0, y0, x1, y1 = item.box
        other = (x0, y0, x1 - x0, y1 - y0) if item.box_mode == XYWH_ABS else (x0, y0, x0 + x1, y0 + y1)
        boxes, outline = torch.tensor([item.box, other], dtype=torch.float64), torch.tensor([own], dtype=torch.float64)
        fit, exchanged = box_iou(boxes, outline).flatten().tolist()
        held = float(box_intersection(boxes[:1], outline) / box_area(outline))
        fits_exchanged = exchanged > max(2 * fit, 0.5)
        if held >= 0.5 and not fits_exchanged:
            return
        self.wrong += 1
        if not self.first:
            mode = XYXY_ABS if item.box_mode == XYWH_ABS else XYWH_ABS
            hint = f"; it fits as {_ORDERS[mode]}, which is bbox_mode {mode}" if fits_exchanged else ""
            self.first = (
                f"{item.label}: its box is x {x0:g} to {x1:g}, y {y0:g} to {y1:g}, but that of its outline is "
                f"x {own[0]:g} to {own[2]:g}, y {own[1]:g} to {own[3]:g}{hint}"
            )

    def report(self) -> None:
        """Warn of what was found.

        Raises:
            InputError: more than half of the boxes are wrong.
        """
        text = f"{self.wrong} of {self.compared} boxes do not fit their outlines, first {self.first}"
        if 2 * self.wrong > self.compared:
            raise InputError(f"{text}; correct them, or leave bbox out: then the outlines' are taken")
        if self.wrong:
            logger.warning("%s", text)
