"""Which true object a box stands for, and which boxes are used in the loss.

Legend: M true objects, N candidate boxes; labels 1 = object, 0 = background, -1 = ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from deepdisc.errors import InputError
from deepdisc.structures import box_iou

# elements of the overlap matrix that are held at a time, so that crowded tiles do not fill the memory
BLOCK_ELEMENTS = 2**22


class Matcher:
    """Assigns to each box the object that it overlaps most, and a label by how much that is."""

    def __init__(self, thresholds: Sequence[float], labels: Sequence[int], allow_low_quality_matches: bool = False):
        """Set the rule.

        Args:
            thresholds: rising IoU limits t_1 ... t_k; a value equal to t_i is above it.
            labels: k + 1 labels, of IoU < t_1, t_1 <= IoU < t_2, ...
            allow_low_quality_matches: also label 1 the boxes (all of them, when tied) that overlap some object most,
                whatever their IoU.

        Raises:
            InputError: the limits do not rise, or do not fit the labels.
        """
        if len(labels) != len(thresholds) + 1 or list(thresholds) != sorted(thresholds):
            raise InputError(
                f"a matcher needs rising thresholds and one label more than these: not thresholds={list(thresholds)}, "
                f"labels={list(labels)}"
            )
        self.thresholds = list(thresholds)
        self.labels = list(labels)
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, objects: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Match boxes (N, 4) to object boxes (M, 4).

        Returns:
            index (N,) int64 of the object that overlaps most (0 when there is none), and label (N,) int8.
        """
        rows = max(1, BLOCK_ELEMENTS // max(1, len(boxes)))
        return self.assign((box_iou(block, boxes) for block in objects.split(rows)), len(boxes), boxes.device)

    def assign(self, blocks: Iterable[Tensor], count: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Match by an overlap matrix (M, N) that is given in blocks of rows; see `__call__`."""
        index = torch.zeros(count, dtype=torch.int64, device=device)
        best = torch.full((count,), -1.0, device=device)
        low_quality = torch.zeros(count, dtype=torch.bool, device=device)
        offset = 0
        for block in blocks:
            if block.numel() == 0:
                continue
            value, row = block.max(dim=0)
            better = value > best
            index = torch.where(better, row + offset, index)
            best = torch.where(better, value, best)
            if self.allow_low_quality_matches:
                highest = block.max(dim=1, keepdim=True).values
                # detectron2 lacks the second condition: an object without area makes every box an object there
                low_quality |= ((block == highest) & (highest > 0)).any(dim=0)
            offset += len(block)
        labels = torch.full((count,), self.labels[0], dtype=torch.int8, device=device)
        for threshold, label in zip(self.thresholds, self.labels[1:], strict=True):
            labels[best >= threshold] = label
        labels[low_quality] = 1
        return index, labels


def sample_labels(labels: Tensor, count: int, positive_fraction: float, background: int) -> tuple[Tensor, Tensor]:
    """Choose at most `count` boxes at random, at most `positive_fraction` of them objects, the rest background.

    Draws from torch's global generator: one permutation of the objects, then one of the background.

    Args:
        labels: (N,) integers; -1 is never chosen.
        count: number of boxes wanted.
        positive_fraction: largest fraction that may be objects.
        background: the label that means background; every other label but -1 is an object.

    Returns:
        positions of the chosen objects and of the chosen background, int64.
    """
    positive = torch.nonzero((labels != -1) & (labels != background)).flatten()
    negative = torch.nonzero(labels == background).flatten()
    num_positive = min(len(positive), int(count * positive_fraction))
    num_negative = min(len(negative), count - num_positive)
    chosen_positive = torch.randperm(len(positive), device=labels.device)[:num_positive]
    chosen_negative = torch.randperm(len(negative), device=labels.device)[:num_negative]
    return positive[chosen_positive], negative[chosen_negative]
