"""Mask R-CNN with a ResNet-FPN backbone: the whole detector, with detectron2's defaults (`mask_rcnn_fpn`, R50).

A map is named by the logarithm of its stride: p2 has stride 4. Values that must agree are linked.
"""

from deepdisc.backbones.fpn import FPN
from deepdisc.backbones.resnet import ResNet
from deepdisc.config import L
from deepdisc.detector.anchors import AnchorGenerator
from deepdisc.detector.box_coder import BoxCoder
from deepdisc.detector.detector import Detector
from deepdisc.detector.matcher import Matcher
from deepdisc.detector.pooling import ROIPooler
from deepdisc.detector.roi_heads import ROIHeads
from deepdisc.detector.rpn import RPN, RPNHead
from deepdisc.heads.box import BoxHead, BoxPredictor
from deepdisc.heads.mask import MaskHead

num_bands = 3
num_classes = 80

model = L(Detector)(
    backbone=L(FPN)(
        bottom_up=L(ResNet)(
            depth=50,
            in_channels="${num_bands}",
            stem_out_channels=64,
            res2_out_channels=None,
            stem_max_pool=True,
            stride_in_1x1=True,
            norm="FrozenBN",
            freeze_at=0,
            checkpoint_activations=False,
        ),
        out_channels=256,
        norm=None,
    ),
    proposal_generator=L(RPN)(
        in_features=["p2", "p3", "p4", "p5", "p6"],
        head=L(RPNHead)(in_channels="${model.backbone.out_channels}", num_anchors=3, num_conv=1),
        anchor_generator=L(AnchorGenerator)(
            sizes=[[32.0], [64.0], [128.0], [256.0], [512.0]],
            aspect_ratios=[0.5, 1.0, 2.0],
        ),
        anchor_matcher=L(Matcher)(thresholds=[0.3, 0.7], labels=[0, -1, 1], allow_low_quality_matches=True),
        box_coder=L(BoxCoder)(weights=[1.0, 1.0, 1.0, 1.0]),
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_topk=[2000, 1000],
        post_nms_topk=[1000, 1000],
        nms_thresh=0.7,
    ),
    roi_heads=L(ROIHeads)(
        num_classes="${num_classes}",
        proposal_matcher=L(Matcher)(thresholds=[0.5], labels=[0, 1], allow_low_quality_matches=False),
        batch_size_per_image=512,
        positive_fraction=0.25,
        box_pooler=L(ROIPooler)(
            output_size=7,
            in_features=["p2", "p3", "p4", "p5"],
            sampling_ratio=0,
            canonical_box_size=224.0,
            canonical_level=4,
        ),
        box_head=L(BoxHead)(
            in_channels="${model.backbone.out_channels}",
            input_size="${model.roi_heads.box_pooler.output_size}",
            fc_dim=1024,
            num_fc=2,
            conv_dim=256,
            num_conv=0,
            norm=None,
        ),
        box_predictor=L(BoxPredictor)(
            in_dim="${model.roi_heads.box_head.fc_dim}",
            num_classes="${num_classes}",
            box_coder=L(BoxCoder)(weights=[10.0, 10.0, 5.0, 5.0]),
            test_score_thresh=0.05,
            test_nms_thresh=0.5,
            test_topk_per_image=100,
            one_class_per_object=False,
            cls_agnostic_bbox_reg=False,
        ),
        mask_head=L(MaskHead)(
            pooler=L(ROIPooler)(
                output_size=14,
                in_features="${model.roi_heads.box_pooler.in_features}",
                sampling_ratio=0,
                canonical_box_size="${model.roi_heads.box_pooler.canonical_box_size}",
                canonical_level="${model.roi_heads.box_pooler.canonical_level}",
            ),
            num_classes="${num_classes}",
            in_channels="${model.backbone.out_channels}",
            conv_dim=256,
            num_conv=4,
            norm=None,
        ),
        heads={},
        views_per_object=0,
    ),
    pixel_mean=[0.0],  # one value for all bands, or one per band
    pixel_std=[1.0],
    stretch=None,
    loss_weights=None,
)
