"""The script that measures a GPU, as far as a machine without one can run it."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "tools/gpu_check.sh"


def run(*arguments):
    return subprocess.run(["bash", SCRIPT, *arguments], capture_output=True, text=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_names_the_quick_run(tmp_path):
    result = run(tmp_path / "out")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "--quick" in result.stderr


@pytest.mark.slow
def test_every_check_runs_and_only_failed_ones_are_repeated(tmp_path):
    first = run("--quick", tmp_path)
    assert first.returncode == 0, first.stdout
    checks = {path.stem for path in tmp_path.glob("*.done")}
    assert {"encoder", "step", "loader", "planner", "pretraining", "finetune_stoic2021"} <= checks
    assert any("MFU" in row["name"] for row in json.loads((tmp_path / "step.json").read_text())["rows"])
    (tmp_path / "loader.done").unlink()
    second = run("--quick", tmp_path)
    assert [line for line in second.stdout.splitlines() if line.startswith("==")] == ["== loader"]
