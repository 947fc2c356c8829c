import json

import pytest
import torch
from small_arrow import report_of, write_split

from mg3d.config import resolve
from mg3d.evaluation.evidence import held_out_studies, open_held_out, show_evidence


@pytest.fixture
def settings(tmp_path):
    write_split(tmp_path, "ct_rate", "test", patients=4)
    return resolve(["tiny"], {"data_root": str(tmp_path), "ground_truth_root": str(tmp_path)})


def truths_of(settings, root, report_numbers):
    """Ground truth found for the four studies when that of reports `report_numbers` is written."""
    for patient, number in enumerate(report_numbers):
        findings, impression = report_of(number)
        path = root / "truth" / "ct_rate" / f"test_{patient}_0.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        truth = {"report": {"findings": findings, "impression": impression}, "findings": [], "number": number}
        path.write_text(json.dumps(truth))
    return open_held_out(settings, train=None, tokenizer=None, collator=None, device=torch.device("cpu")).truths


def test_ground_truth_is_read_if_it_has_the_reports_of_the_studies(settings, tmp_path):
    assert [truth["number"] for truth in truths_of(settings, tmp_path, (0, 1, 2, 3))] == [0, 1, 2, 3]


@pytest.mark.parametrize("report_numbers", [(0, 1, 2), (0, 1, 2, 5)])
def test_ground_truth_of_studies_with_equal_names_and_other_reports_is_not_used(settings, tmp_path, report_numbers):
    assert truths_of(settings, tmp_path, report_numbers) is None


def test_an_empty_test_split_is_refused(settings, tmp_path):
    write_split(tmp_path, "ct_rate", "test", patients=0)
    with pytest.raises(ValueError, match="has no study to evaluate the model on"):
        held_out_studies(settings)


def test_objectives_without_a_held_out_metric_are_reported(tmp_path, capsys):
    result = {"studies": 4, "objective": ["mlm"], "untrained": {}, "trained": {}, "baselines": {}}
    (tmp_path / "evidence.json").write_text(json.dumps(result))
    show_evidence(tmp_path)
    assert "no held-out metric is defined for the objectives mlm alone" in capsys.readouterr().out
