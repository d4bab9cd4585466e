"""Two catalogues of one field side by side: at equal purity for detections, on the same objects for what is measured.

Intervals are paired: both sides are resampled together, so that what is common to them cancels in the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pandas as pd

from deepdisc.evaluation.assessment import Assessor, column
from deepdisc.evaluation.average_precision import MatchedDetections, match_detections, paired_precision
from deepdisc.evaluation.blends import SNR_MIN, blended_pairs
from deepdisc.evaluation.bootstrap import DEFAULT, Resampling, fraction, paired_differences
from deepdisc.evaluation.colours import colour_metrics, colour_of
from deepdisc.evaluation.detection import boxes_overlap
from deepdisc.evaluation.flux import bands_of, flux_metrics, flux_of, pair_statistics, pull_metrics, uncertainty
from deepdisc.evaluation.pdf_columns import read_pdfs
from deepdisc.evaluation.pdf_scores import pdf_metrics, pdf_scores
from deepdisc.evaluation.photoz import LEAST_PREDICTED, LEAST_TRUE, POINT_ESTIMATES, point_metrics
from deepdisc.evaluation.purity import at_equal_purity, purity_curve
from deepdisc.evaluation.scoring import Scored, Setting, blocks_of
from deepdisc.evaluation.shear import COMPONENTS, bias_metrics, resampled_areas, usable_shears, without_shapes


def compare_scored(
    a: Scored, b: Scored, setting: Setting, *, names: tuple[str, str], resampling: Resampling = DEFAULT
) -> dict:
    """Put two scored catalogues beside each other.

    Args:
        a: its score threshold is the first to be raised to reach equal purity.
        b: the other.
        setting: under which both were scored.
        names: what to call the two.
        resampling: how the errors are drawn.

    Returns:
        `names`, the parts `detection`, `redshift`, `flux`, `colour`, `shear`, and `table`: the rows of all, see `row`.
    """
    detection = compare_detections(a, b, setting, resampling)
    both = CommonObjects.of(a, b, setting, resampling)
    measured = {
        "redshift": compare_redshifts(both),
        "flux": compare_fluxes(both),
        "colour": compare_colours(both),
        "shear": compare_shears(both),
    }
    rows = detection["rows"] + [line for part in measured.values() for line in part.get("rows", [])]
    return {"names": list(names), "detection": detection, **measured, "table": rows}


@dataclass(frozen=True)
class CommonObjects:
    """The true objects that both sides found: row i of the three frames is the same object.

    Attributes:
        a: rows of the first catalogue.
        b: of the second.
        truth: of the truth.
        resampling: for all rows.
    """

    a: pd.DataFrame
    b: pd.DataFrame
    truth: pd.DataFrame
    resampling: Resampling

    @classmethod
    def of(cls, a: Scored, b: Scored, setting: Setting, resampling: Resampling) -> CommonObjects:
        """Join two matchings by the row of the truth."""
        first, second = a.assessment.pairs, b.assessment.pairs
        rows, i, j = np.intersect1d(first.truth, second.truth, return_indices=True)
        frames = (
            frame.iloc[chosen].reset_index(drop=True)
            for frame, chosen in ((a.frame, first.pred[i]), (b.frame, second.pred[j]), (setting.truth, rows))
        )
        a_rows, b_rows, truth = frames
        blocks = blocks_of(truth, setting.resample)
        return cls(a_rows, b_rows, truth, replace(resampling, blocks=blocks))


def row(quantity: str, a: dict, b: dict, difference: dict | None = None, of: str | None = None) -> dict:
    """One line of the table: `value`, `err`, `n` of both sides, and what sets them apart; `of` a band or colour."""
    return {"quantity": f"{quantity}, {of}" if of else quantity, "of": of, "a": a, "b": b, "difference": difference}


def cell(value: float, err: float = float("nan"), n: int | None = None) -> dict:
    """A figure with its error and count."""
    return {"value": float(value), "err": float(err), "n": None if n is None else int(n)}


# --------------------------------------------------------------------------------------------------------- detections
def compare_detections(a: Scored, b: Scored, setting: Setting, resampling: Resampling) -> dict:
    """Both sides uncut, and at equal purity: completeness, blended pairs, with paired bootstrap differences."""
    truth, options = setting.truth, setting.options
    cut_a, cut_b, statement = at_equal_purity(a.pred, b.pred, truth, a.criterion, criterion_b=b.criterion, **options)
    results = [Assessor(pred, truth, side.criterion, **options).assess() for pred, side in ((cut_a, a), (cut_b, b))]
    rows = []
    for label, name in (("purity, uncut", "purity"), ("completeness, uncut", "completeness")):
        sides = [side.metrics["detection"] for side in (a, b)]
        rows.append(row(label, *(cell(side[name], side[f"{name}_err"], side[f"{name}_n"]) for side in sides)))
    if all(side.metrics["detection"]["boxes"]["available"] for side in (a, b)):
        matched = (_matched_boxes(side, setting) for side in (a, b))
        rows += _rows(paired_precision(*matched, resampling), PRECISION_LABELS)
    counted = [result.correct[~result.excused] for result in results]
    rows.append(row("purity at the cut", *map(_fraction_cell, counted)))
    snr = column(truth, "snr")
    groups = {"completeness at equal purity": setting.required}
    if snr is not None:
        groups[f"completeness at equal purity, S/N > {SNR_MIN:g}"] = setting.required & (snr > SNR_MIN)
    for label, chosen in groups.items():
        rows.append(_paired(label, *(result.found[chosen] for result in results), resampling))
    pairs = {} if setting.fwhm_pix is None else blended_pairs(truth, results[0], setting.fwhm_pix)
    if "members" in pairs:
        both = [result.found[pairs["members"]].all(1) for result in results]
        rows.append(_paired("blended pairs (S/N > 10, < 2 FWHM), both found", *both, resampling))
    completeness = "completeness_snr10" if snr is not None else "completeness"
    curves = {}
    for side, scored in zip("ab", (a, b), strict=True):
        if "score" in scored.pred.columns:
            curve = purity_curve(scored.pred, truth, scored.criterion, **options)
            curves[side] = {"completeness": curve[completeness].to_list(), "purity": curve["purity"].to_list()}
    return {
        "matched_by": str(setting.criterion),
        "equal_purity": statement,
        "n_pred": [len(cut_a), len(cut_b)],
        "both_found": _found_by(results, setting.required),
        "rows": rows,
        "curves": curves,
        "curve_completeness": completeness,
    }


PRECISION_LABELS = {"ap": "AP of boxes, IoU .50:.95", "ap50": "AP of boxes, IoU .50"}


def _matched_boxes(side: Scored, setting: Setting) -> MatchedDetections:
    overlaps = boxes_overlap(side.pred, setting.truth)
    return match_detections(side.pred["score"].to_numpy(float), overlaps, side.assessment.excused, setting.required)


def _found_by(results: Sequence, required: np.ndarray) -> dict[str, int]:
    """How many required true objects both sides found at the cut, only one of them, or neither."""
    a, b = (result.found[required] for result in results)
    return {
        "both": int((a & b).sum()),
        "only_a": int((a & ~b).sum()),
        "only_b": int((b & ~a).sum()),
        "neither": int((~a & ~b).sum()),
    }


def _fraction_cell(success: np.ndarray) -> dict:
    share = fraction(success)
    return cell(share["value"], share["err"], len(success))


def _paired(label: str, a: np.ndarray, b: np.ndarray, resampling: Resampling) -> dict:
    """Fractions (N,) of the same objects found by both sides, and their difference from paired resamplings."""
    if len(a) < 2:
        return row(label, cell(np.nan, n=len(a)), cell(np.nan, n=len(a)))
    result = paired_differences(lambda found: {"share": found.mean()}, [a], [b], resampling=resampling)
    # Wilson's errors of the sides: a bootstrap of all or nothing found would claim certainty.
    return row(label, _fraction_cell(a), _fraction_cell(b), result["share"]["difference"])


# ----------------------------------------------------------------------------------------------------------- redshifts
REDSHIFT_LABELS = {
    "bias": "redshift bias",
    "sigma_nmad": "redshift sigma_NMAD",
    "sigma_iqr": "redshift sigma_IQR",
    "eta_15": "redshift outliers beyond 0.15",
    "eta_iqr": "redshift outliers, eta_IQR",
}
PDF_LABELS = {
    "crps": "redshift PDFs, CRPS",
    "cde_loss": "redshift PDFs, CDE loss",
    "pit_ks": "redshift PDFs, KS distance of PIT from uniform",
    "pit_outliers": "redshift PDFs, PIT outliers",
}


def compare_redshifts(both: CommonObjects) -> dict:
    """Point estimates and PDFs of both catalogues on the true objects that both found and gave a redshift."""
    if "redshift" not in both.truth.columns:
        return {"available": False, "reason": "the truth has no redshifts"}
    estimates = [next((name for name in POINT_ESTIMATES if name in side.columns), None) for side in (both.a, both.b)]
    if None in estimates:
        return {"available": False, "reason": "not both catalogues have redshifts"}
    z_a, z_b = (side[name].to_numpy(float) for side, name in zip((both.a, both.b), estimates, strict=True))
    z_true = both.truth["redshift"].to_numpy(np.float64)
    used = (z_true >= LEAST_TRUE) & (z_a > LEAST_PREDICTED) & (z_b > LEAST_PREDICTED)  # NaN compares as false
    rows = redshift_rows(z_a[used], z_b[used], z_true[used], resampling=both.resampling.of(used))
    pdf = _compare_pdfs(both, z_true, used)
    rows += pdf.get("rows", [])
    return {"available": True, "n": int(used.sum()), "estimates": estimates, "pdf": pdf, "rows": rows}


def _compare_pdfs(both: CommonObjects, z_true: np.ndarray, used: np.ndarray) -> dict:
    found = [read_pdfs(side) for side in (both.a, both.b)]
    if None in (found[0].pdfs, found[1].pdfs):
        return {"available": False, "reason": "not both catalogues have redshift PDFs"}
    used = used & found[0].usable & found[1].usable
    sides = []
    for side in found:
        rows = np.flatnonzero(used[side.usable])
        sides.append(list(pdf_scores(side.pdfs.take(rows), z_true[used]).values()))
    result = paired_differences(pdf_metrics, *sides, ratios=("crps",), resampling=both.resampling.of(used))
    return {"available": True, "n": int(used.sum()), "rows": _rows(result, PDF_LABELS)}


def redshift_rows(z_a: np.ndarray, z_b: np.ndarray, z_true: np.ndarray, resampling: Resampling = DEFAULT) -> list[dict]:
    """Rows of the table for two estimates of the same objects (N,), with paired bootstrap intervals of ratios."""
    result = paired_differences(
        point_metrics, [z_a], [z_b], [z_true], ratios=("sigma_nmad", "sigma_iqr"), resampling=resampling
    )
    return _rows(result, REDSHIFT_LABELS)


def _rows(result: dict[str, dict], labels: dict[str, str], of: str | None = None) -> list[dict]:
    """Lines of the table from `paired_differences`."""
    rows = []
    for name, label in labels.items():
        found = result[name]
        sides = (cell(found[side], found[f"{side}_err"], found["n"]) for side in "ab")
        rows.append(row(label, *sides, found["difference"], of))
    return rows


# ---------------------------------------------------------------------------------------------- fluxes, colours, shears
FLUX_LABELS = {"bias": "flux bias", "scatter": "flux scatter"}
PULL_LABELS = {"pull_width": "flux pulls, width"}
COLOUR_LABELS = {"bias": "colour bias", "scatter": "colour scatter", "width": "colour histogram, width"}
SHEAR_LABELS = {"m": "shear m", "c": "shear c", "rmse": "shear, rms residual of one galaxy"}


def compare_fluxes(both: CommonObjects) -> dict:
    """Bias, scatter and pulls of both catalogues' fluxes, per band, on the objects that both found and measured."""
    bands = bands_of(both.a, both.b, both.truth)
    if not bands:
        return {"available": False, "reason": "not both catalogues and the truth have fluxes in a common band"}
    by_band = {}
    for band in bands:
        flux_a, flux_b, true_flux = (flux_of(side, band) for side in (both.a, both.b, both.truth))
        used = np.isfinite(flux_a) & np.isfinite(flux_b) & (true_flux > 0)
        columns = ([flux_a[used]], [flux_b[used]], [true_flux[used]])
        result = paired_differences(flux_metrics, *columns, ratios=("scatter",), resampling=both.resampling.of(used))
        rows = _rows(result, FLUX_LABELS, band) + _compare_pulls(both, band, (flux_a, flux_b), true_flux)
        by_band[band] = {"n": int(used.sum()), "rows": rows}
    pairs = pair_statistics(both.a, both.b, bands=bands, resampling=both.resampling)
    rows = [line for item in by_band.values() for line in item["rows"]]
    return {"available": True, "by_band": by_band, "pulls_between": pairs, "rows": rows}


def _compare_pulls(both: CommonObjects, band: str, fluxes: tuple, true_flux: np.ndarray) -> list[dict]:
    """How honest the stated errors are; [] where one side states none."""
    sides = [uncertainty(side, band, flux, true_flux) for side, flux in zip((both.a, both.b), fluxes, strict=True)]
    used = sides[0].known & sides[1].known & np.isfinite(true_flux)
    if not used.any():
        return []
    pulls = ([side.pull[used]] for side in sides)
    result = paired_differences(pull_metrics, *pulls, resampling=both.resampling.of(used))
    return _rows(result, PULL_LABELS, band)


def compare_colours(both: CommonObjects) -> dict:
    """Bias, scatter and width of both catalogues' colours, on the objects that both found and measured."""
    bands = bands_of(both.a, both.b, both.truth)
    if len(bands) < 2:
        return {"available": False, "reason": "not both catalogues and the truth have two bands in common"}
    rows = []
    for blue, red in pairwise(bands):
        colours = [colour_of(side, blue, red) for side in (both.a, both.b, both.truth)]
        used = np.isfinite(colours).all(0)
        if used.any():
            a, b, true = ([colour[used]] for colour in colours)
            ratios = ("scatter", "width")
            result = paired_differences(colour_metrics, a, b, true, ratios=ratios, resampling=both.resampling.of(used))
            rows += _rows(result, COLOUR_LABELS, f"{blue}-{red}")
    return {"available": True, "rows": rows}


def compare_shears(both: CommonObjects) -> dict:
    """m, c and the residuals of both catalogues' shears, on the galaxies (or rings) that both found and measured."""
    sides = both.a, both.b, both.truth
    if not all(set(COMPONENTS) <= set(side.columns) for side in sides):
        return {"available": False, "reason": "not both catalogues and the truth have g1, g2"}
    (a, used_a, _), (b, used_b, _) = (usable_shears(side, both.truth) for side in (both.a, both.b))
    used = np.flatnonzero(used_a & used_b)
    observed, true = (a[:2], a[4:5], b[:2], b[4:5]), a[2:4]
    table, used, _ = without_shapes(both.truth, used, np.concatenate((*observed, true))[:, used])
    if not len(used):
        return {"available": False, "reason": "no galaxy has both shears"}
    labels, _, resampled = resampled_areas(both.a, both.truth, used, both.resampling.blocks)
    drawn = replace(both.resampling, blocks=labels)
    result = paired_differences(_shear_figures, table[:3], table[3:6], table[6:], ratios=("rmse",), resampling=drawn)
    return {"available": True, "n": len(used), "resampled": resampled, "rows": _rows(result, SHEAR_LABELS)}


def _shear_figures(
    observed_1: np.ndarray, observed_2: np.ndarray, weight: np.ndarray, true_1: np.ndarray, true_2: np.ndarray
) -> dict[str, float]:
    figures = bias_metrics(observed_1, observed_2, true_1, true_2, weight)
    square = ((observed_1 - true_1) ** 2 + (observed_2 - true_2) ** 2) / 2
    return {"m": figures["m"], "c": figures["c"], "rmse": float(np.sqrt(square.mean())) if len(square) else np.nan}
