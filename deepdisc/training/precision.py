"""Numbers of 16 bits in the forward pass: the names of the precisions."""

from __future__ import annotations

import torch

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}


def autocast(device: torch.device, precision: torch.dtype | None) -> torch.autocast:
    """The autocast context of a precision; off for None."""
    return torch.autocast(device.type, dtype=precision or torch.bfloat16, enabled=precision is not None)
