"""A whole run over two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from downstream.folders import ROOT, load

from mg3d.finetune.run import run


@pytest.mark.slow
def test_two_processes_evaluate_as_one_does(tiny_set, tmp_path):
    arguments = [f"data_root={tiny_set('stoic2021')}", f"log_dir={tmp_path}", "run_name=r", "epochs=1", "batch_size=2",
             "num_workers=0", "n_bootstrap=5", "accelerator=cpu", "devices=2", "folds=all", "max_cases=3"]  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(ROOT))}
    script = str(ROOT / "downstream" / "stoic2021" / "finetune.py")
    done = subprocess.run([*command, script, *arguments], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    folds = tmp_path / "stoic2021" / "r"
    together = pd.read_csv(folds / "fold1" / "predictions_val.csv")
    assert len(together) == together["case_id"].nunique() > 1
    assert len(pd.read_csv(folds / "all" / "predictions_val.csv")) > len(together)
    assert run(load("stoic2021").TASK, [*arguments, "folds=one", "fold=1", "devices=1", "mode=evaluate"]) == 0
    pd.testing.assert_frame_equal(together, pd.read_csv(folds / "fold1" / "predictions_val.csv"), rtol=1e-5)
