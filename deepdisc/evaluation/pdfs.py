"""Redshift PDFs in the two forms in which catalogues hold them: Gaussian mixtures, and densities on a grid.

Both classes answer the same questions, per object and in float64: `cdf`, `density`, `norm2`, `crps`, `density_level`
at true redshifts; `mean`, `second_moment`, `median`, `mode`; `binned` probabilities; `take` rows. Scores need no other
knowledge of a PDF.

Legend: N objects, K components, G grid points, E bin edges.
"""

from __future__ import annotations

import numpy as np
import torch

from deepdisc.mixture import Mixture

_CHUNK = 2000


class MixturePDFs:
    """PDFs that are Gaussian mixtures, truncated at the mixture's bound; everything in closed form."""

    def __init__(self, mixture: Mixture):
        self.mixture = mixture.to(torch.float64)

    def __len__(self) -> int:
        return len(self.mixture)

    def take(self, rows: np.ndarray) -> MixturePDFs:
        """The PDFs of these rows (numbers or bool)."""
        return MixturePDFs(self.mixture[torch.as_tensor(rows)])

    def _pieces(self, function, *columns: np.ndarray) -> np.ndarray:
        parts = [
            function(self.mixture[i : i + _CHUNK], *(torch.as_tensor(part[i : i + _CHUNK]) for part in columns)).numpy()
            for i in range(0, len(self), _CHUNK)
        ]
        return np.concatenate(parts) if parts else np.zeros(0)

    def cdf(self, z: np.ndarray) -> np.ndarray:
        """Probability (N,) below z (N,): the PIT of a true redshift."""
        return self._pieces(Mixture.cdf, np.asarray(z, np.float64))

    def density(self, z: np.ndarray) -> np.ndarray:
        """Density (N,) at z (N,)."""
        return self._pieces(Mixture.prob, np.asarray(z, np.float64))

    def norm2(self) -> np.ndarray:
        """Integral of the squared density, (N,)."""
        return self._pieces(Mixture.norm2)

    def crps(self, z: np.ndarray) -> np.ndarray:
        """Continuous ranked probability score (N,) of true redshifts z (N,)."""
        return self._pieces(Mixture.crps, np.asarray(z, np.float64))

    def density_level(self, z: np.ndarray) -> np.ndarray:
        """Probability (N,) of all redshifts more probable than z (N,): HDI coverage = P(level <= x)."""
        return self._pieces(Mixture.hdi_level, np.asarray(z, np.float64))

    def mean(self) -> np.ndarray:
        """Expected redshift, (N,)."""
        return self._pieces(Mixture.mean)

    def second_moment(self) -> np.ndarray:
        """Expected square of the redshift, (N,)."""
        return self._pieces(lambda part: part.variance() + part.mean().square())

    def median(self) -> np.ndarray:
        """Median redshift, (N,)."""
        return self._pieces(Mixture.median)

    def mode(self) -> np.ndarray:
        """Redshift of highest density, (N,)."""
        return self._pieces(Mixture.mode)

    def binned(self, edges: np.ndarray) -> np.ndarray:
        """Probability (N, E - 1) between successive edges (E,)."""
        at = torch.as_tensor(np.asarray(edges, np.float64))[:, None]
        return self._pieces(lambda part: part.cdf(at).T.diff(dim=1)).reshape(len(self), len(edges) - 1)


class GriddedPDFs:
    """PDFs given by densities on a grid, straight lines between the points and zero beyond the ends.

    All figures are exact for such PDFs, so that those of a smooth PDF differ by the square of the grid's step only (qp
    draws straight lines through the *cumulative* probability instead: its CDF differs by as much).

    Args:
        grid: (G,) redshifts, increasing; two equal ones make a step.
        density: (N, G), >= 0; normalised here.
    """

    def __init__(self, grid: np.ndarray, density: np.ndarray):
        self.grid = np.asarray(grid, np.float64)
        density = np.asarray(density, np.float64)
        self.step = np.diff(self.grid)
        area = (density[:, 1:] + density[:, :-1]) @ self.step / 2
        self.values = density / area[:, None]
        mass = (self.values[:, 1:] + self.values[:, :-1]) * self.step / 2
        self.below = np.concatenate((np.zeros((len(mass), 1)), np.cumsum(mass, axis=1)), axis=1)  # CDF at the grid

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: np.ndarray) -> GriddedPDFs:
        """The PDFs of these rows (numbers or bool)."""
        return GriddedPDFs(self.grid, self.values[rows])

    def _place(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Segment of each z, the distance from its start, and whether z lies on the grid at all."""
        segment = np.clip(np.searchsorted(self.grid, z, side="right") - 1, 0, len(self.step) - 1)
        into = np.clip(z - self.grid[segment], 0, self.step[segment])
        return segment, into, (z >= self.grid[0]) & (z <= self.grid[-1])

    def _line(self, rows: np.ndarray, segment: np.ndarray, into: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Density and CDF at a distance into a segment."""
        left, right = self.values[rows, segment], self.values[rows, segment + 1]
        slope = np.divide(right - left, self.step[segment], out=np.zeros_like(left), where=self.step[segment] > 0)
        return left + slope * into, self.below[rows, segment] + into * (left + slope * into / 2)

    def cdf(self, z: np.ndarray) -> np.ndarray:
        """Probability (N,) below z (N,): the PIT of a true redshift."""
        z = np.asarray(z, np.float64)
        segment, into, _ = self._place(z)
        return np.clip(self._line(np.arange(len(self)), segment, into)[1], 0, 1)

    def density(self, z: np.ndarray) -> np.ndarray:
        """Density (N,) at z (N,)."""
        segment, into, inside = self._place(np.asarray(z, np.float64))
        return np.where(inside, self._line(np.arange(len(self)), segment, into)[0], 0.0)

    def norm2(self) -> np.ndarray:
        """Integral of the squared density, (N,)."""
        left, right = self.values[:, :-1], self.values[:, 1:]
        return (left**2 + left * right + right**2) @ self.step / 3

    def crps(self, z: np.ndarray) -> np.ndarray:
        """Continuous ranked probability score (N,) of true redshifts z (N,)."""
        z, rows = np.asarray(z, np.float64), np.arange(len(self))
        nodes, weights = np.polynomial.legendre.leggauss(3)  # exact for the square of a CDF of second degree
        total = np.zeros(len(self))
        for segment, step in enumerate(self.step):
            # Each segment in two parts, below z and above it, one of them mostly empty.
            cut = np.clip(z - self.grid[segment], 0, step)
            for start, width, truth in ((0.0, cut, 0.0), (cut, step - cut, 1.0)):
                for node, weight in zip(nodes, weights, strict=True):
                    into = start + width * (1 + node) / 2
                    below = self._line(rows, np.full(len(self), segment), into)[1]
                    total += weight * width / 2 * (below - truth) ** 2
        return total + np.maximum(z - self.grid[-1], 0) + np.maximum(self.grid[0] - z, 0)

    def density_level(self, z: np.ndarray) -> np.ndarray:
        """Probability (N,) of all redshifts more probable than z (N,): HDI coverage = P(level <= x)."""
        limit = self.density(z)[:, None]
        low = np.minimum(self.values[:, 1:], self.values[:, :-1])
        high = np.maximum(self.values[:, 1:], self.values[:, :-1])
        rise = high - low
        # Of a segment that crosses the limit, the part above it, a trapezium between the limit and the higher end.
        with np.errstate(over="ignore"):  # a rise of rounding errors: the share is clipped to all or nothing
            share = np.divide(high - limit, rise, out=(low > limit).astype(float), where=rise > 0).clip(0, 1)
        return np.clip((share * (np.maximum(low, limit) + high) / 2) @ self.step, 0, 1)

    def mean(self) -> np.ndarray:
        """Expected redshift, (N,)."""
        return self._moment(1)

    def second_moment(self) -> np.ndarray:
        """Expected square of the redshift, (N,)."""
        return self._moment(2)

    def _moment(self, power: int) -> np.ndarray:
        """Simpson's rule, exact for polynomials of third degree."""
        left, right = self.grid[:-1], self.grid[1:]
        middle = ((left + right) / 2) ** power
        ends = self.values[:, :-1] * left**power + self.values[:, 1:] * right**power
        return (ends + 2 * (self.values[:, :-1] + self.values[:, 1:]) * middle) @ self.step / 6

    def median(self) -> np.ndarray:
        """Median redshift, (N,)."""
        rows = np.arange(len(self))
        segment = np.clip((self.below < 0.5).sum(1) - 1, 0, len(self.step) - 1)
        left, step = self.values[rows, segment], self.step[segment]
        slope = np.divide(self.values[rows, segment + 1] - left, step, out=np.zeros_like(left), where=step > 0)
        missing = 0.5 - self.below[rows, segment]
        # The root of slope t^2 / 2 + left t = missing that does not divide by a vanishing slope.
        root = left + np.sqrt(np.maximum(left**2 + 2 * slope * missing, 0))
        return self.grid[segment] + np.divide(2 * missing, root, out=np.zeros_like(root), where=root > 0)

    def mode(self) -> np.ndarray:
        """Redshift of highest density, (N,): a grid point."""
        return self.grid[self.values.argmax(1)]

    def binned(self, edges: np.ndarray) -> np.ndarray:
        """Probability (N, E - 1) between successive edges (E,)."""
        segment, into, _ = self._place(np.asarray(edges, np.float64))
        below = self._line(np.arange(len(self))[:, None], segment[None], into[None])[1]
        return np.diff(np.clip(below, 0, 1), axis=1)


PDFs = MixturePDFs | GriddedPDFs
