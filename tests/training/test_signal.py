"""SIGUSR1 of a scheduler: a run saves, stops with its exit code, and the same command resumes."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pytorch_lightning.callbacks import Callback
from small_run import assert_same_training, checkpoint, words

from mg3d.config import PREEMPTED, command_line
from mg3d.training import run

ROOT = Path(__file__).parents[2]
ACCUMULATED = ("per_gpu_batchsize=2", "batch_size=4", "max_steps=4")
FAKES = {
    "srun": """#!{python}
import os, subprocess, sys, time
command = sys.argv[sys.argv.index("bash"):]
if os.environ.get("FAKE_CODES"):
    command[command.index("main.py")] = "{folder}/main.py"
ranks = [subprocess.Popen(command, start_new_session=True, env=os.environ | {{"SLURM_PROCID": str(r), "SLURM_LOCALID": str(r),
         "SLURM_NTASKS": "2", "SLURM_NODEID": "0", "SLURM_JOB_NAME": "mg3d", "SLURM_NODELIST": "127.0.0.1",
         "SLURM_NTASKS_PER_NODE": "2", "MASTER_ADDR": "127.0.0.1"}}) for r in range(2)]
while any(rank.poll() is None for rank in ranks):  # --kill-on-bad-exit
    time.sleep(0.01)
    if any(rank.poll() for rank in ranks):
        for rank in ranks:
            if rank.poll() is None:
                os.killpg(rank.pid, 15)
                rank.wait()
sys.exit(max(code if code >= 0 else 128 - code for code in (rank.returncode for rank in ranks)))
""",
    "scontrol": '#!/bin/sh\necho "$@" >> {folder}/scontrol\n',
}  # fmt: skip
ENDS = """import os, sys, time
rank = int(os.environ["RANK"])
time.sleep(rank)
code = int(os.environ["FAKE_CODES"].split()[rank])
if code > 128:
    os.killpg(0, code - 128)
    time.sleep(60)
sys.exit(code)
"""
"""Replaces the training: one process ends a second after the other; above 128 their group gets a signal."""


class SignalWithin(Callback):
    """Sends a signal within the second training step or the first validation, and counts validation batches."""

    def __init__(self, phase, number=signal.SIGUSR1, times=1):
        self.phase, self.number, self.times, self.validation_batches = phase, number, times, 0

    def on_train_batch_start(self, trainer, module, batch, batch_index):
        if self.phase == "training" and batch_index == 2:
            self.send()

    def on_validation_batch_start(self, trainer, module, batch, batch_index):
        self.validation_batches += 1
        if self.phase == "validation":
            self.send()

    def send(self):
        for _ in range(self.times):
            os.kill(os.getpid(), self.number)


def logged_validations(run_dir):
    """{step: val/total} over all parts of the CSV log."""
    rows = [row for path in sorted(run_dir.glob("csv/part-*/metrics.csv")) for row in csv.DictReader(path.open())]
    return {int(row["step"]): row["val/total"] for row in rows if row.get("val/total")}


@pytest.mark.parametrize(("phase", "batches"), [("training", 0), ("validation", 1)])
def test_a_signal_saves_before_validation_and_the_same_command_resumes(arrows, tmp_path, monkeypatch, capsys, phase, batches):
    assert command_line(words(arrows, tmp_path / "uninterrupted", *ACCUMULATED)) == 0
    build, before, sender = run.build_trainer, signal.getsignal(signal.SIGUSR1), SignalWithin(phase)
    with monkeypatch.context() as patch:
        patch.setattr(run, "build_trainer", lambda *a, **k: build(*a, extra=(sender,), **k))
        assert command_line(words(arrows, tmp_path, *ACCUMULATED, "resume_from=auto", "num_workers=1")) == PREEMPTED
    assert "stopped at step 2 by a signal" in capsys.readouterr().err
    if phase == "training":
        assert signal.getsignal(signal.SIGUSR1) == before
    signal.signal(signal.SIGUSR1, before)
    assert checkpoint(tmp_path / "run")["global_step"] == 2
    assert sender.validation_batches == batches
    assert command_line(words(arrows, tmp_path, *ACCUMULATED, "resume_from=auto")) == 0
    assert_same_training(checkpoint(tmp_path / "run"), checkpoint(tmp_path / "uninterrupted" / "run"))
    validations = logged_validations(tmp_path / "run")
    assert list(validations) == [1, 3]
    assert validations == logged_validations(tmp_path / "uninterrupted" / "run")


@pytest.fixture
def _ctrl_c_handler():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGUSR1, before[1])


@pytest.mark.usefixtures("_ctrl_c_handler")
@pytest.mark.parametrize(("phase", "times", "step"), [("training", 1, 2), ("validation", 1, 2), ("training", 2, None)])
def test_ctrl_c_saves_after_the_step_and_a_second_one_stops_at_once(arrows, tmp_path, monkeypatch, capfd, phase, times, step):
    build, sender = run.build_trainer, SignalWithin(phase, signal.SIGINT, times)
    monkeypatch.setattr(run, "build_trainer", lambda *a, **k: build(*a, extra=(sender,), **k))
    assert command_line(words(arrows, tmp_path, *ACCUMULATED)) == 130
    error = capfd.readouterr().err
    assert "saving a checkpoint after this step" in error
    if step is None:
        assert "no checkpoint was written" in error
    else:
        assert "interrupted; add resume_from=last to resume" in error
        assert checkpoint(tmp_path / "run")["global_step"] == step


@pytest.fixture
def cluster(tmp_path):
    """A folder with fake SLURM commands, and the environment of a job of two processes."""
    for name, text in FAKES.items():
        (tmp_path / name).write_text(text.format(python=sys.executable, folder=tmp_path / "cluster"))
        (tmp_path / name).chmod(0o755)
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "main.py").write_text(ENDS)
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    job = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2", "SLURM_SUBMIT_DIR": str(ROOT)}
    return os.environ | job | {"PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def submit(environment, *arguments):
    command = ["bash", "run_scripts/pretrain_slurm.sh", *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_a_dry_run_prints_one_process_per_gpu_on_every_node(cluster):
    done = submit(cluster | {"SLURM_NNODES": "4"}, "--dry-run", "swin_b", 'datasets=["ct_rate"]')
    note, train, again = done.stdout.splitlines()
    assert note.startswith("# in the job, tools/choose_preset.py adds presets")
    assert "srun --nodes=4 --ntasks-per-node=2" in train
    assert all(word in train for word in ("resume_from=auto", "devices=2", "num_nodes=4", "swin_b"))
    assert again.startswith("scontrol requeue 7")


def test_a_task_of_a_job_array_requeues_itself_and_not_the_array(cluster):
    done = submit(cluster | {"SLURM_ARRAY_JOB_ID": "1234", "SLURM_ARRAY_TASK_ID": "3"}, "--dry-run", "tiny")
    assert done.stdout.splitlines()[-1].startswith("scontrol requeue 1234_3 ")
    assert "mg3d-1234_3.preempted" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--dryrun", "tiny"], "unknown option --dryrun; options of sbatch come before the script"),
        (["--dry-run", "tiny", "devices=4"], "devices=4: set by the job"),
        (["swin_q", "--dry-run"], "unknown preset 'swin_q'; did you mean"),
    ],
)
def test_arguments_that_a_job_would_ignore_are_refused(cluster, arguments, sentence):
    done = submit(cluster, *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stdout == ""


def test_a_dry_run_without_arguments(cluster):
    assert "main.py with resume_from=auto" in submit(cluster, "--dry-run").stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("codes", "expected", "requeued"),
    [("75 75", 0, True), ("138 138", 0, True), ("1 0", 143, False), ("0 1", 1, False), ("0 0", 0, False)],
)
def test_only_a_preempted_run_is_requeued(cluster, arrows, tmp_path, codes, expected, requeued):
    done = submit(cluster | {"FAKE_CODES": codes}, *words(arrows, tmp_path)[1:])
    assert done.returncode == expected, done.stderr
    queue = tmp_path / "cluster" / "scontrol"
    assert (queue.read_text() == "requeue 7\n") if requeued else not queue.exists()
    assert not list(ROOT.glob("*.preempted"))


@pytest.mark.slow
def test_two_processes_started_by_srun_train_together(cluster, arrows, tmp_path):
    done = submit(cluster, *words(arrows, tmp_path, *ACCUMULATED)[1:], "num_workers=0")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("4 steps of 4 volumes: 2 cpu process(es) x 2 volumes x 1 accumulation step(s)") == 1
    assert checkpoint(tmp_path / "run")["global_step"] == 4


@pytest.mark.slow
def test_a_signal_to_the_script_for_several_gpus_ends_all_its_processes(cluster, arrows, tmp_path):
    lasting = ("max_steps=100000", "val_interval=1", "devices=2", "num_workers=0")
    command = ["bash", "run_scripts/pretrain_multi_gpus.sh", *words(arrows, tmp_path, *ACCUMULATED)[1:], *lasting]
    started = subprocess.Popen(command, env=cluster, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while started.poll() is None and not (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file():
        time.sleep(0.2)
    started.send_signal(signal.SIGUSR1)
    error = started.communicate(timeout=120)[1]
    assert started.returncode == PREEMPTED, error
    assert error.count("by a signal; resume_from=auto resumes from there") == 1
