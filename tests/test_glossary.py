"""The vocabulary of findings (mg3d/glossary.py) and the program that prints it (prepro/glossary.py)."""

import importlib.util
from pathlib import Path

import pandas as pd
import pytest

from mg3d.glossary import FINDING_CUES, LABELS, PREVALENCE, PROMPTS, prompts
from mg3d.polarity import AFFIRMED, NEGATED, polarity


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("glossary_program", Path(__file__).parents[1] / "prepro" / "glossary.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_labels_are_unique_have_a_prevalence_and_are_findings():
    assert len({label.lower() for label in LABELS}) == len(LABELS) == len(PREVALENCE) == 18
    assert all(0 < prevalence < 1 for prevalence in PREVALENCE)
    assert FINDING_CUES.keys() == set(LABELS)
    assert all(polarity(label) == AFFIRMED and polarity(f"No {label.lower()}.") == NEGATED for label in LABELS)


@pytest.mark.parametrize("wording", PROMPTS)
def test_prompts_are_distinct_and_name_their_finding(wording):
    texts = [(label, text) for label in LABELS for text in prompts(label, wording=wording)]
    assert len({text for _, text in texts}) == 2 * len(LABELS)
    assert all(label.lower() in text.lower() for label, text in texts)


@pytest.mark.parametrize("wording", PROMPTS)
def test_prompts_have_opposite_polarities(wording):
    for label in LABELS:
        assert [polarity(text) for text in prompts(label, wording=wording)] == [AFFIRMED, NEGATED]


def test_the_vocabulary_is_printed(program, capsys):
    assert program([]) == 0
    printed = capsys.readouterr().out
    assert "Hiatal" in printed


def test_label_files_are_compared_with_the_vocabulary(program, tmp_path, capsys):
    table = pd.DataFrame({label: [float(value > 0.2), 0] for label, value in zip(LABELS, PREVALENCE, strict=True)})
    table.iloc[:, ::-1].to_csv(tmp_path / "reversed.csv", index=False)
    table.drop(columns="Emphysema").to_csv(tmp_path / "incomplete.csv", index=False)
    (tmp_path / "empty.csv").write_text("")
    assert program([str(tmp_path / "reversed.csv"), str(tmp_path / "incomplete.csv")]) == 1
    errors = capsys.readouterr().err
    assert "reversed.csv: the labels are in another order" in errors
    assert "incomplete.csv: no column for Emphysema" in errors
    assert "Cardiomegaly is positive in 0.000 of 2 rows; in CT-RATE in 0.107" in errors
    for name in ("none.csv", "empty.csv"):
        assert program([str(tmp_path / name)]) == 2
        assert f"cannot read {tmp_path / name}" in capsys.readouterr().err
