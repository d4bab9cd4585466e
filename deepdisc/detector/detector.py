"""The detector: images in, objects out (generalised R-CNN, as in detectron2)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepdisc.detector.pooling import at_least_single
from deepdisc.detector.roi_heads import ROIHeads
from deepdisc.detector.rpn import RPN
from deepdisc.errors import InputError, nearest
from deepdisc.psf import PSF_SIDE
from deepdisc.structures import ImageBatch, Instances, RegionMasks

logger = logging.getLogger(__name__)


class Detector(nn.Module):
    """Finds, separates and measures every object in multi-band images.

    Input: a list of records, one per image, which may differ in size:
        image: (C, h, w) float; C bands in the model's order.
        variance: (C, h, w), mask: (C, h, w) bool, True = no data, optional; both only used by a `stretch`.
        psf: (C, P, P), see `deepdisc.psf`, optional; likewise.
        ebv: E(B-V), a scalar or a coarse grid over the image; 0 when absent.
        instances: in training, the true objects: `gt_boxes`, `gt_classes`, `gt_masks` (bool (N, h, w),
            `RegionMasks` or `PolygonMasks`) and the labels of the other heads.

    Output: in training a dict of named losses; else for each image {"instances": Instances} with `pred_boxes`,
    `scores`, `pred_classes`, `pred_masks`, `ebv` and the other heads' fields, in the pixels of the input image.
    """

    def __init__(
        self,
        backbone: nn.Module,
        proposal_generator: RPN,
        roi_heads: ROIHeads,
        pixel_mean: Sequence[float] = (0.0,),
        pixel_std: Sequence[float] = (1.0,),
        stretch: nn.Module | None = None,
        loss_weights: nn.Module | None = None,
    ):
        """Assemble the detector.

        Args:
            backbone: image -> dict of maps, with `in_channels`, `strides` and `size_divisibility` (see `FPN`).
            proposal_generator: first stage.
            roi_heads: second stage.
            pixel_mean: subtracted from the (stretched) image; one value for all bands, or one per band.
            pixel_std: the image is then divided by this; likewise.
            stretch: (image, variance, mask) -> image, before mean and std; None = the image as it is.
            loss_weights: named losses -> a term that turns their sum into a weighted one, see `LossWeights`; None = the
                plain sum.

        Raises:
            InputError: mean or std of another number of bands; a part reads a map that the backbone does not make.
        """
        super().__init__()
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        self.stretch = stretch
        self.loss_weights = loss_weights
        self._warned = False
        for name, numbers in {"pixel_mean": pixel_mean, "pixel_std": pixel_std}.items():
            if not all(math.isfinite(x) and (x > 0 or name == "pixel_mean") for x in numbers):
                raise InputError(f"{name}={list(numbers)} must be finite numbers, pixel_std positive ones")
            value = torch.as_tensor(numbers, dtype=torch.float32).reshape(-1, 1, 1)
            if len(value) not in (1, backbone.in_channels):
                raise InputError(
                    f"{name} has {len(value)} values but the model {backbone.in_channels} bands: give one value, or "
                    "one per band"
                )
            # not in the state dict, as in detectron2: they belong to the configuration
            self.register_buffer(name, value, persistent=False)
        for part in self.modules():
            names = getattr(part, "in_features", None)
            for name in names if isinstance(names, list) else []:  # nn.Linear has a number of that name
                if name != "image" and name not in backbone.strides:
                    raise InputError(
                        f"{type(part).__name__} reads the map {name!r}, which the backbone does not make; nearest: "
                        f"{nearest(name, backbone.strides)!r} of {', '.join(backbone.strides)}"
                    )

    @property
    def device(self) -> torch.device:
        """Where the model is; inputs are moved there."""
        return self.pixel_mean.device

    def forward(self, records: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Losses in training mode, detections otherwise; see the class."""
        return self.losses(records) if self.training else self.predict(records)

    def losses(self, records: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Named losses of a batch, in either mode (a validation loss must not touch batch-norm statistics).

        With `loss_weights` the losses stay as they are; in training mode there is also "loss_weighting", which makes
        their sum the weighted one. Validation losses of different iterations stay comparable.

        Raises:
            InputError: an image of another number of bands, or without pixels, or without `instances`.
            FloatingPointError: the proposals are not finite.
        """
        targets = [self._target(record) for record in records]
        features, image_sizes = self._features(records)
        proposals, losses = self.proposal_generator(features, image_sizes, targets)
        losses |= self.roi_heads.losses(_for_pooling(features), proposals, targets, self._maps(records))
        if self.loss_weights is not None and self.training:
            losses["loss_weighting"] = self.loss_weights(losses)
        return losses

    def predict(self, records: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Detections of each image, best first; see the class and `losses`."""
        self._warn_of_proposals()
        features, image_sizes = self._features(records)
        proposals, _ = self.proposal_generator(features, image_sizes)
        found = self.roi_heads.predict(_for_pooling(features), proposals, self._maps(records))
        return [{"instances": instances} for instances in found]

    def _warn_of_proposals(self) -> None:
        """Say once that fewer proposals are made than detections are wanted."""
        wanted = getattr(self.roi_heads.final_predictor, "test_topk_per_image", 0)
        made = getattr(self.proposal_generator, "post_nms_topk", (0, wanted))[1]
        if made < wanted and not self._warned:
            self._warned = True
            logger.warning(
                "test_topk_per_image=%d detections are allowed in an image, but post_nms_topk makes at most %d "
                "proposals: raise proposal_generator.post_nms_topk for crowded fields (said once)",
                wanted,
                made,
            )

    def _features(self, records: list[dict[str, Any]]) -> tuple[dict[str, Tensor], list[tuple[int, int]]]:
        if not records:
            raise InputError("no images: give at least one record")
        records = [self._on_device(record) for record in records]
        batch = self._batch(records)
        features = {"image": batch.tensor, **self.backbone(batch.tensor)}
        if self.stretch is not None:
            features.update(self._pixels(records))
        return features, batch.image_sizes

    def _on_device(self, record: dict[str, Any]) -> dict[str, Tensor]:
        """Image, and with a stretch also variance, mask and PSF, on the device.

        The mask is also True where image or variance is not finite and where the variance is not positive.
        """
        image = record["image"]
        if not isinstance(image, Tensor):
            raise InputError(f"an image must be a torch tensor (band, y, x), not {type(image).__name__}")
        if image.ndim != 3 or 0 in image.shape:
            raise InputError(f"an image must be (band, y, x) and not empty; this one is {tuple(image.shape)}")
        pixels = {"image": image.to(self.pixel_mean)}
        if self.stretch is None:
            return pixels
        if record.get("variance") is None:
            raise InputError("this model measures pixels in units of their noise: a record needs 'variance'")
        mask = record.get("mask")
        pixels["variance"] = record["variance"].to(self.pixel_mean)
        pixels["mask"] = torch.zeros_like(pixels["image"], dtype=torch.bool) if mask is None else mask.to(self.device)
        for name, value in pixels.items():
            if value.shape != image.shape:
                raise InputError(f"{name} is {tuple(value.shape)}, the image {tuple(image.shape)}: they must agree")
        is_known = torch.isfinite(pixels["image"]) & torch.isfinite(pixels["variance"]) & (pixels["variance"] > 0)
        pixels["mask"] = pixels["mask"] | ~is_known
        return pixels | {"psf": self._psf(record)}

    def _psf(self, record: dict[str, Any]) -> Tensor:
        shape = len(record["image"]), PSF_SIDE, PSF_SIDE
        psf = record.get("psf")
        if psf is None:
            return self.pixel_mean.new_zeros(shape)
        if psf.shape != shape:
            raise InputError(f"psf is {tuple(psf.shape)}, it must be {shape}; deepdisc.psf.recorded_psf makes it so")
        return psf.to(self.pixel_mean)

    def preprocess(self, records: list[dict[str, Any]]) -> ImageBatch:
        """Stretch and normalise each image, then pad all to a common size."""
        return self._batch([self._on_device(record) for record in records])

    def _batch(self, records: list[dict[str, Tensor]]) -> ImageBatch:
        images = []
        for record in records:
            image = record["image"]
            if self.stretch is not None:
                image = self.stretch(image, record["variance"], record["mask"])
            if len(image) != self.backbone.in_channels:
                raise InputError(
                    f"the image has {len(image)} bands, but the model was made for {self.backbone.in_channels}: select "
                    "the model's bands, in its order"
                )
            images.append((image - self.pixel_mean) / self.pixel_std)
        return ImageBatch.from_list(images, self.backbone.size_divisibility)

    def _pixels(self, records: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The measured pixels, for heads that need fluxes: zero and not "valid" where masked or padded.

        Returns:
            "flux" nJy, "variance" nJy^2 and "valid" bool, each (N, C, H, W); "psf" (N, C, P, P), zero where unknown.
        """
        stacks = {
            "flux": [x["image"].masked_fill(x["mask"], 0) for x in records],
            "variance": [x["variance"].masked_fill(x["mask"], 0) for x in records],
            "valid": [~x["mask"] for x in records],
        }
        divisibility = self.backbone.size_divisibility
        pixels = {name: ImageBatch.from_list(images, divisibility).tensor for name, images in stacks.items()}
        return pixels | {"psf": torch.stack([x["psf"] for x in records])}

    def _target(self, record: dict[str, Any]) -> Instances:
        if "instances" not in record:
            raise InputError("a record without 'instances' cannot be trained on; give Instances, empty if need be")
        target = record["instances"].to(self.device)
        if len(target) == 0:
            target.gt_boxes = torch.zeros((0, 4), device=self.device)
            target.gt_classes = torch.zeros((0,), dtype=torch.int64, device=self.device)
        target.gt_boxes = target.gt_boxes.to(torch.float32)
        if target.has("gt_masks") and isinstance(target.gt_masks, Tensor):
            target.gt_masks = RegionMasks.from_dense(target.gt_masks)
        return target

    def _maps(self, records: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        return [{"ebv": torch.as_tensor(record.get("ebv", 0.0), device=self.device)} for record in records]


def _for_pooling(features: dict[str, Tensor]) -> dict[str, Tensor]:
    """The maps as `ROIPooler` wants them, which else converts them anew for each chunk of regions."""
    return {name: at_least_single(feature).contiguous() for name, feature in features.items()}
