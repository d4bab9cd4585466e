"""The report's figures, drawn from the metrics alone (redshifts against redshifts: from the matched objects).

Every function takes `sides`, the metrics of one or two catalogues by their name (one: ""), and returns
(name, figure, caption) of what can be drawn. The errors of figures are 68 % intervals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from deepdisc import plots
from deepdisc.plots import Panel, Series

Drawn = Iterator[tuple[str, Figure, str]]
_QUANTITIES = {
    "by_magnitude": "{band} magnitude", "by_redshift": "true redshift", "by_predicted_redshift": "predicted redshift",
    "by_score": "detection score", "by_odds": "odds of the redshift", "by_snr": "signal-to-noise",
    "by_size": "half-light radius, arcsec", "by_blendedness": "blendedness",
}  # fmt: skip


def binned(rows: Sequence[Mapping], key: str, name: str, color: str, kind: str = "points") -> Series:
    """One figure in bins, at the bins' medians, with its 68 % interval."""
    ends = ("low", "high") if key == "value" else (f"{key}_low", f"{key}_high")
    parts = [[row[part] for row in rows] for part in ("median", key, *ends)]
    x, y, low, high = (np.array([np.nan if v is None else v for v in part], float) for part in parts)
    return Series(name, x, y, np.clip(np.nan_to_num(np.stack((y - low, high - y))), 0, None), kind=kind, color=color)


def _panels_of(
    sides: Mapping[str, Mapping[str, Sequence]], key: str, xlabel: str, ylabel: str, **options
) -> list[Panel]:
    """One panel of a figure in bins, of all sides that have rows; [] if none has."""
    series = [
        binned(rows, key, name, color)
        for color, (name, rows) in zip(plots.SERIES, sides.items(), strict=False)
        if rows and any(row[key] is not None and np.isfinite(row[key]) for row in rows)
    ]
    return [Panel(xlabel, ylabel, series, **options)] if series else []


# ---------------------------------------------------------------------------------------------------------- detections
def detection_figures(sides: Mapping[str, dict], band: str | None) -> Drawn:
    """Completeness and purity in bins, overlap of outlines, where false detections are, classes."""
    of = {name: metrics["detection"] for name, metrics in sides.items()}
    for kind, caption in (
        ("completeness", "Completeness: share of the true objects that must be found which were found."),
        ("purity", "Purity: share of the counted detections that are right."),
    ):
        items = []
        for key in ("by_magnitude", "by_snr", "by_size", "by_blendedness"):
            rows = {name: d[key].get(kind) or [] for name, d in of.items()}
            label = ("true " if kind == "completeness" else "measured ") + _QUANTITIES[key].format(band=band)
            items += _panels_of(rows, "value", label, kind, log_x=key == "by_snr", ylim=(-0.03, 1.04))
        if items:
            yield kind, plots.panels(items), f"{caption} Errors: 68 % Wilson intervals."
    yield from _overlap_figure(of)
    yield from _false_figure(of)


def _overlap_figure(of: Mapping[str, dict]) -> Drawn:
    items = []
    for key in ("boxes", "outlines"):
        series = [
            Series(name, np.array(d["iou"][key]["histogram"]["edges"]), np.array(d["iou"][key]["histogram"]["counts"]),
                   kind="steps", color=color)
            for color, (name, d) in zip(plots.SERIES, of.items(), strict=False)
            if d["iou"][key]["available"]
        ]  # fmt: skip
        items += [Panel(f"intersection over union of {key}", "matched objects", series)] if series else []
    if items:
        yield "overlap", plots.panels(items), "How well the outlines of matched objects agree."


def _false_figure(of: Mapping[str, dict]) -> Drawn:
    items = []
    for key, label in (("near_stars", "bright star"), ("near_edges", "edge of the field")):
        series = []
        for color, (name, d) in zip(plots.SERIES, of.items(), strict=False):
            rows = d["false"].get("excess", {}).get(key) or []
            if rows:
                x = np.array([(row["from"] + row["to"]) / 2 for row in rows])
                y, low, high = (np.array([row[k] for row in rows]) for k in ("excess", "excess_low", "excess_high"))
                high = np.minimum(high, 30)  # where next to nothing is expected the interval has no useful end
                series.append(Series(name, x, y, np.clip(np.stack((y - low, high - y)), 0, None), color=color))
        items += [Panel(f"distance to the nearest {label}, pixels", "false detections / expected", series, level=1.0,
                        ylim=(0, None))] if series else []  # fmt: skip
    if items:
        yield "false", plots.panels(items), "False detections against a uniform distribution; 68 % Poisson intervals."


# ----------------------------------------------------------------------------------------------------------- redshifts
def redshift_figures(sides: Mapping[str, dict], band: str | None) -> Drawn:
    """Predicted against true, figures in bins, densities, n(z), cuts on the odds."""
    of = {name: metrics["redshift"] for name, metrics in sides.items() if metrics["redshift"]["n"]}
    for number, (name, z) in enumerate(of.items()):
        if "arrays" in z:
            figure = plots.redshifts(*z["arrays"], label=f"predicted redshift ({z['estimate']})")
            caption = f"{name + ': ' if name else ''}dashed, off by 0.15 (1 + z)."
            yield "redshifts" + ("_b" if number else ""), figure, caption
    labels = (("bias", "bias of dz/(1+z)", 0.0), ("sigma_nmad", "sigma_NMAD of dz/(1+z)", None),
              ("eta_15", "share with |dz|/(1+z) > 0.15", None))  # fmt: skip
    for key in ("by_magnitude", "by_redshift", "by_predicted_redshift", "by_score", "by_odds"):
        rows = {name: z.get(key) or [] for name, z in of.items()}
        what = _QUANTITIES[key].format(band=band)
        items = [
            panel
            for name, label, level in labels
            for panel in _panels_of(rows, name, what, label, level=level, ylim=None if level == 0 else (0, None))
        ]
        if items:
            yield f"redshift_{key}", plots.panels(items), f"Redshifts by {what}."
    yield from _density_in_bins(of, band)
    yield from _odds_figure(of)
    yield from _distribution_figure(of)
    yield from density_figures(of)


def _density_in_bins(of: Mapping[str, dict], band: str | None) -> Drawn:
    """Sharpness and honesty of densities by magnitude, redshift and score."""
    for key in ("by_magnitude", "by_redshift", "by_score"):
        rows = {name: z["pdf"].get(key) or [] for name, z in of.items()}
        what = _QUANTITIES[key].format(band=band)
        items = [
            panel
            for name, label, level in (("crps", "CRPS", None), ("coverage_68", "share in the central 68 %", 0.68),
                                       ("pit_ks", "KS distance of PIT from uniform", None))
            for panel in _panels_of(rows, name, what, label, level=level, ylim=(0, None))
        ]  # fmt: skip
        if items:
            yield f"density_{key}", plots.panels(items), f"Redshift densities by {what}."


def _odds_figure(of: Mapping[str, dict]) -> Drawn:
    items = []
    for key, label in (("sigma_nmad", "sigma_NMAD"), ("eta_15", "share with |dz|/(1+z) > 0.15")):
        rows = {
            name: [{**row, "median": row["kept"]} for row in z["odds_cut"]["rows"]]
            for name, z in of.items()
            if z["odds_cut"]["available"]
        }
        items += _panels_of(rows, key, "share of the objects kept", label, ylim=(0, None))
    if items:
        yield "odds_cut", plots.panels(items), "When the least certain redshifts are left out, by their odds."


def _distribution_figure(of: Mapping[str, dict]) -> Drawn:
    for number, (name, z) in enumerate(of.items()):
        found = z["distribution"]
        if not found["available"]:
            continue
        items = []
        edges, stacked = np.array(found["edges"]), f"stacked {found['stacked']}"
        for row in found["bins"]:
            whole = row["from"] is None or not np.isfinite(row["from"])
            note = "all" if whole else f"{row['from']:.2f} < predicted z < {row['to']:.2f}"
            series = [
                Series("true", edges, np.array(row["truth"]), np.array(row["truth_err"]), "steps", plots.GREY),
                Series(stacked, edges, np.array(row["stack"]), np.array(row["stack_err"]), "steps", plots.BLUE),
            ]
            items.append(Panel("redshift", "n(z)", series, note=f"{note}, n = {row['n']:,}"))
        caption = f"{name + ': ' if name else ''}redshift distribution, all and in tomographic bins; bootstrap errors."
        yield "n_of_z" + ("_b" if number else ""), plots.panels(items), caption


def density_figures(of: Mapping[str, dict]) -> Drawn:
    """PIT histogram, Q-Q and coverage of redshift densities."""
    pdfs = {name: z["pdf"] for name, z in of.items() if z["pdf"]["available"]}
    if not pdfs:
        return
    items = [
        _pit_panel({name: pdf["histogram"] for name, pdf in pdfs.items()}, "PIT of the true redshift"),
        Panel("expected share below", "observed share below", [
            *_sides_lines(pdfs, "quantile_quantile", "expected", "observed"), _diagonal(),
        ]),
    ]  # fmt: skip
    for key, label in (("central", "central"), ("hdi", "densest")):
        series = []
        for color, (name, pdf) in zip(plots.SERIES, pdfs.items(), strict=False):
            x, y, err = (np.array([row[k] for row in pdf["coverage"]]) for k in ("nominal", key, f"{key}_err"))
            series.append(Series(name, x, y, err, color=color))
        items.append(Panel(f"stated probability ({label})", "share with the truth inside", [*series, _diagonal()]))
    caption = "Honest densities: a flat PIT (grey: 1 and 2 sigma of its counts), and points on the dashed lines."
    yield "densities", plots.panels(items, columns=2), caption


def _diagonal() -> Series:
    return Series("", np.array([0.0, 1]), np.array([0.0, 1]), kind="dashed", color=plots.INK)


def _sides_lines(of: Mapping[str, dict], key: str, x: str, y: str) -> list[Series]:
    return [
        Series(name, np.array(item[key][x]), np.array(item[key][y]), kind="line", color=color)
        for color, (name, item) in zip(plots.SERIES, of.items(), strict=False)
    ]


def _pit_panel(histograms: Mapping[str, dict], label: str) -> Panel:
    first = next(iter(histograms.values()))
    edges = np.array(first["edges"])
    ends = edges[[0, -1]]
    spread = first["expected_err"] / max(first["expected"], 1e-30)
    bands = [
        Series("", ends, np.full(2, 1 - k * spread), np.full(2, 1 + k * spread), "band", plots.GREY) for k in (2, 1)
    ]
    steps = [
        Series(name, edges, np.array(item["counts"]) / max(item["expected"], 1e-30), kind="steps", color=color)
        for color, (name, item) in zip(plots.SERIES, histograms.items(), strict=False)
    ]
    return Panel(label, "objects / expected", [*bands, *steps], level=1.0, note=f"n = {first['n']:,}", ylim=(0, None))


# ----------------------------------------------------------------------------------------------------- fluxes, colours
def flux_figures(sides: Mapping[str, dict]) -> Drawn:
    """Bias, scatter, pulls and PIT of fluxes, per band."""
    bands = {band for metrics in sides.values() for band in metrics["flux"].get("by_band", {})}
    order = [band for metrics in sides.values() for band in metrics["flux"].get("by_band", {})]
    for key, rows_of, label, level in (
        ("bias", "by_magnitude", "median of (f - f$_0$) / f$_0$", 0.0),
        ("scatter", "by_magnitude", "scatter of (f - f$_0$) / f$_0$", None),
        ("pull_width", "pulls_by_magnitude", "width of (f - f$_0$) / error", 1.0),
        ("pit_ks", "pulls_by_magnitude", "KS distance of PIT from uniform", None),
    ):
        items = []
        for band in sorted(bands, key=order.index):
            rows = {name: m["flux"]["by_band"].get(band, {}).get(rows_of) or []
                    for name, m in sides.items() if m["flux"]["available"]}  # fmt: skip
            items += _panels_of(rows, key, f"true {band} magnitude", label, level=level,
                                ylim=None if key == "bias" else (0, None))  # fmt: skip
        if items:
            caption = {"bias": "Bias of the fluxes.", "scatter": "Scatter of the fluxes: half the central 68 %.",
                       "pull_width": "Pulls: 1 where the stated errors are honest.",
                       "pit_ks": "How far the PIT of the true fluxes is from uniform."}[key]  # fmt: skip
            yield f"flux_{key}", plots.panels(items), caption
    items = []
    for band in sorted(bands, key=order.index):
        found = {
            name: m["flux"]["by_band"][band]["histogram"]
            for name, m in sides.items()
            if m["flux"]["available"] and m["flux"]["by_band"].get(band, {}).get("n_pull")
        }
        items += [_pit_panel(found, f"PIT of the true {band} flux")] if found else []
    if items:
        yield "flux_pit", plots.panels(items), "Flat where the stated errors or densities are honest."


def colour_figures(sides: Mapping[str, dict]) -> Drawn:
    """Bias and scatter of colours."""
    names = list(dict.fromkeys(c for m in sides.values() for c in m["colour"].get("by_colour", {})))
    for key, caption in (
        ("bias", "Bias of the colours."),
        ("scatter", "Scatter of the colours: half the central 68 %."),
    ):
        items = []
        for colour in names:
            rows = {name: m["colour"]["by_colour"][colour]["by_magnitude"]
                    for name, m in sides.items() if colour in m["colour"].get("by_colour", {})}  # fmt: skip
            options = {"level": 0.0} if key == "bias" else {"ylim": (0, None)}
            items += _panels_of(rows, key, "true magnitude", f"{key} of {colour}, mag", **options)
        if items:
            yield f"colour_{key}", plots.panels(items), caption
    items = []
    for colour in names:
        found = {name: m["colour"]["by_colour"][colour]["histogram"]
                 for name, m in sides.items() if colour in m["colour"].get("by_colour", {})}  # fmt: skip
        items += _histogram_panel(colour, {name: item for name, item in found.items() if item["counts"]})
    if items:
        yield "colour_histograms", plots.panels(items), "Histograms of the colours: errors widen the true ones (grey)."


def _histogram_panel(colour: str, found: Mapping[str, dict]) -> list[Panel]:
    if not found:
        return []
    first = next(iter(found.values()))
    series = [Series("true", np.array(first["edges"]), np.array(first["truth"]), kind="steps", color=plots.GREY)]
    series += [
        Series(name or "measured", np.array(item["edges"]), np.array(item["counts"]), kind="steps", color=color)
        for color, (name, item) in zip(plots.SERIES, found.items(), strict=False)
    ]
    return [Panel(f"{colour}, mag", "objects", series)]


# --------------------------------------------------------------------------------------------------------------- shear
def shear_figures(sides: Mapping[str, dict], band: str | None) -> Drawn:
    """Multiplicative and additive bias in bins; two-point function of the residuals."""
    of = {name: m["shear"] for name, m in sides.items() if m["shear"]["available"]}
    for key, label in (("m", "multiplicative bias m"), ("c", "additive bias c")):
        items = []
        for bins in ("by_magnitude", "by_redshift", "by_size", "by_snr"):
            rows = {name: shear.get(bins) or [] for name, shear in of.items()}
            items += _panels_of(
                rows, key, _QUANTITIES[bins].format(band=band), label, level=0.0, log_x=bins == "by_snr"
            )
        if items:
            yield f"shear_{key}", plots.panels(items), f"Shear: {label}, mean of both components."
    items = []
    for key, label in (("xip", r"$\xi_+$ of the residuals"), ("xim", r"$\xi_-$ of the residuals")):
        series = []
        for color, (name, shear) in zip(plots.SERIES, of.items(), strict=False):
            rows = shear["correlation"].get("rows") or []
            if rows:
                parts = ([row[k] for row in rows] for k in ("theta_arcmin", key, f"{key}_err"))
                x, y, err = (np.array([np.nan if v is None else v for v in part], float) for part in parts)
                series.append(Series(name, x, y, np.nan_to_num(err), color=color))
        items += [Panel("separation, arcmin", label, series, log_x=True, level=0.0)] if series else []
    if items:
        yield (
            "shear_correlation",
            plots.panels(items),
            "Two-point functions of measured minus true shear; jackknife errors.",
        )


# ---------------------------------------------------------------------------------------------------------- comparison
def comparison_figures(comparison: dict) -> Drawn:
    """Purity against completeness of both catalogues."""
    detection = comparison["detection"]
    curves = {
        name: (np.array(detection["curves"][side]["completeness"]), np.array(detection["curves"][side]["purity"]))
        for side, name in zip("ab", comparison["names"], strict=True)
        if side in detection["curves"]
    }
    if curves:
        label = "completeness" + (", S/N > 10" if detection["curve_completeness"].endswith("10") else "")
        figure = plots.purity_against_completeness(curves, label)
        yield "purity_against_completeness", figure, "Purity and completeness as the score threshold moves."
