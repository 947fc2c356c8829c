import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from downstream.folders import load
from monai.networks.nets.swin_unetr import SwinTransformer

from mg3d.finetune import loop
from mg3d.finetune.encoder import TINY, build_encoder, load_encoder
from mg3d.finetune.predict import find_scans
from mg3d.finetune.results import read_summary, read_table, run_differences
from mg3d.finetune.run import run
from mg3d.finetune.settings import FinetuneSettings
from mg3d.settings.parse import defaults

SMALL = ["epochs=2", "batch_size=3", "num_workers=0", "n_bootstrap=20", "accelerator=cpu"]


@pytest.fixture(scope="module")
def trained(tiny_set, tmp_path_factory):
    """A finished run on the small STOIC2021: (data root, results, its arguments)."""
    root, results = tiny_set("stoic2021"), tmp_path_factory.mktemp("results")
    arguments = [f"data_root={root}", f"log_dir={results}", "run_name=first", *SMALL]
    assert run(load("stoic2021").TASK, arguments) == 0
    return root, results / "stoic2021" / "first" / "fold0", arguments


def test_a_run_leaves_scores_predictions_page_and_checkpoints(trained):
    _, folder, _ = trained
    summary = json.loads((folder / "scores.json").read_text())
    assert {score["name"] for score in summary["scores"]["val"]} >= {"auroc", "auroc/probSevere"}
    assert summary["synthetic"] is True
    table = pd.read_csv(folder / "predictions_val.csv")
    assert len(table) == summary["cases"]["val"]
    scores = {score["name"]: score for score in summary["scores"]["val"]}
    known = table[table["target/probCOVID"] == 1]
    assert scores["auroc"]["cases"] == len(table)
    assert scores["auroc/probSevere"]["cases"] == len(known) < len(table)
    assert scores["auroc/probSevere"]["patients"] == known["patient_id"].nunique()
    assert scores["sensitivity@0.5/probSevere"]["cases"] == (known["target/probSevere"] == 1).sum()
    assert 0 < summary["peak_memory_gb"] < 100
    assert table["score/probCOVID"].between(0, 1).all()
    for name in ("results.html", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        assert (folder / name).is_file()


def test_a_finished_run_is_shown_and_not_trained_again(trained, capsys):
    _, folder, arguments = trained
    before = (folder / "checkpoints" / "best.ckpt").stat().st_mtime_ns
    assert run(load("stoic2021").TASK, arguments) == 0
    message = capsys.readouterr().out
    assert "finished" in message
    assert "auroc/probSevere" in message
    assert (folder / "checkpoints" / "best.ckpt").stat().st_mtime_ns == before


def test_a_second_evaluation_gives_the_same_predictions_and_keeps_the_training_time(trained):
    _, folder, arguments = trained
    before, minutes = pd.read_csv(folder / "predictions_val.csv"), read_summary(folder)["minutes"]
    assert run(load("stoic2021").TASK, [*arguments, "mode=evaluate"]) == 0
    pd.testing.assert_frame_equal(before, pd.read_csv(folder / "predictions_val.csv"))
    assert read_summary(folder)["minutes"] == minutes


def test_prediction_of_the_files_equals_evaluation(trained, tmp_path):
    root, folder, arguments = trained
    out = tmp_path / "out"
    scans = root / "data" / "mha"
    assert run(load("stoic2021").TASK, [*arguments, "mode=predict", f"input={scans}", f"output={out}"]) == 0
    files = (out / "predictions.csv", folder / "predictions_val.csv")
    predicted, evaluated = (read_table(file).set_index("case_id") for file in files)
    for name in ("score/probCOVID", "score/probSevere"):
        assert np.allclose(predicted.loc[evaluated.index, name], evaluated[name], atol=1e-6)


def test_a_broken_scan_is_excluded_and_an_existing_output_folder_refused(trained, tmp_path, capsys):
    _, _, arguments = trained
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "broken.mha").write_bytes(b"ObjectType = Image\nNDims = 3\n")
    command = [*arguments, "mode=predict", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}"]
    assert run(load("stoic2021").TASK, command) == 2
    assert "none of 1 scans can be used" in capsys.readouterr().err
    refused = pd.read_csv(tmp_path / "out" / "excluded.csv")
    assert refused["case_id"].tolist() == ["broken"]
    assert "broken.mha cannot be read as a scan" in refused["reason"][0]
    assert run(load("stoic2021").TASK, command) == 2
    assert "exists; choose a new folder" in capsys.readouterr().err


def test_files_that_differ_only_in_their_suffix_have_different_names(tmp_path):
    for name in ("a.nii.gz", "a.mha", "b.mha"):
        (tmp_path / name).write_bytes(b"")
    assert sorted(case.case_id for case in find_scans(tmp_path)) == ["a_mha", "a_nii_gz", "b"]


def test_another_checkpoint_has_a_separate_results_folder(trained):
    _, folder, arguments = trained
    before = (folder / "scores.json").read_text()
    last = folder / "checkpoints" / "last.ckpt"
    assert run(load("stoic2021").TASK, [*arguments, "mode=evaluate", f"checkpoint={last}"]) == 0
    assert (folder / "scores.json").read_text() == before
    assert (folder / "of-last" / "scores.json").is_file()


def test_two_runs_are_compared_on_the_same_cases(trained, tmp_path, capsys):
    _, folder, arguments = trained
    assert run(load("stoic2021").TASK, [*arguments, "run_name=second", "learning_rate=1e-5"]) == 0
    capsys.readouterr()
    assert run(load("stoic2021").TASK, [*arguments, "mode=compare", f"other={folder.parents[1] / 'second' / 'fold0'}"]) == 0
    message = capsys.readouterr().out
    assert "difference: second - first" in message
    assert "auroc/probSevere" in message
    assert "the runs also differ in: learning_rate=1e-05 (was 0.001)" in message
    assert message.count("also differ") == 1
    assert "too few" in message
    assert run(load("stoic2021").TASK, [*arguments, "mode=compare", f"other={folder}"]) == 0
    message = capsys.readouterr().out
    assert "fair comparison: one network" in message
    assert "differ in" not in message


def test_a_comparison_names_differences_of_network_cases_and_epochs(trained):
    summary = read_summary(trained[1])
    config = summary["config"]
    coarse = summary | {"config": config | {"vision": config["vision"] | {"patch_size": 8}}}
    assert run_differences(summary, coarse) == ["encoder patch_size=8 (was 4)"]
    second = summary | {"config": config | {"cases": config["cases"] | {"train": "3-00"}}, "epochs": 9}
    assert run_differences(summary, second) == ["epochs 2 and 9", f"other train cases ({summary['cases']['train']} and 3)"]


def test_runs_with_different_splits_are_compared_on_validation(trained, tmp_path, capsys):
    _, folder, arguments = trained
    second = tmp_path / "other"
    shutil.copytree(folder, second, ignore=shutil.ignore_patterns("checkpoints"))
    shutil.copy(second / "predictions_val.csv", second / "predictions_test.csv")
    assert run(load("stoic2021").TASK, [*arguments, "mode=compare", f"other={second}"]) == 0
    message = capsys.readouterr().out
    assert f"{folder} has no test split: comparing validation scores" in message
    assert "val; difference" in message


def test_a_finished_run_is_refused_for_other_cases(trained, tmp_path, capsys):
    root, folder, arguments = trained
    shutil.copytree(root, tmp_path / "set")
    moved = [*arguments, f"data_root={tmp_path / 'set'}"]
    assert run(load("stoic2021").TASK, moved) == 0  # the same cases elsewhere
    assert "finished" in capsys.readouterr().out
    lost = read_table(folder / "predictions_val.csv")["case_id"][0]
    (tmp_path / "set" / "data" / "mha" / f"{lost}.mha").write_bytes(b"")
    assert run(load("stoic2021").TASK, moved) == 2
    assert "holds a run on other cases or folds" in capsys.readouterr().err


def test_encoder_checkpoint_gives_its_architecture_with_random_weights(trained, tmp_path, capsys):
    root, *_ = trained
    flat = TINY | {"patch_size": 8, "depths": [1, 1], "num_heads": [3, 3]}
    source = build_encoder(flat)
    stored = {"state_dict": {f"vision.{name}": tensor for name, tensor in source.state_dict().items()},
              "mg3d": {"settings": defaults() | {name: list(value) if isinstance(value, tuple) else value
                                                 for name, value in flat.items()}}}  # fmt: skip
    torch.save(stored, tmp_path / "last.ckpt")
    started = [load_encoder(FinetuneSettings(**options)) for options in
               ({"pretrained": str(tmp_path / "last.ckpt")}, {"encoder": str(tmp_path / "last.ckpt")})]  # fmt: skip
    of_file, scratch = (first.encoder.state_dict() for first in started)
    assert started[0].vision == started[1].vision
    assert started[1].coverage is None
    assert {name: tensor.shape for name, tensor in of_file.items()} == {name: tensor.shape for name, tensor in scratch.items()}
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in of_file.items())
    learned = [name for name, tensor in scratch.items() if tensor.is_floating_point() and tensor.ndim > 1]
    assert learned
    assert not any(torch.equal(scratch[name], of_file[name]) for name in learned)
    arguments = [f"data_root={root}", f"log_dir={tmp_path}", *SMALL, "epochs=1", f"encoder={tmp_path / 'last.ckpt'}"]
    assert run(load("stoic2021").TASK, arguments) == 0
    assert "last.ckpt, random weights" in capsys.readouterr().out
    assert (tmp_path / "stoic2021" / f"as-{tmp_path.name}-last-scratch-phantom" / "fold0" / "scores.json").is_file()


@pytest.mark.parametrize(("downsample", "merging"), [("merging", "monai"), ("mergingv2", "monai_v2")])
def test_an_encoder_of_monai_uses_the_given_patch_merging(tmp_path, downsample, merging):
    torch.manual_seed(0)
    monai_encoder = SwinTransformer(1, 48, (7, 7, 7), (2, 2, 2), (2, 2, 2, 2), (3, 6, 12, 24), downsample=downsample).eval()
    torch.save(monai_encoder.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"monai_v2.*load_patch_merging=..."):
        load_encoder(FinetuneSettings(pretrained=str(tmp_path / "weights.pt")))
    arguments = FinetuneSettings(pretrained=str(tmp_path / "weights.pt"), load_patch_merging=merging)
    started, volume = load_encoder(arguments), torch.rand(1, 1, 32, 32, 64)
    assert started.vision["patch_merging"] == merging
    with torch.no_grad():
        assert torch.allclose(started.encoder.eval()(volume)[-1], monai_encoder(volume)[-1], atol=1e-4)


def test_an_interrupted_training_continues_bit_exactly(trained, tmp_path, monkeypatch):
    """One epoch, then the other, gives the weights of two in one run."""
    root, folder, _ = trained
    arguments = [f"data_root={root}", f"log_dir={tmp_path}", "run_name=cut", *SMALL]
    build_trainer = loop.build_trainer

    def build_short_trainer(task_type, folder):
        trainer = build_trainer(task_type, folder)
        trainer.fit_loop.max_epochs = 1
        return trainer

    with monkeypatch.context() as patched:
        patched.setattr(loop, "build_trainer", build_short_trainer)
        assert run(load("stoic2021").TASK, arguments) == 0
    again = tmp_path / "stoic2021" / "cut" / "fold0"
    (again / "scores.json").unlink()
    cut = torch.load(again / "checkpoints" / "last.ckpt", weights_only=True)
    cut["callbacks"]["Timer"] = {"time_elapsed": {"train": 70 * 60}}
    torch.save(cut, again / "checkpoints" / "last.ckpt")
    assert run(load("stoic2021").TASK, arguments) == 0
    first, second = (torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for path in (folder, again))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    assert 70 < read_summary(again)["minutes"] < 75


def test_all_folds_are_reported_with_their_spread(tiny_set, tmp_path, capsys):
    root = tiny_set("cc-ccii")
    arguments = [f"data_root={root}", f"log_dir={tmp_path}", "run_name=cv", "folds=all", *SMALL, "epochs=1"]
    assert run(load("cc-ccii").TASK, arguments) == 0
    pooled = pd.read_csv(tmp_path / "cc-ccii" / "cv" / "all" / "predictions_val.csv")
    assert sorted(pooled["case_id"]) == sorted(c.case_id for c in load("cc-ccii").read_cases(root, FinetuneSettings()))
    summary = json.loads((tmp_path / "cc-ccii" / "cv" / "all" / "scores.json").read_text())
    assert summary["folds"] == 5
    assert pooled.groupby("patient_id")["fold"].nunique().max() == 1
    accuracy = next(score for score in summary["scores"]["val"] if score["name"] == "accuracy")
    assert accuracy["folds"].keys() == {"mean", "sd", "min", "max"}
    assert "best epochs were chosen on these cases" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fold=9"], "fold=9: expected 0 to 4"),
        (["data_root=/nowhere"], "no such folder"),
        (["pretrained=/nowhere.ckpt"], "no such file"),
        (["warmup_epochs=9"], "warmup_epochs=9 is longer than epochs=2"),
        (["leaning_rate=1"], "did you mean learning_rate"),
    ],
)
def test_user_errors_are_one_sentence(trained, tmp_path, capsys, arguments, message):
    root, *_ = trained
    assert run(load("stoic2021").TASK, [f"data_root={root}", f"log_dir={tmp_path}", *SMALL, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_early_stopping_finishes_a_run_that_has_a_time_limit(tiny_set, tmp_path):
    arguments = [*SMALL, "epochs=4", "learning_rate=0", "patience=1", "max_minutes=60", "run_name=p"]
    assert run(load("cc-ccii").TASK, [f"data_root={tiny_set('cc-ccii')}", f"log_dir={tmp_path}", *arguments]) == 0
    summary = read_summary(tmp_path / "cc-ccii" / "p" / "fold0")
    assert (summary["finished"], summary["epochs"]) == (True, 2)


def test_a_time_limit_says_what_is_missing_and_the_same_command_continues(trained, tmp_path, capsys):
    root, *_ = trained
    arguments = [f"data_root={root}", f"log_dir={tmp_path}", "run_name=t", *SMALL]
    assert run(load("stoic2021").TASK, [*arguments, "val_epochs=2", "max_minutes=1e-6"]) == 2
    error = capsys.readouterr().err
    assert "before its first validation (val_epochs=2), so there are no scores yet; the same command continues" in error
    assert error.count("\n") == 1
    assert run(load("stoic2021").TASK, [*arguments, "val_epochs=2"]) == 0
    assert "provisional" not in capsys.readouterr().out
    arguments[2] = "run_name=u"
    assert run(load("stoic2021").TASK, [*arguments, "max_minutes=1e-6"]) == 0
    assert re.search(r"max_minutes=1e-06 stopped the run after \d of 2 epochs, so the scores are provi", capsys.readouterr().out)


def test_a_withheld_interval_has_its_reason_in_the_scores_and_on_the_screen(trained, capsys):
    _, folder, arguments = trained
    assert run(load("stoic2021").TASK, [*arguments, f"checkpoint={folder / 'checkpoints' / 'last.ckpt'}", "mode=evaluate"]) == 0
    message = capsys.readouterr().out
    assert "[-, -]" not in message
    assert "[too few" in message
    scores = json.loads((folder / "of-last" / "scores.json").read_text())["scores"]["val"]
    withheld = [score["no_interval"] for score in scores if score["low"] is None or np.isnan(score["low"])]
    assert withheld
    assert all(withheld)


def test_help_names_every_setting(capsys):
    assert run(load("stoic2021").TASK, ["--help"]) == 0
    assert "learning_rate" in capsys.readouterr().out


def test_an_interrupted_run_is_not_resumed_with_other_settings(trained, tmp_path, capsys):
    root, folder, _ = trained
    there = tmp_path / "stoic2021" / "cut" / "fold0" / "checkpoints"
    there.mkdir(parents=True)
    shutil.copy(folder / "checkpoints" / "last.ckpt", there)
    command = [f"data_root={root}", f"log_dir={tmp_path}", "run_name=cut", *SMALL]
    assert run(load("stoic2021").TASK, [*command, "learning_rate=5e-4", "encoder_lr_multiplier=0.5"]) == 2
    assert "learning_rate=0.0005 (was 0.001), encoder_lr_multiplier=0.5 (was 1.0)" in capsys.readouterr().err


@pytest.mark.parametrize(("argument", "message"), [("seed=1", "seed=1 (was 0)"), ("fold=1", "was trained with fold0")])
def test_a_network_is_not_evaluated_on_its_training_cases(trained, tmp_path, capsys, argument, message):
    root, folder, _ = trained
    best = folder / "checkpoints" / "best.ckpt"
    arguments = [f"data_root={root}", f"log_dir={tmp_path}", *SMALL, "mode=evaluate", f"checkpoint={best}", argument]
    assert run(load("stoic2021").TASK, arguments) == 2
    assert message in capsys.readouterr().err


def test_an_undefined_metric_selects_the_last_epoch(trained, tmp_path, capsys):
    """It was logged as 0 at every validation, so the first epoch counted as the best one."""
    root, *_ = trained
    assert run(load("stoic2021").TASK, [f"data_root={root}", f"log_dir={tmp_path}", *SMALL, "run_name=r", "max_cases=1"]) == 0
    message = capsys.readouterr().out
    assert "auroc/probSevere is undefined on the 1 validation cases (probCOVID: 0 positive, 1 negative" in message
    assert "limited by max_cases=1); the last epoch is used" in message
    folder = tmp_path / "stoic2021" / "r" / "fold0"
    assert torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] == 1
    logged = pd.concat(map(pd.read_csv, folder.glob("csv/part-*/metrics.csv")))
    assert not any("auroc" in name for name in logged)


def test_the_last_epoch_can_be_selected(trained, tmp_path, capsys):
    root, *_ = trained
    assert run(load("stoic2021").TASK, [f"data_root={root}", f"log_dir={tmp_path}", *SMALL, "run_name=r", "select=last"]) == 0
    assert "chosen on the reported cases" not in capsys.readouterr().out
    stored = torch.load(tmp_path / "stoic2021" / "r" / "fold0" / "checkpoints" / "best.ckpt", weights_only=True)
    assert stored["epoch"] == 1


def test_damaged_scans_are_excluded_and_the_others_scored(trained, tmp_path, capsys):
    root, folder, _ = trained
    shutil.copytree(root, tmp_path / "set")
    scans = sorted((tmp_path / "set" / "data" / "mha").glob("*.mha"))
    scored_before = read_table(folder / "predictions_val.csv")["case_id"].tolist()
    cut = [next(scan for scan in scans if (scan.stem in scored_before) is chosen) for chosen in (True, False)]
    for scan in cut:
        scan.write_bytes(scan.read_bytes()[:600])  # the header is complete
    arguments = [f"data_root={tmp_path / 'set'}", f"log_dir={tmp_path}", "run_name=r", *SMALL, "epochs=1"]
    assert run(load("stoic2021").TASK, arguments) == 0
    message = capsys.readouterr().out
    assert f"excluded 2 of {len(scans)} cases" in message
    assert f"{len(scored_before) - 1} of {len(scored_before)} val cases; scores are of these" in message
    excluded = read_table(tmp_path / "stoic2021" / "r" / "excluded.csv")
    assert sorted(excluded["case_id"]) == sorted(scan.stem for scan in cut)
    assert excluded["reason"].str.contains(".mha cannot be read as a scan").all()
    scored = read_table(tmp_path / "stoic2021" / "r" / "fold0" / "predictions_val.csv")["case_id"].tolist()
    assert scored == sorted(set(scored_before) - {cut[0].stem})
    for scan in scans:
        scan.write_bytes(scan.read_bytes()[:600])
    assert run(load("stoic2021").TASK, arguments) == 2
    assert f"none of the {len(scans)} cases can be used" in capsys.readouterr().err


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_scan_with_nan_or_inf_voxels_is_excluded_from_training_and_prediction(trained, tmp_path, capsys, value):
    root, folder, arguments = trained
    shutil.copytree(root, tmp_path / "set")
    scan = tmp_path / "set" / "data" / "mha" / f"{read_table(folder / 'predictions_val.csv')['case_id'][0]}.mha"
    image = sitk.ReadImage(str(scan), sitk.sitkFloat32)
    image[3, 2, 1] = value
    sitk.WriteImage(image, str(scan))
    command = [f"data_root={tmp_path / 'set'}", f"log_dir={tmp_path}", "run_name=r", *SMALL, "epochs=1"]
    assert run(load("stoic2021").TASK, command) == 0
    excluded = read_table(tmp_path / "stoic2021" / "r" / "excluded.csv")
    assert excluded["case_id"].tolist() == [scan.stem]
    assert f"{scan.name} holds 1 voxels that are NaN or Inf" in excluded["reason"][0]
    assert run(load("stoic2021").TASK, [*arguments, "mode=predict", f"input={scan}", f"output={tmp_path / 'out'}"]) == 2
    assert f"{scan.name} holds 1 voxels that are NaN or Inf" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run(trained, tmp_path, capsys):
    root, *_ = trained
    arguments = [f"data_root={root}", f"log_dir={tmp_path}", "run_name=r", *SMALL, "learning_rate=1e30", "epochs=40"]
    assert run(load("stoic2021").TASK, arguments) == 2
    error = capsys.readouterr().err
    assert re.search(r"the (loss|gradient) of step \d+ is NaN or Inf; \S+ lists its studies. Lower learning_rate", error)
    (report,) = (tmp_path / "stoic2021" / "r" / "fold0").glob("non_finite_*.json")
    assert json.loads(report.read_text())["studies"][0]
    saved = tmp_path / "stoic2021" / "r" / "fold0" / "checkpoints" / "last.ckpt"
    if saved.exists():
        weights = torch.load(saved, weights_only=True)["state_dict"].values()
        assert all(value.isfinite().all() for value in weights)
