"""What the heads' PDFs become in the catalogue: point estimates, errors, the PDFs themselves, and flags.

Legend: N objects of a tile, C bands in the model's order, K components. Values that were not measured are NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch

from deepdisc.bands import by_wavelength
from deepdisc.catalog import FLAGS
from deepdisc.mixture import Mixture
from deepdisc.photometry import mag_from_njy
from deepdisc.structures import Instances

MAG_PER_LOG = 2.5 / math.log(10)
ONE_SIGMA = (0.158655, 0.5, 0.841345)
# What no galaxy or star has; see `measured_flags`.
NEGATIVE_SIGMAS = 5.0
COLOR_LIMIT_MAG, COLOR_LEAST_SNR = 7.0, 5.0

Columns = dict[str, np.ndarray]


def redshift_columns(instances: Instances, bands: Sequence[str]) -> Columns:
    """Point estimates, quantiles, odds and the mixture's own parameters of N redshift PDFs."""
    pdf: Mixture = instances.pred_redshift
    quantiles = {"z_q025": 0.025, "z_q160": 0.16, "z_median": 0.5, "z_q840": 0.84, "z_q975": 0.975}
    columns = {
        "z_mode": pdf.mode(),
        "z_mean": pdf.mean(),
        **{name: pdf.quantile(q) for name, q in quantiles.items()},
        "z_odds": pdf.odds(),
        "z_weights": pdf.weights,
        "z_means": pdf.component_mean,
        "z_sigmas": pdf.component_sigma,
    }
    arrays = {name: value.float().numpy() for name, value in columns.items()}
    arrays["z_lower"] = np.full(len(pdf), np.nan if pdf.lower is None else pdf.lower, dtype=np.float32)
    return arrays


def flux_columns(instances: Instances, bands: Sequence[str]) -> Columns:
    """Fluxes, errors, magnitudes, signal-to-noise, colours of neighbouring bands and PDFs of N x C flux PDFs.

    The flux is the median: it is the same whether the PDF is looked at in flux or in magnitudes. Its error is half the
    interval that holds 68.27 %. Errors of magnitudes and colours are those of small errors, and bands are taken as
    independent: `2.5 / ln 10 * err / f`, added in quadrature.
    """
    pdf: Mixture = instances.pred_flux
    assert pdf.batch_shape[1] == len(bands), f"{pdf.batch_shape[1]} flux PDFs for {len(bands)} bands"
    measured = np.ones(pdf.batch_shape, bool)
    if instances.has("pred_flux_measured"):
        measured = instances.pred_flux_measured.numpy()
    low, flux, high = (np.where(measured, pdf.quantile(q).double().numpy(), np.nan) for q in ONE_SIGMA)
    error = (high - low) / 2
    magnitude = mag_from_njy(flux)
    relative = np.where(flux > 0, error / np.where(flux > 0, flux, 1), np.nan)
    lower = np.nan if pdf.lower is None else pdf.lower
    parts = {"weights": pdf.weights, "means": pdf.component_mean, "sigmas": pdf.component_sigma}
    parts = {name: np.where(measured[..., None], x.float().numpy(), np.float32("nan")) for name, x in parts.items()}
    columns = {}
    for i, band in enumerate(bands):
        columns |= {
            f"flux_{band}": flux[:, i],
            f"fluxerr_{band}": error[:, i],
            f"mag_{band}": magnitude[:, i],
            f"magerr_{band}": MAG_PER_LOG * relative[:, i],
            f"snr_{band}": (flux[:, i] / error[:, i]).astype(np.float32),
            **{f"flux_{name}_{band}": part[:, i] for name, part in parts.items()},
            f"flux_lower_{band}": np.full(len(flux), lower, np.float32),
        }
    ordered = by_wavelength(bands)
    for blue, red in pairwise(ordered):
        i, j = list(bands).index(blue), list(bands).index(red)
        columns[f"color_{blue}_{red}"] = magnitude[:, i] - magnitude[:, j]
        columns[f"colorerr_{blue}_{red}"] = MAG_PER_LOG * np.hypot(relative[:, i], relative[:, j])
    return columns


def shear_columns(instances: Instances, bands: Sequence[str]) -> Columns:
    """Mean, errors and covariance of N shear PDFs, along the pixel axes; `tabulate.rows` turns them to the sky."""
    pdf = instances.pred_shear
    mean, covariance = pdf.mean().double().numpy(), pdf.covariance().double().numpy()
    return {
        "g1": mean[:, 0],
        "g2": mean[:, 1],
        "g1_err": np.sqrt(covariance[:, 0, 0]),
        "g2_err": np.sqrt(covariance[:, 1, 1]),
        "g12_cov": covariance[:, 0, 1],
    }


def novelty_columns(instances: Instances, bands: Sequence[str]) -> Columns:
    """How far each object lies from what the model has seen."""
    return {"novelty": instances.pred_novelty.float().numpy()}


# What each field that a head adds becomes in the catalogue.
COLUMNS_OF_FIELD: dict[str, Callable[[Instances, Sequence[str]], Columns]] = {
    "pred_redshift": redshift_columns,
    "pred_flux": flux_columns,
    "pred_shear": shear_columns,
    "pred_novelty": novelty_columns,
}


def measured_columns(instances: Instances, bands: Sequence[str]) -> Columns:
    """The columns of all fields that the heads have added."""
    columns = {}
    for field, make in COLUMNS_OF_FIELD.items():
        if instances.has(field):
            columns |= make(instances, bands)
    return columns


def measured_flags(columns: Columns, bands: Sequence[str], count: int) -> np.ndarray:
    """NO_REDSHIFT, EXTRAPOLATION and UNPHYSICAL, (N,) int32, of columns of `measured_columns`.

    UNPHYSICAL: a flux below 0 by more than 5 of its errors in any band; a shear of 1 or more; two neighbouring bands,
    both measured at a signal-to-noise above 5, that differ by more than 7 mag. (A break at which the blue flux vanishes
    has no such signal-to-noise in the blue band.)
    """
    unphysical = np.zeros(count, bool)
    with np.errstate(invalid="ignore"):
        for band in bands if f"flux_{bands[0]}" in columns else ():
            unphysical |= columns[f"flux_{band}"] < -NEGATIVE_SIGMAS * columns[f"fluxerr_{band}"]
        for blue, red in pairwise(by_wavelength(bands)):
            if f"color_{blue}_{red}" in columns:
                certain = np.minimum(columns[f"snr_{blue}"], columns[f"snr_{red}"]) > COLOR_LEAST_SNR
                unphysical |= certain & (np.abs(columns[f"color_{blue}_{red}"]) > COLOR_LIMIT_MAG)
        if "g1" in columns:
            unphysical |= np.hypot(columns["g1"], columns["g2"]) >= 1
        novel = columns.get("novelty", np.zeros(count)) > 1
    unknown = ~np.isfinite(columns.get("z_mode", np.full(count, np.nan)))
    bits = {"NO_REDSHIFT": unknown, "EXTRAPOLATION": novel, "UNPHYSICAL": unphysical}
    return sum(FLAGS[name].value * found for name, found in bits.items()).astype(np.int32)


def saturated_flags(
    saturated: torch.Tensor | None, boxes: np.ndarray, regions: np.ndarray, crops: Sequence[np.ndarray]
) -> np.ndarray:
    """SATURATED (N,) int32: a saturated pixel of any band in the outline, or in the box where there is no outline.

    Args:
        saturated: (C, h, w) bool; None where the mosaic does not tell.
        boxes: (N, 4) tile pixels, edge coordinates.
        regions: (N, 4) int.
        crops: N outlines.
    """
    found = np.zeros(len(boxes), np.int32)
    any_band = None if saturated is None else np.asarray(saturated).any(0)
    if any_band is None or not any_band.any():
        return found
    for i, crop in enumerate(crops):
        if crop.any():
            x0, y0, x1, y1 = regions[i].tolist()
            touched = any_band[y0:y1, x0:x1][crop].any()
        else:
            low, high = np.floor(boxes[i, :2]).astype(int), np.ceil(boxes[i, 2:]).astype(int)
            touched = any_band[low[1] : high[1], low[0] : high[0]].any()
        found[i] = FLAGS["SATURATED"].value * bool(touched)
    return found
