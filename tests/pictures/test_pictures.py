import numpy as np
import pandas as pd
import pytest

from mg3d.pictures.curves import curves_figure
from mg3d.pictures.page import write_page
from mg3d.pictures.planes import case_figure, three_planes


def test_planes_lie_as_radiologists_look_at_them():
    volume = np.zeros((4, 6, 8))
    volume[3, 3, 4] = 1  # most superior
    volume[2, 0, 4] = 2  # most anterior
    volume[2, 3, 7] = 3  # most left
    planes = three_planes(volume)
    assert planes["axial"].shape == (6, 8)
    assert planes["coronal"].shape == (4, 8)
    assert planes["sagittal"].shape == (4, 6)
    assert planes["axial"][0, 4] == 2  # the front is on top
    assert planes["axial"][3, 7] == 3  # the patient's left is at the right edge
    assert planes["coronal"][0, 4] == 1  # the head is on top
    assert planes["sagittal"][1, 0] == 2  # the front is at the left edge


def test_a_case_shows_three_planes_and_its_report():
    figure = case_figure(np.random.default_rng(0).random((4, 6, 8)), report="One line.\nAnother.", spacing_mm=(3.0, 1.0, 2.0))
    assert len(figure.axes) == 4
    assert figure.axes[0].get_aspect() == pytest.approx(0.5)
    assert figure.axes[1].get_aspect() == pytest.approx(1.5)
    assert "Another." in figure.axes[3].texts[0].get_text()


def test_curves_follow_a_run_that_was_taken_up_again(tmp_path):
    for number, (steps, values) in enumerate((((0, 1, 2, 3), (9.0, 8, 7, 6)), ((2, 3), (5.0, 4)))):
        table = pd.DataFrame({"step": steps, "train/cml_step": values, "val/cml": [np.nan] * len(steps)})
        table.to_csv(tmp_path / f"{number}.csv", index=False)
    figure = curves_figure([tmp_path / "0.csv", tmp_path / "1.csv"])
    assert figure.axes[0].get_title() == "cml"
    assert figure.axes[0].lines[0].get_ydata().tolist() == [9, 8, 5, 4]


def test_a_page_stands_alone_and_escapes_what_it_shows(tmp_path):
    figure = case_figure(np.zeros((2, 2, 2)))
    rows = [{"name": "<b>", "value": 0.12345}]
    write_page(tmp_path / "deep" / "page.html", title="A & B", sections=[("Head", ["<script>", rows, figure, []])])
    text = (tmp_path / "deep" / "page.html").read_text()
    assert "&lt;script&gt;" in text
    assert "<script>" not in text
    assert "0.123<" in text
    assert "data:image/png;base64," in text
    assert "http" not in text
    assert not list((tmp_path / "deep").glob(".*"))
