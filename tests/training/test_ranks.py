"""Whole runs over two processes against one process with the joined batch."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_run import checkpoint, words

from mg3d.config import command_line

JOINED = ("precision=64-true", "max_steps=4", "per_gpu_batchsize=4", "batch_size=8", "num_workers=1")
"""One process: two micro-batches of four volumes; two processes: two micro-batches of two volumes each."""
TERMS = ("mlm", "sal", "mim", "cml", "dcl", "ssm", "total")


def losses(run_dir):
    """{(phase, step): terms}; of the last micro-batch of each step."""
    found = {}
    for path in sorted(run_dir.glob("csv/part-*/metrics.csv")):
        for row in csv.DictReader(path.open()):
            for phase in ("train", "val"):
                if row.get(f"{phase}/total"):
                    found[phase, int(row["step"])] = torch.tensor([float(row[f"{phase}/{term}"]) for term in TERMS])
    return found


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mg3d.config"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([*command, *arguments, "devices=2"], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("encoder", [[], ["vit_tiny", "patch_size=[4,8,8]", "num_heads=[1]"]], ids=["swin", "vit"])
def test_two_processes_train_as_one_and_go_on_from_its_checkpoint(arrows, tmp_path, encoder):
    settings = [*JOINED, *encoder]
    assert command_line(words(arrows, tmp_path / "one", *settings)) == 0
    one = losses(tmp_path / "one" / "run")
    assert sum(phase == "train" for phase, _ in one) == 4
    halved = [*settings, "per_gpu_batchsize=2", "grad_cache_chunk=1"]

    shown = torchrun(*words(arrows, tmp_path / "two", *halved))
    assert shown.count("4 steps of 8 volumes: 2 cpu process(es) x 2 volumes x 2 accumulation step(s)") == 1
    assert_close(losses(tmp_path / "two" / "run"), one)

    assert command_line(words(arrows, tmp_path / "on", *settings, "max_minutes=1e-9")) == 0
    assert checkpoint(tmp_path / "on" / "run")["global_step"] == 1
    shown = torchrun(*words(arrows, tmp_path / "on", *halved, "resume_from=last"))
    assert "at step 1" in shown
    assert "contrastive batch changed" not in shown
    assert_close({key: row for key, row in losses(tmp_path / "on" / "run").items() if key in one}, one)


def assert_close(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, row in theirs.items():
        torch.testing.assert_close(ours[key], row, rtol=1e-5, atol=1e-7, msg=f"{key}: {ours[key]} {row}")
