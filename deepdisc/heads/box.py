"""Class and box of a region (Fast R-CNN, Girshick 2015, arXiv:1504.08083), with detectron2's names and semantics.

Legend: R regions, K classes without background, which is class K.
"""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, nms

from deepdisc.backbones.layers import ConvNorm
from deepdisc.detector.box_coder import BoxCoder
from deepdisc.errors import InputError
from deepdisc.structures import Instances, clip_boxes, nonempty

logger = logging.getLogger(__name__)


class BoxHead(nn.Sequential):
    """3x3 convolutions `conv1`, ... and fully connected layers `fc1`, ..., each with ReLU, on a pooled region."""

    def __init__(
        self,
        in_channels: int = 256,
        input_size: int = 7,
        fc_dim: int = 1024,
        num_fc: int = 2,
        conv_dim: int = 256,
        num_conv: int = 0,
        norm: str | None = None,
    ):
        """Build the head.

        Args:
            in_channels: width of the feature maps.
            input_size: side of the pooled region.
            fc_dim: width of the fully connected layers.
            num_fc: their number.
            conv_dim: width of the convolutions.
            num_conv: their number.
            norm: of the convolutions, see `layers.make_norm`; None = biases instead.
        """
        super().__init__()
        if num_fc < 1:
            raise InputError(f"num_fc={num_fc}: a box head ends in at least one fully connected layer")
        width = in_channels
        for i in range(1, num_conv + 1):
            self.add_module(f"conv{i}", ConvNorm(width, conv_dim, 3, norm=norm))
            self.add_module(f"conv_relu{i}", nn.ReLU())
            width = conv_dim
        self.add_module("flatten", nn.Flatten())
        width *= input_size**2
        for i in range(1, num_fc + 1):
            linear = nn.Linear(width, fc_dim)
            nn.init.kaiming_uniform_(linear.weight, a=1)
            nn.init.zeros_(linear.bias)
            self.add_module(f"fc{i}", linear)
            self.add_module(f"fc_relu{i}", nn.ReLU())
            width = fc_dim


class BoxPredictor(nn.Module):
    """Scores of the classes and a refined box for each class, or for all (B boxes, B = K or 1)."""

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        box_coder: BoxCoder,
        test_score_thresh: float = 0.05,
        test_nms_thresh: float = 0.5,
        test_topk_per_image: int = 100,
        one_class_per_object: bool = False,
        cls_agnostic_bbox_reg: bool = False,
    ):
        """Build the predictor.

        Args:
            in_dim: width of the box head.
            num_classes: K.
            box_coder: offsets <-> boxes.
            test_score_thresh: detections must score more than this; may be changed on a trained model.
            test_nms_thresh: of two detections of one class with an IoU above this the lower score is dropped.
            test_topk_per_image: most detections of an image; crowded fields need thousands.
            one_class_per_object: a region gets its best class and the probability of all classes together as score,
                and suppression is across classes: an object that may be a star or a galaxy is listed once. False is
                detectron2's rule, where each class is a detection of its own.
            cls_agnostic_bbox_reg: one refined box for all classes instead of one for each.
        """
        super().__init__()
        if test_topk_per_image < 1:
            raise InputError(f"test_topk_per_image={test_topk_per_image}: keep at least one detection")
        self.num_classes = num_classes
        self.box_coder = box_coder
        self.test_score_thresh = test_score_thresh
        self.test_nms_thresh = test_nms_thresh
        self.test_topk_per_image = test_topk_per_image
        self.one_class_per_object = one_class_per_object
        self._warned = False
        self.cls_score = nn.Linear(in_dim, num_classes + 1)
        self.bbox_pred = nn.Linear(in_dim, 4 * (1 if cls_agnostic_bbox_reg else num_classes))
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.cls_score.bias)
        nn.init.zeros_(self.bbox_pred.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (R, in_dim) -> logits (R, K + 1) and offsets (R, 4 B)."""
        return self.cls_score(x), self.bbox_pred(x)

    def losses(self, logits: Tensor, deltas: Tensor, proposals: list[Instances]) -> dict[str, Tensor]:
        """Cross entropy (mean over regions) and L1 of the true class's offsets (sum over objects / all regions).

        Args:
            logits: (R, K + 1), regions of all images one after the other.
            deltas: (R, 4 B).
            proposals: `proposal_boxes`, `gt_classes` (K = background) and `gt_boxes` of the sampled regions.
        """
        classes = torch.cat([x.gt_classes for x in proposals])
        if len(classes) == 0:
            return {"loss_cls": logits.sum() * 0.0, "loss_box_reg": deltas.sum() * 0.0}
        source = torch.cat([x.proposal_boxes for x in proposals])
        target = torch.cat([x.gt_boxes for x in proposals])
        objects = torch.nonzero((classes >= 0) & (classes < self.num_classes)).flatten()
        wanted = self.box_coder.encode(source[objects], target[objects])
        deltas = deltas.view(len(deltas), -1, 4)
        given = deltas[objects, classes[objects] if deltas.shape[1] > 1 else 0]
        return {
            "loss_cls": F.cross_entropy(logits, classes),
            "loss_box_reg": F.l1_loss(given, wanted, reduction="sum") / len(classes),
        }

    @torch.no_grad()
    def detect(self, scores: Tensor, boxes: Tensor, image_size: tuple[int, int]) -> Instances:
        """Turn the outputs for one image into detections.

        Every pair of region and class above the score threshold is a candidate and suppression is within classes,
        unless `one_class_per_object`. Warns once when there are more than `test_topk_per_image`.

        Args:
            scores: probabilities (R, K + 1).
            boxes: refined boxes (R, 4 B).
            image_size: (height, width), to which boxes are clipped.

        Returns:
            `pred_boxes`, `scores`, `pred_classes`, best first, none of them empty.
        """
        finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores).all(dim=1)
        boxes = clip_boxes(boxes[finite].view(-1, boxes.shape[1] // 4, 4), image_size)
        scores = scores[finite, :-1]
        if self.one_class_per_object:
            total = scores.sum(dim=1)
            region = torch.nonzero(total > self.test_score_thresh).flatten()
            label = scores[region].argmax(dim=1)
            scores = total[region]
        else:
            region, label = torch.nonzero(scores > self.test_score_thresh, as_tuple=True)
            scores = scores[region, label]
        boxes = boxes[region, label if boxes.shape[1] > 1 else 0]
        if self.one_class_per_object:
            keep = nms(boxes, scores, self.test_nms_thresh)
        else:
            keep = batched_nms(boxes, scores, label, self.test_nms_thresh)
        self._warn_of_limit(len(keep))
        keep = keep[: self.test_topk_per_image]
        found = Instances(image_size, pred_boxes=boxes[keep], scores=scores[keep], pred_classes=label[keep])
        return found[nonempty(found.pred_boxes)]

    def _warn_of_limit(self, count: int) -> None:
        if count > self.test_topk_per_image and not self._warned:
            self._warned = True
            logger.warning(
                "%d objects in one image score above %g, but only the best %d are kept: raise test_topk_per_image of "
                "the (last) box predictor, when exporting the model for instance, or use smaller tiles (said once)",
                count,
                self.test_score_thresh,
                self.test_topk_per_image,
            )
