"""How good fluxes are, and how honest their errors: against true fluxes, and against a second measurement.

Legend: N objects; f measured and f0 true flux, s the measurement's error, nJy. `sigma_68` is half the distance between
the quantiles at 15.87 % and 84.13 %: 1 for a normal distribution of unit width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import ndtr

from deepdisc.bands import by_wavelength
from deepdisc.evaluation import pit as pit_tests
from deepdisc.evaluation.assessment import column
from deepdisc.evaluation.bins import binned_statistic, even_edges
from deepdisc.evaluation.bootstrap import DEFAULT, ONE_SIGMA, Resampling, quantiles, with_errors
from deepdisc.evaluation.pdf_columns import read_mixtures
from deepdisc.photometry import mag_from_njy, njy_from_mag

NAN = float("nan")
_OF_PDFS = ("flux_weights_", "flux_means_", "flux_sigmas_", "flux_lower_")
_ENDS = ((1 - ONE_SIGMA) / 2, (1 + ONE_SIGMA) / 2)


def sigma_68(values: np.ndarray) -> float:
    """Half the width of the central 68.27 % of values (N,); NaN for N = 0."""
    low, high = quantiles(values, _ENDS)
    return (high - low) / 2


def flux_metrics(flux: np.ndarray, true_flux: np.ndarray) -> dict[str, float]:
    """`bias` = median((f - f0) / f0) and `scatter` = sigma_68((f - f0) / f0) of fluxes (N,) with f0 > 0."""
    low, median, high = quantiles((flux - true_flux) / true_flux, (_ENDS[0], 0.5, _ENDS[1]))
    return {"bias": median, "scatter": (high - low) / 2}


def pull_metrics(pull: np.ndarray) -> dict[str, float]:
    """Figures of differences (N,) in units of their error: standard normal where errors are honest.

    `pull_mean`, `pull_median`, `pull_width` (sigma_68, nominally 1), `pull_beyond_3` and `pull_beyond_5` (shares,
    nominally 0.0027 and 6e-7), `pull_ks` (Kolmogorov-Smirnov distance from the standard normal distribution).
    """
    if len(pull) == 0:
        names = ("pull_mean", "pull_median", "pull_width", "pull_beyond_3", "pull_beyond_5", "pull_ks")
        return dict.fromkeys(names, NAN)
    low, median, high = quantiles(pull, (_ENDS[0], 0.5, _ENDS[1]))
    size = np.abs(pull)
    return {
        "pull_mean": float(np.mean(pull)),
        "pull_median": median,
        "pull_width": (high - low) / 2,
        "pull_beyond_3": np.count_nonzero(size > 3) / len(pull),
        "pull_beyond_5": np.count_nonzero(size > 5) / len(pull),
        "pull_ks": pit_tests.kolmogorov_smirnov(ndtr(pull)),
    }


def bands_of(*catalogs: pd.DataFrame) -> list[str]:
    """Bands of which every catalogue has `flux_<band>` or `mag_<band>`, from blue to red."""
    named = [
        {
            str(name).split("_", 1)[1]
            for name in catalog.columns
            if str(name).startswith(("flux_", "mag_")) and not str(name).startswith(_OF_PDFS)
        }
        for catalog in catalogs
    ]
    common = set.intersection(*named) if named else set()
    first = [str(name).split("_", 1)[-1] for name in catalogs[0].columns]
    return by_wavelength([band for band in dict.fromkeys(first) if band in common])


def flux_of(catalog: pd.DataFrame, band: str) -> np.ndarray:
    """Flux (N,) in nJy: `flux_<band>`, else from `mag_<band>`; NaN where there is neither."""
    if f"flux_{band}" in catalog.columns:
        return catalog[f"flux_{band}"].to_numpy(np.float64)
    if f"mag_{band}" in catalog.columns:
        return njy_from_mag(catalog[f"mag_{band}"].to_numpy(np.float64))
    return np.full(len(catalog), np.nan)


# ------------------------------------------------------------------------------------------------------- against truth
def score_fluxes(
    pred: pd.DataFrame,
    truth: pd.DataFrame,
    *,
    bands: list[str] | None = None,
    resampling: Resampling = DEFAULT,
) -> dict:
    """Fluxes of matched objects against their true fluxes, per band and per magnitude.

    Args:
        pred: predicted catalogue with `flux_<band>` (nJy) and `fluxerr_<band>`, or `mag_<band>`; or with PDFs of the
            flux, `flux_weights_<band>`, `flux_means_<band>`, `flux_sigmas_<band>` (lists) and `flux_lower_<band>`;
            row i is matched to ...
        truth: ... row i of the truth.
        bands: default all that both have.
        resampling: how the errors are drawn.

    Returns:
        The `flux` part of metrics.json: `by_band`, for each band see `_score_band`.
    """
    bands = bands_of(pred, truth) if bands is None else bands
    if not bands:
        return {"available": False, "reason": "the catalogues have no fluxes or magnitudes in a common band"}
    return {"available": True, "by_band": {band: _score_band(pred, truth, band, resampling) for band in bands}}


def _score_band(pred: pd.DataFrame, truth: pd.DataFrame, band: str, resampling: Resampling) -> dict:
    """Fluxes of one band.

    Returns:
        `flux_metrics` of the `n` objects of positive true flux; `pull_metrics` and PIT figures (`pit_*`, `histogram`)
        of the `n_pull` with an error or PDF, with p-values; `uncertainty` says which ("errors" or "PDFs");
        `by_magnitude` (true), `pulls_by_magnitude`; `excluded` counts by reason.
    """
    flux, true_flux = flux_of(pred, band), flux_of(truth, band)
    measured, known = np.isfinite(flux), np.isfinite(true_flux)
    used = measured & known & (true_flux > 0)
    magnitude = mag_from_njy(true_flux)
    edges = even_edges(magnitude[used])
    figures = resampling.of(used)
    found = uncertainty(pred, band, flux, true_flux)
    pull, u, certain = found.pull, found.pit, found.known & known
    pulls = resampling.of(certain)
    return {
        "n": int(used.sum()),
        "excluded": {
            "without a measured flux": int((~measured).sum()),
            "without a true flux above 0": int((measured & ~used).sum()),
            "without an error of the flux": int((measured & known & ~certain).sum()),
        },
        **with_errors(flux_metrics, flux[used], true_flux[used], resampling=figures),
        "n_pull": int(certain.sum()),
        "uncertainty": found.kind,
        **with_errors(_honesty, pull[certain], u[certain], resampling=pulls),
        **{f"pit_{name}": value for name, value in pit_tests.p_values(u[certain]).items()},
        "histogram": pit_tests.histogram(u[certain]),
        "by_magnitude": binned_statistic(
            magnitude[used], edges, flux_metrics, flux[used], true_flux[used], resampling=figures
        ),
        "pulls_by_magnitude": binned_statistic(
            magnitude[certain], edges, _honesty, pull[certain], u[certain], resampling=pulls
        ),
    }


def _honesty(pull: np.ndarray, u: np.ndarray) -> dict[str, float]:
    return {**pull_metrics(pull), **{f"pit_{name}": value for name, value in pit_tests.uniformity(u).items()}}


@dataclass(frozen=True)
class Uncertainty:
    """How far fluxes are from the truth, as their errors or PDFs have it.

    Attributes:
        pull: (N,) difference over error; 0 where unknown.
        pit: (N,) probability below the true flux; 0 where unknown.
        known: (N,) bool.
        kind: "errors", "PDFs", or None where there are neither.
    """

    pull: np.ndarray
    pit: np.ndarray
    known: np.ndarray
    kind: str | None


def uncertainty(pred: pd.DataFrame, band: str, flux: np.ndarray, true_flux: np.ndarray) -> Uncertainty:
    """Pulls and PIT of fluxes (N,), nJy: from the PDFs of the catalogue if it has any, else from `fluxerr_<band>`."""
    pull, u = np.zeros(len(pred)), np.zeros(len(pred))
    names = [f"flux_{part}_{band}" for part in ("weights", "means", "sigmas")]
    if set(names) <= set(pred.columns):
        found = read_mixtures(pred, names, f"flux_lower_{band}")
        known = found.usable & np.isfinite(true_flux)
        if known.any():
            pdfs = found.pdfs.take(known[found.usable])
            mean = pdfs.mean()
            u[known] = pdfs.cdf(true_flux[known])
            pull[known] = (mean - true_flux[known]) / np.sqrt(pdfs.second_moment() - mean**2)
        return Uncertainty(pull, u, known, "PDFs")
    error = column(pred, f"fluxerr_{band}")
    if error is None:
        return Uncertainty(pull, u, np.zeros(len(pred), bool), None)
    known = np.isfinite(flux) & np.isfinite(true_flux) & np.isfinite(error) & (error > 0)
    pull[known] = ((flux - true_flux)[known]) / error[known]
    u[known] = ndtr(-pull[known])
    return Uncertainty(pull, u, known, "errors")


# ------------------------------------------------------------------------------------------------- two measurements
def pair_statistics(
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    bands: list[str] | None = None,
    resampling: Resampling = DEFAULT,
) -> dict:
    """Two measurements of the same objects, of two exposures or two programs: needs no truth.

    `D = (f1 - f2) / sqrt(s1^2 + s2^2)` is standard normal if both are unbiased, their noise independent and their
    errors honest (Cabayol et al. 2021, sect. 5: sigma_68[D] = 1). Two programs on the same pixels share their noise: D
    is then narrower.

    Args:
        first: catalogue with `flux_<band>` and `fluxerr_<band>`; row i is the same object as ...
        second: ... row i of this.
        bands: default all that both have.
        resampling: how the errors are drawn.

    Returns:
        For each band `pull_metrics` of D, `n`, `excluded`, `by_magnitude` (of the mean flux).
    """
    bands = bands_of(first, second) if bands is None else bands
    if not bands:
        return {"available": False, "reason": "the catalogues have no fluxes or magnitudes in a common band"}
    return {"available": True, "by_band": {band: _score_pair(first, second, band, resampling) for band in bands}}


def _score_pair(first: pd.DataFrame, second: pd.DataFrame, band: str, resampling: Resampling) -> dict:
    fluxes = [flux_of(side, band) for side in (first, second)]
    errors = [column(side, f"fluxerr_{band}") for side in (first, second)]
    if errors[0] is None or errors[1] is None:
        return {"n": 0, "reason": f"one of the catalogues has no fluxerr_{band}"}
    total = np.hypot(*errors)
    used = np.isfinite(fluxes[0]) & np.isfinite(fluxes[1]) & np.isfinite(total) & (total > 0)
    difference = (fluxes[0] - fluxes[1])[used] / total[used]
    magnitude = mag_from_njy((fluxes[0] + fluxes[1])[used] / 2)
    drawn = resampling.of(used)
    return {
        "n": int(used.sum()),
        "excluded": {"without both fluxes and errors": int((~used).sum())},
        **with_errors(pull_metrics, difference, resampling=drawn),
        "by_magnitude": binned_statistic(magnitude, even_edges(magnitude), pull_metrics, difference, resampling=drawn),
    }
