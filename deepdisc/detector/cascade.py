"""Cascade R-CNN (Cai & Vasconcelos 2018, arXiv:1712.00726): boxes are refined in stages, each stricter than the last.

Legend: K classes without background, which is class K; B = 1 box for all classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from deepdisc.detector.matcher import Matcher
from deepdisc.detector.pooling import ROIPooler
from deepdisc.detector.roi_heads import ROIHeads
from deepdisc.errors import InputError
from deepdisc.structures import Instances, clip_boxes, nonempty


class CascadeROIHeads(ROIHeads):
    """As `ROIHeads`, but class and box come from a series of heads, each working on the boxes of the one before.

    Probabilities are the mean over the stages, boxes those of the last one. The other heads learn from the regions of
    the first stage, whose sample has the most objects, and measure the final boxes.
    """

    def __init__(
        self,
        num_classes: int,
        proposal_matchers: Sequence[Matcher],
        box_pooler: ROIPooler,
        box_heads: Sequence[nn.Module],
        box_predictors: Sequence[nn.Module],
        mask_head: nn.Module | None = None,
        heads: Mapping[str, nn.Module] | None = None,
        batch_size_per_image: int = 512,
        positive_fraction: float = 0.25,
        chunk_size: int = 1024,
        views_per_object: int = 0,
    ):
        """Assemble the heads: one matcher, box head and (class-agnostic) predictor for each stage; else as `ROIHeads`.

        Raises:
            InputError: another number of matchers, heads and predictors; a predictor with a box for each class.
        """
        counts = {len(proposal_matchers), len(box_heads), len(box_predictors)}
        if len(counts) != 1 or 0 in counts:
            raise InputError(
                f"a cascade needs as many proposal_matchers ({len(proposal_matchers)}) as box_heads ({len(box_heads)}) "
                f"and box_predictors ({len(box_predictors)}): one for each stage"
            )
        if any(predictor.bbox_pred.out_features != 4 for predictor in box_predictors):
            raise InputError(
                "a cascade refines one box for all classes: set cls_agnostic_bbox_reg=True in each predictor"
            )
        super().__init__(
            num_classes=num_classes,
            proposal_matcher=proposal_matchers[0],
            box_pooler=box_pooler,
            box_head=nn.ModuleList(box_heads),
            box_predictor=nn.ModuleList(box_predictors),
            mask_head=mask_head,
            heads=heads,
            batch_size_per_image=batch_size_per_image,
            positive_fraction=positive_fraction,
            chunk_size=chunk_size,
            views_per_object=views_per_object,
        )
        self.later_matchers = list(proposal_matchers[1:])

    @property
    def final_predictor(self) -> nn.Module:
        """The last predictor: only its thresholds matter."""
        return self.box_predictor[-1]

    def box_losses(
        self, features: dict[str, Tensor], sampled: list[Instances], targets: list[Instances]
    ) -> dict[str, Tensor]:
        """Losses of class and box of each stage, "loss_cls_stage0" ...; the sample is matched anew in each."""
        losses: dict[str, Tensor] = {}
        regions = sampled
        for stage, (head, predictor) in enumerate(zip(self.box_head, self.box_predictor, strict=True)):
            pooled = self.box_pooler(features, [x.proposal_boxes for x in regions])
            if pooled.requires_grad:
                # the losses of the stages are summed, the backbone sees their mean
                pooled.register_hook(self._divide_by_stages)
            logits, deltas = predictor(head(pooled))
            for name, value in predictor.losses(logits, deltas, regions).items():
                losses[f"{name}_stage{stage}"] = value
            if stage + 1 < len(self.box_head):
                boxes = predictor.box_coder.decode(deltas.detach(), torch.cat([x.proposal_boxes for x in regions]))
                boxes = boxes.split([len(x) for x in regions])
                matcher = self.later_matchers[stage]
                regions = [self._rematch(matcher, box, target) for box, target in zip(boxes, targets, strict=True)]
        return losses

    def _divide_by_stages(self, gradient: Tensor) -> Tensor:
        return gradient / len(self.box_head)

    def _rematch(self, matcher: Matcher, boxes: Tensor, target: Instances) -> Instances:
        """Regions of the next stage; boxes that left the image cannot be learned from."""
        boxes = clip_boxes(boxes, target.image_size)
        boxes = boxes[nonempty(boxes)]
        index, classes = self.match(matcher, boxes, target)
        matched = target.gt_boxes[index] if len(target) else boxes
        regions = Instances(target.image_size, proposal_boxes=boxes, gt_classes=classes, gt_boxes=matched)
        return regions[classes >= 0]

    def refine(self, features: dict[str, Tensor], boxes: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Mean class probabilities (R, K + 1) and final boxes (R, 4); for the arguments see `ROIHeads.refine`."""
        scores = []
        for stage, (head, predictor) in enumerate(zip(self.box_head, self.box_predictor, strict=True)):
            if stage:
                boxes = clip_boxes(boxes, image_size)
            logits, deltas = predictor(head(self.box_pooler(features, [boxes])))
            scores.append(logits.float().softmax(dim=1))
            boxes = predictor.box_coder.decode(deltas, boxes)
        return sum(scores) / len(scores), boxes
