"""The HTML report: one file that opens offline, with a summary in words, tables with counts and errors, and figures."""

from __future__ import annotations

import os

import numpy as np

from deepdisc import plots
from deepdisc.catalog import BOX_COLUMNS, POSITION_COLUMNS
from deepdisc.evaluation import pixels
from deepdisc.evaluation.comparison import format_cell, format_difference
from deepdisc.evaluation.scoring import Scored, Setting
from deepdisc.webpage import cards, image, paragraph, table, write_page


def write_report(
    path: str | os.PathLike,
    scored: Scored,
    setting: Setting,
    *,
    outlines: np.ndarray | None = None,
    other: Scored | None = None,
    names: tuple[str, str] = ("this catalogue", "the other"),
) -> None:
    """Write the report.

    Args:
        path: the HTML file.
        scored: the catalogue.
        setting: how it was scored.
        outlines: (h, w) its segmentation map, for the picture.
        other: a second catalogue, drawn beside it; `scored.metrics["comparison"]` must be there.
        names: of the two.
    """
    detection, redshift = scored.metrics["detection"], scored.metrics["redshift"]
    sections = [
        *(paragraph(text, "lead") for text in summary(scored, setting)),
        _cards(detection, redshift),
        _picture(scored, setting, outlines),
        _comparison(scored, names) if other is not None else "",
        _detections(scored, setting, other, names),
        _redshifts(scored),
        _left_out(scored),
    ]
    write_page(path, "deepdisc evaluation", "How good is this catalogue?", sections)


# --------------------------------------------------------------------------------------------------------------- words
def summary(scored: Scored, setting: Setting) -> list[str]:
    """Two or three paragraphs in plain words."""
    d = scored.metrics["detection"]
    texts = [
        f"Of {d['n_truth']:,} true objects that had to be found, {d['n_matched']:,} were found: "
        f"{percent(d, 'completeness')}. "
        f"Of {d['n_pred']:,} detections, {d['n_false']:,} are false: purity {percent(d, 'purity')}. "
        f"A detection and a true object are the same when matched one-to-one by {setting.criterion}."
    ]
    if d["n_excused"]:
        texts[0] += f" {d['n_excused']:,} detections of objects too faint to be required count neither way."
    if d["completeness_snr10_n"]:
        texts[0] += (
            f" Of the {d['completeness_snr10_n']:,} with a signal-to-noise above 10, "
            f"{percent(d, 'completeness_snr10')} were found."
        )
    pairs = d["blended_pairs"]
    if pairs["available"] and pairs["n"]:
        texts.append(
            f"Both members were found, as two objects, in {pairs['n_recovered']:,} of {pairs['n']:,} pairs closer than "
            f"{pairs['closer_than_fwhm']:g} times the width of the PSF: {percent(pairs, 'recovered')}."
        )
    z = scored.metrics["redshift"]
    if not z["available"]:
        texts.append(f"Redshifts are not scored: {z['reason']}.")
    elif z["n"]:
        texts.append(
            f"Redshifts of {z['n']:,} matched objects scatter by {number(z, 'sigma_nmad')} in dz/(1+z), "
            f"with a bias of {number(z, 'bias')}; {percent(z, 'eta_15')} are off by more than 0.15. "
            f"One and the same redshift for all "
            f"would scatter by {z['constant_guess_sigma_nmad']:.3f}."
        )
    return texts


def percent(values: dict, name: str) -> str:
    """`91.2 ± 0.4 %`, or words where there is nothing."""
    value, err = values[name], values.get(f"{name}_err", float("nan"))
    if not np.isfinite(value):
        return "not measurable"
    return f"{100 * value:.1f}" + (f" ± {100 * err:.1f}" if np.isfinite(err) else "") + " %"


def number(values: dict, name: str) -> str:
    """`0.0312 ± 0.0011`."""
    value, err = values[name], values.get(f"{name}_err", float("nan"))
    if not np.isfinite(value):
        return "not measurable"
    return f"{value:.4f}" + (f" ± {err:.4f}" if np.isfinite(err) else "")


# ---------------------------------------------------------------------------------------------------------------- HTML
def _image(figure, caption: str) -> str:
    return image(plots.png(figure), caption)


def _cards(detection: dict, redshift: dict) -> str:
    items = [
        ("completeness", percent(detection, "completeness"), f"n = {detection['completeness_n']:,}"),
        ("purity", percent(detection, "purity"), f"n = {detection['purity_n']:,}"),
    ]
    if detection["boxes"]["available"]:
        items.append(("AP, IoU .50:.95", percent(detection, "ap"), f"AP50 {percent(detection, 'ap50')}"))
    if redshift["available"] and redshift["n"]:
        items.append(("sigma_NMAD", number(redshift, "sigma_nmad"), f"n = {redshift['n']:,}"))
        items.append(("outliers > 0.15", percent(redshift, "eta_15"), f"n = {redshift['n']:,}"))
    return cards(items)


# ------------------------------------------------------------------------------------------------------------ sections
def _picture(scored: Scored, setting: Setting, outlines: np.ndarray | None) -> str:
    if setting.mosaic is None:
        return "<h2>The field</h2>" + paragraph("No picture: no mosaic was given.", "quiet")
    if not any({*columns} <= set(scored.pred.columns) for columns in (BOX_COLUMNS, POSITION_COLUMNS)):
        text = "No picture: the catalogue has no positions in pixels, and the mosaic has no WCS."
        return "<h2>The field</h2>" + paragraph(text, "quiet")
    part = pixels.picture(setting.mosaic, scored.pred)
    (x0, y0), (h, w) = part.origin, part.image.shape[1:]
    pred, result = scored.pred, scored.assessment
    kinds = np.where(result.correct, "correct", np.where(result.excused, "excused", "false"))
    if set(BOX_COLUMNS) <= set(pred.columns):
        boxes = pred[list(BOX_COLUMNS)].to_numpy(float)
    else:  # a catalogue of points: a small square around each
        x, y = pred["x"].to_numpy(float), pred["y"].to_numpy(float)
        boxes = np.stack((x - 3.5, y - 3.5, x + 4.5, y + 4.5), axis=1)
    missed = np.zeros((0, 2))
    if {"x", "y"} <= set(setting.truth.columns):
        missed = setting.truth[["x", "y"]].to_numpy(float)[result.required & ~result.found]
    cut = None
    if outlines is not None and "id" in pred.columns:
        labels = np.asarray(outlines[y0 : y0 + h, x0 : x0 + w])
        cut = np.where(np.isin(labels, pred["id"].to_numpy()[result.correct]), labels, 0)
    figure = plots.field(plots.asinh_rgb(part.image), part.origin, boxes, kinds, missed, cut)
    caption = (
        f"Pixels {x0} to {x0 + w} in x and {y0} to {y0 + h} in y; "
        f"red, green, blue = {', '.join(part.bands)}, asinh scale. "
        "Right: what was detected and what was missed."
    )
    return "<h2>The field</h2>" + _image(figure, caption)


def _comparison(scored: Scored, names: tuple[str, str]) -> str:
    comparison = scored.metrics["comparison"]
    rows = [
        (row["quantity"], format_cell(row["a"]), format_cell(row["b"]), format_difference(row["difference"]))
        for row in comparison["table"]
    ]
    detection = comparison["detection"]
    curves = {
        name: (np.array(detection["curves"][side]["completeness"]), np.array(detection["curves"][side]["purity"]))
        for side, name in zip("ab", names, strict=True)
        if side in detection["curves"]
    }
    label = "completeness" + (", S/N > 10" if detection["curve_completeness"].endswith("10") else "")
    figure = _image(plots.purity_against_completeness(curves, label), "Purity and completeness as the threshold moves.")
    note = f"Matched by {detection['matched_by']}; at equal purity: {detection['equal_purity']['note']}. "
    note += "Errors are bootstrap standard deviations; intervals hold 95 % of paired resamplings."
    redshift = comparison["redshift"]
    note += f" Redshifts: {redshift['n']:,} objects that both have." if redshift["available"] else ""
    text = "<h2>Side by side</h2>" + paragraph(note, "quiet")
    return text + table(("", *names, "difference or ratio, 95 %"), rows) + (figure if curves else "")


def _detections(scored: Scored, setting: Setting, other: Scored | None, names: tuple[str, str]) -> str:
    d = scored.metrics["detection"]
    sides = {names[0] if other else "": scored, **({names[1]: other} if other else {})}
    panels = []
    logarithmic = []
    for key, what in (("by_magnitude", f"{setting.band} magnitude"), ("by_snr", "signal-to-noise")):
        for kind, who in (("completeness", "true"), ("purity", "detected")):
            curves = {name: side.metrics["detection"][key][kind] for name, side in sides.items()}
            if any(curves.values()):
                panels.append((f"{who} {what}", kind, curves))
                logarithmic.append(key == "by_snr")
    figures = "".join(
        _image(plots.fractions(panels[i : i + 2], logarithmic[i : i + 2]), "Bars: 68 % Wilson intervals.")
        for i in range(0, len(panels), 2)
    )
    if not d["by_magnitude"]["purity"]:
        figures += paragraph(
            "Purity by magnitude needs magnitudes of the detections, or the mosaic to sum their light.", "quiet"
        )
    return (
        "<h2>Detections</h2>" + figures + f'<div class="row">{_counts(d)}{_precision(d)}</div>'
        + f'<div class="row">{_pairs(d["blended_pairs"])}{_classes(d)}</div>'
    )  # fmt: skip


def _counts(d: dict) -> str:
    rows = [
        ("true objects required", f"{d['n_truth']:,}"),
        ("... found", f"{d['n_matched']:,}"),
        ("detections", f"{d['n_pred']:,}"),
        ("... of objects not required (excused)", f"{d['n_excused']:,}"),
        ("... false", f"{d['n_false']:,}"),
    ]
    if "on_sky" in d["false"]:
        rows.append(("... false, overlapping a true object", f"{d['false']['on_an_object']:,}"))
        rows.append(("... false, on empty sky", f"{d['false']['on_sky']:,}"))
    p = d["position"]
    if p["available"] and p["n"]:
        rows.append(("median offset in x, pixels", number(p, "dx")))
        rows.append(("median offset in y, pixels", number(p, "dy")))
        rows.append(("scatter per axis, pixels", number(p, "scatter")))
    if d["by_position"]["available"]:
        near = d["by_position"]
        label = f"matched within {near['max_distance_pix']:g} pixels instead: completeness, purity"
        rows.append((label, f"{100 * near['completeness']:.1f} %, {100 * near['purity']:.1f} %"))
    return "<div><h3>Counts</h3>" + table(("", ""), rows) + "</div>"


def _precision(d: dict) -> str:
    rows = []
    for label, key in (("boxes", "boxes"), ("outlines", "outlines")):
        part = d[key]
        if part["available"]:
            rows.append((label, *(percent(part, name) for name in ("ap", "ap50", "ap75")), f"{part['n_truth']:,}"))
        else:
            rows.append((label, part["reason"], "", "", ""))
    text = "<div><h3>COCO average precision, no limit on the number of detections</h3>"
    return text + table(("", "AP .50:.95", "AP50", "AP75", "true objects"), rows) + "</div>"


def _pairs(pairs: dict) -> str:
    if not pairs["available"]:
        return "<div><h3>Blended pairs</h3>" + paragraph(f"Not available: {pairs['reason']}.", "quiet") + "</div>"
    rows = [
        (f"{row['from']:g} - {row['to']:g}", f"{100 * row['value']:.1f} ± {100 * row['err']:.1f} %", f"{row['n']:,}")
        for row in pairs["by_separation"]
    ]
    head = ("separation, PSF FWHM", "both found", "pairs")
    return f"<div><h3>Blended pairs, both S/N &gt; {pairs['snr_min']:g}</h3>{table(head, rows)}</div>"


def _classes(d: dict) -> str:
    rows = [(name, percent(item, "value"), f"{item['n']:,}") for name, item in d["by_class"].items()]
    text = "<div><h3>By class</h3>" + table(("true class", "completeness", "n"), rows) if rows else "<div>"
    c = d["classification"]
    if c["available"] and c["n"]:
        text += paragraph(f"Class right for {percent(c, 'accuracy')} of {c['n']:,} matched objects.")
    return text + "</div>"


def _redshifts(scored: Scored) -> str:
    z = scored.metrics["redshift"]
    if not z["available"] or not z["n"]:
        return "<h2>Redshifts</h2>" + paragraph(f"Not available: {z.get('reason', 'no object could be scored')}.")
    names = ("bias", "sigma_nmad", "sigma_iqr", "eta_15", "eta_iqr")
    rows = [(name, *(number(values, key) for key in names)) for name, values in z["by_estimate"].items()]
    text = "<h2>Redshifts</h2>" + table((f"n = {z['n']:,}", *names), rows)
    figures = _image(plots.redshifts(*z["arrays"], label=z["estimate"]), "Dashed: off by 0.15 (1 + z).")
    pdf = z["pdf"]
    if pdf["available"]:
        right = _image(plots.pit(pdf["pit"]), "Flat for honest PDFs; grey: the 1 and 2 sigma range of counts.")
        labels = {
            "pit_ks": "PIT, Kolmogorov-Smirnov", "pit_ad": "PIT, Anderson-Darling", "pit_outliers": "PIT outliers",
            "cde_loss": "CDE loss", "crps": "CRPS",
            "coverage_68": "in the central 68 %", "coverage_95": "in the central 95 %",
            "coverage_hdi_68": "in the densest 68 %", "coverage_hdi_95": "in the densest 95 %",
        }  # fmt: skip
        right += table((f"PDFs, n = {pdf['n']:,}", ""), [(label, number(pdf, key)) for key, label in labels.items()])
    else:
        right = paragraph(f"PDFs are not scored: {pdf['reason']}.", "quiet")
    text += f'<div class="row">{figures}<div>{right}</div></div>'
    if len(z["by_flag"]) > 1:
        flagged = [
            (k, f"{v['n']:,}", f"{v['sigma_nmad']:.4f}", f"{100 * v['eta_15']:.1f} %") for k, v in z["by_flag"].items()
        ]
        text += "<h3>By flag (flagged objects are included above)</h3>"
        text += table(("flag", "n", "sigma_NMAD", "eta_15"), flagged)
    return text


def _left_out(scored: Scored) -> str:
    d, z = scored.metrics["detection"], scored.metrics["redshift"]
    rows = [(reason, f"{n:,}") for reason, n in {**d["excluded"], **z.get("excluded", {})}.items()]
    notes = "".join(paragraph(note) for note in scored.metrics["notes"])
    return "<h2>What was left out, and what was added</h2>" + table(("", "objects"), rows) + notes
