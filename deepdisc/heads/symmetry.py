"""The eight symmetries of a square picture, for quantities of spin 2, which turn with it.

A symmetry is a mirror image along x, along y, or both (= half a turn), with or without an exchange of the axes; a
quarter turn is an exchange after a mirror image. Under a mirror image (g1, g2) -> (g1, -g2), under an exchange of x and
y (g1, g2) -> (-g1, g2), so that a quarter turn changes both signs, as `deepdisc.data.transforms` has it for labels.

Legend: R objects, C bands, S window side, P side of the PSF, H x W image.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from deepdisc.heads.windows import Windows, iterate_windows
from deepdisc.structures import Instances

MIRRORS = tuple(product((False, True), (False, True)))  # along x, along y


def spin2_signs(mirror_x: bool, mirror_y: bool, exchange: bool) -> tuple[float, float]:
    """Factors of (g1, g2) under a symmetry; applied twice they are 1, so that they also lead back."""
    return -1.0 if exchange else 1.0, -1.0 if mirror_x != mirror_y else 1.0


def mirrored(image: Tensor, mirror_x: bool, mirror_y: bool) -> Tensor:
    """An image (..., y, x) mirrored along x and along y."""
    axes = [axis for axis, wanted in ((-1, mirror_x), (-2, mirror_y)) if wanted]
    return image.flip(axes) if axes else image


def mirrored_boxes(boxes: Tensor, image_size: tuple[int, int], mirror_x: bool, mirror_y: bool) -> Tensor:
    """Boxes (R, 4) in the mirror image of an image of (height, width)."""
    height, width = image_size
    x0, y0, x1, y1 = boxes.unbind(1)
    x0, x1 = (width - x1, width - x0) if mirror_x else (x0, x1)
    y0, y1 = (height - y1, height - y0) if mirror_y else (y0, y1)
    return torch.stack((x0, y0, x1, y1), dim=1)


def exchanged(windows: Windows) -> Windows:
    """Windows of the picture whose x and y are exchanged."""
    turned = {name: getattr(windows, name).transpose(-2, -1) for name in ("flux", "variance", "valid")}
    return Windows(**{**vars(windows), **turned, "offset": windows.offset.flip(1), "box": windows.box.flip(1)})


def mirrored_windows(windows: Windows, mirror_x: bool, mirror_y: bool) -> Windows:
    """Windows as they are, mirrored.

    A box centre on the edge between two pixels keeps the middle pixel that it has, while windows cut from the mirrored
    image have the other one: see `symmetric_windows`.
    """
    turned = {name: mirrored(getattr(windows, name), mirror_x, mirror_y) for name in ("flux", "variance", "valid")}
    signs = windows.offset.new_tensor([-1.0 if mirror_x else 1.0, -1.0 if mirror_y else 1.0])
    return Windows(**{**vars(windows), **turned, "offset": windows.offset * signs})


def symmetric_windows(
    features: dict[str, Tensor], instances: list[Instances], box_field: str, size: int, chunk: int = 256
) -> Iterator[list[Windows]]:
    """Windows cut from each of the four mirror images of every image, in the order of `MIRRORS`.

    The images themselves are mirrored, within their own size and not that of the padded batch: so the choice of a
    middle pixel and of the blocks of large objects is mirrored too, and an average over the symmetries is exactly
    symmetric.

    Args:
        features: "flux", "variance", "valid", each (N, C, H, W), zero-padded to the right and at the bottom.
        instances: one per image.
        box_field: name of the boxes.
        size: S.
        chunk: objects at a time.

    Yields:
        four windows of the same objects; `image` is their number in the batch.
    """
    for number, objects in enumerate(instances):
        height, width = objects.image_size
        boxes = getattr(objects, box_field)
        views = []
        for mirror in MIRRORS:
            image = {
                name: mirrored(features[name][number : number + 1, :, :height, :width], *mirror)
                for name in ("flux", "variance", "valid")
            }
            turned = Instances(objects.image_size, **{box_field: mirrored_boxes(boxes, objects.image_size, *mirror)})
            views.append(iterate_windows(image, [turned], box_field, size, chunk=chunk))
        for parts in zip(*views, strict=True):
            for part in parts:
                part.image = torch.full_like(part.image, number)
            yield list(parts)
