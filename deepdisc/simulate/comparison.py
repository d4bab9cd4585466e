"""What was drawn against what it was drawn from: counts, colours, sizes and redshifts in bins, as plain numbers.

Legend: *drawn* = the truth of simulated fields; *expected* = a population or another catalogue, whose rows have
weights: the number of drawn objects that one row stands for. Magnitudes are AB, redshifts of stars are NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from deepdisc.catalog import FLAGS
from deepdisc.simulate.lensing import magnification
from deepdisc.simulate.population import GALAXY, STAR

REDSHIFT_EDGES = (0, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 15)
FEWEST = 10  # objects in a bin whose median is compared
MAG_STEP = 0.5
FAINTEST = 36.0  # what the intergalactic medium leaves of a band beyond the Lyman break is no light
SIZE_STEP = 0.1  # in log10 of arcsec
Rows = list[dict[str, float]]


def compare(drawn: pd.DataFrame, expected: pd.DataFrame, area_deg2: float, bands: Sequence[str]) -> dict[str, Any]:
    """Compare two catalogues.

    Args:
        drawn: class_id, mag_<band>, redshift, hlr_arcsec (arcsec).
        expected: the same columns, as many as it has, and `weight`.
        area_deg2: of the drawn fields together, square degrees.
        bands: from blue to red; colours are of neighbours.

    Returns:
        `numbers`: class -> n, expected, ratio, ratio_err (Poisson; clustered objects scatter more);
        `counts`: band -> rows of galaxies by magnitude, `star_counts` the same for stars: low, high, n, density (per
        deg2 and mag), density_err, expected_density; `chi2` with the number of `bins` that expect 20 objects or more;
        `colours`: "a-b" -> rows of galaxies by redshift: low, high, n, median, median_err, scatter (half of the central
        68 %), scatter_err, expected_median, expected_scatter; `size_magnitude`: the same rows of log10(hlr / arcsec) by
        magnitude in `size_band`; `sizes`, `redshifts`: rows low, high, n, expected; `size_ks`, `redshift_ks`: the
        largest distance of the cumulative shares (Kolmogorov-Smirnov), which chance exceeds `..._limit` once in 20.
    """
    galaxies = [frame[frame.class_id == GALAXY] for frame in (drawn, expected)]
    stars = [frame[frame.class_id == STAR] for frame in (drawn, expected)]
    middle = bands[len(bands) // 2]
    return {
        "area_deg2": area_deg2,
        "numbers": {
            name: _number(*pair)
            for name, pair in (("galaxy", galaxies), ("star", stars))
            if len(pair[0]) + len(pair[1])
        },
        "counts": {band: number_counts(*galaxies, f"mag_{band}", area_deg2) for band in bands},
        "star_counts": {band: number_counts(*stars, f"mag_{band}", area_deg2) for band in bands},
        "colours": {
            f"{blue}-{red}": _colour(*galaxies, blue, red) for blue, red in zip(bands[:-1], bands[1:], strict=True)
        },
        "size_band": middle,
        "size_magnitude": _size_magnitude(*galaxies, f"mag_{middle}"),
        "sizes": _histogram(*galaxies, "hlr_arcsec", SIZE_STEP, logarithmic=True),
        "redshifts": _histogram(*galaxies, "redshift", 0.25, logarithmic=False),
        **_largest_distance("size", *galaxies, "hlr_arcsec"),
        **_largest_distance("redshift", *galaxies, "redshift"),
    }


def without_magnification(truth: pd.DataFrame, bands: Sequence[str]) -> pd.DataFrame:
    """The truth with the magnitudes that its objects would have unlensed."""
    if not {"g1", "g2", "kappa"} <= set(truth.columns):
        return truth
    brighter = 2.5 * np.log10(magnification(truth.g1.to_numpy(), truth.g2.to_numpy(), truth.kappa.to_numpy()))
    return truth.assign(**{f"mag_{band}": truth[f"mag_{band}"] + brighter for band in bands})


def is_centred(truth: pd.DataFrame, shape: tuple[int, int]) -> np.ndarray:
    """(N,) True for objects whose centre lies in the field; labelled ones may only reach into it."""
    height, width = shape
    inside = truth.x.between(-0.5, width - 0.5, "left") & truth.y.between(-0.5, height - 0.5, "left")
    return inside.to_numpy()


def is_labelled(truth: pd.DataFrame) -> np.ndarray:
    """(N,) True for objects that are not flagged FAINT."""
    return (truth["flags"].to_numpy() & FLAGS["FAINT"].value) == 0


# -------------------------------------------------------------------------------------------------------------- counts
def _number(drawn: pd.DataFrame, expected: pd.DataFrame) -> dict[str, float]:
    n, mean = len(drawn), float(expected.weight.sum())
    ratio, err = (n / mean, math.sqrt(max(n, 1)) / mean) if mean > 0 else (math.nan, math.nan)
    return {"n": n, "expected": mean, "ratio": ratio, "ratio_err": err}


def number_counts(drawn: pd.DataFrame, expected: pd.DataFrame, column: str, area_deg2: float) -> dict[str, Any]:
    """Rows by magnitude down to `FAINTEST`, and chi2; see `compare`."""
    mags, means, weights = _values(drawn, column), *_weighted(expected, column)
    mags, means, weights = mags[mags < FAINTEST], means[means < FAINTEST], weights[means < FAINTEST]
    edges = _edges(np.concatenate((mags, means)), MAG_STEP)
    if edges is None:
        return {"rows": [], "chi2": 0.0, "bins": 0}
    n, mean = np.histogram(mags, edges)[0], np.histogram(means, edges, weights=weights)[0]
    per = area_deg2 * MAG_STEP
    rows = [
        {"low": low, "high": high, "n": int(k), "density": k / per, "density_err": math.sqrt(max(k, 1)) / per}
        | {"expected_density": m / per}
        for low, high, k, m in zip(edges[:-1].tolist(), edges[1:].tolist(), n.tolist(), mean.tolist(), strict=True)
    ]
    used = mean >= 20
    return {"rows": rows, "chi2": float(((n - mean)[used] ** 2 / mean[used]).sum()), "bins": int(used.sum())}


def _histogram(drawn: pd.DataFrame, expected: pd.DataFrame, column: str, step: float, logarithmic: bool) -> Rows:
    values, means, weights = _values(drawn, column), *_weighted(expected, column)
    if logarithmic:
        weights, means, values = weights[means > 0], np.log10(means[means > 0]), np.log10(values[values > 0])
    edges = _edges(np.concatenate((values, means)), step)
    if edges is None:
        return []
    n, mean = np.histogram(values, edges)[0], np.histogram(means, edges, weights=weights)[0]
    edges = (10**edges if logarithmic else edges).tolist()
    return [
        {"low": low, "high": high, "n": int(k), "expected": float(m)}
        for low, high, k, m in zip(edges[:-1], edges[1:], n, mean, strict=True)
    ]


def _edges(values: np.ndarray, step: float) -> np.ndarray | None:
    """Multiples of `step` that enclose all values; None without any."""
    if not len(values):
        return None
    first, last = math.floor(values.min() / step), math.floor(values.max() / step) + 1
    return np.arange(first, last + 1) * step


def _largest_distance(name: str, drawn: pd.DataFrame, expected: pd.DataFrame, column: str) -> dict[str, float]:
    """Kolmogorov-Smirnov distance of weighted samples, and its 5 % limit for n and the effective number of rows."""
    values, (means, weights) = np.sort(_values(drawn, column)), _weighted(expected, column)
    if not len(values) or not weights.sum() > 0:
        return {f"{name}_ks": math.nan, f"{name}_ks_limit": math.nan}
    order = np.argsort(means)
    shares = np.concatenate(([0.0], np.cumsum(weights[order]) / weights.sum()))
    points = np.concatenate((values, means))
    distances = [
        np.searchsorted(values, points, side) / len(values) - shares[np.searchsorted(means[order], points, side)]
        for side in ("left", "right")
    ]
    effective = weights.sum() ** 2 / (weights**2).sum()
    limit = 1.358 * math.sqrt(1 / len(values) + 1 / effective)  # asymptotic; e.g. Press et al. 2007, section 14.3.3
    return {f"{name}_ks": float(np.abs(distances).max()), f"{name}_ks_limit": limit}


# ------------------------------------------------------------------------------------------------------------- medians
def _colour(drawn: pd.DataFrame, expected: pd.DataFrame, blue: str, red: str) -> Rows:
    frames = [
        pd.DataFrame({"x": frame.redshift, "y": frame[f"mag_{blue}"] - frame[f"mag_{red}"]})
        if {"redshift", f"mag_{blue}", f"mag_{red}"} <= set(frame.columns)
        else _NOTHING
        for frame in (drawn, expected)
    ]
    return _medians(*frames, expected.get("weight"), np.array(REDSHIFT_EDGES, dtype=float))


def _size_magnitude(drawn: pd.DataFrame, expected: pd.DataFrame, column: str) -> Rows:
    frames = [
        pd.DataFrame({"x": frame[column], "y": np.log10(frame.hlr_arcsec.where(frame.hlr_arcsec > 0))})
        if {column, "hlr_arcsec"} <= set(frame.columns)
        else _NOTHING
        for frame in (drawn, expected)
    ]
    edges = _edges(_values(frames[0], "x"), 1.0)
    return [] if edges is None else _medians(*frames, expected.get("weight"), edges)


_NOTHING = pd.DataFrame({"x": np.zeros(0), "y": np.zeros(0)})


def _medians(drawn: pd.DataFrame, expected: pd.DataFrame, weight: pd.Series, edges: np.ndarray) -> Rows:
    """Rows of bins in x with the median and scatter of y where enough objects were drawn."""
    drawn = drawn[np.isfinite(drawn.x) & np.isfinite(drawn.y)]
    usable = (np.isfinite(expected.x) & np.isfinite(expected.y)).to_numpy()
    means, weights = expected[usable], weight.to_numpy(float)[usable] if len(expected) else np.zeros(0)
    rows = []
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        y = np.sort(drawn.y[drawn.x.between(low, high, "left")].to_numpy(float))
        n = len(y)
        if n < FEWEST:
            continue
        inside = means.x.between(low, high, "left").to_numpy()
        theirs = _quantiles(means.y.to_numpy(float)[inside], weights[inside])
        row = {"low": low, "high": high, "n": n, "median": float(np.median(y)), "median_err": _error(y, 0.5)}
        row |= {"scatter": float(np.diff(np.quantile(y, (0.16, 0.84)))[0]) / 2}
        row |= {"scatter_err": math.hypot(_error(y, 0.16), _error(y, 0.84)) / 2}
        rows.append(row | {"expected_median": theirs[1], "expected_scatter": (theirs[2] - theirs[0]) / 2})
    return rows


def _error(values: np.ndarray, share: float) -> float:
    """1-sigma error of a quantile: half the distance of those one binomial standard deviation above and below it."""
    spread = math.sqrt(share * (1 - share) / len(values))
    low, high = np.quantile(values, np.clip((share - spread, share + spread), 0, 1))
    return float(high - low) / 2


def _quantiles(values: np.ndarray, weights: np.ndarray) -> tuple[float, float, float]:
    """16, 50 and 84 % quantiles of a weighted sample; NaN without any."""
    if not weights.sum() > 0:
        return math.nan, math.nan, math.nan
    order = np.argsort(values)
    shares = np.cumsum(weights[order]) - weights[order] / 2
    low, middle, high = np.interp((0.16, 0.5, 0.84), shares / weights.sum(), values[order])
    return float(low), float(middle), float(high)


def _values(frame: pd.DataFrame, column: str) -> np.ndarray:
    values = frame[column].to_numpy(float) if column in frame else np.zeros(0)
    return values[np.isfinite(values)]


def _weighted(frame: pd.DataFrame, column: str) -> tuple[np.ndarray, np.ndarray]:
    if column not in frame:
        return np.zeros(0), np.zeros(0)
    values = frame[column].to_numpy(float)
    finite = np.isfinite(values)
    return values[finite], frame.weight.to_numpy(float)[finite]
