"""Region proposal network (Ren et al. 2015, arXiv:1506.01497), with detectron2's parameter names and semantics.

Legend: N images, A anchors per cell, R anchors per image over all levels, k boxes kept per level. Boxes are in image
pixels, pixel-edge coordinates.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from deepdisc.detector.anchors import AnchorGenerator
from deepdisc.detector.box_coder import BoxCoder
from deepdisc.detector.matcher import Matcher, sample_labels
from deepdisc.detector.pooling import feature_stride
from deepdisc.errors import InputError
from deepdisc.structures import Instances, clip_boxes, nonempty


class RPNHead(nn.Module):
    """The same convolutions on every level: objectness and box offsets of each anchor."""

    def __init__(self, in_channels: int = 256, num_anchors: int = 3, num_conv: int = 1):
        """Build the head: `num_conv` 3x3 convolutions (`conv`, or `conv.conv0`, `conv.conv1`, ...), then two 1x1."""
        super().__init__()
        if num_conv < 1:
            raise InputError(f"num_conv={num_conv}: the head of the proposal network needs at least one convolution")
        convs = [nn.Conv2d(in_channels, in_channels, 3, padding=1) for _ in range(num_conv)]
        self.conv = convs[0]
        if num_conv > 1:
            layers = OrderedDict()
            for i, conv in enumerate(convs):
                layers[f"conv{i}"] = conv
                if i < num_conv - 1:
                    layers[f"relu{i}"] = nn.ReLU()
            self.conv = nn.Sequential(layers)
        self.objectness_logits = nn.Conv2d(in_channels, num_anchors, 1)
        self.anchor_deltas = nn.Conv2d(in_channels, 4 * num_anchors, 1)
        for conv in (*convs, self.objectness_logits, self.anchor_deltas):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Maps (N, C, H, W) -> logits (N, A, H, W) and offsets (N, 4 A, H, W), for each level."""
        hidden = [F.relu(self.conv(feature)) for feature in features]
        return [self.objectness_logits(x) for x in hidden], [self.anchor_deltas(x) for x in hidden]


class RPN(nn.Module):
    """Proposes boxes that may hold an object of any class."""

    def __init__(
        self,
        in_features: Sequence[str],
        head: nn.Module,
        anchor_generator: AnchorGenerator,
        anchor_matcher: Matcher,
        box_coder: BoxCoder,
        batch_size_per_image: int = 256,
        positive_fraction: float = 0.5,
        pre_nms_topk: Sequence[int] = (2000, 1000),
        post_nms_topk: Sequence[int] = (1000, 1000),
        nms_thresh: float = 0.7,
    ):
        """Assemble the network.

        Args:
            in_features: names of the maps, one for each level of the anchors.
            head: maps -> logits and offsets (`RPNHead`).
            anchor_generator: the prior boxes.
            anchor_matcher: which anchor stands for which object.
            box_coder: offsets <-> boxes.
            batch_size_per_image: anchors of an image in the loss.
            positive_fraction: largest fraction of these that are objects.
            pre_nms_topk: best boxes of each level that enter non-maximum suppression, in training and in prediction.
            post_nms_topk: proposals of an image that are returned, in training and in prediction.
            nms_thresh: of two boxes with an IoU above this the one with the lower score is dropped.

        Raises:
            InputError: a level too many or too few, a head for another number of anchors, or a number of boxes that
                is not positive.
        """
        super().__init__()
        if anchor_generator.num_levels != len(in_features):
            raise InputError(
                f"the anchors have sizes for {anchor_generator.num_levels} levels, but the proposal network has "
                f"{len(in_features)}, {list(in_features)}: give one list of sizes for each"
            )
        _check_anchors(head, anchor_generator)
        for name, value in {"pre_nms_topk": pre_nms_topk, "post_nms_topk": post_nms_topk}.items():
            if len(value) != 2 or min(value) < 1:
                raise InputError(f"{name}={list(value)} must be two positive numbers: in training, in prediction")
        self.in_features = list(in_features)
        self.strides = [feature_stride(name) for name in self.in_features]
        self.rpn_head = head
        self.anchor_generator = anchor_generator
        self.anchor_matcher = anchor_matcher
        self.box_coder = box_coder
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.pre_nms_topk = tuple(pre_nms_topk)
        self.post_nms_topk = tuple(post_nms_topk)
        self.nms_thresh = nms_thresh

    def forward(
        self,
        features: dict[str, Tensor],
        image_sizes: list[tuple[int, int]],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Propose boxes and, given the truth, compute the losses.

        Args:
            features: maps (N, C, H, W) by name.
            image_sizes: (height, width) of each image before padding.
            targets: `gt_boxes` of each image; None in prediction.

        Returns:
            `proposal_boxes` and `objectness_logits` of each image, best first; losses (empty in prediction).

        Raises:
            FloatingPointError: a score or box is not finite while training.
        """
        maps = [features[name] for name in self.in_features]
        anchors = self.anchor_generator([tuple(x.shape[-2:]) for x in maps], self.strides)
        logits, deltas = self.rpn_head(maps)
        # (N, A, H, W) -> (N, H W A) and (N, 4 A, H, W) -> (N, H W A, 4): the order of the anchors
        logits = [x.permute(0, 2, 3, 1).flatten(1) for x in logits]
        deltas = [x.permute(0, 2, 3, 1).reshape(len(x), -1, 4) for x in deltas]
        losses = {} if targets is None else self._losses(anchors, logits, deltas, targets)
        return self._propose(anchors, logits, deltas, image_sizes, training=targets is not None), losses

    # ------------------------------------------------------------------------------------------------------- losses
    def label_anchors(self, anchors: Tensor, target: Instances) -> tuple[Tensor, Tensor]:
        """Match anchors (R, 4) with the objects of one image: index (R,) of the object, label (R,) 1, 0 or -1."""
        return self.anchor_matcher(target.gt_boxes, anchors)

    def _losses(
        self, anchors: list[Tensor], logits: list[Tensor], deltas: list[Tensor], targets: list[Instances]
    ) -> dict[str, Tensor]:
        """Cross entropy of objectness and L1 of the offsets, sums over the sampled anchors of the batch.

        Both are divided by the number of anchors asked for, not found: an image with few objects weighs less.
        """
        anchors, logits, deltas = torch.cat(anchors), torch.cat(logits, dim=1), torch.cat(deltas, dim=1)
        classification = localization = 0.0
        for logit, delta, target in zip(logits, deltas, targets, strict=True):
            index, labels = self.label_anchors(anchors, target)
            positive, negative = sample_labels(labels, self.batch_size_per_image, self.positive_fraction, background=0)
            sampled = torch.cat((logit[positive], logit[negative]))
            is_object = torch.cat((torch.ones_like(logit[positive]), torch.zeros_like(logit[negative])))
            classification = classification + F.binary_cross_entropy_with_logits(sampled, is_object, reduction="sum")
            wanted = self.box_coder.encode(anchors[positive], target.gt_boxes[index[positive]])
            localization = localization + F.l1_loss(delta[positive], wanted, reduction="sum")
        normalizer = self.batch_size_per_image * len(targets)
        return {"loss_rpn_cls": classification / normalizer, "loss_rpn_loc": localization / normalizer}

    # ---------------------------------------------------------------------------------------------------- proposals
    @torch.no_grad()
    def _propose(
        self,
        anchors: list[Tensor],
        logits: list[Tensor],
        deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
        training: bool,
    ) -> list[Instances]:
        """Best boxes of each level, then non-maximum suppression within levels, then the best of all levels."""
        pre_nms, post_nms = (topk[0 if training else 1] for topk in (self.pre_nms_topk, self.post_nms_topk))
        rows = torch.arange(len(image_sizes), device=logits[0].device)[:, None]
        boxes, scores, levels = [], [], []
        for level, (anchor, logit, delta) in enumerate(zip(anchors, logits, deltas, strict=True)):
            score, best = logit.topk(min(logit.shape[1], pre_nms), dim=1)
            box = self.box_coder.decode(delta[rows, best].flatten(0, 1), anchor[best].flatten(0, 1))
            boxes.append(box.view(*best.shape, 4))
            scores.append(score)
            levels.append(torch.full_like(best[0], level))
        boxes, scores, level = torch.cat(boxes, dim=1), torch.cat(scores, dim=1), torch.cat(levels)
        return [
            self._select(box, score, level, size, post_nms, training)
            for box, score, size in zip(boxes, scores, image_sizes, strict=True)
        ]

    def _select(
        self, boxes: Tensor, scores: Tensor, levels: Tensor, image_size: tuple[int, int], count: int, training: bool
    ) -> Instances:
        keep = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores)
        if training and not keep.all():
            raise FloatingPointError("the proposal network gave boxes or scores that are not finite: training diverged")
        boxes, scores, levels = boxes[keep], scores[keep], levels[keep]
        boxes = clip_boxes(boxes, image_size)
        keep = nonempty(boxes)
        boxes, scores, levels = boxes[keep], scores[keep], levels[keep]
        keep = batched_nms(boxes, scores.float(), levels, self.nms_thresh)[:count]
        return Instances(image_size, proposal_boxes=boxes[keep], objectness_logits=scores[keep])


def _check_anchors(head: nn.Module, anchor_generator: AnchorGenerator) -> None:
    """Refuse a head that scores another number of anchors in a cell: offsets would be applied to the wrong ones."""
    if not isinstance(head, RPNHead):  # of somebody's own making
        return
    numbers = anchor_generator.num_anchors
    if set(numbers) != {head.objectness_logits.out_channels}:
        raise InputError(
            f"the head of the proposal network scores num_anchors={head.objectness_logits.out_channels} anchors in a "
            f"cell, but sizes times aspect_ratios give {numbers} on the levels: set head.num_anchors to their number, "
            "which must be the same on all"
        )
