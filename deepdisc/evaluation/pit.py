"""The probability integral transform: what honest PDFs put below the truth is uniform on [0, 1]. Tests of that.

Legend: N objects; u (N,) PIT values.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

NAN = float("nan")
OUTLIER = (1e-4, 0.9999)  # the convention of RAIL
HISTOGRAM_BINS = 20
# The Anderson-Darling statistic is infinite for a single PIT of exactly 0 or 1, which float32 columns can hold.
_CLIP = 1e-6


def uniformity(pit: np.ndarray) -> dict[str, float]:
    """Distances of PIT values (N,) from the uniform distribution, with their mean; NaN for N = 0.

    `ks` = sup |F - u| (Kolmogorov-Smirnov); `cvm` = `1 / 12N + sum ((2i - 1) / 2N - u_i)^2` (Cramer-von Mises);
    `ad`: see `anderson_darling`; `outliers`: share below 1e-4 or above 0.9999.
    """
    n = len(pit)
    if n == 0 or not np.isfinite(pit).all():
        return dict.fromkeys(("mean", "ks", "cvm", "ad", "outliers"), NAN)
    u = np.sort(pit)
    rank = np.arange(1, n + 1) / n
    return {
        "mean": float(u.mean()),
        "ks": _ks(u, rank),
        "cvm": float(1 / (12 * n) + np.sum((rank - 0.5 / n - u) ** 2)),
        "ad": _ad(u, rank),
        "outliers": float(np.mean((u < OUTLIER[0]) | (u > OUTLIER[1]))),
    }


def kolmogorov_smirnov(pit: np.ndarray) -> float:
    """`uniformity(pit)["ks"]` alone."""
    return _ks(np.sort(pit), np.arange(1, len(pit) + 1) / len(pit)) if len(pit) else NAN


def _ks(u: np.ndarray, rank: np.ndarray) -> float:
    excess = rank - u
    return float(max(excess.max(), 1 / len(u) - excess.min()))


def anderson_darling(pit: np.ndarray) -> float:
    """Anderson-Darling statistic of PIT values (N,) against the uniform distribution on [0, 1].

    `-N - sum (2i - 1)/N [ln u_i + ln(1 - u_(N+1-i))]` for sorted u (Anderson & Darling 1954), with u kept within
    1e-6 of the ends. 2.49 is the 95 % point for honest PDFs. RAIL and qp call `ad` the k-sample statistic of the PITs
    and an even grid of N numbers, which is normalised differently.
    """
    return _ad(np.sort(pit), np.arange(1, len(pit) + 1) / len(pit)) if len(pit) else NAN


def _ad(u: np.ndarray, rank: np.ndarray) -> float:
    u = np.clip(u, _CLIP, 1 - _CLIP)
    n = len(u)
    return float(-n - np.dot(2 * rank - 1 / n, np.log(u) + np.log1p(-u[::-1])))


def p_values(pit: np.ndarray) -> dict[str, float]:
    """Probability (`ks_p`, `cvm_p`, `ad_p`) of statistics at least as large if the PDFs are honest; NaN for N < 2."""
    if len(pit) < 2 or not np.isfinite(pit).all():
        return dict.fromkeys(("ks_p", "cvm_p", "ad_p"), NAN)
    return {
        "ks_p": float(stats.kstest(pit, "uniform").pvalue),
        "cvm_p": float(stats.cramervonmises(pit, "uniform").pvalue),
        "ad_p": anderson_darling_p(anderson_darling(pit)),
    }


def anderson_darling_p(statistic: float) -> float:
    """1 - limiting distribution of the Anderson-Darling statistic, good to 2e-6 (Marsaglia & Marsaglia 2004, adinf)."""
    z = float(statistic)
    if z < 2:
        small = (2.00012, 0.247105, -0.0649821, 0.0347962, -0.0116720, 0.00168691)
        return 1 - np.exp(-1.2337141 / z) / np.sqrt(z) * np.polynomial.polynomial.polyval(z, small)
    large = (1.0776, -2.30695, 0.43424, -0.082433, 0.008056, -0.0003146)
    return float(-np.expm1(-np.exp(np.polynomial.polynomial.polyval(z, large))))


def histogram(pit: np.ndarray, bins: int = HISTOGRAM_BINS) -> dict:
    """`edges`, `counts`, and the `expected` count of honest PDFs with its standard deviation `expected_err`."""
    counts, edges = np.histogram(pit[np.isfinite(pit)], bins, (0.0, 1.0))
    n = int(counts.sum())
    spread = float(np.sqrt(n / bins * (1 - 1 / bins)))
    return {
        "n": n,
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "expected": n / bins,
        "expected_err": spread,
    }


def quantile_quantile(pit: np.ndarray, points: int = 101) -> dict:
    """The Q-Q curve: `observed` quantiles of the PIT at the `expected` probabilities; equal for honest PDFs."""
    expected = np.linspace(0, 1, points)
    finite = pit[np.isfinite(pit)]
    observed = np.quantile(finite, expected) if len(finite) else np.full(points, np.nan)
    return {"n": len(finite), "expected": expected.tolist(), "observed": observed.tolist()}
