import json

import pytest
from small_arrow import report_of, write_split

from mg3d.config import resolve
from mg3d.evaluation.evidence import held_out_studies, read_truths, show_evidence


@pytest.fixture
def settings(tmp_path):
    write_split(tmp_path, "ct_rate", "test", patients=4)
    return resolve(["tiny"], {"data_root": str(tmp_path), "ground_truth_root": str(tmp_path)})


def write_truths(root, *, numbers):
    for place, number in enumerate(numbers):
        findings, impression = report_of(number)
        path = root / "truth" / "ct_rate" / f"test_{place}_0.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"report": {"findings": findings, "impression": impression}, "number": number}))


def test_truth_is_read_where_it_tells_the_very_reports(settings, tmp_path):
    write_truths(tmp_path, numbers=(0, 1, 2, 3))
    assert [truth["number"] for truth in read_truths(settings, held_out_studies(settings))] == [0, 1, 2, 3]


@pytest.mark.parametrize("numbers", [(0, 1, 2), (0, 1, 2, 5)])
def test_studies_of_equal_name_and_other_report_get_no_truth(settings, tmp_path, numbers):
    write_truths(tmp_path, numbers=numbers)
    assert read_truths(settings, held_out_studies(settings)) is None


def test_an_empty_test_split_is_told(settings, tmp_path):
    write_split(tmp_path, "ct_rate", "test", patients=0)
    with pytest.raises(ValueError, match="evidence=False"):
        held_out_studies(settings)


def test_objectives_without_a_held_out_number_are_told(tmp_path, capsys):
    result = {"studies": 4, "objective": ["mlm"], "untrained": {}, "trained": {}, "baselines": {}}
    (tmp_path / "evidence.json").write_text(json.dumps(result))
    show_evidence(tmp_path)
    assert "no held-out number is defined for the objectives mlm alone" in capsys.readouterr().out
