"""A detector small enough to train in a test: it finds pixels that belong to objects."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import nn

from deepdisc.config import L, load
from deepdisc.structures import ImageBatch


class TinyDetector(nn.Module):
    """Two convolutions with a batch norm; like the detector it samples at random inside its losses."""

    def __init__(self, width: int = 6, bands: int = 2, explode_at: float = float("inf"), gain: float = 1.0):
        super().__init__()
        self.first = nn.Conv2d(bands, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.last = nn.Conv2d(width, 1, 3, padding=1)
        self.explode_at, self.gain = explode_at, gain
        self.calls = 0

    def forward(self, batch):
        assert self.training
        self.calls += 1
        losses = self.losses(batch)
        if self.calls > self.explode_at:
            losses["loss_edge"] = losses["loss_edge"] * float("nan")
        return losses

    def losses(self, batch):
        images = ImageBatch.from_list([torch.asinh(sample["image"]) for sample in batch], 4).tensor
        logits = self.last(F.relu(self.norm(self.first(images))))[:, 0]
        targets = torch.zeros_like(logits)
        for target, sample in zip(targets, batch, strict=True):
            dense = sample["instances"].gt_masks.to_dense()
            target[: dense.shape[1], : dense.shape[2]] = dense.any(dim=0)
        chosen = torch.rand(logits.shape) < 0.5
        return {
            "loss_mask": self.gain * F.binary_cross_entropy_with_logits(logits[chosen], targets[chosen]),
            "loss_edge": 0.1 * (logits[chosen].sigmoid() - targets[chosen]).abs().mean(),
        }


def config(dataset, output, *overrides):
    """A complete training config around TinyDetector, with the shipped defaults for the rest."""
    cfg = load("configs/common/optim.py")
    cfg.merge_with(load("configs/common/data.py"))
    cfg.merge_with(
        {
            "bands": ["g", "r"],
            "class_names": ["galaxy", "star"],
            "pixel_scale_arcsec": 0.2,
            "model": L("tiny_model.TinyDetector")(width=6),
        }
    )
    settings = {
        "data.path": str(dataset), "data.crop_size": 48, "data.batch_size": 2, "train.output_dir": str(output),
        "train.max_iter": 12, "train.log_period": 2, "train.eval_period": 6, "train.checkpoint_period": 4,
        "train.keep_checkpoints": 10, "train.device": "cpu", "optim.schedule.warmup_iters": 3,
        "optim.optimizer.lr": 0.01,
    }  # fmt: skip
    for key, value in settings.items():
        OmegaConf.update(cfg, key, value)
    for text in overrides:
        key, value = text.split("=", 1)
        OmegaConf.update(cfg, key, OmegaConf.create(f"value: {value}").value)
    return cfg
