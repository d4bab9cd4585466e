"""Cascade Mask R-CNN with a ResNet-FPN backbone: what differs from Mask R-CNN, with detectron2's defaults."""

from deepdisc.config import L
from deepdisc.detector.box_coder import BoxCoder
from deepdisc.detector.cascade import CascadeROIHeads
from deepdisc.detector.matcher import Matcher
from deepdisc.heads.box import BoxPredictor

from .resnet_fpn import model, num_bands, num_classes  # noqa: F401

_heads = model.roi_heads
# stages: the IoU from which a region counts as an object rises, the corrections get smaller
_stages = [
    (0.5, [10.0, 10.0, 5.0, 5.0]),
    (0.6, [20.0, 20.0, 10.0, 10.0]),
    (0.7, [30.0, 30.0, 15.0, 15.0]),
]

model.roi_heads = L(CascadeROIHeads)(
    num_classes="${num_classes}",
    proposal_matchers=[
        L(Matcher)(thresholds=[iou], labels=[0, 1], allow_low_quality_matches=False) for iou, _ in _stages
    ],
    batch_size_per_image=512,
    positive_fraction=0.25,
    box_pooler=_heads.box_pooler,
    # the second and third stage have heads like the first, with weights of their own; change box_heads.0 for all
    box_heads=[_heads.box_head, "${model.roi_heads.box_heads[0]}", "${model.roi_heads.box_heads[0]}"],
    box_predictors=[
        L(BoxPredictor)(
            in_dim="${model.roi_heads.box_heads[0].fc_dim}",
            num_classes="${num_classes}",
            box_coder=L(BoxCoder)(weights=weights),
            # of the thresholds only those of the last stage matter
            test_score_thresh=0.05,
            test_nms_thresh=0.5,
            test_topk_per_image=100,
            one_class_per_object=False,
            cls_agnostic_bbox_reg=True,
        )
        for _, weights in _stages
    ],
    mask_head=_heads.mask_head,
    heads={},
    views_per_object=0,
)
