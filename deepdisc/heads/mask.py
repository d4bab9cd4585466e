"""Mask of an object inside its box (Mask R-CNN, arXiv:1703.06870), with detectron2's names and semantics.

Legend: R regions, K classes, S side of the predicted mask (28).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from deepdisc.backbones.layers import ConvNorm
from deepdisc.detector.pooling import ROIPooler
from deepdisc.heads.head import Head
from deepdisc.structures import Instances, PolygonMasks, RegionMasks, clip_boxes


class MaskHead(Head):
    """Four 3x3 convolutions, a deconvolution and one mask for each class."""

    def __init__(
        self,
        pooler: ROIPooler,
        num_classes: int,
        in_channels: int = 256,
        conv_dim: int = 256,
        num_conv: int = 4,
        norm: str | None = None,
        chunk_size: int = 128,
        loss_weight: float = 1.0,
    ):
        """Build the head.

        Args:
            pooler: cuts the regions out; the mask has twice the side of its output.
            num_classes: K.
            in_channels: width of the feature maps.
            conv_dim: width of the convolutions.
            num_conv: number of 3x3 convolutions.
            norm: of these, see `layers.make_norm`; None = biases instead.
            chunk_size: regions predicted at a time, which bounds the memory of a crowded field.
            loss_weight: factor of the loss.
        """
        super().__init__(loss_weight=loss_weight)
        self.pooler = pooler
        self.num_classes = num_classes
        self.num_conv = num_conv
        self.chunk_size = chunk_size
        for i in range(1, num_conv + 1):
            self.add_module(f"mask_fcn{i}", ConvNorm(in_channels if i == 1 else conv_dim, conv_dim, 3, norm=norm))
        self.deconv = nn.ConvTranspose2d(conv_dim if num_conv else in_channels, conv_dim, 2, stride=2)
        self.predictor = nn.Conv2d(conv_dim, num_classes, 1)
        nn.init.kaiming_normal_(self.deconv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.predictor.weight, std=0.001)
        for conv in (self.deconv, self.predictor):
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Pooled regions (R, C, S/2, S/2) -> logits (R, K, S, S)."""
        for i in range(1, self.num_conv + 1):
            x = F.relu(getattr(self, f"mask_fcn{i}")(x))
        return self.predictor(F.relu(self.deconv(x)))

    def losses(self, features: dict[str, Tensor], instances: list[Instances]) -> dict[str, Tensor]:
        """Cross entropy per pixel of the true class's mask, mean over foreground regions; needs `gt_masks`."""
        logits = self(self.pooler(features, [x.proposal_boxes for x in instances]))
        if len(logits) == 0:
            return {"loss_mask": logits.sum() * 0.0}
        # an image without objects need not carry the field
        targets = [mask_targets(x.gt_masks, x.proposal_boxes, logits.shape[-1]) for x in instances if len(x)]
        classes = torch.cat([x.gt_classes for x in instances])
        chosen = logits[torch.arange(len(logits), device=logits.device), classes]
        loss = F.binary_cross_entropy_with_logits(chosen, torch.cat(targets).to(chosen))
        return {"loss_mask": loss * self.loss_weight}

    @torch.no_grad()
    def probabilities(self, features: dict[str, Tensor], boxes: list[Tensor], classes: list[Tensor]) -> list[Tensor]:
        """Mask probabilities (n_i, S, S) in each box (n_i, 4) for its class (n_i,), for each image."""
        result = []
        for i, (box, label) in enumerate(zip(boxes, classes, strict=True)):
            own = {name: features[name][i : i + 1] for name in self.pooler.in_features}
            parts = []
            for part, part_label in zip(box.split(self.chunk_size), label.split(self.chunk_size), strict=True):
                logits = self(self.pooler(own, [part]))
                parts.append(logits[torch.arange(len(part), device=logits.device), part_label].float().sigmoid())
            result.append(torch.cat(parts))
        return result

    def predict(self, features: dict[str, Tensor], instances: list[Instances]) -> list[Instances]:
        """Add `pred_masks` (`RegionMasks`, on the CPU) in the pixels of the image."""
        boxes = [x.pred_boxes for x in instances]
        probabilities = self.probabilities(features, boxes, [x.pred_classes for x in instances])
        for found, probability in zip(instances, probabilities, strict=True):
            found.pred_masks = paste_masks(probability, found.pred_boxes, found.image_size)
        return instances


def mask_targets(masks: RegionMasks | PolygonMasks, boxes: Tensor, side: int) -> Tensor:
    """True masks as seen in boxes.

    Pixels: ROIAlign of the mask at least 0.5, exactly as on full-image masks. Polygons: rasterised in the box.

    Args:
        masks: N masks in the pixels of the image.
        boxes: (N, 4), the box in which each mask is wanted.
        side: S, pixels across the result.

    Returns:
        bool (N, S, S), on the device of `boxes`.
    """
    if isinstance(masks, PolygonMasks):
        return masks.rasterize_in_boxes(boxes, side).to(boxes.device)
    # the crops are on the CPU and small: one transfer of the result instead of two for each object
    height, width = masks.image_size
    device, boxes = boxes.device, boxes.cpu()
    targets = torch.zeros((len(boxes), side, side), dtype=torch.bool)
    for i, ((x0, y0, x1, y1), crop) in enumerate(zip(masks.regions.tolist(), masks.crops, strict=True)):
        if crop.numel() == 0:
            continue
        # ROIAlign repeats a map's edge pixels outwards: a rim of zeros where the crop's edge is not the image's
        left, top, right, bottom = int(x0 > 0), int(y0 > 0), int(x1 < width), int(y1 < height)
        crop = F.pad(crop.to(boxes), (left, right, top, bottom))
        offset = boxes.new_tensor([x0 - left, y0 - top, x0 - left, y0 - top])
        aligned = roi_align(crop[None, None], [(boxes[i] - offset)[None]], side, aligned=True)
        targets[i] = aligned[0, 0] >= 0.5
    return targets.to(device)


def paste_masks(probabilities: Tensor, boxes: Tensor, image_size: tuple[int, int]) -> RegionMasks:
    """Put predicted masks back into the image: bilinear at the pixel centres, at least 0.5.

    Only the pixels of each box are computed: outside it the interpolated probability is below one half.

    Args:
        probabilities: (N, S, S) in [0, 1].
        boxes: (N, 4), image pixels, not empty.
        image_size: (height, width).

    Returns:
        masks on the CPU, each in the region of its box.
    """
    probabilities, boxes = probabilities.detach().float().cpu(), boxes.detach().float().cpu()
    low, high = boxes[:, :2].floor(), boxes[:, 2:].ceil()
    regions = clip_boxes(torch.cat((low, high), dim=1), image_size).to(torch.int64)
    crops = []
    for probability, box, (x0, y0, x1, y1) in zip(probabilities, boxes, regions.tolist(), strict=True):
        x = (torch.arange(x0, x1, dtype=torch.float32) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
        y = (torch.arange(y0, y1, dtype=torch.float32) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
        grid = torch.stack((x.expand(len(y), -1), y[:, None].expand(-1, len(x))), dim=-1)
        pasted = F.grid_sample(probability[None, None], grid[None], align_corners=False)
        crops.append(pasted[0, 0] >= 0.5)
    return RegionMasks(regions, crops, image_size)
