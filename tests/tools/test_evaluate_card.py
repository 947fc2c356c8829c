import ast
import importlib.util
from pathlib import Path

import pytest
from small_arrow import small_tokenizer, write_split
from small_card import bright_side, small_card
from small_run import SMALL

from mg3d.checkpoints.pretrained import save_pretrained
from mg3d.config import resolve
from mg3d.models.build import build_untrained


def load(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def value_of(word):
    """A Python literal, or the word itself."""
    try:
        return ast.literal_eval(word)
    except ValueError:
        return word


EVALUATE, COMPARE = load("evaluate_card"), load("compare_results")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    settings = resolve(["tiny"], {name: value_of(value) for name, value in (word.split("=", 1) for word in SMALL)})
    tokenizer = small_tokenizer(folder / "words")
    return save_pretrained(build_untrained(settings, len(tokenizer)), folder / "model", settings=settings, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrows")
    write_split(folder, "ct_rate", "train", patients=6, shape=(32, 24, 32), voxels=bright_side)
    return folder


@pytest.fixture(autouse=True)
def card(monkeypatch):
    """Of 9 patients, where `data` has 6."""
    found = small_card(volumes=9, studies=9, patients=9, n_bootstrap=4, recall_ks=(1, 2), stress_studies=3)
    monkeypatch.setitem(EVALUATE.CARDS, "phantom", found)


def evaluate(model, data, *more):
    return EVALUATE.main(["phantom", "--checkpoint", str(model), "--data-root", str(data), "--device", "cpu", *map(str, more)])


def test_incomplete_data_are_refused_in_one_line(model, data, capsys):
    assert evaluate(model, data) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("mg3d: the data differ from card phantom v1: 6 volumes instead of 9")
    assert printed.count("\n") == 1


def test_partial_results_are_marked_repeat_and_compare(model, data, tmp_path, capsys):
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    assert evaluate(model, data, "--partial", "--stress", "--json", first, "--html", tmp_path / "page.html") == 0
    printed = capsys.readouterr().out
    headings = [line for line in printed.splitlines() if "· card phantom v1" in line]
    assert len(headings) > 8
    assert all(line.endswith("· PARTIAL 6/9") for line in headings)
    assert any(line.startswith("Stress test, 3 volumes") for line in headings)
    assert "enlarged" not in printed  # the text of reports is not shown
    assert printed.splitlines()[-1].startswith("mg3d: --ground-truth-root FOLDER adds grounding")
    assert "PARTIAL 6/9" in (tmp_path / "page.html").read_text()
    assert evaluate(model, data, "--partial", "--stress", "--json", second) == 0
    assert first.read_bytes() == second.read_bytes()
    capsys.readouterr()
    assert COMPARE.main([str(first), str(second), "--n-bootstrap", "9"]) == 0
    assert "0.000 [0.000, 0.000]" in capsys.readouterr().out


def test_a_set_without_reports_is_evaluated_by_its_labels(model, tmp_path, capsys):
    write_split(tmp_path, "ct_rate", "train", patients=4, shape=(32, 24, 32), voxels=bright_side, reported=lambda number: False)
    assert evaluate(model, tmp_path, "--partial") == 0
    printed = capsys.readouterr().out
    assert "Zero-shot findings · card phantom v1 · PARTIAL 4/9" in printed
    assert "Sentence pairs" not in printed


def test_volumes_of_another_size_are_refused(model, tmp_path, capsys):
    write_split(tmp_path, "ct_rate", "train", patients=2)
    assert evaluate(model, tmp_path, "--partial") == 2
    assert "has volumes of (16, 12, 8) voxels (z, y, x), but the model reads (32, 24, 32)" in capsys.readouterr().err


def test_ground_truth_of_other_studies_is_refused_before_anything_is_computed(model, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mg3d.evaluation.evaluate.evaluate_card", None)
    assert evaluate(model, data, "--partial", "--ground-truth-root", tmp_path) == 2
    assert "does not have the ground truth of these studies" in capsys.readouterr().err


def test_wrong_options_are_refused_at_once(tmp_path, capsys):
    for arguments, expected in (
        (["--json", tmp_path / "no" / "x.json"], "does not exist"),
        (["--batch", "0"], "argument --batch"),
        (["--reports", "r.json"], "--reports needs --ground-truth-root"),
    ):
        with pytest.raises(SystemExit):
            evaluate("model", tmp_path, *arguments)
        assert expected in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_not_a_result_is_refused(tmp_path, capsys):
    (tmp_path / "other.json").write_text("[]")
    assert COMPARE.main([str(tmp_path / "other.json")] * 2) == 2
    assert "was not written by `tools/evaluate_card.py --json`" in capsys.readouterr().err
