"""Uncertainties: bootstrap over objects or over whole fields, jackknife over sky areas, binomial intervals, and paired
differences of two catalogues.

Conventions of every figure in metrics.json: `x`, `x_err` (one standard deviation), `x_low` and `x_high` (ends of the
central 68 % interval); `x_n` counts its objects, or `n` beside it those of all figures of the same table. What cannot
be told is NaN, null in JSON: every figure of no object, every uncertainty of fewer than two objects (or two blocks).
A statistic handed to these functions must itself return NaN, and warn of nothing, where its columns are empty.

Objects of one field share its seeing, zero point and large-scale structure, so that their errors are not independent:
blocks (labels of fields, tiles or sky areas) are then resampled as a whole (Kunsch 1989), not objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from astropy.stats import binom_conf_interval

ONE_SIGMA = 0.682689492
NAN = float("nan")
# A resampling may happen to hold too little for a figure; if more than this share do, the error is not told.
_UNDEFINED = 0.1
# Errors are known to 1 / sqrt(2 R): of large samples fewer than the resamplings asked for are drawn, at least 50.
_MOST_DRAWN, _LEAST_REPLICATES = 4_000_000, 50

# Figures whose names begin so are shares of the objects.
SHARES = ("eta_", "coverage_", "pull_beyond_", "pit_outliers")

Statistic = Callable[..., Mapping[str, float]]


@dataclass(frozen=True)
class Resampling:
    """How objects are drawn again for an error.

    Attributes:
        replicates: number R of resamplings; fewer, but at least 50, of more than 20,000 objects.
        seed: of the resampling; the same seed gives the same numbers.
        blocks: (N,) labels of the objects: whole blocks are drawn; None: objects are.
    """

    replicates: int = 200
    seed: int = 0
    blocks: np.ndarray | None = None

    def of(self, rows: np.ndarray) -> Resampling:
        """The same for some of the objects (numbers or bool)."""
        return self if self.blocks is None else replace(self, blocks=np.asarray(self.blocks)[rows])

    def drawn(self, n: int) -> Iterator[np.ndarray]:
        """The rows (of n) of each resampling; nothing at all for fewer than two objects or blocks."""
        members = None if self.blocks is None else _members(self.blocks)
        if (n if members is None else len(members)) < 2:
            return
        rng = np.random.default_rng(self.seed)
        for _ in range(self.affordable(n)):
            if members is None:
                yield rng.integers(0, n, n)
            else:
                yield np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])

    def affordable(self, n: int) -> int:
        """The number of resamplings of n objects."""
        return min(self.replicates, max(_LEAST_REPLICATES, _MOST_DRAWN // max(n, 1)))


DEFAULT = Resampling()


def bootstrap(statistic: Statistic, *columns: np.ndarray, resampling: Resampling = DEFAULT) -> dict[str, np.ndarray]:
    """Values of a statistic on resampled objects (Efron 1979).

    Args:
        statistic: called with the resampled columns, returns named numbers.
        columns: arrays of equal length; each row is one object (paired columns stay together).
        resampling: how rows are drawn.

    Returns:
        name -> (R,) values; NaN everywhere when there are fewer than two objects or blocks.
    """
    n = len(columns[0])
    values = [statistic(*(column[rows] for column in columns)) for rows in resampling.drawn(n)]
    if not values:
        return {name: np.full(resampling.affordable(n), np.nan) for name in statistic(*columns)}
    return {name: np.array([value[name] for value in values], dtype=float) for name in values[0]}


def _members(blocks: np.ndarray) -> list[np.ndarray]:
    """Row numbers of each block."""
    _, code = np.unique(np.asarray(blocks), return_inverse=True)
    order = np.argsort(code, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(code[order])) + 1) if len(order) else []


def resampling_weights(n: int, resampling: Resampling) -> np.ndarray:
    """How often each of n objects is drawn, (R, n): the same resamplings as `bootstrap`, for sums over objects.

    R is 0 for fewer than two objects or blocks.
    """
    weights = [np.bincount(rows, minlength=n) for rows in resampling.drawn(n)]
    return np.array(weights, np.float32).reshape(len(weights), n)


def summarize(values: Mapping[str, float], samples: Mapping[str, np.ndarray]) -> dict[str, float]:
    """`x`, `x_err` (standard deviation of the samples), `x_low`, `x_high` (their central 68 %) for each named value."""
    result = {}
    for name, value in values.items():
        spread = samples[name][np.isfinite(samples[name])]
        known = len(spread) >= max(2, (1 - _UNDEFINED) * len(samples[name]))
        low, high = interval(spread, ONE_SIGMA) if known else (NAN, NAN)
        result[name] = float(value)
        result[f"{name}_err"] = float(np.std(spread, ddof=1)) if known else NAN
        result[f"{name}_low"], result[f"{name}_high"] = low, high
    return result


def with_errors(statistic: Statistic, *columns: np.ndarray, resampling: Resampling = DEFAULT) -> dict[str, float]:
    """The statistic's values with `_err`, `_low` and `_high` from `bootstrap`; arguments as there.

    Where none or all of the objects have what a share counts, so do all resamplings, and the share would seem to be
    known exactly: Wilson's interval takes the place of theirs.
    """
    values = statistic(*columns)
    samples = bootstrap(statistic, *columns, resampling=resampling)
    result = summarize(values, samples)
    n = len(columns[0])
    for name, value in values.items():
        if n > 1 and name.startswith(SHARES) and value in (0.0, 1.0):
            result.update(named_fraction(np.full(n, value == 1.0), name))
            result.pop(f"{name}_n")
    return result


def jackknife_errors(statistic: Statistic, *columns: np.ndarray, blocks: np.ndarray) -> dict[str, float]:
    """Standard deviations by leaving out one block at a time (Quenouille 1956; for sky areas Norberg et al. 2009).

    `sigma^2 = (B - 1) / B sum (x_b - mean x)^2` over the B blocks; NaN for fewer than two.
    """
    members = _members(blocks)
    if len(members) < 2:
        return dict.fromkeys(statistic(*columns), NAN)
    keep = np.ones(len(columns[0]), bool)
    values = []
    for rows in members:
        keep[rows] = False
        values.append(statistic(*(column[keep] for column in columns)))
        keep[rows] = True
    table = {name: np.array([value[name] for value in values], float) for name in values[0]}
    return {name: float(np.sqrt((len(x) - 1) / len(x) * np.sum((x - x.mean()) ** 2))) for name, x in table.items()}


def sky_areas(x: np.ndarray, y: np.ndarray, number: int) -> np.ndarray:
    """Labels (N,) of up to `number` compact areas with equal numbers of objects, for the jackknife.

    The largest area is cut across its longer side at the median until there are enough.

    Args:
        x: positions in a flat frame (pixels, or RA cos Dec and Dec in degrees); rows that are not finite join area 0.
        y: likewise.
        number: of areas; no area has fewer than two objects.
    """
    label = np.zeros(len(x), np.int64)
    areas = [np.flatnonzero(np.isfinite(x) & np.isfinite(y))]
    while len(areas) < number and len(areas[0]) >= 4:
        rows = areas.pop(0)
        side = x[rows] if np.ptp(x[rows]) >= np.ptp(y[rows]) else y[rows]
        order = rows[np.argsort(side, kind="stable")]
        areas += [order[: len(order) // 2], order[len(order) // 2 :]]
        areas.sort(key=len, reverse=True)
    for number_of_area, rows in enumerate(areas):
        label[rows] = number_of_area
    return label


def quantiles(values: np.ndarray, shares: Sequence[float]) -> list[float]:
    """Quantiles of values (N,) as `numpy.quantile` has them, at a fraction of its cost on small samples; NaN for N = 0.

    The bootstrap takes them hundreds of times for each bin of each band.
    """
    if len(values) == 0:
        return [NAN] * len(shares)
    ordered = np.sort(values)
    result = []
    for share in shares:
        place = share * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        result.append(float(ordered[low] + (place - low) * (ordered[high] - ordered[low])))
    return result


# -------------------------------------------------------------------------------------------------------- fractions
def fraction(found: np.ndarray) -> dict[str, float]:
    """A fraction of objects with its 68 % Wilson interval.

    Args:
        found: (N,) bool.

    Returns:
        `value`, `low`, `high`, `err` (half the interval's width), `n`, `n_found`; NaN (not 0) where N is 0.
    """
    n, k = len(found), int(np.sum(found))
    if n == 0:
        return {"value": NAN, "err": NAN, "low": NAN, "high": NAN, "n": 0, "n_found": 0}
    low, high = binom_conf_interval(k, n, confidence_level=ONE_SIGMA, interval="wilson")
    return {"value": k / n, "err": float(high - low) / 2, "low": float(low), "high": float(high), "n": n, "n_found": k}


def named_fraction(found: np.ndarray, name: str) -> dict[str, float]:
    """`fraction` under a name: `x`, `x_err`, `x_low`, `x_high`, `x_n`."""
    result = fraction(found)
    named = {f"{name}_{key}": result[key] for key in ("err", "low", "high", "n")}
    return {name: result["value"], **named}


def interval(samples: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Central interval of bootstrap samples; NaN where any is NaN."""
    if not len(samples) or not np.isfinite(samples).all():
        return NAN, NAN
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


# ----------------------------------------------------------------------------------------------------- two catalogues
def paired_differences(
    statistic: Statistic,
    a: Sequence[np.ndarray],
    b: Sequence[np.ndarray],
    shared: Sequence[np.ndarray] = (),
    *,
    ratios: Sequence[str] = (),
    resampling: Resampling = DEFAULT,
) -> dict[str, dict]:
    """What sets two catalogues of the same objects apart: both are resampled together, so that common scatter cancels.

    Args:
        statistic: called with the columns of one side, then the shared ones; returns named numbers.
        a: columns (N,) of the first catalogue; row i is the same object in all columns.
        b: the same columns of the second.
        shared: columns of the truth.
        ratios: names for which the ratio a / b tells more than the difference a - b (scatters).
        resampling: how rows are drawn.

    Returns:
        name -> `a`, `a_err`, `b`, `b_err`, `n`, and `difference`: `kind` ("difference" or "ratio"), `value`, `low` and
        `high` (95 %), `significant` (the interval excludes 0, or 1 for a ratio; False where it is not known).
    """

    def both(*columns: np.ndarray) -> dict[str, float]:
        common = columns[len(a) + len(b) :]
        sides = statistic(*columns[: len(a)], *common), statistic(*columns[len(a) : len(a) + len(b)], *common)
        return {f"{side} {name}": value for side, part in zip("ab", sides, strict=True) for name, value in part.items()}

    columns = (*a, *b, *shared)
    values, samples = both(*columns), bootstrap(both, *columns, resampling=resampling)
    sides = (
        tuple({name[2:]: found[name] for name in found if name.startswith(f"{side} ")} for found in (values, samples))
        for side in "ab"
    )
    return described_differences(*sides, ratios=ratios, n=len(columns[0]))


def described_differences(a: tuple[dict, dict], b: tuple[dict, dict], *, n: int, ratios: Sequence[str] = ()) -> dict:
    """The result of `paired_differences` for two sides given as (values, samples), both by name; n objects."""
    result = {}
    summaries = [summarize(*side) for side in (a, b)]
    for name in a[0]:
        kind = "ratio" if name in ratios else "difference"
        with np.errstate(divide="ignore", invalid="ignore"):
            change = _change(kind, a[0][name], b[0][name])
            low, high = interval(_change(kind, a[1][name], b[1][name]))
        neutral = 1.0 if kind == "ratio" else 0.0
        result[name] = {
            **{side: found[name] for side, found in zip("ab", summaries, strict=True)},
            **{f"{side}_err": found[f"{name}_err"] for side, found in zip("ab", summaries, strict=True)},
            "n": n,
            "difference": {
                "kind": kind,
                "value": float(change),
                "low": low,
                "high": high,
                "significant": bool(low > neutral or high < neutral),
            },
        }
    return result


def _change(kind: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b) if kind == "ratio" else np.subtract(a, b)
