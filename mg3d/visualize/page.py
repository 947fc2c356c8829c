"""Self-contained HTML pages of text, tables and figures."""

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from mg3d.files import write_bytes

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: .25em .8em; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; } img { max-width: 100%; }
.text th, .text td { text-align: left; vertical-align: top; } pre { white-space: pre-wrap; }
"""


class CaptionedFigure(NamedTuple):
    """A figure with a text alternative for screen readers."""

    figure: Figure
    alt: str


PageItem = str | Figure | CaptionedFigure | Sequence[Mapping[str, Any]]


def write_page(path: Path, *, title: str, sections: Sequence[tuple[str, Sequence[PageItem]]]) -> None:
    """Write an HTML page atomically. A section is a heading and items: a paragraph, a figure, or a table as a list of rows."""
    body = "".join(f"<h2>{html.escape(heading)}</h2>\n" + "".join(map(_render, items)) for heading, items in sections)
    head = f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title><style>{STYLE}</style>"
    write_bytes(path, f"{head}\n<h1>{html.escape(title)}</h1>\n{body}</html>\n".encode())


def _render(item: PageItem) -> str:
    if isinstance(item, str):
        return f"<p>{html.escape(item)}</p>\n"
    if isinstance(item, Figure):
        item = CaptionedFigure(item, "")
    if isinstance(item, CaptionedFigure):
        alt = html.escape(item.alt, quote=True)
        return f"<p><img alt='{alt}' src='data:image/png;base64,{base64.b64encode(png(item.figure)).decode()}'></p>\n"
    return _table(item)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in names)
    lines = ["".join(f"<td>{_cell(row.get(name, ''))}</td>" for name in names) for row in rows]
    is_text = all(isinstance(cell, str) for row in rows for cell in row.values())
    style = " class='text'" if is_text else ""
    return f"<table{style}><tr>{head}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>\n"


def _cell(value: Any) -> str:
    """Floats with three decimals; a value stays on one line with its interval, as in `0.5 [0.4, 0.6]`."""
    text = html.escape(format_value(value))
    return text.replace(" ", "\N{NO-BREAK SPACE}") if text.endswith("]") and text[:1] in "-0123456789" else text


def format_value(value: Any) -> str:
    """Floats with three decimals, `undefined` for NaN, everything else as str."""
    if isinstance(value, float):
        return "undefined" if math.isnan(value) else f"{value:.3f}"
    return str(value)


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return buffer.getvalue()
