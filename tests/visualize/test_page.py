import base64
import io
import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from mg3d.visualize.page import CaptionedFigure, write_page


def test_rows_may_have_different_columns(tmp_path):
    rows = [{"name": "a", "low": 1.0}, {"name": "b", "high": 2}]
    write_page(tmp_path / "page.html", title="t", sections=[("s", [rows])])
    cells = re.findall(r"<t[hd]>(.*?)</t[hd]>", (tmp_path / "page.html").read_text())
    assert np.reshape(cells, (3, 3)).tolist() == [["name", "low", "high"], ["a", "1.000", ""], ["b", "", "2"]]


def test_missing_values_are_undefined(tmp_path):
    write_page(tmp_path / "a.html", title="t", sections=[("s", [[{"auroc": float("nan")}, {"auroc": 0.25}]])])
    assert "<td>undefined</td></tr><tr><td>0.250</td>" in (tmp_path / "a.html").read_text()


def test_headings_column_names_and_cells_are_escaped(tmp_path):
    write_page(tmp_path / "page.html", title="<i>", sections=[("<u>", [[{"<s>": "&"}]])])
    text = (tmp_path / "page.html").read_text()
    assert not re.search(r"<[ius]>", text)
    assert "&lt;i&gt;" in text
    assert "<td>&amp;</td>" in text


def test_figures_are_embedded_with_their_text_alternatives(tmp_path):
    figure = Figure(figsize=(2, 1))
    write_page(tmp_path / "page.html", title="t", sections=[("s", [figure, CaptionedFigure(figure, "a 'curve' & more")])])
    images = re.findall(r"<img alt='([^']*)' src='data:image/png;base64,([^']+)'", (tmp_path / "page.html").read_text())
    assert [alt for alt, _ in images] == ["", "a &#x27;curve&#x27; &amp; more"]
    assert {Image.open(io.BytesIO(base64.b64decode(encoded))).size for _, encoded in images} == {(180, 90)}


def test_a_failed_write_keeps_the_old_page(tmp_path):
    write_page(tmp_path / "page.html", title="old", sections=[])
    with pytest.raises(UnicodeEncodeError):
        write_page(tmp_path / "page.html", title="new", sections=[("s", ["half a letter: \ud800"])])
    assert "old" in (tmp_path / "page.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
