"""SIGKILL at random times: finished shards are not repeated, and the files equal those of an uninterrupted run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{HERE.parents[1]}:{HERE}", "OMP_NUM_THREADS": "1"}


def killed_runs(root, folder, kills, workers=1, budget=0):
    words = [HERE / "killed_runs.py", root, folder, kills, workers, budget]
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def tree_with_faults(small_tree):
    """Ten sound volumes and a damaged one, so that a refusal must survive as well."""
    cut = small_tree.add("train_8_a_1")
    cut.write_bytes(cut.read_bytes()[:400])
    return small_tree.write()


def test_three_kills_lose_nothing(tree_with_faults, tmp_path):
    result = killed_runs(tree_with_faults, tmp_path, kills=3)
    assert result["faults"] == []
    assert result["killed"] == 3
    assert result["rounds"] >= 1


@pytest.mark.slow
def test_a_hundred_kills_lose_nothing(tree_with_faults, tmp_path):
    result = killed_runs(tree_with_faults, tmp_path, kills=100)
    assert result["faults"] == []
    assert result["killed"] == 100
    assert result["rounds"] >= 1


@pytest.mark.slow
def test_kills_of_a_pool_lose_nothing_and_leave_no_process_behind(tree_with_faults, tmp_path):
    result = killed_runs(tree_with_faults, tmp_path, kills=10, workers=2)
    assert result["faults"] == []
    assert result["killed"] == 10


@pytest.mark.slow
def test_kills_of_a_stream_lose_nothing_and_keep_its_budget(tree_with_faults, tmp_path):
    largest = max(path.stat().st_size for path in tree_with_faults.rglob("*.nii.gz"))
    result = killed_runs(tree_with_faults, tmp_path, kills=30, budget=2 * largest)
    assert result["faults"] == []
    assert result["killed"] == 30
