"""Uncertainties: bootstrap over objects, and binomial intervals for fractions."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from astropy.stats import binom_conf_interval

ONE_SIGMA = 0.682689492


def bootstrap(
    statistic: Callable[..., Mapping[str, float]], *columns: np.ndarray, replicates: int = 200, seed: int = 0
) -> dict[str, np.ndarray]:
    """Values of a statistic on resampled objects (Efron 1979).

    Args:
        statistic: called with the resampled columns, returns named numbers.
        columns: arrays of equal length; each row is one object (paired columns stay together).
        replicates: number of resamplings.
        seed: of the resampling; the same seed gives the same numbers.

    Returns:
        name -> (replicates,) values; NaN everywhere when there are fewer than two objects.
    """
    n = len(columns[0])
    if n < 2:
        return {name: np.full(replicates, np.nan) for name in statistic(*columns)}
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(replicates):
        drawn = rng.integers(0, n, n)
        values.append(statistic(*(column[drawn] for column in columns)))
    return {name: np.array([value[name] for value in values], dtype=float) for name in values[0]}


def with_errors(
    statistic: Callable[..., Mapping[str, float]], *columns: np.ndarray, replicates: int = 200, seed: int = 0
) -> dict[str, float]:
    """The statistic's values and, for each, `<name>_err`: the standard deviation over bootstrap resamplings."""
    values = dict(statistic(*columns))
    spread = bootstrap(statistic, *columns, replicates=replicates, seed=seed)
    result = {}
    for name, value in values.items():
        result[name] = float(value)
        result[f"{name}_err"] = float(np.std(spread[name], ddof=1)) if np.isfinite(spread[name]).all() else float("nan")
    return result


def fraction(found: np.ndarray) -> dict[str, float]:
    """A fraction of objects with its 68 % Wilson interval.

    Args:
        found: (N,) bool.

    Returns:
        `value`, `low`, `high`, `err` (half the interval's width), `n`, `n_found`; NaN (not 0) where N is 0.
    """
    n, k = len(found), int(np.sum(found))
    if n == 0:
        return {
            "value": float("nan"),
            "err": float("nan"),
            "low": float("nan"),
            "high": float("nan"),
            "n": 0,
            "n_found": 0,
        }
    low, high = binom_conf_interval(k, n, confidence_level=ONE_SIGMA, interval="wilson")
    return {"value": k / n, "err": float(high - low) / 2, "low": float(low), "high": float(high), "n": n, "n_found": k}


def interval(samples: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Central interval of bootstrap samples; NaN where any is NaN."""
    if not len(samples) or not np.isfinite(samples).all():
        return float("nan"), float("nan")
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
