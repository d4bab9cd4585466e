"""Zeros of many increasing functions at once: Newton's method, held inside a bracket by bisection.

Every unknown leaves the computation when it is found, so that the few difficult ones cost little.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_MAX_STEPS = 200
_EPS = torch.finfo(torch.float64).eps
_VALUE_TOLERANCE = 1e-13  # Newton's last step from here reaches the rounding error


def find_zeros(
    function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], low: Tensor, high: Tensor, start: Tensor | None = None
) -> Tensor:
    """The zeros (n,) of n increasing functions, in float64.

    Args:
        function: `(x, rows) -> (value, slope)` of the functions numbered `rows` (m,) at x (m,). Values should be of
            order one (logarithms of probabilities, say): below 1e-13 they count as zero.
        low: (n,) where each function is <= 0, finite or equal to `high`.
        high: (n,) where each is >= 0.
        start: (n,) first guess; the middle by default.
    """
    low, high = torch.minimum(low, high).clone(), torch.maximum(low, high).clone()
    result = torch.where(low == high, low, (low + high) / 2)
    if start is not None:
        result = torch.minimum(torch.maximum(start, low), high)
    rows = torch.nonzero(high - low > 2 * _EPS * torch.maximum(low.abs(), high.abs()))[:, 0]
    x, low, high = result[rows], low[rows], high[rows]
    before = high - low
    for _ in range(_MAX_STEPS):
        if not len(rows):
            break
        value, slope = function(x, rows)
        low, high = torch.where(value < 0, x, low), torch.where(value > 0, x, high)
        step = -value / slope
        new = x + step
        # Bisection where Newton leaves the bracket or does not halve its step (also where it is not a number).
        safe = (new >= low) & (new <= high) & (step.abs() <= 0.5 * before)
        new = torch.where(safe, new, (low + high) / 2)
        new = torch.where(value == 0, x, new)
        before = (new - x).abs()
        rounding = 2 * _EPS * new.abs()
        done = (value.abs() < _VALUE_TOLERANCE) & safe | (value == 0) | (before <= rounding) | ~(high > low)
        result[rows] = new
        going = ~done
        rows, x, low, high, before = rows[going], new[going], low[going], high[going], before[going]
    return result
