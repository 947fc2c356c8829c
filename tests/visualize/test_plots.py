import pandas as pd

from mg3d.visualize.page import png
from mg3d.visualize.plots import curves_figure


def written(path, columns):
    pd.DataFrame(columns).to_csv(path, index=False)
    return [path]


def test_each_objective_has_a_panel_of_training_and_validation(tmp_path):
    columns = {
        "step": [10, 20, 20, 30, 40],
        "train/cml": [3.0, 2.0, None, 1.5, 1.0],
        "val/cml": [None, None, 2.5, None, None],
        "train/total": [9.0, 8.0, None, 7.0, 6.0],
        "lr-AdamW": [0.1] * 5,
    }
    figure = curves_figure(written(tmp_path / "metrics.csv", columns))
    assert [axes.get_title() for axes in figure.axes] == ["cml", "total"]
    train, val = figure.axes[0].lines
    assert (train.get_label(), train.get_xdata().tolist(), train.get_ydata().tolist()) == (
        "train",
        [10, 20, 30, 40],
        [3, 2, 1.5, 1],
    )
    assert (val.get_label(), val.get_xdata().tolist(), val.get_ydata().tolist()) == ("val", [20], [2.5])


def test_a_run_shorter_than_the_log_interval_shows_its_validation(tmp_path):
    figure = curves_figure(written(tmp_path / "metrics.csv", {"step": [3], "val/mim": [0.5]}))
    assert [axes.get_title() for axes in figure.axes] == ["mim"]


def test_a_run_without_logged_values_is_labelled_as_such(tmp_path):
    figure = curves_figure(written(tmp_path / "metrics.csv", {"step": [0], "lr-AdamW": [0.1]}))
    assert figure.texts[0].get_text() == "no value was logged"
    assert png(figure).startswith(b"\x89PNG")
