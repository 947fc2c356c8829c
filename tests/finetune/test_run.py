import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from downstream.folders import load

from mg3d.finetune.predict import find_scans
from mg3d.finetune.run import run

SMALL = ["epochs=2", "batch_size=3", "num_workers=0", "resamples=20", "accelerator=cpu"]


@pytest.fixture(scope="module")
def trained(tiny_set, tmp_path_factory):
    """A finished run on the small STOIC2021: (data root, results, its words)."""
    root, results = tiny_set("stoic2021"), tmp_path_factory.mktemp("results")
    words = [f"data_root={root}", f"log_dir={results}", "run_name=first", *SMALL]
    assert run(load("stoic2021").TASK, words) == 0
    return root, results / "stoic2021" / "first" / "fold0", words


def test_a_run_leaves_scores_predictions_page_and_checkpoints(trained):
    _, folder, _ = trained
    facts = json.loads((folder / "scores.json").read_text())
    assert {score["name"] for score in facts["scores"]["val"]} >= {"auroc", "auroc/probSevere"}
    assert facts["synthetic"] is True
    table = pd.read_csv(folder / "predictions_val.csv")
    assert len(table) == facts["cases"]["val"]
    assert table["score/probCOVID"].between(0, 1).all()
    for name in ("results.html", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        assert (folder / name).is_file()


def test_severity_is_not_known_of_patients_without_covid(trained):
    root, *_ = trained
    from mg3d.finetune.settings import FinetuneSettings

    cases = load("stoic2021").read_cases(root, FinetuneSettings())
    assert {case.target[1] for case in cases if case.target[0] == 0} == {-1}
    assert {case.target[1] for case in cases if case.target[0] == 1} == {0, 1}
    original = load("stoic2021").read_cases(root, FinetuneSettings(split="original"))
    assert {case.target[1] for case in original if case.target[0] == 0} == {0}


def test_a_finished_run_is_shown_and_not_trained_again(trained, capsys):
    _, folder, words = trained
    before = (folder / "checkpoints" / "best.ckpt").stat().st_mtime_ns
    assert run(load("stoic2021").TASK, words) == 0
    assert "finished" in capsys.readouterr().out
    assert (folder / "checkpoints" / "best.ckpt").stat().st_mtime_ns == before


def test_another_setting_under_the_same_name_is_refused(trained, capsys):
    _, _, words = trained
    assert run(load("stoic2021").TASK, [*words, "learning_rate=5e-4"]) == 2
    assert "learning_rate=0.001 (now 0.0005)" in capsys.readouterr().err


def test_evaluation_again_gives_the_same_numbers(trained):
    _, folder, words = trained
    before = pd.read_csv(folder / "predictions_val.csv")
    assert run(load("stoic2021").TASK, [*words, "mode=evaluate"]) == 0
    pd.testing.assert_frame_equal(before, pd.read_csv(folder / "predictions_val.csv"))


def test_prediction_of_the_files_equals_evaluation(trained, tmp_path):
    root, folder, words = trained
    out = tmp_path / "out"
    broken = root / "data" / "mha"
    assert run(load("stoic2021").TASK, [*words, "mode=predict", f"input={broken}", f"output={out}"]) == 0
    mine = pd.read_csv(out / "predictions.csv", dtype={"case_id": str}).set_index("case_id")
    theirs = pd.read_csv(folder / "predictions_val.csv", dtype={"case_id": str}).set_index("case_id")
    for name in ("score/probCOVID", "score/probSevere"):
        assert np.allclose(mine.loc[theirs.index, name], theirs[name], atol=1e-6)


def test_a_broken_scan_is_set_aside_and_an_existing_folder_refused(trained, tmp_path, capsys):
    _, _, words = trained
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "broken.mha").write_bytes(b"ObjectType = Image\nNDims = 3\n")
    asked = [*words, "mode=predict", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}"]
    assert run(load("stoic2021").TASK, asked) == 2
    assert "none of 1 scans can be used" in capsys.readouterr().err
    refused = pd.read_csv(tmp_path / "out" / "refused.csv")
    assert refused["case_id"].tolist() == ["broken"]
    assert "broken.mha cannot be read as a scan" in refused["reason"][0]
    assert run(load("stoic2021").TASK, asked) == 2
    assert "exists already" in capsys.readouterr().err


def test_files_that_differ_in_their_ending_alone_keep_their_own_names(tmp_path):
    for name in ("a.nii.gz", "a.mha", "b.mha"):
        (tmp_path / name).write_bytes(b"")
    assert sorted(case.case_id for case in find_scans(tmp_path)) == ["a_mha", "a_nii_gz", "b"]


def test_scores_of_another_checkpoint_lie_beside_the_runs(trained):
    _, folder, words = trained
    before = (folder / "scores.json").read_text()
    last = folder / "checkpoints" / "last.ckpt"
    assert run(load("stoic2021").TASK, [*words, "mode=evaluate", f"checkpoint={last}"]) == 0
    assert (folder / "scores.json").read_text() == before
    assert (folder / "of-last" / "scores.json").is_file()


def test_an_evaluation_keeps_what_training_took(trained):
    _, folder, words = trained
    minutes = json.loads((folder / "scores.json").read_text())["minutes"]
    assert run(load("stoic2021").TASK, [*words, "mode=evaluate"]) == 0
    assert json.loads((folder / "scores.json").read_text())["minutes"] == minutes


def test_two_runs_are_compared_on_the_same_cases(trained, tmp_path, capsys):
    _, folder, words = trained
    other = [word for word in words if not word.startswith("run_name")]
    assert run(load("stoic2021").TASK, [*other, "run_name=second", "learning_rate=1e-5"]) == 0
    capsys.readouterr()
    assert run(load("stoic2021").TASK, [*words, "mode=compare", f"other={folder.parents[1] / 'second' / 'fold0'}"]) == 0
    told = capsys.readouterr().out
    assert "difference" in told
    assert "auroc/probSevere" in told


def test_training_goes_on_where_it_was_cut_off(trained, tmp_path):
    """One epoch, then the other, gives the weights of two in one run."""
    root, folder, _ = trained
    words = [f"data_root={root}", f"log_dir={tmp_path}", "run_name=cut", *SMALL]
    import mg3d.finetune.fit as fit

    kept = fit.build_trainer

    def stops_early(*arguments, **named):
        trainer = kept(*arguments, **named)
        trainer.fit_loop.max_epochs = 1
        return trainer

    fit.build_trainer = stops_early
    try:
        run(load("stoic2021").TASK, words)
    finally:
        fit.build_trainer = kept
    again = tmp_path / "stoic2021" / "cut" / "fold0"
    (again / "scores.json").unlink()
    assert run(load("stoic2021").TASK, words) == 0
    one, other = (torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for path in (folder, again))
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_all_folds_are_pooled(tiny_set, tmp_path):
    root = tiny_set("cc-ccii")
    words = [f"data_root={root}", f"log_dir={tmp_path}", "run_name=cv", "folds=all", *SMALL, "epochs=1"]
    assert run(load("cc-ccii").TASK, words) == 0
    pooled = pd.read_csv(tmp_path / "cc-ccii" / "cv" / "all" / "predictions_val.csv")
    from mg3d.finetune.settings import FinetuneSettings

    assert sorted(pooled["case_id"]) == sorted(c.case_id for c in load("cc-ccii").read_cases(root, FinetuneSettings()))
    facts = json.loads((tmp_path / "cc-ccii" / "cv" / "all" / "scores.json").read_text())
    assert facts["folds"] == 5
    assert set(facts["between_folds"]["accuracy"]) == {"mean", "sd"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["fold=9"], "fold=9: there are 5 folds"),
        (["data_root=/nowhere"], "there is no such folder"),
        (["pretrained=/nowhere.ckpt"], "there is no file"),
        (["warmup_epochs=9"], "warmup_epochs=9.0 is longer than epochs=2"),
        (["leaning_rate=1"], "did you mean learning_rate"),
    ],
)
def test_mistakes_are_one_sentence(trained, tmp_path, capsys, words, told):
    root, *_ = trained
    assert run(load("stoic2021").TASK, [f"data_root={root}", f"log_dir={tmp_path}", *SMALL, *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_help_names_every_setting(capsys):
    assert run(load("stoic2021").TASK, ["--help"]) == 0
    assert "learning_rate" in capsys.readouterr().out


def test_a_cut_off_run_does_not_go_on_with_other_settings(trained, tmp_path, capsys):
    root, folder, _ = trained
    there = tmp_path / "stoic2021" / "cut" / "fold0" / "checkpoints"
    there.mkdir(parents=True)
    shutil.copy(folder / "checkpoints" / "last.ckpt", there)
    asked = [f"data_root={root}", f"log_dir={tmp_path}", "run_name=cut", *SMALL]
    assert run(load("stoic2021").TASK, [*asked, "learning_rate=5e-4", "encoder_rate=0.5"]) == 2
    assert "learning_rate=0.001 (now 0.0005), encoder_rate=1.0 (now 0.5)" in capsys.readouterr().err


@pytest.mark.parametrize(("word", "told"), [("seed=1", "seed=0 (now 1)"), ("fold=1", "fold=fold0 (now fold1)")])
def test_a_network_is_not_judged_on_cases_it_learned_from(trained, tmp_path, capsys, word, told):
    root, folder, _ = trained
    best = folder / "checkpoints" / "best.ckpt"
    words = [f"data_root={root}", f"log_dir={tmp_path}", *SMALL, "mode=evaluate", f"checkpoint={best}", word]
    assert run(load("stoic2021").TASK, words) == 2
    assert told in capsys.readouterr().err


def test_a_metric_without_a_value_is_told_before_the_first_epoch_is_the_best(trained, tmp_path, capsys):
    root, *_ = trained
    assert run(load("stoic2021").TASK, [f"data_root={root}", f"log_dir={tmp_path}", *SMALL, "max_cases=1"]) == 0
    told = capsys.readouterr().out
    assert told.count("auroc/probSevere has no value on these validation cases") == 1
    assert "the best epoch was chosen on the cases that are reported" in told


@pytest.mark.parametrize("workers", [0, 1])
def test_a_scan_that_turns_out_damaged_in_training_is_one_sentence(trained, tmp_path, capsys, workers):
    root, *_ = trained
    shutil.copytree(root, tmp_path / "set")
    for scan in (tmp_path / "set" / "data" / "mha").glob("*.mha"):
        scan.write_bytes(scan.read_bytes()[:600])  # the header is whole
    words = [f"data_root={tmp_path / 'set'}", f"log_dir={tmp_path}", *SMALL, f"num_workers={workers}"]
    assert run(load("stoic2021").TASK, words) == 2
    error = capsys.readouterr().err
    assert ".mha cannot be read as a scan" in error
    assert "Traceback" not in error
