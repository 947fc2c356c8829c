"""Where a run's cases come from: the folder that the user names, or a synthetic set in the same layout."""

from collections.abc import Callable
from pathlib import Path

from mg3d.finetune.settings import FinetuneSettings
from mg3d.finetune.task import Task

SYNTHETIC_ROOT = Path("data/synthetic_finetune")


def read_root(task: Task, settings: FinetuneSettings, *, synthetic: bool, say: Callable[[str], None]) -> Path:
    """The data root; a synthetic set is made first where none is.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if synthetic:
        from mg3d.phantom.downstream.registry import write_set

        say(
            f"data_root={settings.data_root or '(empty)'}: using a synthetic set in the layout of {task.folder}; not real patients"
        )
        return write_set(
            task.folder,
            SYNTHETIC_ROOT / task.folder,
            cases=int(task.phantom.get("set.cases", 32)),
            voxels_in_plane=int(task.phantom.get("set.voxels_in_plane", 48)),
            workers=2,
        )
    root = Path(settings.data_root)
    if not root.exists():
        raise FileNotFoundError(
            f"data_root={settings.data_root}: there is no such folder; data_root=phantom tries it on synthetic data"
        )
    return root
