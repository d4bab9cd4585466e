"""How good shears are: multiplicative and additive bias, leakage of the PSF, scatter, correlated residuals.

Legend: N galaxies; g true reduced shear, g_obs its estimate, both of two components in the sky frame (see
`deepdisc.sky`); component i: `g_obs_i = (1 + m_i) g_i + c_i + alpha_i e_i`, e the ellipticity of the PSF (Heymans et
al. 2006; alpha as in Jarvis et al. 2016). Requirements: |m| < 2e-3 for Euclid, 3e-3 for LSST's tenth year.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from deepdisc.evaluation.assessment import column
from deepdisc.evaluation.bins import binned_statistic, even_edges, quantile_edges
from deepdisc.evaluation.bootstrap import DEFAULT, Resampling, jackknife_errors, sky_areas, with_errors
from deepdisc.evaluation.classes import is_star
from deepdisc.evaluation.shear_correlation import residual_correlation

NAN = float("nan")
COMPONENTS = ("g1", "g2")
PSF_COLUMNS = ("psf_e1", "psf_e2")
AVERAGED = (1, 10, 100, 1000, 10_000)
LEAST_FIELDS = 8  # fewer say little about their own scatter: compact areas are resampled instead
AREAS = 50
_SINGULAR = 1e-10


def bias_metrics(
    observed_1: np.ndarray,
    observed_2: np.ndarray,
    true_1: np.ndarray,
    true_2: np.ndarray,
    weight: np.ndarray,
    *psf: np.ndarray,
) -> dict[str, float]:
    """m1, m2, c1, c2, their means m and c, and with a PSF alpha1, alpha2, alpha: weighted least squares, all (N,).

    Where all true shears are the same, m cannot be told from c (both NaN, unless all are 0: then c can); where all PSFs
    are the same, alpha cannot be told (NaN) and is part of c.
    """
    figures = {}
    sides = ((observed_1, true_1, psf[:1]), (observed_2, true_2, psf[1:]))
    for number, (observed, true, ellipticity) in enumerate(sides, start=1):
        slope, offset, leak = _regression(observed - true, true, weight, ellipticity[0] if ellipticity else None)
        figures[f"m{number}"], figures[f"c{number}"] = slope, offset
        if ellipticity:
            figures[f"alpha{number}"] = leak
    for name in ("m", "c", "alpha") if psf else ("m", "c"):
        figures[name] = (figures[f"{name}1"] + figures[f"{name}2"]) / 2
    return figures


def _regression(
    difference: np.ndarray, true: np.ndarray, weight: np.ndarray, ellipticity: np.ndarray | None
) -> tuple[float, float, float]:
    """Slope, offset and leakage of `difference = m true + c + alpha e`; NaN for what the columns do not determine."""
    total = weight.sum()
    if not total > 0:
        return NAN, NAN, NAN
    columns = [true] if ellipticity is None else [true, ellipticity]
    means = [float(weight @ part) / total for part in columns]
    spreads = [part - mean for part, mean in zip(columns, means, strict=True)]
    scales = [float(weight @ part**2) / total for part in spreads]
    varying = [i for i, scale in enumerate(scales) if scale > _SINGULAR * max(means[i] ** 2, 1e-12)]
    level = float(weight @ difference) / total
    found = [NAN, NAN]
    if varying:
        matrix = np.array([[weight @ (spreads[i] * spreads[j]) for j in varying] for i in varying])
        right = np.array([weight @ (spreads[i] * (difference - level)) for i in varying])
        size = np.sqrt(np.diag(matrix))
        if np.linalg.det(matrix / np.outer(size, size)) < _SINGULAR:  # the PSF follows the shear
            return NAN, NAN, NAN
        for i, value in zip(varying, np.linalg.solve(matrix, right), strict=True):
            found[i] = float(value)
    offset = level - sum(found[i] * means[i] for i in varying)
    if 0 not in varying and np.any(true):
        offset = NAN
    return found[0], offset, found[1]


# ---------------------------------------------------------------------------------------------------------------- pairs
def average_pairs(columns: np.ndarray, pair: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Average the members of each ring: the same galaxy turned by 90 degrees, whose own shapes cancel.

    (Nakajima & Bernstein 2007.) Rings of which a member is missing would let a shape in: they are left out.

    Args:
        columns: (C, N) what is averaged.
        pair: (N,) label of each galaxy's ring.

    Returns:
        (C, M) averages of the M complete rings, (M,) the row of each ring's first member, and the number of galaxies
        left out. A ring is complete when it has as many members as most of those with more than one have.
    """
    labels, first, code, count = np.unique(pair, return_index=True, return_inverse=True, return_counts=True)
    several = count[count > 1]
    size = int(np.bincount(several).argmax()) if len(several) else 2
    whole = count == size
    sums = np.stack([np.bincount(code, column, minlength=len(labels)) for column in columns])
    return sums[:, whole] / size, first[whole], int((count[~whole]).sum())


def without_shapes(
    truth: pd.DataFrame, rows: np.ndarray, table: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int | None]:
    """Average the rings of the truth's `pair_id`, if any two galaxies are of one ring; see `average_pairs`.

    Args:
        truth: true catalogue.
        rows: (M,) of it.
        table: (C, M) columns of these rows.

    Returns:
        The table (C, R), one row of the truth for each column, and how many galaxies are left out; what was given and
        None where there are no rings.
    """
    pair = column(truth, "pair_id")
    in_ring = np.zeros(len(rows), bool) if pair is None else pair[rows] >= 0  # -1 and NaN: of no ring
    if not in_ring.any() or len(np.unique(pair[rows][in_ring])) == in_ring.sum():
        return table, rows, None
    means, first, left_out = average_pairs(table[:, in_ring], pair[rows][in_ring])
    return means, rows[in_ring][first], left_out + int((~in_ring).sum())


# -------------------------------------------------------------------------------------------------------------- summary
def score_shear(
    pred: pd.DataFrame,
    truth: pd.DataFrame,
    *,
    magnitude: str | None = None,
    resampling: Resampling = DEFAULT,
) -> dict:
    """Shears of matched galaxies against their true shears; stars are left out.

    Args:
        pred: predicted catalogue with `g1`, `g2`; optionally `shear_weight`, or `g1_err`, `g2_err` (weights are then
            inverse variances); row i is matched to ...
        truth: ... row i of the truth with `g1`, `g2`; optionally `pair_id`, the label of its ring (the same galaxy
            turned by 90 degrees): rings are averaged before the regression. `psf_e1`, `psf_e2`, in either catalogue.
        magnitude: the truth's column for the table by magnitude.
        resampling: how the errors are drawn; without blocks: fields (column `field` or `tile`) where there are at
            least 8, else 50 compact areas of the sky; `resampled` says which.

    Returns:
        The `shear` part of metrics.json: `bias_metrics` with bootstrap errors and, from leaving out one area at a time,
        `x_jackknife_err`; `n` galaxies or rings, `n_galaxies`; `rmse` with the number of galaxies averaged, see
        `residual_rmse`; `by_magnitude`, `by_redshift`, `by_size`, `by_snr`; `correlation` of the residuals; `excluded`.
    """
    missing = [
        name for name, side in (("predicted", pred), ("true", truth)) if not set(COMPONENTS) <= set(side.columns)
    ]
    if missing:
        return {
            "available": False,
            "reason": f"the {' and the '.join(missing)} catalogue has no columns g1, g2",
            "n": 0,
        }
    table, used, excluded = usable_shears(pred, truth)
    residual = (table[:2] - table[2:4])[:, used]
    weight = table[4, used]
    rows = np.flatnonzero(used)
    table, rows, left_out = without_shapes(truth, rows, table[:, rows])
    if left_out is not None:
        excluded["without the other members of the ring"] = left_out
    labels, areas, resampled = resampled_areas(pred, truth, rows, resampling.blocks)
    drawn = replace(resampling, blocks=labels)
    jackknife = jackknife_errors(bias_metrics, *table, blocks=areas)
    return {
        "available": True,
        "n": len(rows),
        "n_galaxies": int(used.sum()) - (left_out or 0),
        "rings_averaged": left_out is not None,
        "excluded": excluded,
        "resampled": resampled,
        "n_blocks": len(np.unique(labels)),
        **with_errors(bias_metrics, *table, resampling=drawn),
        "n_areas": len(np.unique(areas)),
        **{f"{name}_jackknife_err": error for name, error in jackknife.items()},
        "rmse": residual_rmse(residual, seed=resampling.seed),
        **_tables(truth, rows, table, magnitude, drawn),
        "correlation": residual_correlation(pred[used], truth[used], residual, weight),
    }


def usable_shears(pred: pd.DataFrame, truth: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """The columns of `bias_metrics` (5 or 7, N), which rows can be used, and how many cannot, by reason."""
    shears = np.stack([side[name].to_numpy(np.float64) for side in (pred, truth) for name in COMPONENTS])
    weight = _weights(pred)
    used = np.isfinite(shears).all(0) & np.isfinite(weight) & (weight > 0)
    psf = _psf(pred, truth)
    if psf is not None:
        used &= np.isfinite(psf).all(0)
    excluded = {"without a predicted or a true shear, a weight or a PSF": int((~used).sum())}
    star = is_star(truth)
    if star is not None:  # the truth gives them a shear of 0, and no lens does
        excluded["stars"] = int((used & star).sum())
        used &= ~star
    return np.vstack([shears, weight[None], *([] if psf is None else [psf])]), used, excluded


def _weights(pred: pd.DataFrame) -> np.ndarray:
    if "shear_weight" in pred.columns:
        return pred["shear_weight"].to_numpy(np.float64)
    if {"g1_err", "g2_err"} <= set(pred.columns):
        variance = (pred["g1_err"].to_numpy(np.float64) ** 2 + pred["g2_err"].to_numpy(np.float64) ** 2) / 2
        return np.divide(1.0, variance, out=np.full(len(pred), np.nan), where=variance > 0)
    return np.ones(len(pred))


def _psf(pred: pd.DataFrame, truth: pd.DataFrame) -> np.ndarray | None:
    for side in (pred, truth):
        if set(PSF_COLUMNS) <= set(side.columns):
            return np.stack([side[name].to_numpy(np.float64) for name in PSF_COLUMNS])
    return None


def resampled_areas(
    pred: pd.DataFrame, truth: pd.DataFrame, rows: np.ndarray, given: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, str]:
    """For the rows (M,) in use: labels for the bootstrap, areas for the jackknife, and what the former are."""
    field = next((truth[name].to_numpy()[rows] for name in ("field", "tile") if name in truth.columns), None)
    fields = np.unique(field, return_inverse=True)[1] if field is not None else np.zeros(len(rows), np.int64)
    number = int(fields.max(initial=0)) + 1
    places = _places(pred, truth, rows)
    if places is None:
        areas = fields if number > 1 else np.arange(len(rows)) % AREAS
    else:
        areas = np.zeros(len(rows), np.int64)
        each = max(1, AREAS // number)
        for label in range(number):
            inside = fields == label
            areas[inside] = label * each + sky_areas(places[0][inside], places[1][inside], each)
    if given is not None:
        return np.asarray(given)[rows], areas, "given blocks"
    if number >= LEAST_FIELDS:
        return fields, areas, "fields"
    if places is not None:
        return areas, areas, "areas of the sky"
    return np.arange(len(rows)), areas, "objects"


def _places(pred: pd.DataFrame, truth: pd.DataFrame, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Positions of the rows in a frame that is flat enough to cut areas in: degrees, or pixels."""
    for side in (truth.iloc[rows], pred.iloc[rows]):
        ra, dec = column(side, "ra"), column(side, "dec")
        if ra is not None and dec is not None:
            middle = np.nanmedian(ra)
            around = (ra - middle + 180) % 360 - 180  # across RA 0
            return around * np.cos(np.radians(np.nanmedian(dec))), dec
        x, y = column(side, "x"), column(side, "y")
        if x is not None and y is not None:
            return x, y
    return None


def _tables(truth: pd.DataFrame, rows: np.ndarray, table: np.ndarray, magnitude: str | None, drawn: Resampling) -> dict:
    sources = {
        "by_magnitude": (magnitude, lambda values: even_edges(values, 1.0, least=100)),
        "by_redshift": ("redshift", lambda values: quantile_edges(values, least=100)),
        "by_size": ("hlr_arcsec", lambda values: quantile_edges(values, least=100)),
        "by_snr": ("snr", lambda values: quantile_edges(values, least=100)),
    }
    result = {}
    for name, (source, edges_of) in sources.items():
        values = column(truth.iloc[rows], source)
        if values is not None:
            known = np.isfinite(values)
            result[name] = binned_statistic(
                values[known], edges_of(values[known]), bias_metrics, *table[:, known], resampling=drawn.of(known)
            )
    return result


def residual_rmse(residual: np.ndarray, *, seed: int = 0) -> list[dict]:
    """Root mean square of g_obs - g, always with the number of galaxies averaged: alone it says nothing.

    Args:
        residual: (2, N).
        seed: galaxies are put into groups at random, so that shape noise falls as 1 / sqrt(n_averaged) to the level
            of the bias, which does not fall.

    Returns:
        Rows of `n_averaged`, `n_groups`, `rmse` per component with `rmse_err` (of 2 n_groups normal deviates), `rmse1`,
        `rmse2`; for as many galaxies per group as leave two groups.
    """
    n = residual.shape[1]
    shuffled = residual[:, np.random.default_rng(seed).permutation(n)]
    rows = []
    for size in AVERAGED:
        groups = n // size
        if groups < 2 and not (size == 1 and n):
            break
        means = shuffled[:, : groups * size].reshape(2, groups, size).mean(2)
        each = np.sqrt((means**2).mean(1))
        both = float(np.sqrt((means**2).mean()))
        error = both / float(np.sqrt(4 * groups)) if groups > 1 else NAN
        rows.append(
            {
                "n_averaged": size,
                "n_groups": groups,
                "rmse": both,
                "rmse_err": error,
                "rmse1": float(each[0]),
                "rmse2": float(each[1]),
            }
        )
    return rows
