"""Numbers of 16 bits in the forward pass: the names of the precisions, and the scale that float16 needs."""

from __future__ import annotations

import torch

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
# At this scale of the loss the gradients are not magnified at all: if they still overflow, halving on is no remedy.
MIN_SCALE = 1.0


def autocast(device: torch.device, precision: torch.dtype | None) -> torch.autocast:
    """The autocast context of a precision; off for None."""
    return torch.autocast(device.type, dtype=precision or torch.bfloat16, enabled=precision is not None)


def gradient_scaler(device: torch.device, precision: torch.dtype | None) -> torch.amp.GradScaler:
    """Scales the loss so that small gradients do not vanish in float16; does nothing in the other precisions."""
    return torch.amp.GradScaler(device.type, enabled=precision is torch.float16)
