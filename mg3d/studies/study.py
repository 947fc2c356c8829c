"""A study file: which runs with which settings and seeds, and against which of them the others are compared."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mg3d.settings.parse import flatten, refuse_unknown, resolve
from mg3d.settings.schema import Settings

_STUDY_KEYS = ("title", "question", "presets", "settings", "seeds", "baseline", "runs")
_RUN_KEYS = ("presets", "seeds")
LOCATION = (
    "data_root", "cache_dir", "ground_truth_root", "log_dir", "run_name", "resume_from", "seed", "evidence", "accelerator",
    "devices", "num_nodes", "num_workers", "log_interval", "max_minutes",
)  # fmt: skip
"""Settings that say where and how a run is executed, or are set by the study; they may differ from a stored result."""


class Run(NamedTuple):
    """One row of a study."""

    name: str
    presets: tuple[str, ...]
    settings: dict[str, Any]
    """Settings on top of the presets, the study's and the run's."""
    seeds: tuple[int, ...]

    def resolved(self, **updates: Any) -> Settings:
        """Typed settings, with `updates` on top."""
        return resolve(self.presets, self.settings | updates)

    @property
    def identity(self) -> dict[str, Any]:
        """Every setting that a result depends on."""
        return {name: value for name, value in flatten(self.resolved()).items() if name not in LOCATION}


class Study(NamedTuple):
    """A study file."""

    name: str
    """The file's name without its ending."""
    title: str
    question: str
    baseline: str
    """Name of the run that the others are compared with."""
    runs: dict[str, Run]

    @property
    def jobs(self) -> list[tuple[Run, int]]:
        """Every run with each of its seeds; the first seed of all runs comes first, so that an early table has every row."""
        jobs = [(place, run, seed) for run in self.runs.values() for place, seed in enumerate(run.seeds)]
        return [(run, seed) for _, run, seed in sorted(jobs, key=lambda job: job[0])]


def read_study(path: Path) -> Study:
    """Read and check a study file (YAML; README.md in `studies/` describes it).

    Raises:
        ValueError: unreadable, an unknown key or setting, settings that contradict each other, or no such baseline.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, Mapping) or not isinstance(content.get("runs"), Mapping) or not content["runs"]:
        raise ValueError(f"{path} needs `runs:` with a name and settings for each run")
    try:
        refuse_unknown(content, _STUDY_KEYS, "key")
        runs = {str(name): _read_run(str(name), content, row or {}) for name, row in content["runs"].items()}
        baseline = str(content.get("baseline", next(iter(runs))))
        refuse_unknown([baseline], runs, "baseline")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return Study(path.stem, str(content.get("title", path.stem)), str(content.get("question", "")), baseline, runs)


def _read_run(name: str, study: Mapping[str, Any], row: Mapping[str, Any]) -> Run:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_+-]*", name):
        raise ValueError(f"run {name!r}: the name is used for files, so it may have letters, digits, _, + and - only")
    settings = dict(study.get("settings") or {}) | {key: value for key, value in row.items() if key not in _RUN_KEYS}
    seeds = tuple(row.get("seeds", study.get("seeds", (0,))))
    if not seeds or not all(isinstance(seed, int) and seed >= 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(f"run {name}: seeds={list(seeds)} must be different whole numbers of at least 0")
    run = Run(name, (*study.get("presets", ()), *row.get("presets", ())), settings, seeds)
    try:
        run.resolved()
    except ValueError as error:
        raise ValueError(f"run {name}: {error}") from error
    return run
