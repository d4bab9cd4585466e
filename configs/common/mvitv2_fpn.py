"""Cascade Mask R-CNN with an MViTv2-FPN backbone: what differs from that with a ResNet, with detectron2's defaults.

Size T; mvitv2_s_fpn.py and mvitv2_b_fpn.py are S and B.
"""

from deepdisc.backbones.mvit import MViT
from deepdisc.config import L

from .cascade_resnet_fpn import model, num_bands, num_classes  # noqa: F401

model.backbone.bottom_up = L(MViT)(
    in_channels="${num_bands}",
    embed_dim=96,
    depth=10,
    num_heads=1,
    last_block_indexes=[0, 2, 7, 9],
    adaptive_kv_stride=4,
    adaptive_window_size=56,
    drop_path_rate=0.2,
    freeze_at=0,
    checkpoint_activations=False,
)
model.proposal_generator.head.num_conv = 2
# on several GPUs each takes the statistics of its own regions (detectron2: of all); FrozenBN and GN have no such choice
model.roi_heads.box_heads[0].num_conv = 4
model.roi_heads.box_heads[0].num_fc = 1
model.roi_heads.box_heads[0].norm = "BN"
model.roi_heads.mask_head.norm = "BN"
