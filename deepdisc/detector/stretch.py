"""From nJy to the numbers that the first convolution sees."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class NoiseStretch(nn.Module):
    """Pixels in units of their own noise, compressed by asinh.

    Dividing by the noise makes one network serve mosaics of any depth and unit; asinh keeps the faint end linear while
    the centre of a star stays within a few units. Masked pixels become 0, the value of empty sky.

    Args:
        softening: number of sigmas at which the stretch turns from linear to logarithmic.
    """

    def __init__(self, softening: float = 1.0):
        super().__init__()
        self.softening = float(softening)

    def forward(self, image: Tensor, variance: Tensor, mask: Tensor) -> Tensor:
        """Stretch one image.

        Args:
            image: (C, H, W) nJy.
            variance: (C, H, W) nJy^2, > 0 where not masked.
            mask: (C, H, W) bool, True = bad or no data.

        Returns:
            (C, H, W) float32.
        """
        noise = torch.where(mask, torch.ones_like(variance), variance).sqrt()
        signal = torch.where(mask, torch.zeros_like(image), image) / noise
        return torch.asinh(signal / self.softening)
