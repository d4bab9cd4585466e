"""Where a mixture has a given probability or density: quantiles, the mode, highest-density intervals.

Legend: n mixtures in a flat batch of float64, K components, G grid points, M turning points, S = M + 1 segments between
them, on each of which the density only rises or only falls; `rows` number mixtures of the flat batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.special import ndtri

from deepdisc.mixture_roots import find_zeros
from deepdisc.mixture_truncation import quantile_bracket

if TYPE_CHECKING:
    from deepdisc.mixture import Mixture

_CHUNK = 8192  # mixtures at a time: what is computed for them stays in the processor's cache
_REACH = 40.0  # sigmas: beyond, nothing is left in float64
# Where the density's slope is looked at, in sigmas from every component's mean: turning points lie between two of them.
_STEPS = (-4.5, -3.0, -2.25, -1.75, -1.25, -0.75, -0.35, 0.0, 0.35, 0.75, 1.25, 1.75, 2.25, 3.0, 4.5)


def in_chunks(function: Callable[..., Tensor], mixture: Mixture, *columns: Tensor, size: int = _CHUNK) -> Tensor:
    """`function(mixture, *columns)` of a flat batch, so many rows at a time; its results may differ in their axis 1."""
    wide = mixture.to(torch.float64)
    starts = range(0, max(len(wide), 1), size)
    parts = [function(wide[i : i + size], *(column[i : i + size] for column in columns)) for i in starts]
    if parts[0].ndim > 1:
        width = max(part.shape[1] for part in parts)
        parts = [torch.cat((p, p.new_full((len(p), width - p.shape[1], *p.shape[2:]), torch.nan)), 1) for p in parts]
    return torch.cat(parts)


def flattened(mixture: Mixture, x: Tensor | float) -> tuple[Mixture, Tensor, torch.Size]:
    """Mixtures and values, broadcast to each other, as a flat batch (n,); and their shape before."""
    x = torch.as_tensor(x, dtype=torch.float64, device=mixture.logits.device)
    shape = torch.broadcast_shapes(mixture.batch_shape, x.shape)
    return mixture.expand(*shape).reshape(shape.numel()), x.expand(shape).reshape(-1), shape


def _support(mixture: Mixture, values: Tensor, largest: bool) -> Tensor:
    """The largest or smallest (n,) of values (n, K), of components that weigh anything."""
    empty = mixture.logits == -torch.inf
    if largest:
        return values.masked_fill(empty, -torch.inf).amax(-1)
    return values.masked_fill(empty, torch.inf).amin(-1)


# ----------------------------------------------------------------------------------------------------------- quantiles
def quantile(mixture: Mixture, q: Tensor | float) -> Tensor:
    """See `Mixture.quantile`; float64."""
    flat, q, shape = flattened(mixture, q)
    return in_chunks(_quantile, flat, q).reshape(shape)


def _quantile(mixture: Mixture, q: Tensor) -> Tensor:
    log_below, log_above = q.log(), torch.log1p(-q)
    a = None if mixture.lower is None else mixture._above_bound()
    low, high = quantile_bracket(log_below[:, None], log_above[:, None], a)
    origin = mixture.component_mean if mixture.lower is None else mixture.lower
    low, high = (origin + mixture.component_sigma * end for end in (low, high))
    # A mixture's quantile lies between those of its components.
    start = (mixture.weights * (low + high) / 2).sum(-1)
    low, high = _support(mixture, low, largest=False), _support(mixture, high, largest=True)
    below = q < 0.5
    target = torch.where(below, log_below, log_above)

    def log_excess(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        part, side = mixture[rows], below[rows]
        tail = part._tail(x[:, None], side)
        difference = tail.log() - target[rows]
        density = part._log_components(x[:, None]).exp().sum(-1)
        return torch.where(side, difference, -difference), density / tail

    result = find_zeros(log_excess, low, high, start)
    return result if mixture.lower is None else result.clamp(min=mixture.lower)


# ------------------------------------------------------------------------------------------------------ turning points
def _slopes(mixture: Mixture, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Three derivatives of the log-density at x (...,), and the mean precision there (> 0), which sets their scale."""
    share = mixture._log_components(x[..., None]).softmax(-1)
    precision = mixture.component_sigma.pow(-2)
    pull = (mixture.component_mean - x[..., None]) * precision
    weighted = share * pull
    first, mean_precision = weighted.sum(-1), (share * precision).sum(-1)
    square = (weighted * pull).sum(-1)
    second = square - first.square() - mean_precision
    third = (weighted * (pull.square() - 3 * precision)).sum(-1) + first * (mean_precision - square - 2 * second)
    return first, second, third, mean_precision


def _grid(mixture: Mixture) -> Tensor:
    """Points (n, G) between which the slope of the density changes its sign once at most."""
    mean, sigma = mixture.component_mean, mixture.component_sigma
    margin = _support(mixture, sigma, largest=False)[:, None]
    low = _support(mixture, mean, largest=False)[:, None] - margin
    high = _support(mixture, mean, largest=True)[:, None] + margin
    if mixture.lower is not None:
        low, high = low.clamp(min=mixture.lower), high.clamp(min=mixture.lower)
    steps = torch.tensor(_STEPS, dtype=torch.float64, device=mean.device)
    points = (mean[..., None] + steps * sigma[..., None]).flatten(1)
    return torch.cat((low, torch.minimum(torch.maximum(points, low), high), high), dim=1).sort(1).values


def _with_inflections(mixture: Mixture, grid: Tensor) -> tuple[Tensor, Tensor]:
    """The grid, and whether the density rises there; with the steepest points where it might turn twice in one cell."""
    first, second, _, _ = _slopes(mixture[:, None], grid)
    rising = first > 0
    # The slope has one sign at both ends but heads for zero and comes back: its extremum in between may lie beyond.
    toward = torch.where(rising, -second, second) > 0
    row, cell = torch.nonzero((rising[:, 1:] == rising[:, :-1]) & toward[:, :-1] & ~toward[:, 1:], as_tuple=True)
    sign = torch.where(rising[row, cell], 1.0, -1.0)

    def bend(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        _, second, third, precision = _slopes(mixture[row[rows]], x)
        scale = sign[rows] / precision
        return scale * second, scale * third

    extremum = find_zeros(bend, grid[row, cell], grid[row, cell + 1])
    beyond = (_slopes(mixture[row], extremum)[0] > 0) != rising[row, cell]
    row, extremum, left = row[beyond], extremum[beyond], rising[row[beyond], cell[beyond]]
    if not len(row):
        return grid, rising
    number = torch.arange(len(row), device=row.device) - torch.searchsorted(row, row)
    added = grid[:, -1:].repeat(1, int(number.max()) + 1)
    added_rising = rising[:, -1:].repeat(1, added.shape[1])
    added[row, number], added_rising[row, number] = extremum, ~left
    grid, order = torch.cat((grid, added), dim=1).sort(1)
    return grid, torch.cat((rising, added_rising), dim=1).gather(1, order)


def _turning_points(mixture: Mixture, minima: bool) -> Tensor:
    """Maxima of the density (n, M) in increasing order, NaN beyond a row's own number; with the minima on request."""
    grid, rising = _with_inflections(mixture, _grid(mixture))
    turns = (rising[:, :-1] != rising[:, 1:]) if minima else (rising[:, :-1] & ~rising[:, 1:])
    row, cell = torch.nonzero(turns, as_tuple=True)
    sign = torch.where(rising[row, cell], -1.0, 1.0)  # what is solved must increase

    def slope(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        first, second, _, precision = _slopes(mixture[row[rows]], x)
        scale = sign[rows] / precision.sqrt()
        return scale * first, scale * second

    result = grid.new_full((len(grid), int(turns.sum(1).max()) if len(grid) else 0), torch.nan)
    result[row, turns.cumsum(1)[row, cell] - 1] = find_zeros(slope, grid[row, cell], grid[row, cell + 1])
    return result


def mode(mixture: Mixture) -> Tensor:
    """See `Mixture.mode`; float64."""
    flat = mixture.reshape(mixture.batch_shape.numel())
    return in_chunks(_mode, flat).reshape(mixture.batch_shape)


def _mode(mixture: Mixture) -> Tensor:
    points = _turning_points(mixture, minima=False)
    if mixture.lower is not None:
        points = torch.cat((points, torch.full_like(mixture.component_mean[:, :1], mixture.lower)), dim=1)
    density = mixture[:, None]._log_components(points[..., None]).logsumexp(-1)
    best = density.nan_to_num(nan=-torch.inf).argmax(1, keepdim=True)
    return points.gather(1, best)[:, 0]


# ------------------------------------------------------------------------------------------- highest-density regions
class _Segments:
    """The stretches of n densities between turning points, and what lies above a given density in each of them.

    Attributes:
        edges: (n, S + 1), repeated at the end where a row has fewer.
        log_density: (n, S + 1) at the edges.
    """

    def __init__(self, mixture: Mixture):
        self.mixture = mixture
        mean, reach = mixture.component_mean, _REACH * mixture.component_sigma
        if mixture.lower is None:
            first, last = mean - reach, mean + reach
        else:
            first, last = torch.full_like(mean, mixture.lower), mean.clamp(min=mixture.lower) + reach
        last = _support(mixture, last, largest=True)[:, None]
        points = _turning_points(mixture, minima=True)
        points = torch.where(points.isnan(), last, points)
        self.edges = torch.cat((_support(mixture, first, largest=False)[:, None], points, last), dim=1)
        self.log_density = mixture[:, None]._log_components(self.edges[..., None]).logsumexp(-1)

    def above(self, log_limit: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Start and end (m, S) of what is at least as dense as exp(log_limit) (m,), equal where nothing is."""
        edges, density = self.edges[rows], self.log_density[rows]
        high = density >= log_limit[:, None]
        left, right = edges[:, :-1], edges[:, 1:]
        crossing = torch.where(high[:, :-1], right, left)
        row, cell = torch.nonzero(high[:, :-1] != high[:, 1:], as_tuple=True)
        sign = torch.where(high[row, cell], -1.0, 1.0)
        number = rows[row]

        def excess(x: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
            part = self.mixture[number[which]]
            log_density = part._log_components(x[:, None]).logsumexp(-1)
            return sign[which] * (log_density - log_limit[row[which]]), sign[which] * _slopes(part, x)[0]

        crossing[row, cell] = find_zeros(excess, left[row, cell], right[row, cell])
        none = ~(high[:, :-1] | high[:, 1:])
        start = torch.where(high[:, :-1] | none, left, crossing)
        return start, torch.where(none, left, torch.where(high[:, 1:], right, crossing))

    def mass(self, start: Tensor, end: Tensor, rows: Tensor) -> Tensor:
        """Probability (m,) of the stretches."""
        part = self.mixture[rows][:, None]
        return (part.cdf(end) - part.cdf(start)).sum(1).clamp(0, 1)


def credibility(mixture: Mixture, x: Tensor) -> Tensor:
    """See `Mixture.hdi_level`; float64."""
    flat, x, shape = flattened(mixture, x)
    # The density at x in the same arithmetic as at the edges, so that the mode has exactly nothing above it.
    return in_chunks(_credibility, flat, x).reshape(shape)


def _credibility(mixture: Mixture, x: Tensor) -> Tensor:
    segments, rows = _Segments(mixture), torch.arange(len(x), device=x.device)
    return segments.mass(*segments.above(mixture.log_prob(x), rows), rows)


def highest_density_intervals(mixture: Mixture, level: float) -> Tensor:
    """See `Mixture.hdi`; float64."""
    flat = mixture.reshape(mixture.batch_shape.numel())
    result = in_chunks(lambda part: _intervals(part, level), flat)
    return result.reshape(*mixture.batch_shape, *result.shape[1:])


def _intervals(mixture: Mixture, level: float) -> Tensor:
    segments = _Segments(mixture)
    everything = torch.arange(len(mixture), device=mixture.logits.device)
    highest = segments.log_density.amax(1)
    width = segments.edges[:, -1] - segments.edges[:, 0]

    def missing(log_limit: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        start, end = segments.above(log_limit, rows)
        slope = torch.zeros_like(log_limit)
        for ends, edge in ((start, segments.edges[rows, :-1]), (end, segments.edges[rows, 1:])):
            steep = _slopes(mixture[rows][:, None], ends)[0].abs()
            slope += torch.where((ends != edge) & (start != end), log_limit.exp()[:, None] / steep, 0.0).sum(1)
        return level - segments.mass(start, end, rows), slope

    # Less dense than this, over the whole width, holds at most 1 - level. The first guess is that of one Gaussian.
    least = torch.log((1 - level) / width)
    guess = highest - 0.5 * ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64, device=highest.device)).square()
    limit = find_zeros(missing, torch.minimum(least, highest), highest, guess)
    start, end = segments.above(limit, everything)
    high = segments.log_density >= limit[:, None]
    inside = end > start
    begins = inside & ~(high[:, :-1] & torch.nn.functional.pad(inside[:, :-1], (1, 0)))
    ends = inside & ~(high[:, 1:] & torch.nn.functional.pad(inside[:, 1:], (0, 1)))
    result = start.new_full((len(start), int(begins.sum(1).max()) if len(start) else 0, 2), torch.nan)
    for column, (mask, values) in enumerate(((begins, start), (ends, end))):
        row, cell = torch.nonzero(mask, as_tuple=True)
        result[row, mask.cumsum(1)[row, cell] - 1, column] = values[row, cell]
    return result
