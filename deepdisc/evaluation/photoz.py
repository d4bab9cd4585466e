"""How good redshifts are: point estimates and PDFs against true redshifts. Definitions as in RAIL and DeepDISC.

Legend: N objects; `d = (z_phot - z_true) / (1 + z_true)`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from deepdisc.catalog import FLAGS
from deepdisc.evaluation.assessment import column
from deepdisc.evaluation.bins import binned_statistic, even_edges, quantile_edges
from deepdisc.evaluation.bootstrap import DEFAULT, Resampling, quantiles, with_errors
from deepdisc.evaluation.pdf_columns import read_pdfs
from deepdisc.evaluation.pdf_scores import score_pdfs
from deepdisc.evaluation.redshift_distribution import redshift_distribution

POINT_ESTIMATES = ("z_mode", "z_median", "z_mean")
# Nothing outside the Local Group has a lower redshift; -1 and -9 are other programs' words for "unknown".
LEAST_TRUE = -0.01
LEAST_PREDICTED = -1.0
KEPT = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
_REDSHIFT_STEP = 0.2


def scaled_difference(z_phot: np.ndarray, z_true: np.ndarray) -> np.ndarray:
    """`(z_phot - z_true) / (1 + z_true)`, (N,)."""
    z_phot, z_true = np.asarray(z_phot, np.float64), np.asarray(z_true, np.float64)
    return (z_phot - z_true) / (1 + z_true)


def point_metrics(z_phot: np.ndarray, z_true: np.ndarray) -> dict[str, float]:
    """bias, sigma_nmad, sigma_iqr, eta_15 and eta_iqr of point estimates (N,); NaN for N = 0.

    bias = median d; sigma_NMAD = 1.4826 median|d - median d|; sigma_IQR = IQR / 1.349; eta_15 = P(|d| > 0.15);
    eta_IQR = P(|d| > max(0.06, 3 sigma_IQR)) (the convention of RAIL and of Merz et al. 2026).
    """
    d = scaled_difference(z_phot, z_true)
    if len(d) == 0:
        return dict.fromkeys(("bias", "sigma_nmad", "sigma_iqr", "eta_15", "eta_iqr"), float("nan"))
    low, bias, high = quantiles(d, (0.25, 0.5, 0.75))
    sigma_iqr = (high - low) / 1.349
    size = np.abs(d)
    return {
        "bias": bias,
        "sigma_nmad": 1.4826 * quantiles(np.abs(d - bias), (0.5,))[0],
        "sigma_iqr": sigma_iqr,
        "eta_15": np.count_nonzero(size > 0.15) / len(d),
        "eta_iqr": np.count_nonzero(size > max(0.06, 3 * sigma_iqr)) / len(d),
    }


# ----------------------------------------------------------------------------------------------------------- summary
def score_redshifts(
    pred: pd.DataFrame,
    truth: pd.DataFrame,
    *,
    n_unmatched: int = 0,
    magnitude: str | None = None,
    tomographic_edges: np.ndarray | None = None,
    resampling: Resampling = DEFAULT,
) -> dict:
    """Everything about the redshifts of matched objects.

    Args:
        pred: predicted catalogue, row i matched to ...
        truth: ... row i of the truth.
        n_unmatched: true objects with a redshift that no detection matches (they are counted, they cannot be scored).
        magnitude: column of the truth, or else of the prediction, for the tables by magnitude.
        tomographic_edges: of the predicted redshift, for n(z); default five bins of equal numbers.
        resampling: how the errors are drawn.

    Returns:
        The `redshift` part of metrics.json: the figures of the first available of z_mode, z_median, z_mean with their
        errors; `by_estimate` has the same for each; `by_magnitude`, `by_redshift`, `by_predicted_redshift`, `by_score`,
        `by_odds` in bins; `odds_cut` against the share kept; `distribution`, n(z); `pdf`, see `score_pdfs`; `n`
        objects scored, `excluded` counts by reason; or `{"available": False, "reason": ...}`.
    """
    estimates = [name for name in POINT_ESTIMATES if name in pred.columns]
    reason = _why_not(truth, estimates)
    if reason:
        return {"available": False, "reason": reason, "n": 0}
    used, excluded = _usable(pred, truth, estimates[0])
    excluded = {"true redshift, but not detected": int(n_unmatched), **excluded}
    pred, truth = pred[used].reset_index(drop=True), truth[used].reset_index(drop=True)
    drawn = resampling.of(used)
    z_true = truth["redshift"].to_numpy(np.float64)
    z_phot = pred[estimates[0]].to_numpy(np.float64)
    by_estimate = {name: _score_estimate(pred[name].to_numpy(np.float64), z_true, drawn) for name in estimates}
    # The yardstick that needs no picture: one redshift for all, the best constant there is for these objects.
    guess = np.full(len(z_true), np.median(z_true)) if len(z_true) else z_true
    constant = with_errors(point_metrics, guess, z_true, resampling=drawn)
    binnings = _binnings(pred, truth, z_phot, z_true, magnitude)
    pdf = score_pdfs(pred, z_true, binnings, resampling=drawn)
    return {
        "available": True,
        "estimate": estimates[0],
        "n": len(z_true),
        "excluded": excluded,
        **by_estimate[estimates[0]],  # its n is the n above
        "by_estimate": by_estimate,
        **{f"constant_guess_{name}": constant[name] for name in ("sigma_nmad", "sigma_nmad_err")},
        "by_flag": _by_flag(pred, z_phot, z_true, drawn),
        **{
            name: binned_statistic(values, edges, point_metrics, z_phot, z_true, resampling=drawn)
            for name, (values, edges) in binnings.items()
        },
        "odds_cut": _odds_cut(pred, z_phot, z_true, drawn),
        "distribution": _distribution(pred, z_phot, z_true, tomographic_edges, drawn),
        "pdf": pdf,
        **{name: value for name, value in pdf.items() if isinstance(value, float)},
        "arrays": np.stack((z_phot, z_true)),  # for the report's figure
    }


def _why_not(truth: pd.DataFrame, estimates: list[str]) -> str | None:
    if "redshift" not in truth.columns:
        return "the truth has no redshifts"
    if not np.isfinite(truth["redshift"].to_numpy(float)).any():
        return "the truth has no redshifts" if len(truth) else "nothing is matched"
    if not estimates:
        return f"the predicted catalogue has none of the columns {', '.join(POINT_ESTIMATES)}"
    return None


def _usable(pred: pd.DataFrame, truth: pd.DataFrame, estimate: str) -> tuple[np.ndarray, dict[str, int]]:
    true, predicted = truth["redshift"].to_numpy(np.float64), pred[estimate].to_numpy(np.float64)
    known = np.isfinite(true)
    possible = known & (true >= LEAST_TRUE)
    given = np.isfinite(predicted) & (predicted > LEAST_PREDICTED)
    counts = {
        "detected, but without a true redshift (stars, or not observed)": int((~known).sum()),
        f"detected, but with an impossible true redshift (below {LEAST_TRUE:g})": int((known & ~possible).sum()),
        "detected, but without a predicted redshift": int((possible & ~given).sum()),
    }
    return possible & given, counts


def _score_estimate(z_phot: np.ndarray, z_true: np.ndarray, drawn: Resampling) -> dict[str, float]:
    """The other estimates may lack objects that the first has: each has its own `n`."""
    given = np.isfinite(z_phot) & (z_phot > LEAST_PREDICTED)
    figures = with_errors(point_metrics, z_phot[given], z_true[given], resampling=drawn.of(given))
    return {"n": int(given.sum()), **figures}


def _binnings(
    pred: pd.DataFrame, truth: pd.DataFrame, z_phot: np.ndarray, z_true: np.ndarray, magnitude: str | None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> (values (N,), edges) of what the figures are binned by, as far as the catalogues have it."""
    brightness = column(truth, magnitude)
    brightness = column(pred, magnitude) if brightness is None else brightness
    sources = {
        "by_magnitude": (brightness, even_edges),
        "by_redshift": (z_true, lambda values: even_edges(values, _REDSHIFT_STEP)),
        "by_predicted_redshift": (z_phot, lambda values: even_edges(values, _REDSHIFT_STEP)),
        "by_score": (column(pred, "score"), quantile_edges),
        "by_odds": (column(pred, "z_odds"), quantile_edges),
    }
    return {name: (values, edges_of(values)) for name, (values, edges_of) in sources.items() if values is not None}


def _odds_cut(pred: pd.DataFrame, z_phot: np.ndarray, z_true: np.ndarray, drawn: Resampling) -> dict:
    """What cutting on `z_odds` buys: the figures of the objects of highest odds, against the share that is kept.

    Returns:
        `rows` of `kept` (share of the objects with odds), `threshold` (their lowest odds), `n` and the figures of
        `point_metrics`.
    """
    odds = column(pred, "z_odds")
    if odds is None:
        return {"available": False, "reason": "the predicted catalogue has no column z_odds"}
    order = np.argsort(-odds, kind="stable")
    order = order[np.isfinite(odds[order])]
    rows, counts = [], []
    for kept in KEPT:
        n = round(kept * len(order))
        if n and n not in counts:  # small samples do not have all shares
            counts.append(n)
            chosen = order[:n]
            figures = with_errors(point_metrics, z_phot[chosen], z_true[chosen], resampling=drawn.of(chosen))
            rows.append({"kept": n / len(order), "threshold": float(odds[chosen[-1]]), "n": n, **figures})
    return {"available": True, "n": len(order), "rows": rows}


def _distribution(
    pred: pd.DataFrame, z_phot: np.ndarray, z_true: np.ndarray, edges: np.ndarray | None, drawn: Resampling
) -> dict:
    """n(z) of the objects with a PDF, or of all where there is none."""
    found = read_pdfs(pred)
    chosen = found.usable if found.pdfs is not None else np.ones(len(pred), bool)
    return redshift_distribution(z_phot[chosen], z_true[chosen], found.pdfs, edges=edges, resampling=drawn.of(chosen))


def _by_flag(
    pred: pd.DataFrame, z_phot: np.ndarray, z_true: np.ndarray, drawn: Resampling
) -> dict[str, dict[str, float]]:
    """The figures of flagged objects: they are included in the headline figures, not dropped."""
    if "flags" not in pred.columns:
        return {}
    flags = pred["flags"].to_numpy(np.int64)
    rows = {"none": flags == 0, **{flag.name: (flags & flag.value) > 0 for flag in FLAGS.values()}}
    result = {}
    for name, chosen in rows.items():
        if chosen.any():
            figures = with_errors(point_metrics, z_phot[chosen], z_true[chosen], resampling=drawn.of(chosen))
            result[name] = {"n": int(chosen.sum()), **figures}
    return result
