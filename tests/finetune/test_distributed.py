"""What the first process makes for all: made once, waited for by the others."""

import os
import subprocess
import sys
import threading

import nibabel as nib
import numpy as np
import pytest
import pytorch_lightning as pl
from downstream.folders import ROOT

from mg3d.finetune import distributed
from mg3d.finetune.cases import FinetuneCase
from mg3d.finetune.data_check import inspect_files


@pytest.fixture
def second(monkeypatch):
    """This process is the second, as Lightning reads it from the environment."""
    monkeypatch.setattr(pl.utilities.rank_zero_only, "rank", 1)
    monkeypatch.setattr(distributed, "POLL_S", 0.01)


def test_other_ranks_wait_for_the_result(second, tmp_path):
    timer = threading.Timer(0.1, (tmp_path / "there").touch)
    timer.start()
    distributed.run_on_first_rank(lambda: pytest.fail("it worked"), done=(tmp_path / "there").exists, what="x")
    assert (tmp_path / "there").exists()


def test_only_the_first_rank_reads_files(second, monkeypatch, tmp_path):
    for name in ("image", "mask"):
        nib.save(nib.Nifti1Image(np.ones((2, 3, 4), np.uint8), np.eye(4)), tmp_path / f"{name}.nii")
    cases = [FinetuneCase(case_id="a", patient_id="a", image=tmp_path / "image.nii", mask=tmp_path / "mask.nii")]
    monkeypatch.setattr(distributed, "TIMEOUT_S", 0.05)
    with pytest.raises(ValueError, match=r"files\.json does not exist"):
        inspect_files(cases, tmp_path / "files.json")
    monkeypatch.setattr(pl.utilities.rank_zero_only, "rank", 0)
    result = inspect_files(cases, tmp_path / "files.json")
    monkeypatch.setattr(pl.utilities.rank_zero_only, "rank", 1)
    assert inspect_files(cases, tmp_path / "files.json") == result


def test_a_run_that_another_process_writes_is_refused(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from mg3d.finetune.distributed import lock_run\n"
        "with lock_run(Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], env=environment, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as process:  # fmt: skip
        assert process.stdout.readline() == "locked\n"
        refused = pytest.raises(ValueError, match=r"another process writes into .*run; wait until it ends")
        with refused, distributed.lock_run(tmp_path / "run"):
            pass
        process.stdin.close()
    with distributed.lock_run(tmp_path / "run"):
        pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "1", "LOCAL_RANK": "1"}, False),
        ({"LOCAL_RANK": "2"}, False),
        ({}, True),
    ],
)
def test_the_first_rank_is_read_from_the_environment(variables, first):
    code = (
        "from mg3d.finetune import distributed; distributed.run_on_first_rank(lambda: print('made'), done=lambda: True, what='x')"
    )
    plain = {name: value for name, value in os.environ.items() if name not in {"RANK", "LOCAL_RANK", "SLURM_PROCID"}}
    done = subprocess.run([sys.executable, "-c", code], env=plain | variables | {"PYTHONPATH": str(ROOT)}, capture_output=True,
                          text=True, check=True)  # fmt: skip
    assert done.stdout == ("made\n" if first else "")
