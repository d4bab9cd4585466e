"""The contract of a head: the one way to add a measured quantity to the detector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from deepdisc.catalog import FLAGS
from deepdisc.errors import InputError, nearest
from deepdisc.structures import Instances


class Head(nn.Module):
    """A quantity measured on regions of interest.

    `features` is the dict of the batch's maps (N, C, H/s, W/s): "p2", "p3", ... (stride s = 2**level) from the
    backbone; "image" (s = 1), the normalised and zero-padded images themselves; and, where the detector has a stretch,
    the pixels as they were measured: "flux" (nJy), "variance" (nJy^2) and "valid" (bool), each (N, C, H, W), and "psf"
    (N, C, P, P), unit sum, zero where unknown. `instances` holds one `Instances` per image. Boxes are in the pixels of
    the (unpadded) image, pixel-edge coordinates.

    Heads run one after the other, in losses as in prediction, and each sees the `pred_*` fields that those before it
    have added to the instances.

    Attributes:
        columns: names of the catalogue columns this head adds; rows of the schema in `deepdisc.catalog`.
        adds: the `pred_*` fields that heads after it may read, in losses too (there without gradient).
        needs: the fields of earlier heads that it reads; the order is checked when the model is built.
        calibrated: the `pred_*` fields that `self.calibration` changes after prediction -> name of their label.
        loss_weight: factor of its losses.
    """

    columns: ClassVar[tuple[str, ...]] = ()
    calibrated: ClassVar[dict[str, str]] = {}
    adds: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    def __init__(self, exclude_flags: Sequence[str] = (), loss_weight: float = 1.0):
        """Set what all heads share.

        Args:
            exclude_flags: names of catalogue flags ("EDGE", "BLENDED", "SATURATED", ...): objects whose truth has any
                of them are left out of this head's losses, never of the detection or of another head.
            loss_weight: factor of the losses, not negative.

        Raises:
            InputError: an unknown flag, or a weight that is negative or not finite.
        """
        super().__init__()
        if isinstance(exclude_flags, str):
            raise InputError(f"exclude_flags={exclude_flags!r} must be a list of names: [{exclude_flags}]")
        for name in exclude_flags:
            if name not in FLAGS:
                close = nearest(str(name), FLAGS)
                hint = f"; nearest: {close!r}" if close else ""
                raise InputError(f"exclude_flags: {name!r} is no flag; there are {', '.join(FLAGS)}{hint}")
        if not 0 <= loss_weight < math.inf:
            raise InputError(f"loss_weight={loss_weight} must be finite and not negative; 0 switches the loss off")
        self.exclude_flags = tuple(exclude_flags)
        self.loss_weight = loss_weight

    def labelled(self, instances: list[Instances], name: str) -> list[Instances]:
        """Of each image the objects that this head learns from: those with the label whose flags are not excluded.

        Args:
            instances: of each image, with `gt_has_<name>` (n,) or (n, k) where there are labels.
            name: of the label; one of several numbers counts where any of them is known.

        Returns:
            the chosen objects, with all their fields; none of an image without the label's fields.

        Raises:
            InputError: flags are excluded, but labelled objects do not tell theirs (`gt_flags`).
        """
        return [self._labelled(objects, f"gt_has_{name}") for objects in instances]

    def _labelled(self, objects: Instances, has_label: str) -> Instances:
        if not objects.has(has_label) or len(objects) == 0:
            return objects[:0]
        chosen = objects.get(has_label).reshape(len(objects), -1).any(1)
        if self.exclude_flags:
            if not objects.has("gt_flags"):
                raise InputError(
                    f"{type(self).__name__} has exclude_flags={list(self.exclude_flags)}, but the data set gives no "
                    "flags of its objects (gt_flags): prepare it anew, or set exclude_flags=[]"
                )
            excluded = sum(FLAGS[flag].value for flag in set(self.exclude_flags))
            chosen = chosen & ((objects.gt_flags & excluded) == 0)
        return objects[chosen]

    def losses(self, features: dict[str, Tensor], instances: list[Instances]) -> dict[str, Tensor]:
        """Return the named losses, each a scalar.

        Args:
            features: the maps of the batch.
            instances: the sampled foreground proposals of each image: `proposal_boxes`, `ebv`, `gt_object` (int64,
                number of the true object in its image) and every `gt_*` field of the object that each proposal
                matches, with the `pred_*` fields of the heads before. May be empty for some images or for all; without
                any label each loss is exactly 0 and still connected to the head's parameters. A head that `adds`
                fields sets them here on every image, detached.
        """
        raise NotImplementedError

    def predict(self, features: dict[str, Tensor], instances: list[Instances]) -> list[Instances]:
        """Add this head's `pred_*` fields to the detections and return them.

        Args:
            features: the maps of the batch.
            instances: the detections of each image: `pred_boxes`, `scores`, `pred_classes`, `ebv` and what the heads
                before have added. The fields must be added for an image without detections too.
        """
        raise NotImplementedError

    def calibrate(self, instances: list[Instances]) -> list[Instances]:
        """Replace the fields in `calibrated` of every image by what `self.calibration` makes of them.

        This comes after all heads have predicted, so that each reads of the others what it read in training.
        """
        for field in self.calibrated:
            for objects in instances:
                objects.set(field, self.calibration(objects.get(field)))
        return instances
