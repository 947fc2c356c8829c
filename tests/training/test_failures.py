"""Failures during training: one sentence, exit code 2, and the last checkpoint stays intact."""

import errno
import json
import math
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_arrow import write_split
from small_run import assert_same_training, checkpoint, words, write_arrows

from mg3d.config import command_line, error_sentence
from mg3d.settings.schema import Settings
from mg3d.training import non_finite
from mg3d.training.module import PretrainModule
from mg3d.training.non_finite import NonFiniteGuard

SHARD = "shards/ct_rate/train.arrow"


def only_sentence(capfd):
    error = capfd.readouterr().err
    assert error.startswith("mg3d: ")
    assert error.count("\n") == 1
    return error


def test_a_refusal_is_the_only_output(tmp_path):
    command = [sys.executable, "-m", "mg3d.config", *words("nowhere", tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("mg3d: data_root=nowhere is not a folder; ")
    assert "clm_ct_rate_train.arrow" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_missing_shard_is_reported_before_training(tmp_path, capfd):
    root = write_arrows(tmp_path / "arrows")
    (root / SHARD).unlink()
    assert command_line(words(root, tmp_path, "num_workers=1")) == 2
    assert f"{SHARD} is missing. Rerun prepro/prepro_pretraining_data.py" in only_sentence(capfd)
    assert not (tmp_path / "run").exists()


def test_a_run_does_not_start_on_leaking_data(tmp_path, capfd):
    root = write_arrows(tmp_path / "arrows")
    write_split(
        root, "ct_rate", "val", patients=8, shape=(32, 24, 32), voxels=lambda number, shape: np.full(shape, -998, np.int16)
    )
    assert command_line(words(root, tmp_path)) == 2
    error = only_sentence(capfd)
    assert "images in more than one split: 1, e.g. ct_rate/train_2_0_0 and ct_rate/val_0_0_0" in error
    assert "Remove one of each pair" in error
    assert not (tmp_path / "run").exists()


def test_a_non_finite_loss_stops_the_run_and_lists_its_studies(arrows, tmp_path, capfd):
    assert command_line(words(arrows, tmp_path, "learning_rate=1e30", "warmup_steps=0", "batch_size=8")) == 2
    error = only_sentence(capfd)
    assert re.search(r"the (loss|gradient) of step \d is NaN or Inf; \S+_rank0.json lists its studies", error)
    (path,) = (tmp_path / "run").glob("non_finite_*.json")
    report = json.loads(path.read_text())
    terms = [float(term) for of_batch in report["terms"] for term in of_batch.values()]
    assert not all(math.isfinite(term) for term in terms) or report["non_finite"] == "gradient"
    assert len(report["terms"]) == len(report["studies"])
    assert 1 <= len(report["studies"]) <= 2
    assert all(len(studies) == 4 for studies in report["studies"])
    saved = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert not saved.exists() or all(value.isfinite().all() for value in checkpoint(tmp_path / "run")["state_dict"].values())


@pytest.mark.parametrize("bad_step", [2, 3, 4])
def test_the_right_step_is_named_and_nothing_after_it_is_saved(arrows, tmp_path, capfd, monkeypatch, bad_step):
    """Found at the next step, before a validation, and at the end; `last` is saved after two and after four steps."""
    train = PretrainModule.training_step
    monkeypatch.setattr(
        PretrainModule, "training_step",
        lambda module, *batch: train(module, *batch) * (math.nan if module.global_step == bad_step else 1),
    )  # fmt: skip
    assert command_line(words(arrows, tmp_path, "max_steps=5", "val_interval=2")) == 2
    assert f"the loss of step {bad_step} is NaN or Inf" in only_sentence(capfd)
    saved = checkpoint(tmp_path / "run")
    assert saved["global_step"] == (4 if bad_step == 4 else 2)
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_losses_and_gradient_are_checked_once_per_step(tmp_path, monkeypatch, bad):
    trainer = SimpleNamespace(global_step=3, accumulate_grad_batches=2, precision_plugin=SimpleNamespace())
    guard, looks = NonFiniteGuard(tmp_path), []
    monkeypatch.setattr(non_finite, "sum_over_ranks", lambda value: looks.append(1) or value)
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter])

    def train(number, loss):
        module = SimpleNamespace(latest_terms={"mlm": torch.tensor(loss)})
        guard.on_train_batch_start(trainer, module, SimpleNamespace(study_id=[f"study {number}"]), number)
        guard.on_before_backward(trainer, module, module.latest_terms["mlm"])

    parameter.grad = torch.ones(2)
    train(0, 1.5), train(1, 1.5)
    guard.on_before_optimizer_step(trainer, None, optimizer)
    assert len(looks) == 1
    if bad == "gradient":
        parameter.grad[1] = torch.nan
    train(2, 0.5 if bad == "gradient" else math.inf), train(3, 2.5)
    guard.on_before_optimizer_step(trainer, None, optimizer)
    parameter.grad = torch.ones(2)
    trainer.global_step = 4
    train(4, 1.5), train(5, 1.5)
    with pytest.raises(ValueError, match=f"the {bad} of step 3 is NaN or Inf"):
        guard.on_before_optimizer_step(trainer, None, optimizer)
    first = "0.5" if bad == "gradient" else "inf"
    assert json.loads((tmp_path / "non_finite_step3_rank0.json").read_text()) == {
        "step": 3, "non_finite": bad, "terms": [{"mlm": first}, {"mlm": "2.5"}],
        "studies": [["study 2"], ["study 3"]],
    }  # fmt: skip


def test_errors_of_a_loader_process_are_one_sentence(tmp_path, capfd):
    root = write_arrows(tmp_path / "arrows")
    write_split(tmp_path / "other", "ct_rate", "train", patients=14, first=50, shape=(32, 24, 32))
    shutil.copy(tmp_path / "other" / SHARD, root / SHARD)
    for workers in (0, 1):
        assert command_line(words(root, tmp_path / str(workers), f"num_workers={workers}")) == 2
        error = only_sentence(capfd)
        assert f"{SHARD} is not ct_rate/train_0_0_0: the index is stale" in error
        assert "worker" not in error


def test_a_full_disk_keeps_the_last_checkpoint(arrows, tmp_path, monkeypatch, capfd):
    save = torch.save

    def save_until_full(content, stream):
        if content["global_step"] == 4:
            with open("/dev/full", "wb", buffering=0) as disk:  # noqa: PTH123
                save(content, disk)
        save(content, stream)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save_until_full)
        assert command_line(words(arrows, tmp_path)) == 2
    assert "the disk is full; free some space" in only_sentence(capfd)
    assert checkpoint(tmp_path / "run")["global_step"] == 2
    assert not list((tmp_path / "run" / "checkpoints").glob("*.tmp-*"))
    assert command_line(words(arrows, tmp_path, "resume_from=last")) == 0
    assert command_line(words(arrows, tmp_path / "uninterrupted")) == 0
    assert_same_training(checkpoint(tmp_path / "run"), checkpoint(tmp_path / "uninterrupted" / "run"))


def test_too_little_shared_memory_is_refused_before_the_loader_hangs(arrows, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=400_000))
    assert command_line(words(arrows, tmp_path, "num_workers=3")) == 2  # 2 * 3 batches of 4 volumes of 32 x 24 x 32 voxels
    assert "has 0 MB free, and num_workers=3 needs at least 1 MB; start the container with" in only_sentence(capfd)


def test_a_file_at_log_dir_is_refused(arrows, tmp_path, capfd):
    (tmp_path / "file").touch()
    assert command_line(words(arrows, tmp_path / "file")) == 2
    assert f"not a directory; log_dir='{tmp_path / 'file'}' must be a writable folder" in only_sentence(capfd)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_an_exceeded_quota_is_a_full_disk(number):
    assert error_sentence(OSError(number, "text", "/there/x"), Settings()).startswith("/there/x: the disk is full")
    assert error_sentence(OSError(number, "text"), Settings()).startswith("result/pretrain: the disk is full")


def test_errors_of_the_system_come_with_advice():
    too_many = OSError(errno.EMFILE, "Too many open files", "/x")
    assert "raise the limit with `ulimit -n 4096`" in error_sentence(too_many, Settings())
    assert "log_dir" not in error_sentence(OSError(errno.EIO, "Input/output error", "/x"), Settings())
    assert "must be a writable folder" in error_sentence(OSError(errno.EACCES, "Permission denied", "/x"), Settings())


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Terminated. ", "a data-loader process was killed"),
        ("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that", "ran out of shared memory (/dev/shm)"),
        ("Caught RuntimeError in DataLoader worker process 1.\nunable to write to file </torch_7_1_2>", "--shm-size"),
    ],
)
def test_a_killed_loader_process_is_reported(monkeypatch, capsys, message, sentence):
    from mg3d.training import run

    def ended(settings):
        raise RuntimeError(message)

    monkeypatch.setattr(run, "pretrain", ended)
    assert command_line(["with", "tiny", "data_root=."]) == 1
    assert sentence in capsys.readouterr().err


def test_other_errors_keep_their_traceback(monkeypatch):
    from mg3d.training import run

    def broken(settings):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(run, "pretrain", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        command_line(["with", "tiny", "data_root=."])


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), None], ids=["device", "processor"]
)
def test_out_of_memory_suggests_what_helps(monkeypatch, capsys, tmp_path, error):
    from mg3d.training import run

    def full(settings):
        if error:
            raise error
        torch.empty(1 << 60, dtype=torch.uint8)

    monkeypatch.setattr(run, "pretrain", full)
    assert command_line(["with", "tiny", "data_root=.", f"log_dir={tmp_path}"]) == 1
    report = only_sentence(capsys)
    assert "out of memory; grad_cache_chunk=1 to 8" in report
    assert report.endswith("no checkpoint was written yet, so the same command starts from scratch\n")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert command_line(["with", "tiny", "data_root=.", f"log_dir={tmp_path}"]) == 1
    assert only_sentence(capsys).endswith("; add resume_from=last to resume (run_scripts/pretrain.sh does)\n")
