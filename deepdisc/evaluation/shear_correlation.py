"""The two-point functions of shear residuals: errors that neighbours share, which averaging does not remove.

`xi+ = <r_i r_j*>` and `xi- = <r_i r_j exp(-4 i phi)>` over pairs at a separation, r = (g_obs - g)_1 + i (...)_2 and phi
the position angle of the line between them (Schneider et al. 2002), counted by TreeCorr (Jarvis et al. 2004).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from deepdisc.errors import InputError, require_extra
from deepdisc.evaluation.assessment import column

LEAST_GALAXIES = 200
BINS = 10
PATCHES = 25
_APART_ARCMIN = 1e6  # fields of a data set are put so far from each other that no pair spans two


def residual_correlation(
    pred: pd.DataFrame,
    truth: pd.DataFrame,
    residual: np.ndarray,
    weight: np.ndarray,
    *,
    bins: int = BINS,
    range_arcmin: tuple[float, float] | None = None,
) -> dict:
    """xi+ and xi- of residuals by separation; only pairs within the same field count.

    Args:
        pred: rows (N,), whose `ra`, `dec` serve where the truth has none.
        truth: rows (N,) with `ra`, `dec` (degrees), and `field` or `tile` where there are several.
        residual: (2, N) g_obs - g, sky frame.
        weight: (N,).
        bins: logarithmic bins of the separation.
        range_arcmin: smallest and largest separation; default: twice the mean distance of neighbours to half the extent
            of a field.

    Returns:
        `rows` of `theta_arcmin` (mean separation), `from`, `to`, `n` pairs, `xip`, `xim`, with `_err`: from a jackknife
        over fields, or over patches of the only field.
    """
    try:
        treecorr = require_extra("treecorr", "shear")
    except InputError as error:
        return {"available": False, "reason": str(error)}
    place = _positions(pred, truth)
    if place is None:
        return {"available": False, "reason": "neither catalogue has ra, dec"}
    ra, dec, field = place
    good = np.isfinite(ra) & np.isfinite(dec)
    n = int(good.sum())
    if n < LEAST_GALAXIES:
        return {"available": False, "reason": f"{n} galaxies have positions, fewer than {LEAST_GALAXIES}", "n": n}
    ra, dec, field, residual, weight = ra[good], dec[good], field[good], residual[:, good], weight[good]
    _, patch = np.unique(field, return_inverse=True)
    x, y = _tangent_planes(ra, dec, patch)
    low, high = range_arcmin or _range(x, y, patch)
    if patch.max() > 0:
        where = {"x": x + _APART_ARCMIN * patch, "y": y, "patch": patch}
    else:
        where = {"ra": ra, "dec": dec, "ra_units": "deg", "dec_units": "deg", "npatch": min(PATCHES, n // 20)}
    # TreeCorr's angles run from +x, here West, to North: both components have the opposite sign of ours (from North).
    catalog = treecorr.Catalog(g1=-residual[0], g2=-residual[1], w=weight, **where)
    pairs = treecorr.GGCorrelation(
        min_sep=low, max_sep=high, nbins=bins, bin_slop=0.1, sep_units=None if patch.max() > 0 else "arcmin",
        var_method="jackknife", cross_patch_weight="match", num_threads=1,
    )  # fmt: skip
    pairs.process(catalog)
    return {"available": True, "n": n, "n_fields": int(patch.max()) + 1, "rows": _rows(pairs)}


def _rows(pairs) -> list[dict]:
    """The bins of a TreeCorr correlation that hold any pair."""
    return [
        {
            "theta_arcmin": float(pairs.meanr[i]),
            "from": float(pairs.left_edges[i]),
            "to": float(pairs.right_edges[i]),
            "n": int(pairs.npairs[i]),
            **{name: float(getattr(pairs, name)[i]) for name in ("xip", "xim")},
            **{f"{name}_err": float(np.sqrt(getattr(pairs, f"var{name}")[i])) for name in ("xip", "xim")},
        }
        for i in np.flatnonzero(pairs.npairs > 0)
    ]


def _positions(pred: pd.DataFrame, truth: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """ra, dec in degrees and the field's label, each (N,)."""
    name = next((name for name in ("field", "tile") if name in truth.columns), None)
    field = np.zeros(len(truth), np.int64) if name is None else pd.factorize(truth[name])[0]
    for side in (truth, pred):
        ra, dec = column(side, "ra"), column(side, "dec")
        if ra is not None and dec is not None:
            return ra, dec, field
    return None


def _tangent_planes(ra: np.ndarray, dec: np.ndarray, field: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gnomonic projection of each field around its own middle, arcmin, x towards West and y towards North."""
    ra, dec = np.radians(ra), np.radians(dec)
    number = np.bincount(field)
    middle = np.angle(np.bincount(field, np.cos(ra)) + 1j * np.bincount(field, np.sin(ra)))[field]
    height = (np.bincount(field, dec) / number)[field]
    turn = ra - middle
    depth = np.sin(height) * np.sin(dec) + np.cos(height) * np.cos(dec) * np.cos(turn)
    east = np.cos(dec) * np.sin(turn) / depth
    north = (np.cos(height) * np.sin(dec) - np.sin(height) * np.cos(dec) * np.cos(turn)) / depth
    return -np.degrees(east) * 60, np.degrees(north) * 60


def _range(x: np.ndarray, y: np.ndarray, field: np.ndarray) -> tuple[float, float]:
    """Smallest and largest separation that the largest field serves well, arcmin."""
    labels, counts = np.unique(field, return_counts=True)
    inside = field == labels[counts.argmax()]
    extent = max(np.ptp(x[inside]), np.ptp(y[inside]))
    neighbours = extent / np.sqrt(inside.sum())
    return 2 * neighbours, max(extent / 2, 4 * neighbours)
