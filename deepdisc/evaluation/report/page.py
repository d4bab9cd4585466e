"""The report: one HTML file that opens offline, with words, tables, figures and a view of the field.

Where that is asked for, its figures stand beside it as PNG files and as one PDF.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from deepdisc import plots
from deepdisc.evaluation.printed import number
from deepdisc.evaluation.report import figures, tables
from deepdisc.evaluation.report.field import field_data
from deepdisc.evaluation.report.words import compared, percent, summary
from deepdisc.evaluation.scoring import Outcome, Scored, Setting
from deepdisc.files import atomic_path, finite
from deepdisc.webpage import cards, contents, data, drawing, folded, heading, paragraph, write_page

_HERE = Path(__file__).parent
_RESOLUTION = 150  # dots per inch of the PNG files


def write_report(folder: Path, outcomes: Mapping[str, Outcome], metrics: dict, *, figure_files: bool = False) -> None:
    """Write report.html.

    Args:
        folder: where; made if it is not there.
        outcomes: of each field by its name; of one field alone by any. The reader chooses which field is shown.
        metrics: as metrics.json will hold them: of the only field, or `fields`, each with `provenance`.
        figure_files: also write figures/*.png and figures.pdf.
    """
    book = _Book()
    several = "fields" in metrics
    sections = []
    for number_, (name, outcome) in enumerate(outcomes.items()):
        book.folder = f"{number_ + 1}_{slug(name)}/" if several else ""
        of_field = metrics["fields"][name] if several else metrics
        inner = "\n".join(_sections(outcome, of_field, book, number_, len(outcomes)))
        sections.append(inner if not several else f'<section class="of-field" data-field="{number_}">{inner}</section>')
    everything = [
        *(_overview(metrics, list(outcomes)) if several else ()),
        *sections,
        '<details id="all-figures"><summary>All figures of metrics.json, one by one</summary></details>',
        data("metrics", finite(metrics)),
    ]
    style, script = (
        "".join((_HERE / name).read_text(encoding="utf-8") for name in names)
        for names in (("report.css",), ("metrics.js", "charts.js", "viewer.js", "fields.js"))
    )
    single = len(next(iter(outcomes.values())).sides) == 1
    title = "How good is this catalogue?" if single and not several else "How good are these catalogues?"
    write_page(folder / "report.html", "deepdisc evaluation", title, everything, style=style, script=script)
    if figure_files:
        book.write(folder)


def _sections(outcome: Outcome, metrics: dict, book: _Book, field: int, fields: int) -> Iterable[str]:
    """Everything about one field of several, in its order on the page."""
    sides, setting, names = outcome.scored, outcome.setting, outcome.names
    maps = [side.segmentation for side in outcome.sides]
    view = field_data(sides, setting, [name or "predicted" for name in names], maps, fields)
    parts = [
        ("field", "The field", _field(view, field)),
        ("comparison", "Side by side", _comparison(metrics, book)),
        ("detections", "Detections", _detections(sides, names, setting, book)),
        ("redshifts", "Redshifts", _redshifts(sides, names, setting, book)),
        ("fluxes", "Fluxes and colours", _fluxes(sides, names, book)),
        ("shear", "Shear", _shear(sides, names, setting, book)),
        ("excluded", "What was left out, and what was added", _left_out(metrics)),
        ("provenance", "Provenance", _row(tables.provenance_tables(metrics["provenance"]))),
    ]
    parts = [part for part in parts if part[2]]
    together = paragraph(compared(metrics["comparison"]), "lead") if "comparison" in metrics else ""
    return [
        together,
        *(paragraph(text, "lead") for text in summary(sides[0], setting, _sources(metrics, names))),
        _cards(sides[0].metrics),
        contents((f"part-{field}-{name}", title) for name, title, _ in parts),
        *(heading(title, f"part-{field}-{name}") + inner for name, title, inner in parts),
    ]


def _overview(metrics: dict, fields: Sequence[str]) -> Iterable[str]:
    """The figures of all fields that matter most, and the choice of the field that is shown below."""
    choices = "".join(
        f'<label><input type="radio" name="field" value="{k}"{" checked" * (k == 0)}> {html.escape(name)}</label>'
        for k, name in enumerate(fields)
    )
    words = "Each field is scored against its own truth; nothing is summed over fields."
    return [
        paragraph(words, "lead"),
        tables.overview_table(metrics),
        f'<fieldset class="fields"><legend>Show the field</legend>{choices}</fieldset>',
    ]


class _Book:
    """Takes figures into the page, as SVG; keeps them for files."""

    def __init__(self):
        self.drawn: dict = {}
        self.folder = ""  # of the figures' files, where there are several fields

    def add(self, found: Iterable[figures.Drawn]) -> str:
        """HTML of the figures."""
        text = ""
        for name, figure, caption in found:
            self.drawn[self.folder + name] = figure
            # Figures share names of clip paths, which a browser does not find in the hidden part of another field.
            svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>f{len(self.drawn)}", plots.svg(figure))
            text += drawing(svg, caption)
        return f'<div class="figures">{text}</div>' if text else ""

    def write(self, folder: Path) -> None:
        """Each figure as a PNG file, and all as one PDF."""
        for name, figure in self.drawn.items():
            with atomic_path(folder / "figures" / f"{name}.png") as temporary:
                temporary.write_bytes(plots.png(figure, _RESOLUTION))
        with atomic_path(folder / "figures.pdf") as temporary:
            plots.pdf(self.drawn, temporary)


def slug(name: str) -> str:
    """A name as a file can have it: `SDSS, run 94` becomes `sdss_run_94`."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "field"


def _row(items: Iterable[str]) -> str:
    return f'<div class="row">{"".join(items)}</div>'


# ---------------------------------------------------------------------------------------------------------------- top
def _sources(metrics: dict, names: Sequence[str]) -> str:
    """What was scored against what."""
    paths = {item["role"].split(",")[0]: item["path"] for item in reversed(metrics["provenance"]["files"])}
    pred = names[0] or paths["predicted catalogue"] or "a catalogue"
    text = f"Scored: {pred} against {paths['truth'] or 'the truth'}"
    text += f", and {names[1]} beside it (below, side by side)." if len(names) > 1 else "."
    return text


def _cards(metrics: dict) -> str:
    d, z = metrics["detection"], metrics["redshift"]
    items = [
        ("completeness", percent(d, "completeness"), f"n = {d['completeness_n']:,}"),
        ("purity", percent(d, "purity"), f"n = {d['purity_n']:,}"),
    ]
    if d["boxes"]["available"]:
        items.append(("AP, IoU .50:.95", percent(d, "ap"), f"AP50 {percent(d, 'ap50')}"))
    if z["available"] and z["n"]:
        items.append(("sigma_NMAD", number(z, "sigma_nmad"), f"n = {z['n']:,}"))
        items.append(("outliers > 0.15", percent(z, "eta_15"), f"n = {z['n']:,}"))
    return cards(items)


_VIEW = (_HERE / "viewer.html").read_text(encoding="utf-8")


def _field(view: tuple[dict, np.ndarray] | str, number_: int) -> str:
    if isinstance(view, str):
        return paragraph(view, "quiet")
    found, _ = view
    x0, y0, width, height = found["window"]
    text = f"Pixels {x0} to {x0 + width} in x and {y0} to {y0 + height} in y. "
    text += "A click on an object shows its densities, its row and cutouts in all bands."
    return paragraph(text, "quiet") + _VIEW + data(f"field-data-{number_}", found) + "\n"


# ------------------------------------------------------------------------------------------------------------ sections
def _metrics_of(sides: Sequence[Scored], names: Sequence[str]) -> dict[str, dict]:
    return {name: side.metrics for name, side in zip(names, sides, strict=True)}


def _each(sides: Sequence[Scored], names: Sequence[str], part: str, tables_of) -> str:
    """The tables of a part of the metrics; of a second catalogue folded away."""
    text = ""
    for number_, (name, side) in enumerate(zip(names, sides, strict=True)):
        found = side.metrics[part]
        if part != "detection" and (not found["available"] or found.get("n") == 0):
            inner = paragraph(f"Not available: {found.get('reason', 'no object could be scored')}.")
        else:
            inner = _row(tables_of(found))
        text += folded(f"The same tables of {name}", inner) if number_ else inner
    return text


def _comparison(metrics: dict, book: _Book) -> str:
    if "comparison" not in metrics:
        return ""
    comparison = metrics["comparison"]
    detection, redshift = comparison["detection"], comparison["redshift"]
    note = f"Matched by {detection['matched_by']}; at equal purity: {detection['equal_purity']['note']}. "
    note += "Errors are bootstrap standard deviations; intervals hold 95 % of paired resamplings."
    note += f" Redshifts: {redshift['n']:,} objects that both have." if redshift["available"] else ""
    both = detection["both_found"]
    found = f"At the cut, both found {both['both']:,} true objects, only {comparison['names'][0]} {both['only_a']:,}, "
    found += f"only {comparison['names'][1]} {both['only_b']:,}, neither {both['neither']:,}."
    drawn = book.add(figures.comparison_figures(comparison))
    pairs = tables.pulls_between_table(comparison["flux"].get("pulls_between", {}))
    return paragraph(found) + paragraph(note, "quiet") + tables.comparison_table(comparison) + pairs + drawn


def _detections(sides: Sequence[Scored], names: Sequence[str], setting: Setting, book: _Book) -> str:
    text = book.add(figures.detection_figures(_metrics_of(sides, names), setting.band))
    if not sides[0].metrics["detection"]["by_magnitude"]["purity"]:
        words = "Purity by magnitude needs magnitudes of the detections, or the mosaic to sum their light."
        text += paragraph(words, "quiet")
    return text + _each(sides, names, "detection", tables.detection_tables)


def _redshifts(sides: Sequence[Scored], names: Sequence[str], setting: Setting, book: _Book) -> str:
    drawn = book.add(figures.redshift_figures(_metrics_of(sides, names), setting.band))
    return drawn + _each(sides, names, "redshift", tables.redshift_tables)


def _fluxes(sides: Sequence[Scored], names: Sequence[str], book: _Book) -> str:
    of = _metrics_of(sides, names)
    text = book.add(figures.flux_figures(of)) + _each(sides, names, "flux", tables.flux_tables)
    return text + book.add(figures.colour_figures(of)) + _each(sides, names, "colour", tables.colour_tables)


def _shear(sides: Sequence[Scored], names: Sequence[str], setting: Setting, book: _Book) -> str:
    drawn = book.add(figures.shear_figures(_metrics_of(sides, names), setting.band))
    return drawn + _each(sides, names, "shear", tables.shear_tables)


def _left_out(metrics: dict) -> str:
    notes = "".join(paragraph(note) for note in metrics["notes"])
    return tables.left_out_table(metrics) + notes
