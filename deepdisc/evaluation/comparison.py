"""Two catalogues of one field side by side: at equal purity for detections, on the same objects for redshifts.

Intervals are paired: both sides are resampled together, so that what is common to them cancels in the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from deepdisc.evaluation.assessment import Assessor, column
from deepdisc.evaluation.blends import SNR_MIN, blended_pairs
from deepdisc.evaluation.bootstrap import DEFAULT, Resampling, fraction, paired_differences
from deepdisc.evaluation.flux import bands_of, flux_metrics, flux_of, pair_statistics
from deepdisc.evaluation.pdf_columns import read_pdfs
from deepdisc.evaluation.pdf_scores import pdf_metrics, pdf_scores
from deepdisc.evaluation.photoz import LEAST_PREDICTED, LEAST_TRUE, POINT_ESTIMATES, point_metrics
from deepdisc.evaluation.purity import at_equal_purity, purity_curve
from deepdisc.evaluation.scoring import Scored, Setting, blocks_of


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
        `{"names", "detection": {...}, "redshift": {...}, "flux": {...}, "table": [rows]}`; see `table_text`.
    """
    detection = compare_detections(a, b, setting, resampling)
    both = CommonObjects.of(a, b, setting, resampling)
    redshift, flux = compare_redshifts(both), compare_fluxes(both)
    rows = detection["rows"] + redshift.get("rows", []) + flux.get("rows", [])
    return {"names": list(names), "detection": detection, "redshift": redshift, "flux": flux, "table": rows}


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


def row(quantity: str, a: dict, b: dict, difference: dict | None = None) -> dict:
    """One line of the table: `value`, `err`, `n` of both sides and of what sets them apart."""
    return {"quantity": quantity, "a": a, "b": b, "difference": difference}


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
    for label, key in (("AP of boxes, IoU .50:.95", "ap"), ("AP of boxes, IoU .50", "ap50")):
        sides = [side.metrics["detection"] for side in (a, b)]
        rows.append(row(label, *(cell(side[key], side[f"{key}_err"], side["n_truth"]) for side in sides)))
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
    "eta_15": "redshift outliers, |d| > 0.15",
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


def _rows(result: dict[str, dict], labels: dict[str, str]) -> list[dict]:
    """Lines of the table from `paired_differences`."""
    rows = []
    for name, label in labels.items():
        found = result[name]
        sides = (cell(found[side], found[f"{side}_err"], found["n"]) for side in "ab")
        rows.append(row(label, *sides, found["difference"]))
    return rows


# -------------------------------------------------------------------------------------------------------------- fluxes
def compare_fluxes(both: CommonObjects) -> dict:
    """Bias and scatter of both catalogues' fluxes, per band, on the true objects that both found and measured."""
    bands = bands_of(both.a, both.b, both.truth)
    if not bands:
        return {"available": False, "reason": "not both catalogues and the truth have fluxes in a common band"}
    by_band, rows = {}, []
    for band in bands:
        flux_a, flux_b, true_flux = (flux_of(side, band) for side in (both.a, both.b, both.truth))
        used = np.isfinite(flux_a) & np.isfinite(flux_b) & (true_flux > 0)
        columns = ([flux_a[used]], [flux_b[used]], [true_flux[used]])
        result = paired_differences(flux_metrics, *columns, ratios=("scatter",), resampling=both.resampling.of(used))
        labels = {"bias": f"flux bias, {band}", "scatter": f"flux scatter, {band}"}
        by_band[band] = {"n": int(used.sum()), "rows": _rows(result, labels)}
        rows += by_band[band]["rows"]
    pairs = pair_statistics(both.a, both.b, bands=bands, resampling=both.resampling)
    return {"available": True, "by_band": by_band, "pulls_between": pairs, "rows": rows}


# --------------------------------------------------------------------------------------------------------------- table
def format_cell(item: dict | None) -> str:
    """`0.912 ± 0.004 (n = 1,234)`."""
    if item is None:
        return ""
    if not np.isfinite(item["value"]):
        return "not available"
    text = f"{item['value']:.4f}"
    text += f" ± {item['err']:.4f}" if np.isfinite(item["err"]) else ""
    return text + (f" (n = {item['n']:,})" if item["n"] is not None else "")


def format_difference(item: dict | None) -> str:
    """`+0.012 [-0.003, +0.027]` for differences, `0.95x [0.90, 1.01]` for ratios; 95 % intervals."""
    if item is None or not np.isfinite(item["value"]):
        return ""
    if item["kind"] == "ratio":
        return f"{item['value']:.3f}x [{item['low']:.3f}, {item['high']:.3f}]"
    return f"{item['value']:+.4f} [{item['low']:+.4f}, {item['high']:+.4f}]"


def table_text(rows: Sequence[dict], names: tuple[str, str]) -> str:
    """The rows as a Markdown table, columns aligned."""
    head = ["", *names, "difference or ratio, 95 %"]
    body = [
        [item["quantity"], format_cell(item["a"]), format_cell(item["b"]), format_difference(item["difference"])]
        for item in rows
    ]
    widths = [max(len(line[i]) for line in (head, *body)) for i in range(4)]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |"
        for line in (head, *body)
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
