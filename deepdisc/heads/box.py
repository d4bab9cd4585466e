"""Class and box of a region (Fast R-CNN, Girshick 2015, arXiv:1504.08083), with detectron2's names and semantics.

Legend: R regions, K classes without background, which is class K.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, nms

from deepdisc.detector.box_coder import BoxCoder
from deepdisc.structures import Instances, clip_boxes, nonempty


class BoxHead(nn.Sequential):
    """Fully connected layers `fc1`, `fc2`, ... with ReLU on a flattened pooled region."""

    def __init__(self, in_channels: int = 256, input_size: int = 7, fc_dim: int = 1024, num_fc: int = 2):
        super().__init__()
        self.add_module("flatten", nn.Flatten())
        width = in_channels * input_size**2
        for i in range(1, num_fc + 1):
            linear = nn.Linear(width, fc_dim)
            nn.init.kaiming_uniform_(linear.weight, a=1)
            nn.init.zeros_(linear.bias)
            self.add_module(f"fc{i}", linear)
            self.add_module(f"relu{i}", nn.ReLU())
            width = fc_dim


class BoxPredictor(nn.Module):
    """Scores of the classes and a refined box for each class."""

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        box_coder: BoxCoder,
        test_score_thresh: float = 0.05,
        test_nms_thresh: float = 0.5,
        test_topk_per_image: int = 100,
        one_class_per_object: bool = False,
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
        """
        super().__init__()
        self.num_classes = num_classes
        self.box_coder = box_coder
        self.test_score_thresh = test_score_thresh
        self.test_nms_thresh = test_nms_thresh
        self.test_topk_per_image = test_topk_per_image
        self.one_class_per_object = one_class_per_object
        self.cls_score = nn.Linear(in_dim, num_classes + 1)
        self.bbox_pred = nn.Linear(in_dim, 4 * num_classes)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.cls_score.bias)
        nn.init.zeros_(self.bbox_pred.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (R, in_dim) -> logits (R, K + 1) and offsets (R, 4 K)."""
        return self.cls_score(x), self.bbox_pred(x)

    def losses(self, logits: Tensor, deltas: Tensor, proposals: list[Instances]) -> dict[str, Tensor]:
        """Cross entropy (mean over regions) and L1 of the true class's offsets (sum over objects / all regions).

        Args:
            logits: (R, K + 1), regions of all images one after the other.
            deltas: (R, 4 K).
            proposals: `proposal_boxes`, `gt_classes` (K = background) and `gt_boxes` of the sampled regions.
        """
        classes = torch.cat([x.gt_classes for x in proposals])
        if len(classes) == 0:
            return {"loss_cls": logits.sum() * 0.0, "loss_box_reg": deltas.sum() * 0.0}
        source = torch.cat([x.proposal_boxes for x in proposals])
        target = torch.cat([x.gt_boxes for x in proposals])
        objects = torch.nonzero((classes >= 0) & (classes < self.num_classes)).flatten()
        wanted = self.box_coder.encode(source[objects], target[objects])
        given = deltas.view(len(deltas), -1, 4)[objects, classes[objects]]
        return {
            "loss_cls": F.cross_entropy(logits, classes),
            "loss_box_reg": F.l1_loss(given, wanted, reduction="sum") / len(classes),
        }

    @torch.no_grad()
    def detect(self, logits: Tensor, deltas: Tensor, proposals: Tensor, image_size: tuple[int, int]) -> Instances:
        """Turn the outputs for one image into detections.

        Every pair of region and class above the score threshold is a candidate and suppression is within classes,
        unless `one_class_per_object`.

        Args:
            logits: (R, K + 1).
            deltas: (R, 4 K).
            proposals: boxes (R, 4).
            image_size: (height, width), to which boxes are clipped.

        Returns:
            `pred_boxes`, `scores`, `pred_classes`, best first, none of them empty.
        """
        boxes = self.box_coder.decode(deltas, proposals)
        scores = logits.float().softmax(dim=1)
        finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores).all(dim=1)
        boxes = clip_boxes(boxes[finite].view(-1, self.num_classes, 4), image_size)
        scores = scores[finite, :-1]
        if self.one_class_per_object:
            total = scores.sum(dim=1)
            region = torch.nonzero(total > self.test_score_thresh).flatten()
            label = scores[region].argmax(dim=1)
            boxes, scores = boxes[region, label], total[region]
            keep = nms(boxes, scores, self.test_nms_thresh)
        else:
            region, label = torch.nonzero(scores > self.test_score_thresh, as_tuple=True)
            boxes, scores = boxes[region, label], scores[region, label]
            keep = batched_nms(boxes, scores, label, self.test_nms_thresh)
        keep = keep[: self.test_topk_per_image]
        found = Instances(image_size, pred_boxes=boxes[keep], scores=scores[keep], pred_classes=label[keep])
        return found[nonempty(found.pred_boxes)]
