"""SIGKILL at random times: finished shards are not repeated, and the files equal those of an uninterrupted run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{HERE.parents[1]}:{HERE}", "OMP_NUM_THREADS": "1"}


def killed_runs(root, folder, kills, workers, budget):
    command = [sys.executable, *map(str, (HERE / "killed_runs.py", root, folder, kills, workers, budget))]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def tree_with_faults(small_tree):
    """Ten valid volumes and a damaged one, whose quarantine must survive as well."""
    cut = small_tree.add("train_8_a_1")
    cut.write_bytes(cut.read_bytes()[:400])
    return small_tree.write()


@pytest.mark.parametrize(
    ("kills", "workers", "volumes_on_disk"),
    [(3, 1, 0), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((100, 1, 0), (10, 2, 0), (30, 1, 2)))],
    ids=["three", "hundred", "pool", "stream"],
)
def test_kills_lose_nothing_leave_no_process_and_keep_the_budget(tree_with_faults, tmp_path, kills, workers, volumes_on_disk):
    largest = max(path.stat().st_size for path in tree_with_faults.rglob("*.nii.gz"))
    result = killed_runs(tree_with_faults, tmp_path, kills, workers, budget=volumes_on_disk * largest)
    assert result["faults"] == []
    assert result["killed"] == kills
    assert result["rounds"] >= 1
