"""How good colours are: against true colours, by the width of their histograms, by the width of the stellar locus.

A colour a - b is a difference of AB magnitudes, for fluxes above 0 in both bands. Legend: N objects.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd

from deepdisc.evaluation.assessment import column
from deepdisc.evaluation.bins import binned_statistic, even_edges
from deepdisc.evaluation.bootstrap import DEFAULT, Resampling, quantiles, with_errors
from deepdisc.evaluation.classes import class_names
from deepdisc.evaluation.flux import bands_of, flux_of, pull_metrics, sigma_68
from deepdisc.photometry import mag_from_njy

NAN = float("nan")
HISTOGRAM_BINS = 40
LEAST_STARS = 30  # a locus of fewer has no width
_DEGREE, _ROUNDS, _CLIP = 3, 3, 3.0


def colour_metrics(colour: np.ndarray, true_colour: np.ndarray) -> dict[str, float]:
    """`bias` and `scatter` (median and sigma_68 of predicted - true colour), magnitudes; and the histograms' widths.

    `width` and `width_truth` are sigma_68 of the colours themselves: noise widens a histogram, so that of two
    catalogues of the same objects the narrower is the better one, down to the truth's.
    """
    difference = colour - true_colour
    return {
        "bias": quantiles(difference, (0.5,))[0],
        "scatter": sigma_68(difference),
        "width": sigma_68(colour),
        "width_truth": sigma_68(true_colour),
    }


def score_colours(
    pred: pd.DataFrame,
    truth: pd.DataFrame,
    *,
    bands: list[str] | None = None,
    resampling: Resampling = DEFAULT,
) -> dict:
    """Colours of neighbouring bands of matched objects, and the stellar locus.

    Args:
        pred: predicted catalogue with fluxes or magnitudes, or its own colours `color_<a>_<b>` (and errors
            `colorerr_<a>_<b>`); row i is matched to ...
        truth: ... row i of the truth; its classes tell stars from galaxies.
        bands: default all that both have, from blue to red.
        resampling: how the errors are drawn.

    Returns:
        The `colour` part of metrics.json: `by_colour` {"g-r": {...}}, each with the figures of `colour_metrics`, `n`,
        those of `pull_metrics` of the `n_pull` with an error,
        `histogram`, `excluded`, `by_class` and `by_magnitude` (true, of the redder band); `stellar_locus`
        {"g-r, r-i": {...}}, see `_score_locus`.
    """
    bands = bands_of(pred, truth) if bands is None else bands
    if len(bands) < 2:
        return {"available": False, "reason": "the catalogues have fewer than two bands in common"}
    names = class_names(truth)
    loci = {}
    for a, b, c in zip(bands, bands[1:], bands[2:], strict=False):
        sides = ([colour_of(side, a, b), colour_of(side, b, c)] for side in (pred, truth))
        loci[f"{a}-{b}, {b}-{c}"] = _score_locus(*sides, names, resampling)
    return {
        "available": True,
        "by_colour": {f"{a}-{b}": _score_colour(pred, truth, a, b, names, resampling) for a, b in pairwise(bands)},
        "stellar_locus": loci,
    }


def colour_of(catalog: pd.DataFrame, a: str, b: str) -> np.ndarray:
    """Colour a - b (N,), magnitudes: the program's own `color_<a>_<b>`, else from the fluxes; NaN where unknown."""
    own = column(catalog, f"color_{a}_{b}")
    return mag_from_njy(flux_of(catalog, a)) - mag_from_njy(flux_of(catalog, b)) if own is None else own


def _score_colour(
    pred: pd.DataFrame, truth: pd.DataFrame, a: str, b: str, names: np.ndarray | None, resampling: Resampling
) -> dict:
    colour, true_colour = (colour_of(side, a, b) for side in (pred, truth))
    known = np.isfinite(true_colour)
    used = known & np.isfinite(colour)
    error = column(pred, f"colorerr_{a}_{b}")
    certain = used & (error > 0) if error is not None else np.zeros(len(pred), bool)
    pull = (colour - true_colour)[certain] / error[certain] if error is not None else np.zeros(0)

    def figures(rows: np.ndarray) -> dict:
        values = with_errors(colour_metrics, colour[rows], true_colour[rows], resampling=resampling.of(rows))
        return {"n": int(rows.sum()), **values}

    classes = np.unique(names[used]) if names is not None else []
    magnitude = mag_from_njy(flux_of(truth, b))[used]
    return {
        **figures(used),
        "n_pull": int(certain.sum()),
        **with_errors(pull_metrics, pull, resampling=resampling.of(certain)),
        "histogram": _histogram(colour[used], true_colour[used]),
        "excluded": {
            "without a true colour": int((~known).sum()),
            "without a measured colour (a flux not above 0)": int((known & ~used).sum()),
        },
        "by_class": {str(name): figures(used & (names == name)) for name in classes},
        "by_magnitude": binned_statistic(
            magnitude,
            even_edges(magnitude),
            colour_metrics,
            colour[used],
            true_colour[used],
            resampling=resampling.of(used),
        ),
    }


def _histogram(colour: np.ndarray, true_colour: np.ndarray) -> dict[str, list]:
    """`counts` of measured and `truth` of true colours in bins of common `edges`, around the true ones."""
    if not len(colour):
        return {"edges": [], "counts": [], "truth": []}
    low, high = np.quantile(true_colour, (0.01, 0.99))
    margin = max(0.5 * (high - low), 0.1)
    edges = np.linspace(low - margin, high + margin, HISTOGRAM_BINS + 1)
    counts = (np.histogram(values, edges)[0].tolist() for values in (colour, true_colour))
    return dict(zip(("counts", "truth"), counts, strict=True), edges=edges.tolist())


# -------------------------------------------------------------------------------------------------------------- stars
def locus_width(x: np.ndarray, y: np.ndarray) -> float:
    """Width of the stellar locus in a colour-colour diagram: sigma_68 of the distance from a curve through it.

    Stars lie on a curve far thinner than photometric errors (the principal colours of Ivezic et al. 2004,
    arXiv:astro-ph/0410195, are straight pieces of it), so that its width is that of the errors. Here: a cubic y(x),
    fitted with three rounds of clipping at 3 sigma; distances are perpendicular to it.

    Args:
        x: (N,) bluer colour of stars.
        y: (N,) redder colour.
    """
    if len(x) < LEAST_STARS:
        return NAN
    good = np.ones(len(x), bool)
    for _ in range(_ROUNDS):
        if good.sum() < LEAST_STARS / 2 or np.ptp(x[good]) == 0:
            return NAN
        curve = np.polynomial.Polynomial.fit(x[good], y[good], _DEGREE)
        distance = (y - curve(x)) / np.sqrt(1 + curve.deriv()(x) ** 2)
        width = sigma_68(distance[good])
        good = np.abs(distance - np.median(distance[good])) <= _CLIP * max(width, 1e-12)
    return sigma_68(distance)


def _score_locus(
    measured: list[np.ndarray], true: list[np.ndarray], names: np.ndarray | None, resampling: Resampling
) -> dict:
    """The widths of the locus of the same true stars, measured and true, `n` stars."""
    if names is None:
        return {"available": False, "reason": "the truth has no classes"}
    stars = np.isin(names, ("star", "1")) & np.isfinite(measured + true).all(0)
    n = int(stars.sum())
    if n < LEAST_STARS:
        return {"available": False, "reason": f"{n} stars have these colours, fewer than {LEAST_STARS}", "n": n}

    def widths(x: np.ndarray, y: np.ndarray, true_x: np.ndarray, true_y: np.ndarray) -> dict[str, float]:
        return {"width": locus_width(x, y), "width_truth": locus_width(true_x, true_y)}

    columns = [part[stars] for part in (*measured, *true)]
    return {"available": True, "n": n, **with_errors(widths, *columns, resampling=resampling.of(stars))}
