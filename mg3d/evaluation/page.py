"""A result as one HTML file."""

from pathlib import Path

from mg3d.evaluation.measure import RELIABILITY
from mg3d.evaluation.parts import COSINES
from mg3d.evaluation.results import Result, text_rows
from mg3d.visualize.evaluation import cosines_figure, reliability_figure
from mg3d.visualize.page import CaptionedFigure, PageItem, write_page


def write_result_page(path: Path, result: Result, *, same_above: float, differ_below: float) -> None:
    """Every table under a heading that names the card and whether its data were whole, and the plots of two of them."""
    sections: list[tuple[str, list[PageItem]]] = []
    for heading, rows in result.tables.items():
        pieces: list[PageItem] = [text_rows(rows)]
        if heading == RELIABILITY and rows:
            pieces.append(CaptionedFigure(reliability_figure(rows), "observed frequency over mean probability"))
        if heading == COSINES and rows:
            figure = cosines_figure(rows, same_above=same_above, differ_below=differ_below)
            pieces.append(CaptionedFigure(figure, "pairs of sentences by cosine, with the thresholds of SSM"))
        sections.append((f"{heading} · {result.title}", pieces))
    about = [{"": name, "value": str(value)} for part in (result.card, result.data, result.model) for name, value in part.items()]
    sections.append((f"What was measured · {result.title}", [about]))
    write_page(path, title=f"mg3d: {result.title}", sections=sections)
