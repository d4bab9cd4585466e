"""What a user is told to put into detectron2's config: everything that changes the numbers or the shapes, no more."""

import pytest

from deepdisc.config import load
from deepdisc.detectron2_settings import detectron2_notes

COMMON = ["resnet_fpn", "cascade_resnet_fpn", "mvitv2_fpn", "mvitv2_s_fpn", "mvitv2_b_fpn"]
THEIRS = ["models/mask_rcnn_fpn.py", "models/cascade_rcnn.py", *(f"cascade_mask_rcnn_mvitv2_{x}_3x.py" for x in "tsb")]


def told(name, *overrides):
    """The settings of a shipped config with these changes, as lines."""
    return detectron2_notes(load(f"configs/common/{name}.py", overrides))


@pytest.mark.parametrize(("name", "theirs"), list(zip(COMMON, THEIRS, strict=True)))
def test_of_detectron2s_own_models_only_what_every_file_needs_is_said(name, theirs):
    head, *lines = told(name, "num_bands=5", "num_classes=2")
    assert head.endswith(f"{theirs}:")
    expected = ["model.pixel_mean = [0.0, 0.0, 0.0, 0.0, 0.0]", "model.pixel_std = [1.0, 1.0, 1.0, 1.0, 1.0]"]
    if "mvit" in name:
        expected += ["model.backbone.bottom_up.in_chans = 5"]
    else:
        expected += ["model.backbone.bottom_up.stem.in_channels = 5"]
        expected += ["model.backbone.bottom_up.stages.stride_in_1x1 = True"]
    assert [line.strip() for line in lines] == [*expected, "model.roi_heads.num_classes = 2"]


BOTTOM_UP, RPN, ROI = "model.backbone.bottom_up", "model.proposal_generator", "model.roi_heads"


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("resnet_fpn", f"{BOTTOM_UP}.depth=101", f"{BOTTOM_UP}.stages.depth = 101"),
        ("resnet_fpn", f"{BOTTOM_UP}.norm=GN", f"{BOTTOM_UP}.stem.norm = 'GN'"),
        ("resnet_fpn", f"{BOTTOM_UP}.norm=GN", f"{BOTTOM_UP}.stages.norm = 'GN'"),
        ("resnet_fpn", f"{BOTTOM_UP}.stem_out_channels=32", f"{BOTTOM_UP}.stem.out_channels = 32"),
        ("resnet_fpn", f"{BOTTOM_UP}.res2_out_channels=64", f"{BOTTOM_UP}.stages.out_channels = [64, 128, 256, 512]"),
        ("resnet_fpn", "model.backbone.norm=GN", "model.backbone.norm = 'GN'"),
        ("resnet_fpn", "model.backbone.out_channels=64", "model.backbone.out_channels = 64"),
        ("resnet_fpn", "model.backbone.out_channels=64", f"{RPN}.head.in_channels = 64"),
        ("resnet_fpn", "model.backbone.out_channels=64", f"{ROI}.mask_head.input_shape.channels = 64"),
        ("resnet_fpn", f"{RPN}.in_features=[p2,p3,p4,p5,p7]", f"{RPN}.in_features = ['p2', 'p3', 'p4', 'p5', 'p7']"),
        ("resnet_fpn", f"{RPN}.in_features=[p2,p3,p4,p5,p7]", f"{RPN}.anchor_generator.strides = [4, 8, 16, 32, 128]"),
        ("resnet_fpn", f"{RPN}.head.num_conv=2", f"{RPN}.head.conv_dims = [-1, -1]"),
        ("resnet_fpn", f"{RPN}.box_coder.weights=[2,2,1,1]", f"{RPN}.box2box_transform.weights = [2, 2, 1, 1]"),
        ("resnet_fpn", f"{RPN}.pre_nms_topk=[9,8]", f"{RPN}.pre_nms_topk = [9, 8]"),
        ("resnet_fpn", f"{RPN}.post_nms_topk=[9,8]", f"{RPN}.post_nms_topk = [9, 8]"),
        ("resnet_fpn", f"{RPN}.nms_thresh=0.9", f"{RPN}.nms_thresh = 0.9"),
        ("resnet_fpn", f"{ROI}.box_pooler.in_features=[p2,p3]", f"{ROI}.box_in_features = ['p2', 'p3']"),
        ("resnet_fpn", f"{ROI}.box_pooler.in_features=[p2,p3]", f"{ROI}.mask_pooler.scales = [0.25, 0.125]"),
        ("resnet_fpn", f"{ROI}.box_pooler.canonical_box_size=56", f"{ROI}.box_pooler.canonical_box_size = 56.0"),
        ("resnet_fpn", f"{ROI}.box_pooler.canonical_level=3", f"{ROI}.mask_pooler.canonical_level = 3"),
        ("resnet_fpn", f"{ROI}.mask_head.pooler.sampling_ratio=2", f"{ROI}.mask_pooler.sampling_ratio = 2"),
        ("resnet_fpn", f"{ROI}.box_head.num_conv=1", f"{ROI}.box_head.conv_dims = [256]"),
        ("resnet_fpn", f"{ROI}.box_predictor.test_nms_thresh=0.3", f"{ROI}.box_predictor.test_nms_thresh = 0.3"),
        ("resnet_fpn", f"{ROI}.box_predictor.box_coder.weights.0=9", f"{ROI}.box_predictor.box2box_transform.weights"),
        ("resnet_fpn", f"{ROI}.box_predictor.cls_agnostic_bbox_reg=True", "cls_agnostic_bbox_reg = True"),
        ("resnet_fpn", f"{ROI}.mask_head.num_conv=2", f"{ROI}.mask_head.conv_dims = [256, 256, 256]"),
        ("resnet_fpn", f"{ROI}.mask_head.norm=GN", f"{ROI}.mask_head.conv_norm = 'GN'"),
        ("cascade_resnet_fpn", f"{ROI}.box_heads.0.fc_dim=512", f"{ROI}.box_heads[*].fc_dims = [512, 512]"),
        (
            "cascade_resnet_fpn",
            f"{ROI}.box_predictors.2.test_score_thresh=0.3",
            f"{ROI}.box_predictors[2].test_score_thresh = 0.3",
        ),
        ("mvitv2_fpn", f"{BOTTOM_UP}.embed_dim=48", f"{BOTTOM_UP}.embed_dim = 48"),
        ("mvitv2_fpn", f"{BOTTOM_UP}.adaptive_window_size=28", f"{BOTTOM_UP}.adaptive_window_size = 28"),
    ],
)
def test_every_change_is_told_in_detectron2s_terms(name, change, expected):
    assert any(expected in line for line in told(name, change)), told(name, change)


def test_what_detectron2_lacks_is_said_for_the_predictor_that_detects():
    key = "model.roi_heads.box_predictors.{}.one_class_per_object=True"
    assert "does not have" not in "\n".join(told("cascade_resnet_fpn", key.format(0)))
    last = told("cascade_resnet_fpn", key.format(2))[-1]
    assert "does not have one class per object" in last and "box_predictors[2].one_class_per_object" in last
    assert "a stem without max-pool" in told("resnet_fpn", "model.backbone.bottom_up.stem_max_pool=False")[-1]


def test_settings_without_effect_on_numbers_are_not_mentioned():
    change = "model.backbone.bottom_up.checkpoint_activations=True"
    assert told("resnet_fpn", change) == told("resnet_fpn")
