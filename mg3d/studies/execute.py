"""Execute the runs of a study: pre-train, measure on held-out patients, and store one small result file per run and seed."""

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from mg3d.config import PREEMPTED
from mg3d.files import write_json
from mg3d.settings.schema import Settings
from mg3d.studies.study import Run, Study

FORMAT = 1
RESULTS = "results"
"""Subfolder beside the study files, with a folder per study."""

console = Console(highlight=False)


class Failed(RuntimeError):
    """A run ended with an error; the text says which."""


class Folders(NamedTuple):
    """Where a study writes."""

    results: Path
    """Result files: small, meant to be committed."""
    work: Path
    """Checkpoints and logs of the runs."""

    def result(self, run: Run, seed: int) -> Path:
        """Result file of a run with one seed."""
        return self.results / f"{run.name}.seed{seed}.json"

    def settings(self, run: Run, seed: int) -> Settings:
        """Settings of the run, which continues where it was stopped."""
        return run.resolved(
            seed=seed, log_dir=str(self.work), run_name=f"{run.name}/seed{seed}", resume_from="auto", evidence=False
        )


def read_result(path: Path, run: Run) -> dict[str, Any] | None:
    """A stored result; None if there is none.

    Raises:
        ValueError: the file is damaged, or of a run with other settings.
    """
    if not path.is_file():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["format"] != FORMAT:
            raise KeyError("format")
        settings = result["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a result of this version ({error}). Delete it to repeat the run.") from error
    ours = run.identity
    if other := [name for name in ours.keys() | settings.keys() if ours.get(name) != settings.get(name)]:
        values = ", ".join(f"{name}={settings.get(name)!r} (now {ours.get(name)!r})" for name in sorted(other)[:5])
        raise ValueError(f"{path} was measured with other settings: {values}. Delete it to repeat the run, or rename the run.")
    return result


def execute(study: Study, folders: Folders, jobs: Iterable[tuple[Run, int]]) -> list[str]:
    """Executes jobs one after the other, without those that have a result; returns a sentence for each that failed.

    A killed study continues where it was: finished runs are skipped, and an unfinished one resumes from its checkpoint.

    Raises:
        ValueError: a stored result differs from the study, see `read_result`; raised before anything is executed.
    """
    jobs = list(jobs)
    open_jobs = [(run, seed) for run, seed in jobs if read_result(folders.result(run, seed), run) is None]
    console.print(f"mg3d: {study.title}: {len(jobs)} runs, {len(jobs) - len(open_jobs)} finished, {len(open_jobs)} to do")
    failures, started = [], time.monotonic()
    for place, (run, seed) in enumerate(open_jobs):
        console.rule(f"{run.name}, seed {seed} ({place + 1} of {len(open_jobs)}{_time_left(started, place, len(open_jobs))})")
        try:
            execute_job(study, folders, run, seed)
        except Failed as error:
            failures.append(str(error))
            console.print(f"mg3d: {error}", style="red")
    return failures


def _time_left(started: float, finished: int, total: int) -> str:
    if not finished:
        return ""
    hours = (time.monotonic() - started) / finished * (total - finished) / 3600
    return f", about {hours:.1f} h left"


def execute_with_ray(study: Study, folders: Folders, jobs: Iterable[tuple[Run, int]]) -> list[str]:
    """`execute` as tasks of Ray, each with one GPU where the cluster has some; all nodes need the same file system."""
    try:
        ray = importlib.import_module("ray")
    except ImportError:
        raise ValueError("--engine ray needs Ray: run `pip install -e .[ray]` on every machine") from None
    ray.init(ignore_reinit_error=True)
    task = ray.remote(num_gpus=1 if ray.cluster_resources().get("GPU") else 0, max_retries=3)(execute_job)
    open_jobs = [(run, seed) for run, seed in jobs if read_result(folders.result(run, seed), run) is None]
    pending = {task.remote(study, folders, run, seed): f"{run.name}, seed {seed}" for run, seed in open_jobs}
    failures = []
    for done, name in _as_completed(ray, pending):
        try:
            ray.get(done)
            console.print(f"mg3d: {name} is finished")
        except Exception as error:  # of any kind, in another process
            failures.append(f"{name}: {str(error).strip().splitlines()[-1]}")
    return failures


def _as_completed(ray: Any, pending: dict[Any, str]) -> Iterator[tuple[Any, str]]:
    while pending:
        (done,), _ = ray.wait(list(pending), num_returns=1)
        yield done, pending.pop(done)


def execute_job(study: Study, folders: Folders, run: Run, seed: int) -> None:
    """Trains, measures and stores the result; the training is a separate program, so that its memory is returned.

    Raises:
        Failed: the training ended with an error.
        KeyboardInterrupt: it was interrupted or preempted.
    """
    from mg3d.studies.measure import measure_run  # imports torch

    settings = folders.settings(run, seed)
    minutes = _train(run, seed, settings, folders)
    started = time.monotonic()
    measured = measure_run(settings)
    result = {"format": FORMAT, "study": study.name, "run": run.name, "seed": seed, "settings": run.identity}
    result |= {"minutes": {"training": round(minutes, 2), "measuring": round((time.monotonic() - started) / 60, 2)}}
    write_json(folders.result(run, seed), result | measured)


def _train(run: Run, seed: int, settings: Settings, folders: Folders) -> float:
    """Minutes of training, over all parts of a run that was interrupted."""
    names = ("seed", "log_dir", "run_name", "resume_from", "evidence")
    updates = run.settings | {name: getattr(settings.run, name) for name in names}
    given = (f"{name}={value!r}" for name, value in updates.items())
    command = [sys.executable, "-m", "mg3d.config", "with", *run.presets, *given]
    clock = folders.work / run.name / f"seed{seed}" / "minutes.json"
    before, started = json.loads(clock.read_text()) if clock.is_file() else 0.0, time.monotonic()
    try:
        code = subprocess.run(command, check=False).returncode
    finally:
        minutes = before + (time.monotonic() - started) / 60
        if clock.parent.is_dir():
            write_json(clock, minutes)
    if code in (130, PREEMPTED):
        raise KeyboardInterrupt
    if code:
        raise Failed(f"{run.name}, seed {seed}: training ended with exit code {code}; its message is above")
    return minutes
