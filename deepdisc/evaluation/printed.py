"""What the commands print: a few aligned tables, in Markdown, of the figures that matter most.

metrics.json and the report hold all figures; here each table fits a terminal, one line per band.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

NOT_MEASURED = "not measurable"


# ------------------------------------------------------------------------------------------------------------- numbers
def measured(value: float | None, err: float | None = None) -> str:
    """`0.0312 ± 0.0011`: as many digits as the error justifies."""
    if value is None or not np.isfinite(value):
        return NOT_MEASURED
    if err is None or not np.isfinite(err) or err <= 0:
        return f"{value:.4g}"
    digits = int(np.clip(1 - np.floor(np.log10(err)), 0, 8))
    return f"{value:.{digits}f} ± {err:.{digits}f}"


def number(values: Mapping, name: str) -> str:
    """A figure of the metrics with its error."""
    return measured(values[name], values.get(f"{name}_err"))


def format_cell(item: dict | None) -> str:
    """`0.912 ± 0.004 (n = 1,234)`."""
    if item is None:
        return ""
    text = measured(item["value"], item["err"])
    return text + (f" (n = {item['n']:,})" if item["n"] is not None else "")


def format_difference(item: dict | None) -> str:
    """`+0.012 [-0.003, +0.027]` for differences, `0.95x [0.90, 1.01]` for ratios; 95 % intervals."""
    if item is None or not np.isfinite(item["value"]):
        return ""
    if item["kind"] == "ratio":
        return f"{item['value']:.3f}x [{item['low']:.3f}, {item['high']:.3f}]"
    return f"{item['value']:+.4f} [{item['low']:+.4f}, {item['high']:+.4f}]"


# -------------------------------------------------------------------------------------------------------------- tables
def markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A Markdown table, columns aligned."""
    lines = [list(head), *(list(line) for line in body)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    texts = ["| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |"
             for line in lines]  # fmt: skip
    texts.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(texts)


def table_text(rows: Sequence[dict], names: Sequence[str]) -> str:
    """Rows of a comparison (see `comparison.row`), one line each."""
    body = [
        [
            item["quantity"],
            format_cell(item["a"]), format_cell(item["b"]), format_difference(item["difference"]),
        ]
        for item in rows
    ]  # fmt: skip
    return markdown(("", *names, "difference or ratio, 95 %"), body)


def comparison_text(comparison: Mapping) -> str:
    """A comparison: what is one figure line by line, what there is of each band or colour in one line each."""
    rows, names = comparison["table"], comparison["names"]
    texts = [table_text([item for item in rows if not item["of"]], names)]
    for kind in ("flux", "colour"):
        part = comparison[kind].get("rows", [])
        by_key = {(item["of"], item["quantity"].removesuffix(f", {item['of']}")): item for item in part}
        quantities = list(dict.fromkeys(name for _, name in by_key))
        head = [kind] + [f"{name.removeprefix(kind).strip()}, {side}" for name in quantities for side in names]
        body = []
        for of in dict.fromkeys(item["of"] for item in part):
            cells = [by_key.get((of, name)) for name in quantities]
            body.append([of, *(_side(item, side) for item in cells for side in "ab")])
        texts += [markdown(head, body)] if body else []
    note = comparison["detection"]["equal_purity"]["note"]
    return "\n\n".join(
        [*texts, f"At equal purity: {note}." + " *: they differ with 95 % confidence." * (len(texts) > 1)]
    )


def _side(item: Mapping | None, side: str) -> str:
    """A figure of one side; a star where the other side's differs with 95 % confidence."""
    if item is None:
        return ""
    return measured(item[side]["value"], item[side]["err"]) + ("*" if item["difference"]["significant"] else "")


_DETECTION = (
    ("completeness", "completeness", "completeness_n"),
    ("completeness, S/N > 10", "completeness_snr10", "completeness_snr10_n"),
    ("purity", "purity", "purity_n"),
    ("AP of boxes, IoU .50:.95", "ap", "n_truth"),
    ("AP of boxes, IoU .50", "ap50", "n_truth"),
)
_REDSHIFT = (
    ("redshift bias", "bias"), ("redshift sigma_NMAD", "sigma_nmad"), ("redshift outliers beyond 0.15", "eta_15"),
)  # fmt: skip
_DENSITY = (
    ("redshift PDFs, CRPS", "crps"), ("redshift PDFs, central 68 % hold", "coverage_68"),
    ("redshift PDFs, KS distance of PIT from uniform", "pit_ks"),
)  # fmt: skip
_SHEAR = (("shear m", "m"), ("shear c", "c"), ("PSF leakage alpha", "alpha"))
_FLUX = (("bias", "bias"), ("scatter", "scatter"), ("width of pulls", "pull_width"), ("KS of PIT", "pit_ks"))
_COLOUR = (
    ("bias", "bias"), ("scatter", "scatter"), ("width", "width"), ("true width", "width_truth"),
    ("width of pulls", "pull_width"),
)  # fmt: skip


def headline_rows(metrics: Mapping) -> list[tuple[str, str, str]]:
    """What is told of one catalogue first: label, value with error, number of objects."""
    d, z, shear = metrics["detection"], metrics["redshift"], metrics["shear"]
    rows = [(label, number(d, name), f"{d[count]:,}") for label, name, count in _DETECTION if _known(d, name)]
    pairs = d["blended_pairs"]
    if pairs["available"] and pairs["n"]:
        label = f"pairs closer than {pairs['closer_than_fwhm']:g} FWHM, both found"
        rows.append((label, number(pairs, "recovered"), f"{pairs['n']:,}"))
    for part, labels in ((z, _REDSHIFT), (z.get("pdf", {}), _DENSITY), (shear, _SHEAR)):
        rows += [(label, number(part, name), f"{part['n']:,}") for label, name in labels if _known(part, name)]
    return rows


def evaluation_text(metrics: Mapping) -> str:
    """The metrics of one catalogue."""
    rows = headline_rows(metrics)
    texts = [markdown(("", "value", "n"), rows)]
    for kind, lines, labels in (
        ("flux", metrics["flux"].get("by_band", {}), _FLUX),
        ("colour", metrics["colour"].get("by_colour", {}), _COLOUR),
    ):
        body = [
            (of, *(number(item, name) if _known(item, name) else "" for _, name in labels), f"{item['n']:,}")
            for of, item in lines.items()
            if item["n"]
        ]
        texts += [markdown((kind, *(label for label, _ in labels), "n"), body)] if body else []
    return "\n\n".join(texts)


def _known(values: Mapping, name: str) -> bool:
    return values.get(name) is not None and bool(np.isfinite(values[name]))


# ------------------------------------------------------------------------------------------------------ several fields
_OVERVIEW = (
    "purity at the cut", "completeness at equal purity", "blended pairs", "AP of boxes, IoU .50:.95",
    "redshift sigma_NMAD", "redshift outliers beyond 0.15", "redshift PDFs, CRPS", "shear",
)  # fmt: skip


def overview(metrics: Mapping) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and lines of the table of several fields; metrics as `compare_fields` gives them."""
    names, lines = metrics["names"], []
    for name, of_field in metrics["fields"].items():
        if "comparison" in of_field:
            rows = [row for row in of_field["comparison"]["table"] if row["quantity"].startswith(_OVERVIEW)]
            cells = [
                (row["quantity"], format_cell(row["a"]), format_cell(row["b"]), format_difference(row["difference"]))
                for row in rows
                if _known(row["a"], "value")
            ]
        else:
            cells = headline_rows(of_field)
        lines += [(name, *[""] * (len(names) + 1)), *cells]
    return ("", *names, "difference or ratio, 95 %" if len(names) == 2 else "n"), lines
