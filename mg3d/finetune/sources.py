"""Where a run's cases come from: the folder that the user names, or a synthetic set in the same layout."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mg3d.finetune.ranks import first_does
from mg3d.finetune.settings import FinetuneSettings
from mg3d.finetune.task import Task
from mg3d.phantom.downstream.registry import MARK, SETS, set_settings, stored_settings, write_set

NO_ROOT = ("", "phantom")
"""Values of `data_root` that ask for a synthetic set."""
SYNTHETIC_ROOT = Path("data/synthetic_finetune")
"""One folder per set."""


def is_synthetic(data_root: str) -> bool:
    """Whether a synthetic set is asked for, or lies there."""
    return data_root in NO_ROOT or (Path(data_root) / MARK).is_file()


def read_root(task: Task, settings: FinetuneSettings, *, synthetic: bool, say: Callable[[str], None]) -> Path:
    """The data root; where none is, a synthetic set is made, by the first process alone. One of other settings gives way to it.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if synthetic and settings.data_root in NO_ROOT:
        asked = f"data_root={settings.data_root}" if settings.data_root else "no data_root given"
        say(f"{asked}: training on a synthetic set in the layout of {task.folder}; no real patients, and no result for a paper")
        cases, voxels = SETS[task.folder].default_size
        made = SYNTHETIC_ROOT / task.folder
        named = {"cases": cases, "voxels_in_plane": voxels, **task.synthetic}
        wanted, workers = set_settings(**named), min(4, os.cpu_count() or 1)
        if stored_settings(made) not in (None, wanted):
            say(f"{made} holds a synthetic set of an earlier version or of other settings; it is made anew")
        work = partial(write_set, task.folder, SYNTHETIC_ROOT, overwrite=True, workers=workers, **named)
        first_does(work, done=lambda: stored_settings(made) == wanted, what=str(made))
        return made
    root = Path(settings.data_root)
    if not root.exists():
        raise FileNotFoundError(f"data_root={root}: there is no such folder; data_root=phantom shows the task on synthetic data")
    return root
