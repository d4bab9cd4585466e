"""Cascade Mask R-CNN with MViTv2-S."""

from .mvitv2_fpn import model, num_bands, num_classes  # noqa: F401

model.backbone.bottom_up.depth = 16
model.backbone.bottom_up.last_block_indexes = [0, 2, 13, 15]
model.backbone.bottom_up.drop_path_rate = 0.2
