"""What became of the rows, segments and redshifts of a data set's fields, in words and summed over fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_FEW_FIELDS = 5  # more are only summed up
_NOT_SUMMED = ("radius", "median", "share", "edges")


def report_lines(reports: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Lines for the log, from the reports of `survey.make_truth` by field."""
    if len(reports) <= _FEW_FIELDS:
        for name, report in reports.items():
            yield from (f"field {name}: {line}" for line in _lines(report))
    if len(reports) > 1:
        total = summed(list(reports.values()))
        yield from (f"all {len(reports)} fields: {line}" for line in _lines(total))


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    for name, about in report["catalogues"].items():
        yield f"catalogue {name}: {_words(about)}"
    if "match" in report:
        about = report["match"]
        yield f"rows (first) matched with segments (second): {_words(about)}"
        yield f"pairs by separation, 0 to {_radius(about)}: {' '.join(map(str, about['separations']['counts']))}"
        yield (
            f"{report['rows_without_segment']} rows without a segment ({report['policies'][0]}), "
            f"{report['segments_without_row']} segments without a row ({report['policies'][1]})"
        )
    if "unknown_light_masked" in report:
        yield f"{report['unknown_light_masked']} detections that the segmentation map does not know are masked"
    if "drawn" in report:
        yield f"{report['drawn']} rows got an outline of their own"
    for name, about in report["redshifts"].items():
        yield f"redshifts of {name}: {_words(about)}"
        if about["matched"]:
            yield f"  by separation, 0 to {_radius(about)}: {' '.join(map(str, about['separations']['counts']))}"
    if min(report["coverage"].values()) < 1:
        yield f"share of the pixels with data: {_words(report['coverage'])}"
    yield f"{report['segments']} segments, {report['objects']} objects, {report['faint']} of them FAINT"


def _words(about: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in about.items() if not isinstance(value, Mapping))


def _radius(about: Mapping[str, Any]) -> str:
    key = next(key for key in about if key.startswith("radius_"))
    return f"{about[key]:g} {key.removeprefix('radius_')}"


def summed(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The sum of the counts of several reports; medians are left out, radii and policies are the first one's."""
    total: dict[str, Any] = {}
    for key in dict.fromkeys(key for report in reports for key in report):
        values = [report[key] for report in reports if key in report]
        if isinstance(values[0], Mapping):
            total[key] = _mean(values) if key == "coverage" else summed(values)
        elif isinstance(values[0], bool | str) or key == "policies" or key.startswith(("radius", "edges")):
            total[key] = values[0]
        elif key.startswith(_NOT_SUMMED):
            continue
        elif isinstance(values[0], list):
            total[key] = [sum(column) for column in zip(*values, strict=True)]
        else:
            total[key] = sum(values)
    return total


def _mean(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: round(sum(item[key] for item in values) / len(values), 4) for key in values[0]}
