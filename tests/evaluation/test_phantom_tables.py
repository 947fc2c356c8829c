"""Tables against the phantom's ground truth, and how the ground truth is read."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from small_arrow import report_of
from small_card import WINDOW, SideEncoder, bright_side, small_card, write

from mg3d.datasets.studies import ReportText
from mg3d.evaluation.card_data import CardData
from mg3d.evaluation.evaluate import evaluate_card
from mg3d.evaluation.phantom_ground_truth import finding_sides, read_masks, sentence_meanings
from mg3d.evaluation.phantom_reports import StatedFinding, read_report, report_rows, true_findings
from mg3d.evaluation.phantom_tables import PhantomTables
from mg3d.evaluation.tables import Bootstrap
from mg3d.glossary import LABELS
from mg3d.phantom.case import make_case
from mg3d.phantom.generate import PhantomSettings, draw, generate, plan, read_truth
from mg3d.sentence_spans import build_report
from mg3d.settings.schema import CROP

BOOTSTRAP = Bootstrap(20, 0)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantom")
    settings = PhantomSettings(train_patients=0, valid_patients=3, ctrg_cases=0, grid=40, second_scans=0)
    generate(root, settings, workers=1, masks=True)
    return root, list(plan(root, settings))


def test_masks_are_cropped_to_the_grid_of_the_model(phantom):
    root, studies = phantom
    drawn = draw(studies[0]).mask
    margins = [round(side * (1 - fraction) / 2) for side, fraction in zip(drawn.shape, CROP, strict=True)]
    cropped = drawn[tuple(slice(margin, side - margin) for margin, side in zip(margins, drawn.shape, strict=True))]
    masks = read_masks(root, f"ct_rate/{studies[0].name}_1", cropped.shape)
    assert masks.shape == (18, *cropped.shape)
    for finding in range(18):
        assert (masks[finding].numpy() == (cropped == finding + 1)).all()
    assert masks.any()


def test_sides_and_meanings_come_from_the_ground_truth(phantom):
    truths = [read_truth(study) for study in phantom[1]]
    for row, truth in zip(finding_sides(truths), truths, strict=True):
        known = {f["label"]: f["side"] for f in truth["findings"] if f["side"] in {"left", "right"}}
        assert {LABELS[index]: ["right", "left"][side] for index, side in enumerate(row) if side >= 0} == known
    report, units = build_report(truths[0]["report"]["findings"], truths[0]["report"]["impression"])
    clauses = tuple((unit.start, unit.end) for unit in units if unit.kind == 1)
    found = sentence_meanings(truths[:1], [ReportText(report, clauses)])
    stated = {f"{c['label']}|{c['polarity']}|{c['location']}" for c in truths[0]["clauses"] if c["label"]}
    assert {name for name in found if name} <= stated
    assert sum(name is not None for name in found) > len(found) / 3


def test_phantom_reports_are_read_as_their_ground_truth():
    cases = [make_case((7, 1, patient, 0), voxels_in_plane=24, style="ctrate", tempered=True) for patient in range(40)]
    systems = {
        "true": [f"{case.report.findings}\n{case.report.impression}" for case in cases],
        "constant": ["The heart is of normal size."] * 40,
    }
    true, constant = report_rows(systems, [case.ground_truth() for case in cases], np.arange(40), BOOTSTRAP)
    assert true["precision"]["value"] > 0.97
    assert true["recall"]["value"] > 0.95
    assert true["side accuracy"]["value"] == 1.0
    assert true["size error, mm"]["value"] <= 1.5
    assert (constant["recall"]["value"], constant["sides stated"]) == (0, 0)


def test_reports_are_read_for_finding_side_and_size():
    report = "A 12 mm nodule lies in the left upper lobe. There is no pleural effusion. Cardiomegaly is present."
    found = read_report(report)
    assert sorted(found) == ["Cardiomegaly", "Lung nodule"]
    assert found["Lung nodule"] == ("left", 12)
    assert read_report("Hazy increase of lung density on both sides.")["Lung opacity"].side == "bilateral"


def test_wrong_side_and_size_are_scored():
    truth = {"findings": [{"label": "Lung nodule", "side": "left", "size_mm": 10.0}]}
    (row,) = report_rows({"one": ["A 14 mm nodule lies in the right upper lobe."]}, [truth], np.arange(1), BOOTSTRAP)
    assert (row["f1"]["value"], row["side accuracy"]["value"], row["size error, mm"]["value"]) == (1, 0, 4)
    assert true_findings(truth) == {"Lung nodule": StatedFinding("left", 10.0)}


def mask_path(root, volume_id):
    return root / "truth" / "masks" / f"{volume_id}.nii.gz"


class GroundingSideEncoder(SideEncoder):
    """Points at the voxel [0, 0, 0] for every prompt."""

    def ground(self, volumes, prompts):
        maps = torch.zeros(len(volumes), len(prompts), 4, 3, 2)
        maps[..., 0, 0, 0] = 1
        return {"contrast": maps}


@pytest.fixture
def truth_of_studies(tmp_path):
    """Ground truth of 4 studies of one volume each: a nodule that alternates between left and right, at the first voxels."""
    write(tmp_path, patients=4, scans=1, reconstructions=1, voxels=bright_side)
    for patient in range(4):
        findings, impression = report_of(patient)
        nodule = {"label": "Lung nodule", "side": "left" if patient % 2 else "right", "size_mm": 8.0}
        truth = {"report": {"findings": findings, "impression": impression}, "findings": [nodule], "clauses": []}
        path = tmp_path / "truth" / "ct_rate" / f"train_{patient}_0.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(truth))
        labels = np.zeros((16, 24, 32), np.uint8)
        labels[:6, :8, :8] = 1 + LABELS.index("Lung nodule")
        mask = mask_path(tmp_path, f"ct_rate/train_{patient}_0_0")
        mask.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(labels, np.eye(4)), mask)
    return tmp_path


def test_all_tables_of_the_phantom(truth_of_studies):
    card = small_card(volumes=4, studies=4, patients=4, n_bootstrap=4)
    data = CardData(truth_of_studies, card, window_hu=WINDOW)
    phantom = PhantomTables(truth_of_studies, data)
    generated = dict.fromkeys(data.study_ids, "A 8 mm nodule lies in the left upper lobe.")
    more = [phantom.side_table, phantom.grounding_tables, lambda embeddings: phantom.report_table(embeddings, generated)]
    tables = evaluate_card(card, data, GroundingSideEncoder(), model={}, extra_tables=more).tables
    (side,) = tables["Laterality by prompts and true side"]
    assert (side["finding"], side["left"], side["right"]) == ("Lung nodule", 2, 2)
    contrast, *baselines = tables["Grounding"]
    assert (contrast["map"], contrast["maps"], contrast["pointing game"]["value"]) == ("contrast", 4, 1.0)
    assert [row["map"] for row in baselines] == ["centre (baseline)", "random (baseline)"]
    assert [row["finding"] for row in tables["Grounding by finding, contrast"]] == ["Lung nodule", "all"]
    rows = tables["Reports against the ground truth"]
    assert [row["reports"] for row in rows] == ["true report", "same normal report for all", "generated"]
    assert (rows[2]["f1"]["value"], rows[2]["side accuracy"]["value"], rows[2]["size error, mm"]["value"]) == (1, 0.5, 0)
    meanings = sentence_meanings(phantom.truths, data.reports())
    assert meanings == [None] * sum(len(report.sentence_spans) for report in data.reports())
    with pytest.raises(ValueError, match="4 of 4 studies have no report in --reports, such as ct_rate/train_0_0"):
        evaluate_card(card, data, SideEncoder(), model={}, extra_tables=[lambda e: phantom.report_table(e, {})])


def test_missing_ground_truth_and_masks_are_refused(truth_of_studies):
    data = CardData(truth_of_studies, small_card(), window_hu=WINDOW)
    mask_path(truth_of_studies, data.volume_ids[2]).unlink()
    with pytest.raises(FileNotFoundError, match=r"Add masks with `python tools/make_phantom\.py --out"):
        PhantomTables(truth_of_studies, data)
    truth_path = truth_of_studies / "truth" / "ct_rate" / "train_1_0.json"
    truth = json.loads(truth_path.read_text())
    truth_path.write_text(json.dumps(truth | {"findings": 2 * truth["findings"]}))
    with pytest.raises(ValueError, match=r"train_1_0.json lists a finding twice \(Lung nodule, Lung nodule\)"):
        PhantomTables(truth_of_studies, data)
    truth_path.unlink()
    with pytest.raises(ValueError, match="does not have the ground truth of these studies"):
        PhantomTables(truth_of_studies, data)
