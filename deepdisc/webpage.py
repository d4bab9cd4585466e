"""Reports as HTML: one file that opens offline, loads nothing from elsewhere, readable on light and dark screens."""

from __future__ import annotations

import base64
import html
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from deepdisc import __version__
from deepdisc.files import atomic_path, write_text

_STYLE = """
:root{color-scheme:light dark;--ink:#1f2937;--page:#fff;--quiet:#6b7280;--line:#e5e7eb;--grey:#9ca3af;
--blue:#2563eb;--orange:#c2690a;--green:#15803d;--red:#dc2626}
@media(prefers-color-scheme:dark){:root{--ink:#e5e7eb;--page:#111827;--quiet:#9ca3af;--line:#374151;
--grey:#6b7280;--blue:#60a5fa;--orange:#fbbf24;--green:#4ade80;--red:#f87171}}
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif;color:var(--ink);max-width:1120px;
margin:0 auto;padding:28px 20px 60px;background:var(--page)}
h1{font-size:26px;margin:0 0 4px}
h2{font-size:19px;margin:34px 0 8px;border-bottom:1px solid var(--line);padding-bottom:4px}
h3{font-size:15px;margin:18px 0 4px}p{margin:8px 0}
.quiet{color:var(--quiet);font-size:13px}.lead{font-size:16px;max-width:75ch}
.cards{display:flex;flex-wrap:wrap;gap:12px;margin:16px 0}
.card{border:1px solid var(--line);border-radius:8px;padding:10px 16px;min-width:140px;flex:1}
.card b{display:block;font-size:24px;line-height:1.3}.card span{color:var(--quiet);font-size:12.5px}
.row{display:flex;flex-wrap:wrap;gap:12px 44px;align-items:flex-start}.row>*{flex:0 1 auto;min-width:0}
table{border-collapse:collapse;font-size:13.5px;margin:8px 0;font-variant-numeric:tabular-nums}
th,td{padding:4px 0 4px 18px;text-align:right;border-bottom:1px solid var(--line)}th{color:var(--quiet);font-weight:600}
th:first-child,td:first-child{text-align:left;padding-left:0}
.wide{overflow-x:auto}img{max-width:100%;height:auto;background:#fff;border-radius:4px}figure{margin:8px 0}
figure svg{max-width:100%;height:auto;display:block}figure svg *{stroke-linejoin:round;stroke-linecap:butt}
figcaption{color:var(--quiet);font-size:13px;max-width:75ch}
"""


def write_page(
    path: str | os.PathLike, title: str, heading: str, sections: Iterable[str], *, style: str = "", script: str = ""
) -> None:
    """Write a report.

    Args:
        path: the HTML file; written atomically.
        title: of the window.
        heading: first line of the page.
        sections: HTML, made by the functions below; empty ones are left out.
        style: rules of this page alone.
        script: of this page, run when all of it is there.
    """
    body = "\n".join(section for section in sections if section)
    code = f"<script>\n{script}</script>\n" if script else ""
    write_text(
        path,
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}{style}</style></head><body>\n<h1>{html.escape(heading)}</h1>"
        f"{paragraph(f'deepdisc {__version__}', 'quiet')}\n{body}\n{code}</body></html>\n",
    )


def heading(text: str, name: str) -> str:
    """The title of a section, which `contents` can point to by its name."""
    return f'<h2 id="{html.escape(name)}">{html.escape(text)}</h2>'


def contents(items: Iterable[tuple[str, str]]) -> str:
    """Links to sections: (name, text)."""
    links = "".join(f'<a href="#{html.escape(name)}">{html.escape(text)}</a>' for name, text in items)
    return f'<nav aria-label="Contents">{links}</nav>'


def folded(summary: str, inner: str) -> str:
    """HTML that is shown when its summary is clicked."""
    return f"<details><summary>{html.escape(summary)}</summary>{inner}</details>"


def data(name: str, value: Any) -> str:
    """A value held in the page as JSON, in an element of that name; text in it cannot end the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{html.escape(name)}">{text}</script>'


def drawing(svg: str, caption: str) -> str:
    """A figure of `plots.svg`, whose colours are the page's, with its caption."""
    text = html.escape(caption)
    named = svg.replace("<svg ", f'<svg role="img" aria-label="{text}" ', 1)
    return f"<figure>{named}<figcaption>{text}</figcaption></figure>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text; `kind` is "", "lead" (larger) or "quiet" (smaller, grey)."""
    return f'<p class="{kind}">{html.escape(text)}</p>'


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; the first column is aligned left, the others right."""

    def line(cells: Iterable[object], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    return f'<div class="wide"><table>{line(head, "th")}{"".join(line(row, "td") for row in rows)}</table></div>'


def image(png: bytes, caption: str, keep: Path | None = None) -> str:
    """A picture, held in the page itself, with its caption; also written to the file `keep`, if that is given."""
    if keep is not None:
        with atomic_path(keep) as temporary:
            temporary.write_bytes(png)
    text = html.escape(caption)
    data = base64.b64encode(png).decode()
    return f'<figure><img src="data:image/png;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def cards(items: Iterable[tuple[str, str, str]]) -> str:
    """The most important figures in large type: (what, value, remark)."""
    inner = "".join(
        f'<div class="card"><span>{html.escape(a)}</span><b>{html.escape(b)}</b><span>{html.escape(c)}</span></div>'
        for a, b, c in items
    )
    return f'<div class="cards">{inner}</div>'
