"""Cascade Mask R-CNN with MViTv2-B."""

from .mvitv2_fpn import model, num_bands, num_classes  # noqa: F401

model.backbone.bottom_up.depth = 24
model.backbone.bottom_up.last_block_indexes = [1, 4, 20, 23]
model.backbone.bottom_up.drop_path_rate = 0.4
