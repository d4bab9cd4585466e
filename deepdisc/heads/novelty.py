"""How unlike the known objects an object is: the distance of its features from theirs (Lee et al. 2018, 1807.03888).

Legend: R regions, D numbers that describe one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepdisc.detector.pooling import ROIPooler
from deepdisc.heads.calibration import FittedAfterTraining
from deepdisc.heads.head import Head
from deepdisc.structures import Instances


class RegionDescription(nn.Module):
    """Pooled features averaged over the region, and photometric inputs if there are any: (R, D)."""

    def __init__(self, pooler: ROIPooler, photometry: nn.Module | None):
        super().__init__()
        self.pooler, self.photometry = pooler, photometry

    def forward(self, features: dict[str, Tensor], instances: list[Instances], box_field: str) -> Tensor:
        """Describe the objects of all images, one after the other."""
        described = self.pooler(features, [objects.get(box_field) for objects in instances]).float().mean((-2, -1))
        if self.photometry is None:
            return described
        return torch.cat((described, self.photometry(features, instances, box_field).to(described)), dim=1)


class Distance(FittedAfterTraining):
    """Mahalanobis distance in units of the one that few known objects exceed: `|W (x - center)| / threshold`."""

    def __init__(self, size: int):
        super().__init__(center=(size,), whitening=(size, size), threshold=())

    def forward(self, x: Tensor) -> Tensor:
        """(R, D) -> (R,); NaN where nothing was fitted."""
        if self.is_identity:
            return x.new_full((len(x),), float("nan"))
        return torch.linalg.vector_norm((x - self.center) @ self.whitening.T, dim=1) / self.threshold


class NoveltyHead(Head):
    """Tells how far each detection lies from the objects that `deepdisc calibrate` was run on; learns nothing.

    Those objects are of the validation set, drawn from the same sky as the training set. 0 is their mean, 1 the
    distance that 0.1 % of them exceed: the flag EXTRAPOLATION. Not a calibrated model gives NaN.

    Args:
        pooler: of the feature maps.
        in_channels: their channels.
        photometry: a module with `num_outputs` and `forward(features, instances, box_field)`, or None: an object of a
            colour that no known one has may look familiar in the features.
    """

    columns = ("novelty",)

    def __init__(self, pooler: ROIPooler, in_channels: int, photometry: nn.Module | None = None):
        super().__init__()
        self.needs = tuple(getattr(photometry, "needs", ()))
        self.description = RegionDescription(pooler, photometry)
        self.distance = Distance(in_channels + (photometry.num_outputs if photometry is not None else 0))

    def losses(self, features: dict[str, Tensor], instances: list[Instances]) -> dict[str, Tensor]:
        """None."""
        return {}

    def predict(self, features: dict[str, Tensor], instances: list[Instances]) -> list[Instances]:
        """Add `pred_novelty` (n,) float32."""
        novelty = self.distance(self.description(features, instances, "pred_boxes"))
        for objects, part in zip(instances, novelty.split([len(objects) for objects in instances]), strict=True):
            objects.pred_novelty = part
        return instances
