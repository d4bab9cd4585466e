"""Every network of configs/common builds for any number of bands, learns and predicts."""

from pathlib import Path

import pytest
import torch

from deepdisc.config import L, instantiate, load
from deepdisc.detector.matcher import Matcher
from deepdisc.detector.pooling import ROIPooler
from deepdisc.errors import InputError
from deepdisc.heads.redshift import RedshiftHead
from deepdisc.structures import Instances

CONFIGS = sorted(path.stem for path in (Path(__file__).parents[2] / "configs" / "common").glob("*_fpn.py"))
SMALL = [
    "num_bands=4",
    "num_classes=2",
    "model.backbone.out_channels=32",
    "model.proposal_generator.anchor_generator.sizes=[[8],[16],[32],[64],[128]]",
    "model.proposal_generator.batch_size_per_image=32",
    "model.proposal_generator.post_nms_topk=[100,50]",
    "model.roi_heads.batch_size_per_image=32",
    "model.roi_heads.mask_head.conv_dim=32",
]
LOSSES = {"loss_rpn_cls", "loss_rpn_loc", "loss_mask"}
STAGES = {f"loss_{name}_stage{k}" for name in ("cls", "box_reg") for k in range(3)}


def small(name: str, *overrides: str) -> torch.nn.Module:
    cascade, vit = name != "resnet_fpn", "mvit" in name
    head = "model.roi_heads.box_heads.0" if cascade else "model.roi_heads.box_head"
    widths = [f"{head}.fc_dim=32", f"{head}.conv_dim=32"]
    widths += ["model.backbone.bottom_up.embed_dim=8"] if vit else ["model.backbone.bottom_up.stem_out_channels=32"]
    torch.manual_seed(0)
    return instantiate(load(f"configs/common/{name}.py", [*SMALL, *widths, *overrides]).model)


def scene(seed: int, size: tuple[int, int] = (64, 96)) -> dict:
    """A record with two bright squares on noise."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(4, *size, generator=generator)
    masks = torch.zeros(2, *size, dtype=torch.bool)
    masks[0, 10:30, 12:40] = True
    masks[1, 35:60, 50:90] = True
    image += 5 * masks.any(dim=0)
    boxes = torch.tensor([[12.0, 10, 40, 30], [50, 35, 90, 60]])
    return {
        "image": image,
        "instances": Instances(size, gt_boxes=boxes, gt_classes=torch.tensor([0, 1]), gt_masks=masks),
    }


def assert_learns_and_predicts(model: torch.nn.Module, losses: set[str]):
    given = model.train()([scene(0), scene(1)])
    assert set(given) == losses
    sum(given.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    # of the backbone no part is forgotten
    stem = next(value for name, value in model.named_parameters() if "conv1.weight" in name or "patch_embed" in name)
    assert stem.grad.abs().max() > 0
    model.roi_heads.final_predictor.test_score_thresh = 0.0
    with torch.no_grad():
        found = model.eval()([scene(2), {"image": torch.zeros(4, 33, 50)}])
    assert all(len(record["instances"]) for record in found)
    assert found[1]["instances"].image_size == (33, 50)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_network_learns_and_predicts(name):
    own = {"loss_cls", "loss_box_reg"} if name == "resnet_fpn" else STAGES
    assert_learns_and_predicts(small(name), LOSSES | own)


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
@pytest.mark.parametrize("name", ["resnet_fpn", "cascade_resnet_fpn"])
def test_resnets_of_every_depth(name, depth):
    own = {"loss_cls", "loss_box_reg"} if name == "resnet_fpn" else STAGES
    norm = "model.backbone.bottom_up.norm=BN"
    assert_learns_and_predicts(small(name, f"model.backbone.bottom_up.depth={depth}", norm), LOSSES | own)


def test_group_norm_everywhere():
    parts = ["backbone.bottom_up", "backbone", "roi_heads.box_head", "roi_heads.mask_head"]
    model = small("resnet_fpn", *(f"model.{part}.norm=GN" for part in parts), "model.roi_heads.box_head.num_conv=2",
                  "model.backbone.bottom_up.depth=18")  # fmt: skip
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    assert_learns_and_predicts(model, LOSSES | {"loss_cls", "loss_box_reg"})
    for part in ("backbone.fpn_lateral3", "roi_heads.box_head.conv1", "roi_heads.mask_head.mask_fcn1"):
        assert isinstance(model.get_submodule(f"{part}.norm"), torch.nn.GroupNorm) and f"{part}.bias" not in dict(
            model.named_parameters()
        )


def test_measurement_heads_work_in_a_cascade():
    cfg = load("configs/common/mvitv2_fpn.py", [*SMALL, "model.backbone.bottom_up.embed_dim=8"])
    cfg.model.roi_heads.heads = {
        "redshift": L(RedshiftHead)(
            pooler=L(ROIPooler)(output_size=7, in_features=["p2", "p3", "p4", "p5"]), in_channels=32, hidden=[16]
        )
    }
    model = instantiate(cfg.model).train()
    record = scene(0)
    record["instances"].gt_redshift = torch.tensor([0.5, 1.0])
    record["instances"].gt_has_redshift = torch.tensor([True, False])
    assert model([record])["loss_redshift"] != 0
    with torch.no_grad():
        found = model.eval()([{"image": record["image"]}])[0]["instances"]
    assert len(found.pred_redshift) == len(found)


def test_published_sizes():
    """Millions of parameters with nine bands and two classes; 43.9 and 75.6 are detectron2's."""
    counts = {}
    for name in CONFIGS:
        with torch.device("meta"):
            model = instantiate(load(f"configs/common/{name}.py", ["num_bands=9", "num_classes=2"]).model)
        counts[name] = round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1)
    assert counts == {
        "resnet_fpn": 43.9,
        "cascade_resnet_fpn": 71.7,
        "mvitv2_fpn": 75.6,
        "mvitv2_s_fpn": 86.3,
        "mvitv2_b_fpn": 102.9,
    }


def test_a_cascade_whose_stages_do_not_fit_is_named():
    with pytest.raises(InputError, match=r"as many proposal_matchers \(3\) as box_heads \(2\)"):
        cfg = load("configs/common/cascade_resnet_fpn.py", SMALL)
        cfg.model.roi_heads.box_heads = cfg.model.roi_heads.box_heads[:2]
        instantiate(cfg.model)
    with pytest.raises(InputError, match="cls_agnostic_bbox_reg=True in each predictor"):
        small("cascade_resnet_fpn", "model.roi_heads.box_predictors.1.cls_agnostic_bbox_reg=False")


def test_regions_that_a_later_stage_ignores_are_left_out_of_its_loss():
    model = small("cascade_resnet_fpn").train()
    model.roi_heads.later_matchers[0] = Matcher([0.0], [0, -1])  # ignores all
    losses = model([scene(0)])
    assert losses["loss_cls_stage0"] > 0
    assert losses["loss_cls_stage1"] == 0 and losses["loss_box_reg_stage1"] == 0


def test_stages_share_the_gradient_of_the_backbone():
    """Three stages whose losses are summed must not pull the backbone three times as hard."""
    heads = small("cascade_resnet_fpn").train().roi_heads
    features = {f"p{level}": torch.randn(1, 32, 64 >> level, 64 >> level) for level in range(2, 6)}
    features["p2"].requires_grad_()
    regions = Instances(
        (64, 64),
        proposal_boxes=torch.tensor([[8.0, 8, 40, 40]]),
        gt_boxes=torch.tensor([[9.0, 9, 42, 42]]),
        gt_classes=torch.tensor([1]),
    )
    losses = heads.box_losses(features, [regions], [regions])
    scaled = torch.autograd.grad(losses["loss_cls_stage0"], features["p2"])[0]
    pooled = heads.box_pooler(features, [regions.proposal_boxes])
    logits, _ = heads.box_predictor[0](heads.box_head[0](pooled))
    plain = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, regions.gt_classes), features["p2"])[0]
    torch.testing.assert_close(3 * scaled, plain)


def test_images_and_boxes_of_any_number_type():
    model = small("resnet_fpn", "model.backbone.bottom_up.depth=18").train()
    record = scene(0)
    torch.manual_seed(0)
    single = model([record])
    record["image"] = record["image"].double()
    record["instances"].gt_boxes = record["instances"].gt_boxes.double()
    torch.manual_seed(0)
    double = model([record])
    assert single == double and all(value.dtype == torch.float32 for value in double.values())
    assert model.eval()([{"image": torch.zeros(4, 32, 32, dtype=torch.int16)}])
