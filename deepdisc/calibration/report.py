"""What a calibration changed: figures as JSON, and a page with reliability plots before and after.

Every object is shown as the fit to the other half of the objects leaves it: nothing is judged on what it was fitted to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepdisc import plots, webpage
from deepdisc.calibration.calibrate import Calibration, Quantity
from deepdisc.calibration.fit import FORMS, MixtureFit
from deepdisc.calibration.fit_shear import ShearFit
from deepdisc.evaluation import pit as pit_tests
from deepdisc.evaluation.flux import pull_metrics, sigma_68
from deepdisc.files import atomic_folder, write_json
from deepdisc.heads.calibration import MixtureCalibration
from deepdisc.mixture import Mixture
from deepdisc.plots import Panel, Series

LEVELS = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.68, 0.8, 0.9, 0.95, 0.99])
_BINS = 6
_COLORS = {"before": plots.ORANGE, "after": plots.BLUE}
_WORDS = {
    "identity": "unchanged: nothing gained on objects held out",
    "constant": "one width and shift for all",
    "varying": "width and shift that vary with mean / width",
    "PIT": "width and shift, and the shape of the PIT",
    "response": "response, additive bias and width",
}


def write_report(calibration: Calibration, folder: str | Path) -> Path:
    """Write calibration.json and report.html into a new folder and return the page.

    Raises:
        InputError: the folder exists or cannot be written.
    """
    folder = Path(folder)
    scored = [(item, list(_views(item))) for item in calibration.quantities]
    with atomic_folder(folder) as temporary:
        write_json(temporary / "calibration.json", figures(calibration))
        sections = [_lead(calibration), _summary(scored), *(_section(item, views) for item, views in scored if views)]
        webpage.write_page(temporary / "report.html", "Calibration", "Calibration", sections)
    return folder / "report.html"


def figures(calibration: Calibration) -> dict[str, Any]:
    """Everything that the page says, as plain values."""
    matched = calibration.matched
    return {
        **calibration.about,
        "output": calibration.path.name,
        "true_objects": matched.objects,
        "detections": matched.detections,
        "matched": len(matched.tile),
        "novelty": calibration.novelty,
        "quantities": [_figures(item) for item in calibration.quantities],
    }


def _figures(item: Quantity) -> dict[str, Any]:
    result: dict[str, Any] = {"head": item.head, "name": item.name, "n": item.count, "form": item.form}
    if item.reason:
        result["reason"] = item.reason
    if item.fit is None:
        return result
    result["values"] = {name: value.tolist() for name, value in item.fit.values.items()}
    if isinstance(item.fit, MixtureFit):
        result["gains"] = {form: {"mean": gain, "err": error} for form, (gain, error) in item.fit.gains.items()}
    else:
        result["response"] = {"before": item.fit.response, "after": item.fit.corrected}
    for name, before, after, truth in _views(item):
        result.setdefault("scores", {})[name] = {"before": scores(before, truth), "after": scores(after, truth)}
    return result


def _views(item: Quantity) -> Iterator[tuple[str, Mixture, Mixture, Tensor]]:
    """(name, PDFs before, after, true values) of each one-dimensional quantity."""
    if isinstance(item.fit, MixtureFit):
        yield item.name, item.fit.before, item.fit.after, item.truth
    elif isinstance(item.fit, ShearFit):
        for i in (0, 1):
            before, after = (pdf.marginal(i) for pdf in (item.fit.before, item.fit.after))
            yield f"{item.name} {i + 1}", before, after, item.truth[:, i]


def scores(pdf: Mixture, truth: Tensor) -> dict[str, Any]:
    """PIT, coverage and pulls of PDFs (N,) against true values (N,)."""
    u, pull = _pit(pdf, truth), _pull(pdf, truth)
    return {
        **{f"pit_{name}": value for name, value in pit_tests.uniformity(u).items()},
        **{f"pit_{name}": value for name, value in pit_tests.p_values(u).items()},
        "histogram": pit_tests.histogram(u),
        "quantile_quantile": pit_tests.quantile_quantile(u),
        "coverage": [{"nominal": level, "found": share} for level, share in zip(LEVELS, _coverage(u), strict=True)],
        **pull_metrics(pull),
        "crps": float(pdf.crps(truth.to(pdf.logits)).double().mean()),
        "median_width": float(pdf.std().median()),
    }


def _pit(pdf: Mixture, truth: Tensor) -> np.ndarray:
    return pdf.cdf(truth.to(pdf.logits)).double().numpy()


def _pull(pdf: Mixture, truth: Tensor) -> np.ndarray:
    return ((pdf.mean() - truth) / pdf.std()).double().numpy()


def _coverage(u: np.ndarray) -> np.ndarray:
    return (np.abs(u - 0.5)[:, None] <= LEVELS / 2).mean(0)


# ----------------------------------------------------------------------------------------------------------- the page
def _lead(calibration: Calibration) -> str:
    about, matched = calibration.about, calibration.matched
    text = (
        f"Model {about['model']}, calibrated on the split {about['split']} of {about['data']}: {matched.objects:,} "
        f"true objects, {matched.detections:,} detections, {len(matched.tile):,} matched one-to-one. Figures after "
        "the calibration are of objects held out: each half of the tiles is calibrated by the fit to the other half."
    )
    if calibration.novelty:
        text += " The column novelty was given its statistics."
    return webpage.paragraph(text, "lead")


def _summary(scored: Sequence[tuple[Quantity, list]]) -> str:
    head = ("quantity", "objects", "kept", "KS before", "p", "KS after", "p", "68 % holds", "after", "pulls", "after")
    rows = []
    for item, views in scored:
        if not views:
            rows.append((item.name, f"{item.count:,}", f"unchanged: {item.reason}", *[""] * 8))
        for name, before, after, truth in views:
            u, pulls = [_pit(pdf, truth) for pdf in (before, after)], [_pull(pdf, truth) for pdf in (before, after)]
            tests = [(f"{pit_tests.kolmogorov_smirnov(x):.4f}", f"{pit_tests.p_values(x)['ks_p']:.2g}") for x in u]
            cover = [f"{np.mean(np.abs(x - 0.5) <= 0.34):.3f}" for x in u]
            widths = [f"{sigma_68(x):.3f}" for x in pulls]
            rows.append((name, f"{len(truth):,}", _kept(item), *tests[0], *tests[1], *cover, *widths))
    return webpage.heading("Summary", "summary") + webpage.table(head, rows)


def _kept(item: Quantity) -> str:
    if item.form == "identity" and item.reason:
        return f"unchanged: {item.reason}"
    return _WORDS[item.form]


def _section(item: Quantity, views: Sequence[tuple[str, Mixture, Mixture, Tensor]]) -> str:
    parts = [webpage.heading(item.name, item.name.replace(" ", "-"))]
    if isinstance(item.fit, MixtureFit):
        rows = [(_WORDS[form], f"{item.fit.gains[form][0]:+.4f} +- {item.fit.gains[form][1]:.4f}")
                for form in FORMS if form in item.fit.gains]  # fmt: skip
        parts.append(webpage.table(("tried", "gain in log-likelihood per held-out object"), rows))
    else:
        names = ("m1", "m2", "c1", "c2", "width1", "width2")
        sides = (item.fit.response, item.fit.corrected)
        rows = [(name, *(f"{side[name]:.4f} +- {side[name + '_err']:.4f}" for side in sides)) for name in names]
        parts.append(webpage.table(("", "before", "after"), rows))
    for name, before, after, truth in views:
        drawn = plots.svg(plots.panels(list(_panels(before, after, truth)), columns=4))
        parts.append(webpage.drawing(drawn, f"{name}: PIT, its quantiles, coverage and width of the pulls."))
    return "\n".join(parts)


def _panels(before: Mixture, after: Mixture, truth: Tensor) -> Iterator[Panel]:
    sides = {"before": before, "after": after}
    u = {name: _pit(pdf, truth) for name, pdf in sides.items()}
    histograms = {name: pit_tests.histogram(x) for name, x in u.items()}
    yield Panel(
        "PIT", "objects",
        [Series(name, np.array(x["edges"]), np.array(x["counts"]), kind="steps", color=_COLORS[name])
         for name, x in histograms.items()],
        level=len(truth) / pit_tests.HISTOGRAM_BINS, ylim=(0, None), note=f"{len(truth):,} objects",
    )  # fmt: skip
    curves = {name: pit_tests.quantile_quantile(x) for name, x in u.items()}
    yield Panel(
        "expected", "quantile of the PIT - expected",
        [Series("", np.array(x["expected"]), np.array(x["observed"]) - np.array(x["expected"]), kind="line",
                color=_COLORS[name]) for name, x in curves.items()],
        level=0.0,
    )  # fmt: skip
    yield Panel(
        "nominal coverage", "found - nominal",
        [Series("", LEVELS, _coverage(x) - LEVELS, np.sqrt(LEVELS * (1 - LEVELS) / len(truth)), color=_COLORS[name])
         for name, x in u.items()],
        level=0.0,
    )  # fmt: skip
    yield _pull_panel(sides, truth)


def _pull_panel(sides: dict[str, Mixture], truth: Tensor) -> Panel:
    """Width of the pulls in bins of the covariate of the calibration."""
    covariate = MixtureCalibration.covariate(sides["before"].to(torch.float64)).numpy()
    edges = np.quantile(covariate, np.linspace(0, 1, _BINS + 1))
    bins = np.clip(np.searchsorted(edges, covariate, side="right") - 1, 0, _BINS - 1)
    x = 2 * np.sinh([np.median(covariate[bins == i]) if (bins == i).any() else np.nan for i in range(_BINS)])
    series = []
    for name, pdf in sides.items():
        pull = _pull(pdf, truth)
        width = np.array([sigma_68(pull[bins == i]) for i in range(_BINS)])
        count = np.bincount(bins, minlength=_BINS).clip(1)
        series.append(Series("", x, width, width / np.sqrt(1.5 * count), color=_COLORS[name]))
    log_x = bool((x > 0).all())
    return Panel("mean / width of the PDF", "sigma_68 of (mean - truth) / width", series, level=1.0, log_x=log_x)
