"""Fits response, additive bias and temperature of shears to objects whose shear is known.

Legend: N galaxies; g true shear, g_hat the mean of its PDF, both along the pixel axes: `g_hat = (1 + m) g + c + noise`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deepdisc.evaluation.bootstrap import Resampling, with_errors
from deepdisc.evaluation.flux import sigma_68
from deepdisc.evaluation.shear import bias_metrics
from deepdisc.heads.calibration import ShearCalibration
from deepdisc.mixture_multivariate import MultivariateMixture

LEAST_RESPONSE = 5.0  # errors by which 1 + m must differ from 0 before anything is divided by it
_CHI2 = 12.6  # 95 % of the sums of squares of six normal deviates (m, c and width of two components) lie below
_REPLICATES = 200


@dataclass
class ShearFit:
    """What was fitted to the two components.

    Attributes:
        values: buffers of a `ShearCalibration` by name, (2,).
        form: "identity" or "response".
        reason: why it stayed identity; empty otherwise.
        response: `m1`, `m2`, `c1`, `c2`, `width1`, `width2` of all objects as the head gives them, with `_err`.
        corrected: the same, each half corrected by the fit to the other.
        before: the PDFs as the head gives them.
        after: each calibrated by the fit to the other half.
    """

    values: dict[str, Tensor]
    form: str
    reason: str
    response: dict[str, float]
    corrected: dict[str, float]
    before: MultivariateMixture
    after: MultivariateMixture


def fit_shear(pdf: MultivariateMixture, truth: Tensor, half: Tensor, tile: Tensor) -> ShearFit:
    """Fit by weighted least squares of g_hat on g, weights the inverse variances; the width by sigma_68 of the pulls.

    Kept where each half, corrected by what the other says, is closer to m = 0, c = 0 and a width of 1.

    Args:
        pdf: (N,), as the head gives them.
        truth: (N, 2).
        half: (N,) bool, the first half.
        tile: (N,) resampled as a whole for the errors.
    """
    blank = {name: torch.zeros(2) for name, _ in ShearCalibration().named_buffers()}
    before = _figures(pdf, truth, tile)
    unknown = _unusable(before)
    if unknown:
        return ShearFit(blank, "identity", unknown, before, before, pdf, pdf)
    sets = (half, ~half, torch.ones_like(half))
    fitted = [_fit(pdf[rows], truth[rows]) for rows in sets]
    after = _crossed(pdf, half, fitted)
    corrected = _figures(after, truth, tile)
    if _chi2(before) < _CHI2 or _chi2(corrected) > _chi2(before):
        return ShearFit(blank, "identity", "nothing to gain on objects held out", before, before, pdf, pdf)
    return ShearFit(fitted[2], "response", "", before, corrected, pdf, after)


def _unusable(figures: dict[str, float]) -> str:
    """Why a response cannot be divided by, or ''."""
    for i in (1, 2):
        m, error = figures[f"m{i}"], figures[f"m{i}_err"]
        if not np.isfinite([m, error]).all():
            return f"the true shears g{i} do not vary: their response cannot be told"
        if 1 + m < LEAST_RESPONSE * error:
            return f"the measured g{i} does not follow the true one: response {1 + m:.3f} +- {error:.3f}"
    return ""


def _fit(pdf: MultivariateMixture, truth: Tensor) -> dict[str, Tensor]:
    """Values of a `ShearCalibration`, (2,) each."""
    bias = bias_metrics(*_columns(pdf, truth))
    values = {
        "multiplicative": torch.tensor([bias["m1"], bias["m2"]]),
        "additive": torch.tensor([bias["c1"], bias["c2"]]),
        "log_sigma": torch.zeros(2),
    }
    pulls = _pulls(calibrated(pdf, values), truth)
    return {**values, "log_sigma": torch.tensor([sigma_68(pull) for pull in pulls]).log()}


def calibrated(pdf: MultivariateMixture, values: dict[str, Tensor]) -> MultivariateMixture:
    """PDFs calibrated with these values."""
    module = ShearCalibration()
    module.load_state_dict(values)
    return module(pdf)


def _crossed(pdf: MultivariateMixture, half: Tensor, fitted: list[dict[str, Tensor]]) -> MultivariateMixture:
    first, second = (calibrated(pdf, values) for values in fitted[:2])
    chosen = half[:, None, None]
    mean = torch.where(chosen, second.component_mean, first.component_mean)
    return MultivariateMixture(pdf.logits, mean, torch.where(chosen[..., None], second.scale_tril, first.scale_tril))


def _columns(pdf: MultivariateMixture, truth: Tensor) -> list[np.ndarray]:
    """Columns (N,) of `bias_metrics`: both observed components, both true ones, the weight."""
    variance = pdf.covariance().double().diagonal(dim1=-2, dim2=-1).mean(-1)
    return [part.double().numpy() for part in (*pdf.mean().T, *truth.T, 1 / variance)]


def _pulls(pdf: MultivariateMixture, truth: Tensor) -> np.ndarray:
    """(g_hat - g) / sigma, (2, N)."""
    sigma = pdf.covariance().double().diagonal(dim1=-2, dim2=-1).sqrt()
    return ((pdf.mean().double() - truth) / sigma).T.numpy()


def _statistic(*columns: np.ndarray) -> dict[str, float]:
    bias = bias_metrics(*columns[:5])
    widths = {f"width{i}": sigma_68(pull) for i, pull in enumerate(columns[5:], start=1)}
    return {name: bias[name] for name in ("m1", "m2", "c1", "c2")} | widths


def _figures(pdf: MultivariateMixture, truth: Tensor, tile: Tensor) -> dict[str, float]:
    columns = [*_columns(pdf, truth), *_pulls(pdf, truth)]
    blocks = tile.numpy() if len(tile.unique()) >= 8 else None
    return with_errors(_statistic, *columns, resampling=Resampling(_REPLICATES, 0, blocks))


def _chi2(figures: dict[str, float]) -> float:
    nominal = {"m": 0.0, "c": 0.0, "width": 1.0}
    return sum(
        ((figures[f"{name}{i}"] - value) / figures[f"{name}{i}_err"]) ** 2
        for name, value in nominal.items()
        for i in (1, 2)
    )
