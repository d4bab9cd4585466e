"""How good redshift PDFs are: honest (PIT, coverage) and sharp (CDE loss, CRPS).

Legend: N objects; PIT = the predicted probability below the true redshift.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from deepdisc.evaluation import pit as pit_tests
from deepdisc.evaluation.bins import binned_statistic
from deepdisc.evaluation.bootstrap import DEFAULT, Resampling, fraction, with_errors
from deepdisc.evaluation.pdf_columns import read_pdfs
from deepdisc.evaluation.pdfs import PDFs

NAN = float("nan")
SCORES = ("pit", "crps", "norm2", "density", "level")
LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.68, 0.7, 0.8, 0.9, 0.95, 0.99)


def pdf_scores(pdfs: PDFs, z_true: np.ndarray) -> dict[str, np.ndarray]:
    """Per-object scores of PDFs, each (N,).

    Returns:
        `pit`, `crps`, `norm2` (int p^2), `density` at the truth, `level`: the probability of all redshifts that are
        more probable than the true one.
    """
    if len(z_true) == 0:
        return {name: np.zeros(0) for name in SCORES}
    z = np.asarray(z_true, np.float64)
    return {
        "pit": pdfs.cdf(z),
        "crps": pdfs.crps(z),
        "norm2": pdfs.norm2(),
        "density": pdfs.density(z),
        "level": pdfs.density_level(z),
    }


def pdf_metrics(
    pit: np.ndarray, crps: np.ndarray, norm2: np.ndarray, density: np.ndarray, level: np.ndarray
) -> dict[str, float]:
    """Figures of `pdf_scores`, each (N,); NaN for N = 0.

    `pit_*`: see `pit.uniformity`; `cde_loss = E int p^2 - 2 E p(z_true)` (Izbicki & Lee 2017; RAIL takes p at the
    nearest point of a grid and the trapezium rule for the integral, and agrees as the grid gets finer); `crps`: mean
    over objects; `coverage_x`: share of true redshifts within the central x % of their PDF, nominally x %;
    `coverage_hdi_x`: within the interval (or intervals) of highest density.
    """
    tests = {f"pit_{name}": value for name, value in pit_tests.uniformity(pit).items()}
    if len(pit) == 0:
        rest = ("cde_loss", "crps", "coverage_68", "coverage_95", "coverage_hdi_68", "coverage_hdi_95")
        return {**tests, **dict.fromkeys(rest, NAN)}
    return {
        **tests,
        "cde_loss": float(np.mean(norm2) - 2 * np.mean(density)),
        "crps": float(np.mean(crps)),
        "coverage_68": float(_central(pit, 0.68).mean()),
        "coverage_95": float(_central(pit, 0.95).mean()),
        "coverage_hdi_68": float(np.mean(level <= 0.68)),
        "coverage_hdi_95": float(np.mean(level <= 0.95)),
    }


def _central(pit: np.ndarray, level: float) -> np.ndarray:
    return np.abs(pit - 0.5) <= level / 2


def coverage_curve(pit: np.ndarray, level: np.ndarray) -> list[dict]:
    """Coverage at many levels: rows of `nominal`, `n`, `central` and `hdi` with their binomial errors."""
    rows = []
    for nominal in LEVELS:
        central, dense = fraction(_central(pit, nominal)), fraction(level <= nominal)
        rows.append(
            {
                "nominal": nominal,
                "n": len(pit),
                "central": central["value"],
                "central_err": central["err"],
                "hdi": dense["value"],
                "hdi_err": dense["err"],
            }
        )
    return rows


def score_pdfs(
    catalog: pd.DataFrame,
    z_true: np.ndarray,
    binnings: dict[str, tuple[np.ndarray, np.ndarray]],
    *,
    resampling: Resampling = DEFAULT,
) -> dict:
    """The `pdf` part of the redshifts' metrics.

    Args:
        catalog: predicted rows with PDF columns, see `pdf_columns`.
        z_true: (N,) their true redshifts.
        binnings: name -> (values (N,), edges): the figures are also given in these bins.
        resampling: how the errors are drawn.

    Returns:
        The figures of `pdf_metrics` with their errors, p-values, PIT `histogram`, `quantile_quantile`, `coverage`
        curve, one list of rows per binning, `n` and `excluded`; `pit` (n,) for figures.
    """
    found = read_pdfs(catalog)
    if found.pdfs is None:
        return {"available": False, "reason": found.reason, "n": 0, "excluded": found.excluded}
    scores = pdf_scores(found.pdfs, z_true[found.usable])
    drawn = resampling.of(found.usable)
    result = {
        "available": True,
        "n": int(found.usable.sum()),
        "excluded": found.excluded,
        **with_errors(pdf_metrics, *scores.values(), resampling=drawn),
        **{f"pit_{name}": value for name, value in pit_tests.p_values(scores["pit"]).items()},
        "histogram": pit_tests.histogram(scores["pit"]),
        "quantile_quantile": pit_tests.quantile_quantile(scores["pit"]),
        "coverage": coverage_curve(scores["pit"], scores["level"]),
        "pit": scores["pit"],
    }
    for name, (values, edges) in binnings.items():
        result[name] = binned_statistic(values[found.usable], edges, pdf_metrics, *scores.values(), resampling=drawn)
    return result
