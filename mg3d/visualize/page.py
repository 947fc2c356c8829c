"""One HTML file with text, tables and figures in it, that needs no network."""

import base64
import html
import io
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
.words th, .words td { text-align: left; vertical-align: top; } pre { white-space: pre-wrap; }
"""


class CaptionedFigure(NamedTuple):
    """A figure and what it shows, for those who do not see it."""

    figure: Figure
    alt: str


PageItem = str | Figure | CaptionedFigure | Sequence[Mapping[str, Any]]


def write_page(path: Path, *, title: str, sections: Sequence[tuple[str, Sequence[PageItem]]]) -> None:
    """Writes the page, whole or not at all. A section is a heading and pieces: text, a figure, or a table as a list of rows."""
    body = "".join(f"<h2>{html.escape(heading)}</h2>\n" + "".join(map(_piece, pieces)) for heading, pieces in sections)
    head = f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title><style>{STYLE}</style>"
    content = f"{head}\n<h1>{html.escape(title)}</h1>\n{body}</html>\n".encode()
    write_bytes(path, content)


def _piece(piece: PageItem) -> str:
    if isinstance(piece, str):
        return f"<p>{html.escape(piece)}</p>\n"
    if isinstance(piece, Figure):
        piece = CaptionedFigure(piece, "")
    if isinstance(piece, CaptionedFigure):
        alt = html.escape(piece.alt, quote=True)
        return f"<p><img alt='{alt}' src='data:image/png;base64,{base64.b64encode(png(piece.figure)).decode()}'></p>\n"
    return _table(piece)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in names)
    lines = ["".join(f"<td>{_unbroken(html.escape(shown(row.get(name, ''))))}</td>" for name in names) for row in rows]
    words = " class='words'" if all(isinstance(cell, str) for row in rows for cell in row.values()) else ""
    return f"<table{words}><tr>{head}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>\n"


def _unbroken(cell: str) -> str:
    """A value keeps its interval beside it: `0.5 [0.4, 0.6]`."""
    return cell.replace(" ", "\N{NO-BREAK SPACE}") if cell.endswith("]") and cell[:1] in "-0123456789" else cell


def shown(value: Any) -> str:
    """A cell: numbers with three decimals."""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def png(figure: Figure) -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return buffer.getvalue()
