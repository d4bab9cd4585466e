"""How good redshifts are: point estimates and PDFs against true redshifts. Definitions as in RAIL and DeepDISC.

Legend: N objects; `d = (z_phot - z_true) / (1 + z_true)`; PIT = probability integral transform, the predicted
probability below the true redshift, uniform for honest PDFs.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from scipy import stats
from scipy.special import log_ndtr, ndtri_exp

from deepdisc.catalog import FLAGS
from deepdisc.errors import InputError
from deepdisc.evaluation.bootstrap import with_errors
from deepdisc.mixture import Mixture

POINT_ESTIMATES = ("z_mode", "z_median", "z_mean")
PDF_COLUMNS = ("z_weights", "z_means", "z_sigmas")
PIT_OUTLIER = (1e-4, 0.9999)  # the convention of RAIL
# The Anderson-Darling statistic is infinite for a single PIT of exactly 0 or 1, which float32 columns can hold.
_PIT_CLIP = 1e-6
_CHUNK = 1000


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
    bias = np.median(d)
    low, high = np.quantile(d, [0.25, 0.75])
    sigma_iqr = (high - low) / 1.349
    return {
        "bias": float(bias),
        "sigma_nmad": float(1.4826 * np.median(np.abs(d - bias))),
        "sigma_iqr": float(sigma_iqr),
        "eta_15": float(np.mean(np.abs(d) > 0.15)),
        "eta_iqr": float(np.mean(np.abs(d) > max(0.06, 3 * sigma_iqr))),
    }


# ------------------------------------------------------------------------------------------------------------- PDFs
def anderson_darling(pit: np.ndarray) -> float:
    """Anderson-Darling statistic of PIT values (N,) against the uniform distribution on [0, 1].

    `-N - sum (2i - 1)/N [ln u_i + ln(1 - u_(N+1-i))]` for sorted u (Anderson & Darling 1954), with u kept within
    1e-6 of the ends. 2.49 is the 95 % point for honest PDFs.
    """
    u = np.sort(np.clip(pit, _PIT_CLIP, 1 - _PIT_CLIP))
    n = len(u)
    if n == 0:
        return float("nan")
    i = np.arange(1, n + 1)
    return float(-n - np.sum((2 * i - 1) / n * (np.log(u) + np.log1p(-u[::-1]))))


def highest_density_level(mixture: Mixture, z_true: torch.Tensor, points: int = 100) -> np.ndarray:
    """Probability (N,) of all redshifts that are more probable than the true one: HDI coverage = P(level <= x).

    Each truncated component is represented by `points` quantiles of equal probability, which resolves a narrow
    component beside a broad one where an even grid in redshift would not; the result is exact to about 1 / points.
    """
    levels = []
    u = (np.arange(points) + 0.5) / points
    for start in range(0, len(mixture), _CHUNK):
        part, z = mixture[start : start + _CHUNK], z_true[start : start + _CHUNK]
        mean, sigma = part.component_mean.numpy()[..., None], part.component_sigma.numpy()[..., None]
        log_mass = 0.0 if part.lower is None else log_ndtr((mean - part.lower) / sigma)
        nodes = mean - sigma * ndtri_exp(np.log1p(-u) + log_mass)  # (n, K, points)
        nodes = torch.as_tensor(nodes if part.lower is None else np.maximum(nodes, part.lower))
        density = part.prob(nodes.permute(1, 2, 0))  # (K, points, n)
        denser = (density > part.prob(z)).double().mean(1)
        levels.append((part.weights.T * denser).sum(0).numpy())
    return np.concatenate(levels) if levels else np.zeros(0)


def pdf_scores(mixture: Mixture, z_true: np.ndarray) -> dict[str, np.ndarray]:
    """Per-object scores of PDFs, each (N,): `pit`, `crps`, `norm2` (int p^2), `density` (at the truth), `hdi_level`."""
    z = torch.as_tensor(np.asarray(z_true, np.float64))
    if len(z) == 0:
        return {name: np.zeros(0) for name in ("pit", "crps", "norm2", "density", "hdi_level")}
    pieces = [(mixture[i : i + _CHUNK], z[i : i + _CHUNK]) for i in range(0, len(z), _CHUNK)]
    return {
        "pit": np.concatenate([part.cdf(zs).numpy() for part, zs in pieces]),
        "crps": np.concatenate([part.crps(zs).numpy() for part, zs in pieces]),
        "norm2": np.concatenate([part.norm2().numpy() for part, _ in pieces]),
        "density": np.concatenate([part.prob(zs).numpy() for part, zs in pieces]),
        "hdi_level": highest_density_level(mixture, z),
    }


def pdf_metrics(
    pit: np.ndarray, crps: np.ndarray, norm2: np.ndarray, density: np.ndarray, hdi_level: np.ndarray
) -> dict[str, float]:
    """Means over objects of `pdf_scores`: PIT tests, CDE loss (Izbicki & Lee 2017), CRPS, coverage."""
    if len(pit) == 0:
        pit = crps = norm2 = density = hdi_level = np.full(1, np.nan)
    central = np.abs(pit - 0.5)
    return {
        "pit_mean": float(np.mean(pit)),
        "pit_ks": float(stats.kstest(pit, "uniform").statistic) if np.isfinite(pit).all() else float("nan"),
        "pit_ad": anderson_darling(pit),
        "pit_outliers": _share((pit < PIT_OUTLIER[0]) | (pit > PIT_OUTLIER[1]), pit),
        "cde_loss": float(np.mean(norm2) - 2 * np.mean(density)),
        "crps": float(np.mean(crps)),
        "coverage_68": _share(central <= 0.34, pit),
        "coverage_95": _share(central <= 0.475, pit),
        "coverage_hdi_68": _share(hdi_level <= 0.68, hdi_level),
        "coverage_hdi_95": _share(hdi_level <= 0.95, hdi_level),
    }


def _share(condition: np.ndarray, values: np.ndarray) -> float:
    return float(np.mean(condition)) if np.isfinite(values).all() else float("nan")


def mixture_of(catalog: pd.DataFrame) -> Mixture:
    """The redshift PDFs of a catalogue's rows, float64, truncated at `z_lower` (NaN or no column: not truncated).

    Raises:
        InputError: rows with different bounds.
    """
    columns = [np.stack(catalog[name].to_list()).astype(np.float64) for name in PDF_COLUMNS]
    lower = catalog["z_lower"].to_numpy(float) if "z_lower" in catalog.columns else np.full(len(catalog), np.nan)
    bounds = np.unique(lower[np.isfinite(lower)])
    if len(bounds) > 1:
        raise InputError(f"z_lower has {len(bounds)} values, {bounds[0]:g} and more; all PDFs must have the same bound")
    return Mixture.from_columns(*columns, lower=float(bounds[0]) if len(bounds) else None)


def has_pdf(catalog: pd.DataFrame) -> np.ndarray:
    """Bool (N,): rows whose PDF columns exist and are finite."""
    if not set(PDF_COLUMNS) <= set(catalog.columns):
        return np.zeros(len(catalog), bool)
    finite = np.ones(len(catalog), bool)
    for name in PDF_COLUMNS:
        finite &= np.array([row is not None and np.isfinite(row).all() and np.size(row) > 0 for row in catalog[name]])
    return finite


# ----------------------------------------------------------------------------------------------------------- summary
def score_redshifts(
    pred: pd.DataFrame, truth: pd.DataFrame, *, n_unmatched: int = 0, replicates: int = 200, seed: int = 0
) -> dict:
    """Everything about the redshifts of matched objects.

    Args:
        pred: predicted catalogue, row i matched to ...
        truth: ... row i of the truth.
        n_unmatched: true objects with a redshift that no detection matches (they are counted, they cannot be scored).
        replicates: bootstrap resamplings.
        seed: of the resampling.

    Returns:
        The `redshift` part of metrics.json: the figures of the first available of z_mode, z_median, z_mean with `_err`;
        `by_estimate` has the same for each; `n` objects scored, `excluded` counts by reason; or
        `{"available": False, "reason": ...}`.
    """
    estimates = [name for name in POINT_ESTIMATES if name in pred.columns]
    reason = None
    if "redshift" not in truth.columns or not np.isfinite(truth["redshift"].to_numpy(float)).any():
        reason = "the truth has no redshifts" if len(truth) or "redshift" not in truth.columns else "nothing is matched"
    elif not estimates:
        reason = f"the predicted catalogue has none of the columns {', '.join(POINT_ESTIMATES)}"
    if reason:
        return {"available": False, "reason": reason, "n": 0}
    known = np.isfinite(truth["redshift"].to_numpy(float))
    predicted = np.isfinite(pred[estimates[0]].to_numpy(float))
    used = known & predicted
    z_true = truth["redshift"].to_numpy(np.float64)[used]
    result: dict = {
        "available": True,
        "estimate": estimates[0],
        "n": int(used.sum()),
        "excluded": {
            "true redshift, but not detected": int(n_unmatched),
            "detected, but without a true redshift (stars, or not observed)": int((~known).sum()),
            "detected, but without a predicted redshift": int((known & ~predicted).sum()),
        },
    }
    by_estimate = {
        name: with_errors(
            point_metrics, pred[name].to_numpy(np.float64)[used], z_true, replicates=replicates, seed=seed
        )
        for name in estimates
    }
    result.update(by_estimate[estimates[0]])
    result["arrays"] = np.stack((pred[estimates[0]].to_numpy(np.float64)[used], z_true))  # for the report's figure
    result["by_estimate"] = by_estimate
    # The yardstick that needs no picture: one redshift for all, the best constant there is for these objects.
    guess = np.full(len(z_true), np.median(z_true)) if len(z_true) else z_true
    constant = with_errors(point_metrics, guess, z_true, replicates=replicates, seed=seed)
    result["constant_guess_sigma_nmad"] = constant["sigma_nmad"]
    result["constant_guess_sigma_nmad_err"] = constant["sigma_nmad_err"]
    result["by_flag"] = _by_flag(pred[used], z_true, estimates[0])
    result["pdf"] = _score_pdfs(pred[used], z_true, replicates, seed)
    result.update(
        {name: value for name, value in result["pdf"].items() if name not in ("n", "available", "reason", "pit")}
    )
    return result


def _score_pdfs(pred: pd.DataFrame, z_true: np.ndarray, replicates: int, seed: int) -> dict:
    usable = has_pdf(pred)
    if not usable.any():
        return {"available": False, "reason": f"no PDF columns ({', '.join(PDF_COLUMNS)})", "n": 0}
    scores = pdf_scores(mixture_of(pred[usable]), z_true[usable])
    result = with_errors(pdf_metrics, *scores.values(), replicates=replicates, seed=seed)
    result["pit_ks_p"] = float(stats.kstest(scores["pit"], "uniform").pvalue)
    return {"available": True, "n": int(usable.sum()), **result, "pit": scores["pit"]}


def _by_flag(pred: pd.DataFrame, z_true: np.ndarray, estimate: str) -> dict[str, dict[str, float]]:
    """n, sigma_nmad and eta_15 of flagged objects: they are included in the headline figures, not dropped."""
    if "flags" not in pred.columns:
        return {}
    flags = pred["flags"].to_numpy(np.int64)
    rows = {"none": flags == 0, **{flag.name: (flags & flag.value) > 0 for flag in FLAGS.values()}}
    result = {}
    for name, chosen in rows.items():
        if chosen.any():
            metrics = point_metrics(pred[estimate].to_numpy(float)[chosen], z_true[chosen])
            result[name] = {"n": int(chosen.sum()), "sigma_nmad": metrics["sigma_nmad"], "eta_15": metrics["eta_15"]}
    return result
