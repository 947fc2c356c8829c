"""Interrupted runs resume bit-exactly, with gradient accumulation, dropout, augmentation and a loader process."""

import csv
import signal

import pytest
import torch
from pytorch_lightning.callbacks import Callback
from small_run import assert_same_training, checkpoint, words
from torch import nn

from mg3d.config import command_line
from mg3d.training import run

ACCUMULATED = (
    "per_gpu_batchsize=2", "batch_size=6", "max_steps=4", "num_workers=1",
    "augment_crop=[0.6,0.9]", "augment_rotation_deg=10", "augment_shift=0.1", "augment_noise=0.05",
)  # fmt: skip
"""Three micro-batches a step, validation after every second step, augmentation."""


class LeaveMidStep(Callback):
    """Stops or interrupts training after two micro-batches of the third step."""

    def __init__(self, *, interrupt):
        self.interrupt = interrupt

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
        if batch_index == 7:
            if self.interrupt:
                raise KeyboardInterrupt
            trainer.should_stop = True


@pytest.fixture(scope="module", autouse=True)
def _dropout():
    """Sets all dropout rates to 0.2."""
    build = run.build_untrained

    def with_dropout(*arguments):
        model = build(*arguments)
        drops = [module for module in model.modules() if isinstance(module, nn.Dropout)]
        assert drops
        for module in drops:
            module.p = 0.2
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "build_untrained", with_dropout)
        yield


@pytest.fixture(scope="module")
def uninterrupted(_dropout, arrows, tmp_path_factory):
    log_dir = tmp_path_factory.mktemp("uninterrupted")
    assert command_line(words(arrows, log_dir, *ACCUMULATED)) == 0
    return log_dir / "run"


def logged(run_dir):
    """What was logged in training, by step: {step: totals of its rows}."""
    rows = {}
    for path in sorted(run_dir.glob("csv/part-*/metrics.csv")):
        for row in csv.DictReader(path.open()):
            if row.get("train/total"):
                rows.setdefault(int(row["step"]), []).append(row["train/total"])
    return rows


@pytest.mark.parametrize("interrupt", [False, True])
def test_a_run_interrupted_within_a_step_resumes_bit_exactly(uninterrupted, arrows, tmp_path, monkeypatch, capsys, interrupt):
    build, sigint = run.build_trainer, signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(run, "build_trainer", lambda *a, **k: build(*a, extra=(LeaveMidStep(interrupt=interrupt),), **k))
        assert command_line(words(arrows, tmp_path, *ACCUMULATED)) == (130 if interrupt else 0)
    signal.signal(signal.SIGINT, sigint)  # Lightning ignores further Ctrl-C
    assert ("mg3d: interrupted" in capsys.readouterr().err) == interrupt
    assert checkpoint(tmp_path / "run")["global_step"] == 2
    assert command_line(words(arrows, tmp_path, *ACCUMULATED, "resume_from=last")) == 0
    assert_same_training(checkpoint(tmp_path / "run"), checkpoint(uninterrupted))
    ours, theirs = logged(tmp_path / "run"), logged(uninterrupted)
    assert ours.keys() == theirs.keys()
    assert {step: rows[-1] for step, rows in ours.items()} == {step: rows[-1] for step, rows in theirs.items()}


def test_a_time_limit_saves_before_it_validates(arrows, tmp_path, monkeypatch):
    def fail(*arguments):
        raise ValueError("validation failed")

    monkeypatch.setattr(run.PretrainModule, "validation_step", fail)
    assert command_line(words(arrows, tmp_path, *ACCUMULATED, "max_minutes=1e-9")) == 2
    assert checkpoint(tmp_path / "run")["global_step"] == 1


def test_a_time_limit_stops_after_a_complete_step_and_restarts_with_the_run(uninterrupted, arrows, tmp_path):
    assert command_line(words(arrows, tmp_path, *ACCUMULATED, "max_minutes=1e-9")) == 0
    for steps in (1, 2):
        saved = checkpoint(tmp_path / "run")
        assert saved["global_step"] == steps
        assert saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"] == 3 * steps
        more = "max_minutes=1e-9" if steps == 1 else "max_minutes=0"
        assert command_line(words(arrows, tmp_path, *ACCUMULATED, "resume_from=last", more)) == 0
    assert_same_training(checkpoint(tmp_path / "run"), checkpoint(uninterrupted))


def test_tensors_of_a_checkpoint_are_read_once_to_resume_and_not_at_all_for_a_finished_run(arrows, tmp_path, monkeypatch):
    """Our look at its settings maps the file; only Lightning reads the tensors."""
    assert command_line(words(arrows, tmp_path, "max_minutes=1e-9")) == 0
    load, mapped = torch.load, []

    def counted(file, **options):
        mapped.append(options.get("mmap", False))
        return load(file, **options)

    monkeypatch.setattr(torch, "load", counted)
    assert command_line(words(arrows, tmp_path, "resume_from=last")) == 0
    assert mapped == [True, False]
    (tmp_path / "run" / "evidence.json").write_text("{}")
    monkeypatch.setattr(run, "show_evidence", lambda run_dir: mapped.append("shown"))
    assert command_line(words(arrows, tmp_path, "resume_from=last")) == 0
    assert mapped == [True, False, True, "shown"]
