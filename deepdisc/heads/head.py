"""The contract of a head: the one way to add a measured quantity to the detector."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from deepdisc.structures import Instances


class Head(nn.Module):
    """A quantity measured on regions of interest.

    `features` is the dict of the batch's maps (N, C, H/s, W/s): "p2", "p3", ... (stride s = 2**level) from the
    backbone; "image" (s = 1), the normalised and zero-padded images themselves; and, where the detector has a stretch,
    the pixels as they were measured: "flux" (nJy), "variance" (nJy^2) and "valid" (bool), each (N, C, H, W).
    `instances` holds one `Instances` per image. Boxes are in the pixels of the (unpadded) image, pixel-edge
    coordinates.

    Attributes:
        columns: names of the catalogue columns this head adds; rows of the schema in `deepdisc.catalog`.
    """

    columns: ClassVar[tuple[str, ...]] = ()

    def losses(self, features: dict[str, Tensor], instances: list[Instances]) -> dict[str, Tensor]:
        """Return the named losses, each a scalar.

        Args:
            features: the maps of the batch.
            instances: the sampled foreground proposals of each image: `proposal_boxes`, `ebv` and every `gt_*` field
                of the object that each proposal matches. May be empty for some images or for all; without any label
                each loss is exactly 0 and still connected to the head's parameters.
        """
        raise NotImplementedError

    def predict(self, features: dict[str, Tensor], instances: list[Instances]) -> list[Instances]:
        """Add this head's `pred_*` fields to the detections and return them.

        Args:
            features: the maps of the batch.
            instances: the detections of each image: `pred_boxes`, `scores`, `pred_classes`, `ebv`. The fields must be
                added for an image without detections too.
        """
        raise NotImplementedError
