"""Do two catalogues mean the same by a position? Offsets of half a pixel, a pixel, or between frames; no overlap.

Legend: P predicted objects, T true objects. Offsets are prediction minus truth.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from astropy.coordinates import SkyCoord

from deepdisc.errors import InputError
from deepdisc.evaluation.match import Criterion, common_groups
from deepdisc.matching import assign, chord, close_pairs, sky_vectors

_SEARCH_PIX = 3.0  # farther than any convention's offset, closer than most neighbours
_FEWEST, _MOST = 10, 20_000  # pairs that an offset is told from; objects of the prediction that are tried
_NEAR = 0.12  # pixels: so near to a half or whole pixel is one
_SIGMAS = 5.0
_WORTH_PIX, _WORTH_ARCSEC = 0.1, 0.1  # smaller offsets matter to no matching


def measure_offset(pred: pd.DataFrame, truth: pd.DataFrame) -> dict:
    """Median offset of positions, and in words what it means.

    Pairs are matched afresh within 3 pixels (or 3 arcsec without pixels), so that a catalogue shifted beyond the limit
    of the matching is still recognised.

    Returns:
        `available`, `n`, `unit` ("pix" or "arcsec"), `dx`, `dy` (towards +x, +y; East, North) with `dx_err`, `dy_err`
        (1.2533 x 1.4826 MAD / sqrt n), and `warning`: None, or what is wrong and how to mend it.
    """
    if len(pred) > _MOST:
        pred = pred.iloc[np.sort(np.random.default_rng(0).choice(len(pred), _MOST, replace=False))]
    try:
        if _have(("x", "y"), pred, truth):
            unit, difference = "pix", _pixel_differences(pred, truth)
        elif _have(("ra", "dec"), pred, truth):
            unit, difference = "arcsec", _sky_differences(pred, truth)
        else:
            return {"available": False, "reason": "the catalogues have no positions of one kind", "warning": None}
    except InputError as error:  # so crowded that 3 pixels join everything: matching by outlines is still possible
        return {"available": False, "reason": str(error), "warning": None}
    n = len(difference)
    if n < _FEWEST:
        return {"available": False, "reason": f"only {n} pairs within 3 {unit}", "warning": None}
    centre = np.median(difference, axis=0)
    error = 1.2533 * 1.4826 * np.median(np.abs(difference - centre), axis=0) / np.sqrt(n)
    warning = (_pixel_warning if unit == "pix" else _sky_warning)(centre, error, n)
    return {
        "available": True,
        "n": n,
        "unit": unit,
        "dx": float(centre[0]),
        "dx_err": float(error[0]),
        "dy": float(centre[1]),
        "dy_err": float(error[1]),
        "warning": warning,
    }


def _have(names: tuple[str, str], *catalogs: pd.DataFrame) -> bool:
    return all(set(names) <= set(catalog.columns) for catalog in catalogs)


def _pixel_differences(pred: pd.DataFrame, truth: pd.DataFrame) -> np.ndarray:
    a, b = (catalog[["x", "y"]].to_numpy(np.float64) for catalog in (pred, truth))
    points = (
        np.column_stack((part, 1e9 * group)) for part, group in zip((a, b), common_groups(pred, truth), strict=True)
    )
    pairs = assign(close_pairs(*points, _SEARCH_PIX))
    return a[pairs.pred] - b[pairs.truth]


def _sky_differences(pred: pd.DataFrame, truth: pd.DataFrame) -> np.ndarray:
    """Arcsec towards East and North."""
    a, b = (catalog[["ra", "dec"]].to_numpy(np.float64) for catalog in (pred, truth))
    pairs = assign(close_pairs(sky_vectors(*a.T), sky_vectors(*b.T), chord(3.0)))
    a, b = a[pairs.pred], b[pairs.truth]
    east = ((a[:, 0] - b[:, 0] + 180) % 360 - 180) * np.cos(np.radians(b[:, 1]))
    return 3600 * np.column_stack((east, a[:, 1] - b[:, 1]))


def _pixel_warning(centre: np.ndarray, error: np.ndarray, n: int) -> str | None:
    step = np.round(2 * centre) / 2  # the nearest half pixel
    told = f"({centre[0]:+.2f}, {centre[1]:+.2f}) pixels from the true ones (median of {n:,})"
    significant = np.abs(centre) > np.maximum(_SIGMAS * error, _WORTH_PIX)
    if not significant.any():
        return None
    known = (np.abs(centre - step) < _NEAR).all() and (np.abs(step) <= 1).all() and step.any()
    if known and (np.abs(step) == 1).any():
        which = "predicted" if step.sum() > 0 else "true"
        return (
            f"predicted positions lie {told}: the {which} catalogue seems to count pixels from 1, as FITS, DS9 and "
            "SExtractor do, the other from 0; give a column map (--columns) with x: X - 1, y: Y - 1 for it, or the "
            "shipped map of its program"
        )
    if known:
        return (
            f"predicted positions lie {told}: one catalogue counts from the pixel's edge, the other from its centre; "
            f"give a column map (--columns) with x: X {-step[0]:+g}, y: Y {-step[1]:+g} for the prediction"
        )
    return f"predicted positions lie {told}, more than their errors: are both of the same image, and of the same band?"


def _sky_warning(centre: np.ndarray, error: np.ndarray, n: int) -> str | None:
    if not (np.abs(centre) > np.maximum(_SIGMAS * error, _WORTH_ARCSEC)).any():
        return None
    return (
        f"predicted positions lie {centre[0]:+.2f} arcsec to the East and {centre[1]:+.2f} to the North of the true "
        f"ones (median of {n:,}): are the frames (ICRS) and epochs the same, and is the WCS right?"
    )


# ---------------------------------------------------------------------------------------------------------- no overlap
def check_overlap(pred: pd.DataFrame, truth: pd.DataFrame, criterion: Criterion) -> None:
    """Refuse catalogues that lie in different places, which is a mistake and no score of zero.

    Raises:
        InputError: no id in common, or the ranges of positions do not meet; names them, and the change of convention
            that would make them.
    """
    if criterion.kind == "id":
        if len(pred) and len(truth) and not len(criterion.candidates(pred, truth)):
            raise InputError("no id of the predicted catalogue is one of the true catalogue; match by position instead")
        return
    kind = "sky" if "sky" in criterion.name and _have(("ra", "dec"), pred, truth) else "pixels"
    names = ("ra", "dec") if kind == "sky" else ("x", "y")
    if not _have(names, pred, truth):
        return
    a, b = (catalog[list(names)].to_numpy(np.float64) for catalog in (pred, truth))
    a, b = a[np.isfinite(a).all(1)], b[np.isfinite(b).all(1)]
    limit = criterion.limit if criterion.kind == kind else 1.0
    if not len(a) or not len(b) or _meet(kind, a, b, limit):
        return
    told = "; ".join(f"{which} {_range(part, names)}" for which, part in (("predicted", a), ("true", b)))
    raise InputError(f"the two catalogues do not overlap: {told}; {_remedy(kind, a, b, limit)}")


def _meet(kind: str, a: np.ndarray, b: np.ndarray, limit: float) -> bool:
    if kind == "sky":
        a, b, limit = sky_vectors(*a.T), sky_vectors(*b.T), 10 * chord(limit)
    return bool((a.min(0) - limit <= b.max(0)).all() and (b.min(0) - limit <= a.max(0)).all())


def _range(points: np.ndarray, names: tuple[str, str]) -> str:
    return ", ".join(
        f"{name} {low:.6g} to {high:.6g}" for name, low, high in zip(names, points.min(0), points.max(0), strict=True)
    )


def _galactic(points: np.ndarray) -> np.ndarray:
    sky = SkyCoord(*points.T, unit="deg", frame="galactic").icrs
    return np.column_stack((sky.ra.deg, sky.dec.deg))


_GUESSES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], bool]]] = {
    "in radians (unit: rad)": (np.degrees, lambda p: bool((np.abs(p[:, 1]) <= np.pi / 2).all())),
    "with right ascensions in hours (unit: hourangle)": (lambda p: p * [15, 1], lambda p: bool((p[:, 0] <= 24).all())),
    "with ra and dec exchanged": (lambda p: p[:, ::-1], lambda p: bool((np.abs(p[:, 0]) <= 90).all())),
    "in galactic coordinates (sky_frame: galactic)": (_galactic, lambda p: bool((np.abs(p[:, 1]) <= 90).all())),
}


def _remedy(kind: str, a: np.ndarray, b: np.ndarray, limit: float) -> str:
    if kind == "pixels":
        return "are they positions on the same image, in its pixels? If not, match on the sky (ra, dec)"
    for words, (convert, possible) in _GUESSES.items():
        for which, part, other in (("predicted", a, b), ("true", b, a)):
            if possible(part) and _meet("sky", convert(part), other, limit):
                return f"the {which} catalogue seems to be {words}: say so in a column map (--columns)"
    return "are they of the same field, in ICRS degrees?"
