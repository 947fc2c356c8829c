"""A whole run from the command line on tiny files: finished, killed and continued, refused."""

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from small_arrow import write_split
from small_run import assert_same_training, checkpoint, words, write_arrows

from mg3d.config import command_line, resolve
from mg3d.preparation.recipe import Recipe
from mg3d.training.build import build_data, build_tokenizer, tokenizer_origin
from mg3d.training.run import mixed_recipes


@pytest.fixture(scope="module")
def uninterrupted(arrows, tmp_path_factory):
    log_dir = tmp_path_factory.mktemp("uninterrupted")
    assert command_line(words(arrows, log_dir)) == 0
    return log_dir / "run"


def test_a_run_leaves_curves_checkpoints_tokenizer_and_settings(uninterrupted):
    saved = checkpoint(uninterrupted)
    assert saved["global_step"] == 6
    assert saved["mg3d"]["settings"]["max_steps"] == 6
    columns = (uninterrupted / "csv" / "part-000" / "metrics.csv").read_text().splitlines()[0].split(",")
    for term in ("mlm", "sal", "mim", "cml", "dcl", "ssm", "total"):
        assert f"val/{term}" in columns
        assert any(column.startswith(f"train/{term}") for column in columns)
    assert (uninterrupted / "checkpoints" / "best.ckpt").is_file()
    assert (uninterrupted / "tokenizer" / "tokenizer.json").is_file()
    assert list((uninterrupted / "tensorboard").glob("events*"))
    assert json.loads((uninterrupted / "settings.json").read_text())["embed_dim"] == 12


def test_losses_are_logged_as_losses_by_the_name_of_their_objective(uninterrupted):
    """None with a minus sign, none as an accuracy."""
    with (uninterrupted / "csv" / "part-000" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    logged = {name: [float(row[name]) for row in rows if row[name]] for name in rows[0] if "/" in name}
    assert {name for name in logged if name.startswith(("train/", "val/"))} == {
        f"{phase}/{term}" for phase in ("train", "val") for term in ("mlm", "sal", "mim", "cml", "dcl", "ssm", "total")
    }
    assert all(value > 0 for name in ("mlm", "mim", "cml", "total") for value in logged[f"train/{name}"] + logged[f"val/{name}"])


def test_a_killed_run_resumes_bit_exactly(uninterrupted, arrows, tmp_path):
    command = [sys.executable, "-m", "mg3d.config", *words(arrows, tmp_path)]
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not last.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint(tmp_path / "run")["global_step"] < 6
    assert command_line(words(arrows, tmp_path, "resume_from=last")) == 0
    assert_same_training(checkpoint(tmp_path / "run"), checkpoint(uninterrupted))


def test_a_run_without_validation_saves_last_and_resumes(tmp_path, capsys):
    arrows = write_arrows(tmp_path / "arrows", val=0)
    accumulated = ("per_gpu_batchsize=2", "max_steps=5")
    assert command_line(words(arrows, tmp_path, *accumulated, "evidence=True")) == 0
    shown = capsys.readouterr().out
    assert shown.count("no validation studies: `last` is saved every 2 steps, and there is no `best`") == 1
    assert "held-out studies" in shown
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["last.ckpt"]
    assert checkpoint(tmp_path / "run")["global_step"] == 5
    saved, save = [], torch.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", lambda content, stream: (saved.append(content["global_step"]), save(content, stream)))
        assert command_line(words(arrows, tmp_path / "cut", *accumulated, "max_minutes=1e-9")) == 0
        assert command_line(words(arrows, tmp_path / "cut", *accumulated, "resume_from=last")) == 0
    assert saved[0] == 1
    assert {2, 4} <= set(saved)
    assert_same_training(checkpoint(tmp_path / "cut" / "run"), checkpoint(tmp_path / "run"))


def test_a_tokenizer_of_an_earlier_attempt_is_not_reused(arrows, tmp_path):
    def settings(vocabulary):
        small = {"image_size": 32, "mim_patch_size": 8, "patch_size": 4, "tiny_vocabulary": vocabulary}
        return resolve(["tiny"], small | {"data_root": str(arrows)})

    data = build_data(settings(60))
    for vocabulary, size in ((60, 60), (50, 50), (60, 60)):
        origin = tokenizer_origin(settings(vocabulary), data)
        assert len(build_tokenizer(settings(vocabulary), tmp_path, data, origin=origin)) == size
    before = (tmp_path / "tokenizer" / "tokenizer.json").stat()
    assert len(build_tokenizer(settings(60), tmp_path, data, origin=origin)) == 60
    assert len(build_tokenizer(settings(50), tmp_path, data)) == 60  # the tokenizer that the model was trained with
    assert (tmp_path / "tokenizer" / "tokenizer.json").stat() == before


def test_a_run_does_not_resume_with_other_reports(arrows, tmp_path, capsys):
    root = shutil.copytree(arrows, tmp_path / "moved")
    assert command_line(words(arrows, tmp_path, "max_minutes=1e-9")) == 0
    made_from = json.loads((tmp_path / "run" / "tokenizer" / "made_from.json").read_text())
    assert made_from["tiny_vocabulary"] == 1500
    assert made_from["reports"] == 28
    write_split(root, "ct_rate", "train", patients=14, first=3, shape=(32, 24, 32))
    more = ("resume_from=last", "max_minutes=1e-9")
    assert command_line(words(root, tmp_path, *more)) == 2
    assert "has a tokenizer of 28 training reports other than the 28 in data_root" in capsys.readouterr().err
    write_split(root, "ct_rate", "train", patients=14, shape=(32, 24, 32))
    assert command_line(words(root, tmp_path, *more)) == 0
    assert checkpoint(tmp_path / "run")["global_step"] == 2


def test_a_run_stores_its_recipe_and_does_not_resume_with_another(arrows, tmp_path, capsys):
    root = shutil.copytree(arrows, tmp_path / "moved")
    recipes = {crop: Recipe(shape=(32, 24, 32), crop=crop).provenance("ct_rate") for crop in ("fraction", "body")}
    for split, patients in (("train", 14), ("val", 8)):
        write_split(root, "ct_rate", split, patients=patients, shape=(32, 24, 32), recipe=recipes["body"])
    assert command_line(words(root, tmp_path, "max_minutes=1e-9")) == 0
    assert checkpoint(tmp_path / "run")["mg3d"]["recipes"] == {"ct_rate": recipes["body"], "ctrg": None}
    first = tmp_path / "run" / "checkpoints" / "last.ckpt"
    for split, patients in (("train", 14), ("val", 8)):
        write_split(root, "ct_rate", split, patients=patients, shape=(32, 24, 32), recipe=recipes["fraction"])
    assert command_line(words(root, tmp_path, "resume_from=last", "max_minutes=1e-9")) == 2
    said = capsys.readouterr().err
    assert "was trained on volumes of ct_rate prepared differently (crop) than in data_root" in said
    assert said.count("\n") == 1
    assert command_line(words(root, tmp_path / "new", f"load_path={first}", "max_minutes=1e-9")) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "volumes of ct_rate were prepared differently (crop) than the training volumes of" in said


def test_different_recipes_in_one_run_are_noted():
    body, usual = (Recipe(crop=crop).provenance("custom") for crop in ("body", "fraction"))
    notes = mixed_recipes({"ctrg": usual, "ct_rate": usual, "rad_chestct": usual, "custom": body})
    assert [line.split(",")[0] for line in notes] == ["custom was prepared differently (crop) than ct_rate"]
    assert mixed_recipes({"ct_rate": None, "custom": body}) == []


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ((), "already contains a run"),
        (("resume_from=last", "learning_rate=0.5"), "was trained with other settings: learning_rate"),
        (("resume_from=nowhere.ckpt",), "nowhere.ckpt does not exist"),
        (("run_name=other", "accelerator=gpu"), "sees no GPU"),
        (("run_name=other", "image_size=64", "mim_patch_size=16"), "Set image_size=32"),
        (("data_root=nowhere",), "data_root=nowhere is not a folder; set it to the folder"),
        (("run_name=other", "text_encoder=nobody/has-this"), "text_encoder=<local directory>"),
    ],
)
def test_mistakes_are_refused_in_one_sentence(uninterrupted, arrows, more, sentence, capsys):
    if "accelerator=gpu" in more and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert command_line(words(arrows, uninterrupted.parent, *more)) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("mg3d: ")
    assert error.count("\n") == 1


def test_a_damaged_checkpoint_is_refused(uninterrupted, arrows, tmp_path, capsys):
    damaged = tmp_path / "cut.ckpt"
    damaged.write_bytes((uninterrupted / "checkpoints" / "last.ckpt").read_bytes()[:1000])
    assert command_line(words(arrows, uninterrupted.parent, f"resume_from={damaged}")) == 2
    assert "is not readable as a checkpoint" in capsys.readouterr().err


def test_a_finished_run_is_evaluated_on_held_out_studies(uninterrupted, arrows, capsys):
    assert command_line(["evaluate", *words(arrows, uninterrupted.parent)]) == 0
    result = json.loads((uninterrupted / "evidence.json").read_text())
    assert result["studies"] == 9
    assert len(result["trained"]["zero_shot"]) == 18
    assert result["trained"]["retrieval"][0]["gallery"] == 7  # texts that differ in figures alone are one
    assert [0 <= row["pairs at or above"] <= 1 for row in result["sentence_pairs"]] == [True, True]
    page = (uninterrupted / "evidence.html").read_text()
    assert "Curves" in page
    assert "enlarged" not in page  # reports of a set without truth files stay out of the page
    assert "held-out studies" in capsys.readouterr().out


def test_progress_in_a_log_file_is_a_line_every_so_often(arrows, tmp_path, monkeypatch, capsys):
    def steps(log_dir):
        assert command_line(words(arrows, log_dir, "max_steps=4")) == 0
        return re.findall(r"^mg3d: step (\d)/4, train/loss \d.* [\d.e-]+ s per step$", capsys.readouterr().out, re.MULTILINE)

    assert steps(tmp_path / "fast") == ["1", "4"]
    monkeypatch.setattr("mg3d.training.trainer.LINE_INTERVAL_S", 0)
    assert steps(tmp_path / "slow") == ["1", "2", "3", "4"]


def test_a_warm_up_longer_than_the_run_is_refused_with_a_shorter_one(arrows, tmp_path, capsys):
    assert command_line(["with", "tiny", "max_steps=20", f"data_root={arrows}"]) == 2
    assert "warmup_steps=50 must be less than max_steps=20; also set warmup_steps=2" in capsys.readouterr().err
