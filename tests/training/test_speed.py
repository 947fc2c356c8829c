"""Speed metrics of a run."""

import csv
import itertools
import time

import pytest
import torch
from small_run import words

from mg3d.config import command_line
from mg3d.datamodules.base import MixtureDataset
from mg3d.training import speed

NAMES = {"speed/volumes_per_second", "speed/data_wait_fraction", "speed/memory_gb", "speed/mfu"}
SLOW_S = 0.03


def logged(run_dir):
    rows = [row for path in run_dir.glob("csv/part-*/metrics.csv") for row in csv.DictReader(path.open())]
    return [{name: float(row[name]) for name in NAMES} for row in rows if row.get("speed/volumes_per_second")]


@pytest.fixture
def slow_reading(monkeypatch):
    """Every sample takes a while."""
    read = MixtureDataset.__getitem__

    def slowly(self, draw):
        time.sleep(SLOW_S)
        return read(self, draw)

    monkeypatch.setattr(MixtureDataset, "__getitem__", slowly)


def test_a_run_logs_its_speed_and_its_wait_for_data(arrows, tmp_path, slow_reading):
    assert command_line(words(arrows, tmp_path, "max_steps=4", "val_interval=4", "per_gpu_batchsize=2")) == 0
    rows = logged(tmp_path / "run")
    assert len(rows) == 4
    for row in rows:
        assert 0 < row["speed/volumes_per_second"] < 1 / SLOW_S
        assert SLOW_S * row["speed/volumes_per_second"] <= row["speed/data_wait_fraction"] < 1
        assert 0 < row["speed/mfu"] < 1
        assert 0.05 < row["speed/memory_gb"] < 64


@pytest.fixture
def clock(monkeypatch):
    """Every look at it is half a second later."""
    looks = itertools.count()
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(looks) / 2)


def test_only_the_wait_for_training_batches_counts(clock):
    wait = speed.DataWait()
    for action in ("[_TrainingEpochLoop].train_dataloader_next", "run_training_batch", "[_EvaluationLoop].val_next"):
        wait.start(action)
        wait.stop(action)
    assert wait.seconds == 0.5


def test_the_peak_is_measured_with_large_random_matrices(clock, monkeypatch):
    side, made, draws = speed.PEAK_SIDE["cpu"], [], torch.get_rng_state()
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *shape, **how: made.append(randn(*shape, **how)) or made[-1])
    assert speed.peak_flops(torch.device("cpu"), "32-true") == 2 * side**3 / 0.5
    assert made[0].unique().numel() > side
    assert torch.equal(torch.get_rng_state(), draws)
