"""A small random detector and scenes for it."""

import torch
from torch import nn

from deepdisc.config import instantiate, load
from deepdisc.structures import Instances

LOSSES = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"}

NARROW = [
    "num_bands=3",
    "num_classes=2",
    "model.backbone.out_channels=16",
    "model.backbone.bottom_up.depth=18",
    "model.backbone.bottom_up.stem_out_channels=8",
    "model.backbone.bottom_up.stem_max_pool=False",
    "model.backbone.bottom_up.norm=BN",
    "model.proposal_generator.in_features=[p1,p2,p3,p4,p5]",
    "model.proposal_generator.anchor_generator.sizes=[[8],[16],[32],[64],[128]]",
    "model.proposal_generator.batch_size_per_image=64",
    "model.roi_heads.batch_size_per_image=64",
    "model.roi_heads.box_pooler.in_features=[p1,p2,p3,p4]",
    "model.roi_heads.box_pooler.canonical_box_size=56",
    "model.roi_heads.box_pooler.canonical_level=3",
    "model.roi_heads.box_head.fc_dim=32",
    "model.roi_heads.mask_head.conv_dim=8",
]


def narrow(*overrides: str, **parts) -> nn.Module:
    torch.manual_seed(0)
    cfg = load("configs/common/resnet_fpn.py", [*NARROW, *overrides])
    return instantiate(cfg.model, **parts)


def scene(height: int = 64, width: int = 64, count: int = 4, seed: int = 0) -> dict:
    """A record with `count` bright discs on noise, their boxes and masks, and E(B-V)."""
    generator = torch.Generator().manual_seed(seed)
    center = torch.rand(count, 2, generator=generator) * torch.tensor([width - 20, height - 20]) + 10
    radius = torch.rand(count, 1, generator=generator) * 5 + 4
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    masks = (x - center[:, 0, None, None]) ** 2 + (y - center[:, 1, None, None]) ** 2 < radius[..., None] ** 2
    image = torch.randn(3, height, width, generator=generator) + 5 * masks.float().sum(dim=0)
    truth = Instances(
        (height, width),
        gt_boxes=torch.cat((center - radius, center + radius), dim=1),
        gt_classes=torch.arange(count) % 2,
        gt_masks=masks,
        gt_size=radius[:, 0],
        gt_has_size=torch.arange(count) % 2 == 0,
    )
    return {"image": image, "ebv": torch.tensor(0.1), "instances": truth}
