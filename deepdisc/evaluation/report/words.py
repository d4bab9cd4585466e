"""The report in words: what was scored against what, the figures that matter most, what was left out; and numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from deepdisc.evaluation.printed import NOT_MEASURED, measured, number
from deepdisc.evaluation.scoring import Scored, Setting


def percent(values: dict, name: str) -> str:
    """`91.2 ± 0.4 %`, or words where there is nothing."""
    value, err = values[name], values.get(f"{name}_err", float("nan"))
    if value is None or not np.isfinite(value):
        return NOT_MEASURED
    return f"{100 * value:.1f}" + (f" ± {100 * err:.1f}" if np.isfinite(err) else "") + " %"


def interval(values: dict, name: str) -> str:
    """`[0.0301, 0.0322]`, the central 68 %; "" where there is none."""
    low, high, err = (values.get(f"{name}_{end}") for end in ("low", "high", "err"))
    if low is None or not np.isfinite([low, high]).all():
        return ""
    digits = int(np.clip(1 - np.floor(np.log10(err)), 0, 8)) if err and np.isfinite(err) else 4
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def figure_rows(values: dict, labels: Sequence[tuple[str, str]], n: int | None = None) -> list[tuple[str, ...]]:
    """Lines of a table: label, value with error, 68 % interval, number of objects; (label, name) that are there."""
    rows = []
    for label, name in labels:
        if name in values:
            count = values.get(f"{name}_n", n)
            rows.append((label, number(values, name), interval(values, name), "" if count is None else f"{count:,}"))
    return rows


def flatten(value, path: str = "") -> Iterable[tuple[str, object]]:
    """All figures of nested metrics: (`redshift.pdf.crps`, 0.0421)."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from flatten(item, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from flatten(item, f"{path}[{i}]")
    elif not isinstance(value, np.ndarray):
        yield path, value


# ------------------------------------------------------------------------------------------------------------- summary
def summary(scored: Scored, setting: Setting, sources: str) -> list[str]:
    """A few paragraphs in plain words; `sources` says what was scored against what."""
    metrics = scored.metrics
    texts = [
        f"{sources} {_detections(metrics['detection'], setting)}",
        _pairs(metrics["detection"]),
        _redshifts(metrics),
    ]
    texts += [_measured_quantities(metrics), _exclusions(metrics)]
    return [text for text in texts if text]


def compared(comparison: dict) -> str:
    """Two catalogues in one sentence each: who finds more at equal purity, whose redshifts scatter less."""
    rows, (a, b) = {row["quantity"]: row for row in comparison["table"]}, comparison["names"]
    texts = []
    found, pure = rows["completeness at equal purity"], rows["purity at the cut"]
    if found["difference"] is not None and np.isfinite(found["difference"]["value"]):
        even = comparison["detection"]["equal_purity"]["equal"]
        how = f"At a purity of {_share(pure['a'])}" if even else "Uncut, at different purities"
        texts.append(
            f"{how} {a} finds {_share(found['a'])} of the true objects and {b} {_share(found['b'])}: "
            f"{_verdict(found['difference'], 100, ' %')}."
        )
    scatter = rows.get("redshift sigma_NMAD")
    if scatter is not None and np.isfinite(scatter["a"]["value"]):
        texts.append(
            f"Redshifts of the same {scatter['a']['n']:,} objects scatter by {measured(*_pair(scatter['a']))} and "
            f"{measured(*_pair(scatter['b']))}: {_verdict(scatter['difference'])}."
        )
    return " ".join(texts)


def _pair(item: dict) -> tuple[float, float]:
    return item["value"], item["err"]


def _share(item: dict) -> str:
    return percent({"x": item["value"], "x_err": item["err"]}, "x")


def _verdict(difference: dict, scale: float = 1.0, unit: str = "") -> str:
    """A difference or ratio with its 95 % interval, and whether it is one."""
    value, low, high = (scale * difference[key] for key in ("value", "low", "high"))
    if difference["kind"] == "ratio":
        told = f"a ratio of {value:.3f} [{low:.3f}, {high:.3f}]"
    else:
        told = f"a difference of {value:+.1f} [{low:+.1f}, {high:+.1f}]{unit}"
    return f"{told} (95 % interval)" + ("" if difference["significant"] else ", not significant")


def _detections(d: dict, setting: Setting) -> str:
    text = (
        f"Of {d['n_truth']:,} true objects that had to be found, {d['n_matched']:,} were found: "
        f"{percent(d, 'completeness')}. "
        f"Of {d['n_pred']:,} detections, {d['n_false']:,} are false: purity {percent(d, 'purity')}. "
        f"A detection and a true object are the same when matched one-to-one by {setting.criterion}."
    )
    if d["n_excused"]:
        text += f" {d['n_excused']:,} detections of objects too faint to be required count neither way."
    if d["completeness_snr10_n"]:
        text += (
            f" Of the {d['completeness_snr10_n']:,} with a signal-to-noise above 10, "
            f"{percent(d, 'completeness_snr10')} were found."
        )
    return text


def _pairs(d: dict) -> str:
    pairs = d["blended_pairs"]
    if not pairs["available"] or not pairs["n"]:
        return ""
    return (
        f"Both members were found, as two objects, in {pairs['n_recovered']:,} of {pairs['n']:,} pairs closer than "
        f"{pairs['closer_than_fwhm']:g} times the width of the PSF: {percent(pairs, 'recovered')}."
    )


def _redshifts(metrics: dict) -> str:
    z = metrics["redshift"]
    if not z["available"]:
        return f"Redshifts are not scored: {z['reason']}."
    if not z["n"]:
        return ""
    text = (
        f"Redshifts of {z['n']:,} matched objects scatter by {number(z, 'sigma_nmad')} (sigma_NMAD) in dz/(1+z), "
        f"with a bias of {number(z, 'bias')}; {percent(z, 'eta_15')} are off by more than 0.15. "
        f"One and the same redshift for all would scatter by {z['constant_guess_sigma_nmad']:.3f}."
    )
    if z["pdf"]["available"]:
        text += (
            f" {percent(z['pdf'], 'coverage_68')} of the redshift densities hold the truth in their central 68 %, "
            f"{percent(z['pdf'], 'coverage_95')} in their central 95 %."
        )
    return text


def _measured_quantities(metrics: dict) -> str:
    texts = []
    if metrics["flux"]["available"]:
        bands = metrics["flux"]["by_band"].items()
        parts = [f"{band} {percent(v, 'bias')} and {percent(v, 'scatter')}" for band, v in bands if v["n"]]
        texts += [f"Fluxes, bias and scatter: {'; '.join(parts)}."] if parts else []
    shear = metrics["shear"]
    if shear["available"] and shear["n"]:
        texts.append(
            f"Shear of {shear['n']:,} objects: multiplicative bias m = {number(shear, 'm')}, additive bias "
            f"c = {number(shear, 'c')}."
        )
    return " ".join(texts)


def _exclusions(metrics: dict) -> str:
    left = {**metrics["detection"]["excluded"], **metrics["redshift"].get("excluded", {})}
    parts = [f"{n:,} {reason}" for reason, n in left.items() if n]
    return f"Left out: {'; '.join(parts)}." if parts else ""
