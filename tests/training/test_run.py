"""A whole run from the command line on tiny files: finished, killed and continued, refused."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from small_arrow import write_split

from mg3d.config import command_line

SMALL = [
    "image_size=32", "mim_cube=8", "embed_dim=12", "num_heads=[2]", "hidden_size=24", "embedding_size=16", "tiny_text_width=16",
    "tiny_text_layers=1", "tiny_text_heads=2", "per_gpu_batchsize=4", "batch_size=4", "warmup_steps=2", "max_steps=6",
    "val_interval=2", "val_batches=2", "log_interval=1", "num_workers=0", "patch_size=4", "depths=[2]", "truth_root=''",
    "evidence=False", "accelerator=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def arrows(tmp_path_factory):
    root = tmp_path_factory.mktemp("arrows")
    for split, patients in (("train", 14), ("val", 8), ("test", 9)):
        for dataset, unit in (("ct_rate", "hu"), ("ctrg", "grey8")):
            write_split(root, dataset, split, patients=patients, shape=(32, 24, 32), unit=unit)
    return root


def words(arrows, log_dir, *more):
    return ["with", "tiny", *SMALL, f"data_root={arrows}", f"log_dir={log_dir}", "run_name=run", *more]


@pytest.fixture(scope="module")
def unbroken(arrows, tmp_path_factory):
    log_dir = tmp_path_factory.mktemp("unbroken")
    assert command_line(words(arrows, log_dir)) == 0
    return log_dir / "run"


def assert_same(one, other, path=""):
    assert type(one) is type(other), path
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_same(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), path
        for place, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{path}/{place}")
    else:
        assert one == other, path


def checkpoint(run_dir, name="last"):
    return torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)


def test_a_run_leaves_curves_checkpoints_tokenizer_and_settings(unbroken):
    saved = checkpoint(unbroken)
    assert saved["global_step"] == 6
    assert saved["mg3d"]["settings"]["max_steps"] == 6
    columns = (unbroken / "csv" / "part-000" / "metrics.csv").read_text().splitlines()[0].split(",")
    for term in ("mlm", "sal", "mim", "cml", "dcl", "ssm", "total"):
        assert f"val/{term}" in columns
        assert any(column.startswith(f"train/{term}") for column in columns)
    assert (unbroken / "checkpoints" / "best.ckpt").is_file()
    assert (unbroken / "tokenizer" / "tokenizer.json").is_file()
    assert list((unbroken / "tensorboard").glob("events*"))
    assert json.loads((unbroken / "settings.json").read_text())["embed_dim"] == 12


def test_a_killed_run_goes_on_bit_by_bit(unbroken, arrows, tmp_path):
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
    ours, theirs = checkpoint(tmp_path / "run"), checkpoint(unbroken)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_same(ours[part], theirs[part], part)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ((), "holds a run already"),
        (("resume_from=last", "learning_rate=0.5"), "belongs to another configuration: learning_rate"),
        (("resume_from=nowhere.ckpt",), "there is no nowhere.ckpt"),
        (("run_name=other", "accelerator=gpu"), "sees no GPU"),
        (("run_name=other", "image_size=64", "mim_cube=16"), "set image_size=32"),
        (("run_name=other", "data_root=nowhere"), "prepro_pretraining_data.py"),
        (("run_name=other", "text_encoder=nobody/has-this"), "text_encoder=<local directory>"),
    ],
)
def test_mistakes_are_told_in_one_sentence(unbroken, arrows, more, sentence, capsys):
    if "accelerator=gpu" in more and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert command_line(words(arrows, unbroken.parent, *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert sentence in error[-1]
    assert error[-1].startswith("mg3d: ")


def test_a_damaged_checkpoint_is_told(unbroken, arrows, tmp_path, capsys):
    damaged = tmp_path / "cut.ckpt"
    damaged.write_bytes((unbroken / "checkpoints" / "last.ckpt").read_bytes()[:1000])
    assert command_line(words(arrows, unbroken.parent, f"resume_from={damaged}")) == 2
    assert "cannot be read as a checkpoint" in capsys.readouterr().err


def test_a_finished_run_is_judged_on_held_out_studies(unbroken, arrows, capsys):
    assert command_line(["evaluate", *words(arrows, unbroken.parent)]) == 0
    result = json.loads((unbroken / "evidence.json").read_text())
    assert result["studies"] == 9
    assert len(result["trained"]["zero_shot"]) == 18
    assert result["trained"]["retrieval"][0]["gallery"] == 7  # texts that differ in figures alone are one
    assert 0 <= result["sentence_pairs"]["same"] <= 1
    page = (unbroken / "evidence.html").read_text()
    assert "Curves" in page
    assert "enlarged" not in page  # reports of a set without truth files stay out of the page
    assert "held-out studies" in capsys.readouterr().out
