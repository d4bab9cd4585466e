"""Colours and axes that all figures share, and figures as bytes: PNG, PDF, or SVG that follows the page's colours."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, GREY, INK = "#2563eb", "#ea8a0c", "#16a34a", "#dc2626", "#9ca3af", "#1f2937"
LINE, PAGE, QUIET = "#e5e7eb", "#ffffff", "#6b7280"
SIDES = (BLUE, ORANGE)  # of a comparison: first, second
SERIES = (BLUE, ORANGE, GREEN, RED)
# The page's style sheet gives these a value for light and one for dark screens.
_VARIABLES = {
    BLUE: "--blue", ORANGE: "--orange", GREEN: "--green", RED: "--red", GREY: "--grey", INK: "--ink", LINE: "--line",
    PAGE: "--page", QUIET: "--quiet", "#000000": "--ink",
}  # fmt: skip


def png(figure: Figure, dpi: int = 110) -> bytes:
    """The figure as a PNG file's bytes."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", facecolor=PAGE)
    return buffer.getvalue()


def svg(figure: Figure) -> str:
    """The figure as an `<svg>` element for a page of `webpage`: its colours are the page's, light or dark."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    # Text stays text; the same figure has the same ids each time.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "deepdisc"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing, dpi=150)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    # Inside HTML a name space needs no address; width and height are the page's business.
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r"^<svg[^>]*?viewBox", "<svg viewBox", text)
    width = re.match(r'<svg viewBox="\S+ \S+ (\S+)', text)[1]
    text = text.replace("<svg ", f'<svg style="width:{float(width):.0f}pt" ', 1)
    # Names of groups would occur twice in a page; the page chooses the font.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r"font: [^;\"]*?(\d[\d.]*px)[^;\"]*", r"font-size: \1", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    for color, variable in _VARIABLES.items():
        text = text.replace(f": {color}", f": var({variable})")
    # Elements without a fill are black by default.
    return text.replace("<text ", '<text fill="currentColor" ')


def pdf(figures: Mapping[str, Figure], path) -> None:
    """One PDF file with a page for each figure."""
    with PdfPages(path, metadata={"CreationDate": None}) as pages:
        for figure in figures.values():
            pages.savefig(figure, bbox_inches="tight")


def axes_of(figure: Figure, *args, **kwargs):
    """Axes of the common look; arguments of `Figure.add_subplot`."""
    axes = figure.add_subplot(*args, **kwargs)
    axes.grid(color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=9)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    return axes
