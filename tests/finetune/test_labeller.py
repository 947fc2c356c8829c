import json

import numpy as np
import pandas as pd
import pytest
from downstream.folders import load, script
from finetune.small_rate import task_and_cases, write_rate

from mg3d.finetune import arrows
from mg3d.finetune.labellers import CueLabeller, open_labeller
from mg3d.finetune.reports import read_report_cases
from mg3d.finetune.run import run
from mg3d.finetune.tasks.labeller import load_labeller, terms
from mg3d.glossary import LABELS
from mg3d.metrics.clinical import clinical_efficacy

NODULE, EFFUSION, EMPHYSEMA = (LABELS.index(name) for name in ("Lung nodule", "Pleural effusion", "Emphysema"))


def test_terms_of_negated_clauses_are_marked():
    assert terms("Small nodule, no effusion.") == ["small", "nodule", "small nodule", "-no", "-effusion", "-no effusion"]


def test_cue_words_label_findings_that_are_not_negated():
    reports = ["Nodules of both lungs, no pleural effusion.", "No nodule. A nodule of 3 mm.", "No nodule.", ""]
    labels = CueLabeller().labels(reports)
    assert labels[:, NODULE].tolist() == [1, 1, 0, 0]
    assert labels[0, [EFFUSION, EMPHYSEMA]].tolist() == [0, 0]


def test_reports_come_from_tables_and_from_arrow_files_alike(tiny_set, tmp_path):
    raw = tiny_set("CT-RATE")
    task_and_cases(raw, image_size=32)
    from_tables, from_volumes = (read_report_cases(root, "ct_rate") for root in (raw, raw / "finetune_arrows_32"))
    by_name = lambda cases: sorted(cases, key=lambda case: case.case_id)  # noqa: E731
    assert by_name(from_tables) == by_name(from_volumes)
    assert script("prepro_finetuning_language_data")["main"](["--ct-rate", str(raw), "--out", str(tmp_path)]) == 0
    assert arrows.read_cases(arrows.find_prepared(str(tmp_path), "CT-RATE")) == from_tables


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("labeller")
    write_rate(root / "arrows")
    script("prepro_finetuning_language_data")["main"](["--ct-rate", str(root / "arrows"), "--out", str(root / "language")])
    arguments = [
        f"data_root={root / 'language'}",
        f"log_dir={root}",
        "run_name=run",
        "n_bootstrap=0",
        "accelerator=cpu",
    ]
    assert run(load("CT-RATE").TASK, [*arguments, "num_workers=0"]) == 0
    return root


def test_a_saved_labeller_gives_the_scores_of_its_run(trained):
    folder = trained / "CT-RATE" / "labeller" / "run"
    table = pd.read_csv(folder / "fold0" / "predictions_test.csv").set_index("case_id")
    tests = [case for case in read_report_cases(trained / "arrows", "ct_rate") if case.split == "test"]
    labeller = load_labeller(folder)
    reports = [case.report for case in tests]
    scores = table.loc[[case.case_id for case in tests], [f"score/{name}" for name in LABELS]].to_numpy()
    assert np.allclose(labeller.scores(reports), scores)
    decided = labeller.labels(reports)
    assert decided.dtype == np.int8
    assert np.array_equal(decided, scores >= labeller.thresholds.numpy())
    assert clinical_efficacy(decided, labeller.labels(reports))["micro_f1"] == 1
    assert open_labeller(f"tfidf:{folder}")[0].labels(reports).tolist() == decided.tolist()
    assert len(json.loads((folder / "fold0" / "scores.json").read_text())["scores"]["val"]) > len(LABELS)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("tfidf:/nowhere", FileNotFoundError, "holds no labeller; train one"),
        ("chexbert", ModuleNotFoundError, "labeller=chexbert needs a package and its weights"),
        ("radbert_ct", ValueError, "needs the folder of a transformers text classifier"),
        ("radbert_ct:/nowhere", FileNotFoundError, "is not a transformers text classifier"),
        ("bert", ValueError, "labeller='bert': expected one of"),
    ],
)
def test_a_labeller_that_cannot_be_opened_is_refused(name, error, message):
    with pytest.raises(error, match=message) as caught:
        open_labeller(name)
    assert "\n" not in str(caught.value)
