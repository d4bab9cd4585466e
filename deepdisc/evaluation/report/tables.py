"""The report's tables, from the metrics alone: every figure with its error, 68 % interval and number of objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from deepdisc.evaluation.printed import format_cell, format_difference, measured, number, overview
from deepdisc.evaluation.report.words import figure_rows, flatten, interval, percent
from deepdisc.webpage import folded, paragraph, table

_HEAD = ("", "value", "68 %", "n")


def titled(title: str, inner: str) -> str:
    """A small section; `title` is our own text."""
    return f"<div><h3>{title}</h3>{inner}</div>"


def _missing(part: Mapping) -> str:
    return paragraph(f"Not available: {part['reason']}.", "quiet")


# ---------------------------------------------------------------------------------------------------------- detections
def detection_tables(d: dict) -> list[str]:
    """Counts, positions, AP, blends and classes."""
    tables = [_counts(d), _precision(d), _pairs(d["blended_pairs"]), _deblending(d["deblending"]), _classes(d)]
    return [text for text in tables if text]


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
    if d["by_position"]["available"] and d["matched_by"] != "pixels":
        near = d["by_position"]
        label = f"matched within {near['max_distance_pix']:g} pixels instead: completeness, purity"
        rows.append((label, f"{percent(near, 'completeness')}, {percent(near, 'purity')}"))
    for kind in ("boxes", "outlines"):
        iou = d["iou"][kind]
        if iou["available"] and iou["n"]:
            rows.append((f"median overlap (IoU) of matched {kind}", number(iou, "median")))
    return titled("Counts", table(("", ""), rows))


def _precision(d: dict) -> str:
    rows = []
    for kind in ("boxes", "outlines"):
        part = d[kind]
        if not part["available"]:
            rows.append((kind, part["reason"], "", "", ""))
            continue
        for label, item in ((kind, part), *((f"... {size}", item) for size, item in part.get("by_size", {}).items())):
            if item["n_truth"]:
                cells = (percent(item, name) for name in ("ap", "ap50", "ap75"))
                rows.append((label, *cells, f"{item['n_truth']:,}"))
    head = ("", "AP .50:.95", "AP50", "AP75", "true objects")
    return titled("COCO average precision, no limit on the number of detections", table(head, rows))


def _pairs(pairs: dict) -> str:
    if not pairs["available"]:
        return titled("Blended pairs", _missing(pairs))
    rows = [
        (f"{row['from']:g} - {row['to']:g}", f"{100 * row['value']:.1f} ± {100 * row['err']:.1f} %", f"{row['n']:,}")
        for row in pairs["by_separation"]
    ]
    title = f"Blended pairs, both S/N &gt; {pairs['snr_min']:g}"
    return titled(title, table(("separation, PSF FWHM", "both found", "pairs"), rows))


def _deblending(found: dict) -> str:
    texts = []
    if found["available"]:
        words = f"Deblending: groups closer than {found['closer_than_fwhm']:g} FWHM"
        texts.append(titled(words, _matrix(found)))
    if "by_overlap" in found:
        texts.append(titled("Deblending: groups of overlapping outlines", _matrix(found["by_overlap"])))
    return "".join(texts)


def _matrix(found: dict) -> str:
    """How many of a group's objects were found, and the groups by true and detected number of members."""
    rows = [
        (f"{row['n_truth']}", percent(row, "right"), percent(row, "merged"), percent(row, "shredded"), f"{row['n']:,}")
        for row in found["rows"]
    ]
    head = ("true objects in the group", "as many detected", "fewer", "more", "groups")
    text = table(head, rows)
    counts = np.array(found["counts"])
    if counts.any():
        size = max(np.flatnonzero(counts.any(0) | counts.any(1)).max() + 1, 2)
        most = found["most"]
        names = [f"{i}{'+' if i == most else ''}" for i in range(size)]
        lines = [(f"{name} true", *(f"{n:,}" for n in counts[i, :size])) for i, name in enumerate(names)]
        text += table(("groups with", *(f"{name} detected" for name in names)), lines)
    return text


def _classes(d: dict) -> str:
    rows = [
        (name, percent({**item, "value_err": item["err"]}, "value"), f"{item['n']:,}")
        for name, item in d["by_class"].items()
    ]
    text = table(("true class", "found", "n"), rows) if rows else ""
    c = d["classification"]
    if c["available"] and c["n"]:
        text += paragraph(f"Class right for {percent(c, 'accuracy')} of {c['n']:,} matched objects.")
        called = list(dict.fromkeys(name for line in c["counts"].values() for name in line))
        every = dict.fromkeys((*c["counts"], *(name for name, n in c["missed"].items() if n)))
        lines = [
            (true, *(f"{c['counts'].get(true, {}).get(name, 0):,}" for name in called), f"{c['missed'].get(true, 0):,}")
            for true in every
        ]
        lines.append(("(false detection)", *(f"{c['false'].get(name, 0):,}" for name in called), ""))
        text += table(("true class", *(f"called {name}" for name in called), "not detected"), lines)
        lines = [
            (name, percent(item, "completeness"), percent(item, "purity"), f"{item['n_truth']:,}")
            for name, item in c["classes"].items()
        ]
        text += table(("class", "found and called so", "right of those called so", "n"), lines)
    return titled("Classes", text) if text else ""


# ----------------------------------------------------------------------------------------------------------- redshifts
_POINT = (("bias", "bias"), ("sigma_NMAD", "sigma_nmad"), ("sigma_IQR", "sigma_iqr"),
          ("outliers, |d| > 0.15", "eta_15"), ("outliers, |d| > max(0.06, 3 sigma_IQR)", "eta_iqr"))  # fmt: skip
_DENSITY = (
    ("CRPS", "crps"), ("CDE loss", "cde_loss"), ("in the central 68 %", "coverage_68"),
    ("in the central 95 %", "coverage_95"), ("in the densest 68 %", "coverage_hdi_68"),
    ("in the densest 95 %", "coverage_hdi_95"), ("PIT outliers (below 1e-4, above 0.9999)", "pit_outliers"),
    ("PIT, mean", "pit_mean"), ("PIT, Kolmogorov-Smirnov", "pit_ks"), ("... probability by chance", "pit_ks_p"),
    ("PIT, Cramér-von Mises", "pit_cvm"), ("... probability by chance", "pit_cvm_p"),
    ("PIT, Anderson-Darling", "pit_ad"), ("... probability by chance", "pit_ad_p"),
)  # fmt: skip


def redshift_tables(z: dict) -> list[str]:
    """Point estimates, densities, n(z), flags."""
    names = [name for _, name in _POINT]
    rows = [(name, *(number(v, key) for key in names), f"{v['n']:,}") for name, v in z["by_estimate"].items()]
    tables = [titled("Point estimates, d = dz/(1+z)", table(("", *(label for label, _ in _POINT), "n"), rows))]
    pdf = z["pdf"]
    if pdf["available"]:
        tables.append(titled("Densities", table(_HEAD, figure_rows(pdf, _DENSITY, pdf["n"]))))
    else:
        tables.append(titled("Densities", _missing(pdf)))
    if z["distribution"]["available"]:
        tables.append(_distribution(z["distribution"]))
    if len(z["by_flag"]) > 1:
        flagged = [(k, f"{v['n']:,}", number(v, "sigma_nmad"), percent(v, "eta_15")) for k, v in z["by_flag"].items()]
        text = table(("flag", "n", "sigma_NMAD", "|d| > 0.15"), flagged)
        tables.append(titled("By flag (flagged objects are included above)", text))
    return tables


def _distribution(found: dict) -> str:
    rows = []
    for row in found["bins"]:
        whole = row["from"] is None or not np.isfinite(row["from"])
        label = "all" if whole else f"{row['from']:.2f} - {row['to']:.2f}"
        rows.append((label, *(number(row, key) for key in ("mean_bias", "width_bias", "ks")), f"{row['n']:,}"))
    head = ("predicted redshift", "bias of the mean / (1+z)", "bias of the width / (1+z)", "KS distance", "n")
    return titled(f"Redshift distribution, stacked {found['stacked']}", table(head, rows))


# ----------------------------------------------------------------------------------------- fluxes, colours and shears
def flux_tables(flux: dict) -> list[str]:
    """One line per band."""
    keys = (("bias", "bias"), ("scatter", "scatter"), ("mean pull", "pull_mean"), ("width of pulls", "pull_width"),
            ("|pull| > 3", "pull_beyond_3"), ("|pull| > 5", "pull_beyond_5"), ("PIT, KS", "pit_ks"))  # fmt: skip
    rows = [
        (band, *(number(item, key) if key in item else "" for _, key in keys), f"{item['n']:,}", f"{item['n_pull']:,}")
        for band, item in flux["by_band"].items()
    ]
    note = paragraph("Relative to the true flux; pulls: differences over their stated errors.", "quiet")
    return [titled("Fluxes", note + table(("band", *(label for label, _ in keys), "n", "n with errors"), rows))]


def pulls_between_table(found: Mapping) -> str:
    """Differences of two catalogues' fluxes over their errors; "" where not both have errors."""
    keys = (("median", "pull_median"), ("width", "pull_width"), ("beyond 3", "pull_beyond_3"))
    rows = [
        (band, *(number(item, key) for _, key in keys), f"{item['n']:,}")
        for band, item in found.get("by_band", {}).items()
        if item["n"]
    ]
    if not rows:
        return ""
    words = "(f1 - f2) / (s1² + s2²)^½ of the same objects: of width 1 if the noise is independent and the errors are "
    words += "honest, narrower where both are measured on the same pixels."
    head = ("band", *(label for label, _ in keys), "n")
    return titled("Fluxes of the two against each other", paragraph(words, "quiet") + table(head, rows))


def colour_tables(colour: dict) -> list[str]:
    """One line per colour, and the stellar locus."""
    keys = ("bias", "scatter", "width", "width_truth")
    pulls = any(item["n_pull"] for item in colour["by_colour"].values())
    rows = []
    for name, item in colour["by_colour"].items():
        width = [number(item, "pull_width")] if pulls else []
        rows.append((name, *(number(item, key) for key in keys), *width, f"{item['n']:,}"))
        for kind, part in item["by_class"].items():
            if part["n"]:
                rows.append((f"... {kind}", *(number(part, key) for key in keys), *[""] * pulls, f"{part['n']:,}"))
    head = ("", "bias", "scatter", "width of the histogram", "true width", *["width of pulls"] * pulls, "n")
    tables = [titled("Colours, mag", table(head, rows))]
    locus = [
        (name, number(item, "width"), number(item, "width_truth"), f"{item['n']:,}")
        for name, item in colour["stellar_locus"].items()
        if isinstance(item, dict) and item.get("available")
    ]
    if locus:
        tables.append(titled("Stellar locus, mag", table(("", "width", "true width", "stars"), locus)))
    return tables


def shear_tables(shear: dict) -> list[str]:
    """Biases with bootstrap and jackknife errors; residuals of averages."""
    rows = []
    for name in ("m", "c", "m1", "c1", "m2", "c2", *(key for key in shear if key.startswith("alpha"))):
        if name in shear and not name.endswith(("_err", "_low", "_high")):
            jackknife = shear.get(f"{name}_jackknife_err")
            text = "" if jackknife is None else f"{jackknife:.2g}"
            rows.append((name, number(shear, name), interval(shear, name), text, f"{shear['n']:,}"))
    text = paragraph(f"Errors: bootstrap over {shear['resampled']}.", "quiet")
    tables = [titled("Shear bias", text + table(("", "value", "68 %", "jackknife error", "n"), rows))]
    rows = [
        (f"{row['n_averaged']:,}", measured(row["rmse"], row["rmse_err"]), f"{row['n_groups']:,}")
        for row in shear["rmse"]
    ]
    tables.append(titled("Residuals of averages", table(("objects averaged", "rms residual", "groups"), rows)))
    return tables


# ------------------------------------------------------------------------------------------------------- whole metrics
def comparison_table(comparison: dict) -> str:
    """Side by side, with paired differences."""
    rows = [
        (row["quantity"], format_cell(row["a"]), format_cell(row["b"]), format_difference(row["difference"]))
        for row in comparison["table"]
    ]
    return table(("", *comparison["names"], "difference or ratio, 95 %"), rows)


def overview_table(metrics: dict) -> str:
    """The figures of several fields that matter most."""
    return f'<div class="overview">{table(*overview(metrics))}</div>'


def left_out_table(metrics: dict) -> str:
    """Counted exclusions of all parts."""
    rows = [
        (f"{part}: {reason}" if part != "detection" else reason, f"{n:,}")
        for part, found in _exclusions(metrics)
        for reason, n in found.items()
    ]
    return table(("", "objects"), rows)


def _exclusions(metrics: dict) -> list[tuple[str, Mapping[str, int]]]:
    parts = [("detection", metrics["detection"]["excluded"]), ("redshift", metrics["redshift"].get("excluded", {}))]
    parts.append(("redshift densities", metrics["redshift"].get("pdf", {}).get("excluded", {})))
    for band, item in metrics["flux"].get("by_band", {}).items():
        parts.append((f"flux, {band}", item["excluded"]))
    for name, item in metrics["colour"].get("by_colour", {}).items():
        parts.append((f"colour {name}", item["excluded"]))
    parts.append(("shear", metrics["shear"].get("excluded", {})))
    return parts


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)


def provenance_tables(provenance: Mapping) -> list[str]:
    """Files with their hashes, options, versions, and what made the catalogue."""
    command = provenance["command"] or "called from Python"
    run = [("time (UTC)", provenance["time_utc"]), *provenance["versions"].items()]
    files = [
        (
            item["role"],
            item["path"] or "in memory",
            f"{item['bytes']:,}" if item["bytes"] is not None else "",
            item["sha256"] or "",
        )
        for item in provenance["files"]
    ]
    options = [(name, str(value)) for name, value in provenance["options"].items() if value is not None]
    tables = [
        paragraph(f"Command: {command}"), titled("This evaluation", table(("", ""), run)),
        titled("Files", table(("", "file", "bytes", "sha256"), files)),
        titled("Options", table(("", ""), options)) if options else "",
    ]  # fmt: skip
    for name, record in provenance["predictions"].items():
        rows: Sequence[tuple[str, str]] = [(path, _shown(value)) for path, value in flatten(record)]
        tables.append(folded(f"run.json of {name}: model, checkpoint, bands, versions", table(("", ""), rows)))
    return [text for text in tables if text]
