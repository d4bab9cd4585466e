"""Which object of one catalogue is which of another: unique pairs, and a report that shows whether to believe them.

Positions are (N, 2): RA, Dec in ICRS degrees and distances in arcsec, or x, y and distances in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from deepdisc.matching import assign, chord, close_pairs, sky_vectors

_HISTOGRAM_BINS = 10
_CHANCE_SHIFT = 7.0  # radii by which a catalogue is displaced to count the matches by chance


@dataclass(frozen=True)
class Match:
    """Pairs of rows of a first and a second catalogue.

    Attributes:
        first: (M,) rows of the first.
        second: (M,) rows of the second.
        separation: (M,) distance, in `unit`.
        ambiguous: (M,) bool: another candidate lies within the radius on either side.
        unit: "arcsec" or "pix".
        radius: largest distance of a pair, in `unit`.
        sizes: rows with a position in the first and in the second.
        offset: median of second minus first: along RA (times cos Dec) and Dec, or x and y, in `unit`.
        by_chance: share of the first catalogue that would have a candidate if positions had nothing to do with each
            other.
    """

    first: np.ndarray
    second: np.ndarray
    separation: np.ndarray
    ambiguous: np.ndarray
    unit: str
    radius: float
    sizes: tuple[int, int]
    offset: tuple[float, float]
    by_chance: float

    def __len__(self) -> int:
        return len(self.first)

    @property
    def share(self) -> float:
        """Share of the smaller catalogue that has a partner."""
        return len(self) / max(min(self.sizes), 1)

    def report(self) -> dict[str, Any]:
        """Plain numbers for the log and for dataset.yaml."""
        counts, edges = np.histogram(self.separation, _HISTOGRAM_BINS, (0, self.radius))
        return {
            "first": self.sizes[0],
            "second": self.sizes[1],
            "matched": len(self),
            "ambiguous": int(self.ambiguous.sum()),
            "first_unmatched": self.sizes[0] - len(self),
            "second_unmatched": self.sizes[1] - len(self),
            "share_by_chance": round(self.by_chance, 4),
            f"radius_{self.unit}": self.radius,
            f"median_separation_{self.unit}": _rounded(np.median(self.separation)) if len(self) else None,
            f"median_offset_{self.unit}": [_rounded(part) for part in self.offset] if len(self) else None,
            "separations": {f"edges_{self.unit}": [_rounded(edge) for edge in edges], "counts": counts.tolist()},
        }


def _rounded(value: float) -> float:
    return round(float(value), 4)


def crossmatch(first: np.ndarray, second: np.ndarray, radius: float, unit: str) -> Match:
    """Match two catalogues one to one: the pairs with the largest total of 1 - distance / radius.

    Args:
        first: (N, 2) positions; those that are not finite match nothing.
        second: (M, 2) positions.
        radius: largest distance of a pair, in `unit`.
        unit: "arcsec" for RA, Dec; "pix" for x, y.
    """
    first, second = (np.asarray(part, np.float64).reshape(-1, 2) for part in (first, second))
    candidates = _candidates(first, second, radius, unit)
    pairs = assign(candidates)
    crowded = (np.bincount(candidates.pred, minlength=len(first)) > 1)[pairs.pred]
    crowded |= (np.bincount(candidates.truth, minlength=len(second)) > 1)[pairs.truth]
    apart = displacement(first[pairs.pred], second[pairs.truth], unit)
    finite = [int(np.isfinite(part).all(1).sum()) for part in (first, second)]
    return Match(
        first=pairs.pred,
        second=pairs.truth,
        separation=np.hypot(*apart.T),
        ambiguous=crowded,
        unit=unit,
        radius=float(radius),
        sizes=(finite[0], finite[1]),
        offset=tuple(float(np.median(part)) for part in apart.T) if len(pairs) else (0.0, 0.0),
        by_chance=_by_chance(first, second, radius, unit, finite[0]),
    )


def displacement(first: np.ndarray, second: np.ndarray, unit: str) -> np.ndarray:
    """Second minus first, (N, 2), in arcsec along RA and Dec or in pixels."""
    apart = second - first
    if unit == "pix":
        return apart
    ra = (apart[:, 0] + 180) % 360 - 180
    return np.stack((ra * np.cos(np.radians(first[:, 1])), apart[:, 1]), axis=1) * 3600


def _candidates(first: np.ndarray, second: np.ndarray, radius: float, unit: str):
    if unit == "pix":
        return close_pairs(first, second, radius)
    return close_pairs(sky_vectors(*first.T), sky_vectors(*second.T), chord(radius))


def _by_chance(first: np.ndarray, second: np.ndarray, radius: float, unit: str, count: int) -> float:
    """Share of the first catalogue with a candidate when the second is displaced; mean over four directions."""
    if count == 0:
        return 0.0
    step = _CHANCE_SHIFT * radius / (3600 if unit == "arcsec" else 1)
    squeeze = np.cos(np.radians(np.nanmedian(second[:, 1]))) if unit == "arcsec" and len(second) else 1.0
    hits = 0
    for x, y in ((step, 0), (-step, 0), (0, step), (0, -step)):
        hits += len(np.unique(_candidates(first, second + [x / squeeze, y], radius, unit).pred))
    return hits / 4 / count


def common_offset(first: np.ndarray, second: np.ndarray, radius: float, unit: str) -> tuple[float, float, int] | None:
    """A displacement of up to ten radii that would bring many pairs together: the catalogue may be shifted.

    Returns:
        Displacement (second minus first, along RA and Dec or x and y, in `unit`) and how many pairs have it; None when
        no displacement stands out: fewer than 5 pairs, or less than 5 times the median over the others.
    """
    first, second = (np.asarray(part, np.float64).reshape(-1, 2) for part in (first, second))
    pairs = _candidates(first, second, 10 * radius, unit)
    if len(pairs) == 0:
        return None
    apart = displacement(first[pairs.pred], second[pairs.truth], unit)
    counts, edges_x, edges_y = np.histogram2d(*apart.T, bins=20, range=[(-10 * radius, 10 * radius)] * 2)
    peak = np.unravel_index(np.argmax(counts), counts.shape)
    most = int(counts[peak])
    if most < 5 or most < 5 * np.median(counts[counts > 0]):
        return None
    near = np.hypot(apart[:, 0] - edges_x[peak[0]] - radius / 2, apart[:, 1] - edges_y[peak[1]] - radius / 2) < radius
    return (*(float(np.median(part)) for part in apart[near].T), most)
