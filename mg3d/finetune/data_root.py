"""The folder that holds a data set: the user's, or synthetic data in the same layout; and published lists of folds."""

import dataclasses
import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mg3d.finetune.cases import FinetuneCase
from mg3d.finetune.distributed import info, run_on_first_rank
from mg3d.finetune.settings import FinetuneSettings
from mg3d.finetune.task import DownstreamTask

if TYPE_CHECKING:
    import pandas as pd

NO_ROOT = ("", "phantom")
"""Values of `data_root` that select synthetic data."""
SYNTHETIC_ROOT = Path("data/synthetic_finetune")


def is_synthetic(data_root: str) -> bool:
    """Whether synthetic data are selected or located there (or next to a table)."""
    if data_root in NO_ROOT:
        return True
    from mg3d.phantom.downstream.registry import MARK

    root = Path(data_root)
    return ((root.parent if root.is_file() else root) / MARK).is_file()


def find_root(task: DownstreamTask, settings: FinetuneSettings, *, synthetic: bool) -> Path:
    """The data root. Synthetic data are written first if they are missing or were made with other settings.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    locations = data_locations(task, settings)
    if synthetic and not locations:
        return _synthetic_root(task, settings)
    return Path(locations[0])


def data_locations(task: DownstreamTask, settings: FinetuneSettings) -> list[str]:
    """The user's data: a data root, or tables; none for synthetic data.

    Raises:
        FileNotFoundError: there is no such file or folder.
    """
    value = getattr(settings, task.data_setting)
    locations = [location for location in ([value] if isinstance(value, str) else value) if location not in NO_ROOT]
    for location in locations:
        if not Path(location).exists():
            kind = "folder" if task.data_setting == "data_root" else "file"
            raise FileNotFoundError(
                f"{task.data_setting}={location}: no such {kind}; data_root=phantom shows the task on synthetic data"
            )
    return locations


def _synthetic_root(task: DownstreamTask, settings: FinetuneSettings) -> Path:
    from mg3d.phantom.downstream.registry import SETS, set_settings, stored_settings, write_set

    info(f"training on synthetic data in the layout of {task.folder}; the scores say nothing about real patients")
    cases, voxels = SETS[task.folder].default_size
    root = SYNTHETIC_ROOT / task.folder
    options = {"cases": cases, "voxels_in_plane": voxels, **task.synthetic(settings)}
    wanted = set_settings(**options)
    if stored_settings(root) not in (None, wanted):
        info(f"{root} was made by another version or with other settings; rebuilding it")
    write = partial(write_set, task.folder, SYNTHETIC_ROOT, workers=min(4, os.cpu_count() or 1), **options)
    run_on_first_rank(write, done=lambda: stored_settings(root) == wanted, what=str(root))
    return root


def find_level(root: Path, entry: str) -> Path:
    """`root` if it has the entry, else its one subfolder that has.

    Raises:
        FileNotFoundError: there is none; names a parent folder that has it.
        ValueError: several subfolders have it.
    """
    if (root / entry).exists():
        return root
    inside = sorted(path.parent for path in root.glob(f"*/{entry}") if path.parent.is_dir())
    if len(inside) == 1:
        return inside[0]
    if inside:
        raise ValueError(f"{root} has several folders with {entry}: {', '.join(path.name for path in inside)}; choose one")
    parent = next((path for path in root.absolute().parents[:3] if (path / entry).exists()), None)
    if parent is not None:
        raise FileNotFoundError(f"{root} is too deep in the data set; use the folder that holds {entry}: data_root={parent}")
    names = [path.name for path in sorted(root.iterdir())[:4]] if root.is_dir() else []
    raise FileNotFoundError(f"{root} has no {entry} (it has {', '.join(names) or 'nothing'}); use the folder that holds {entry}")


def visible(paths: Sequence[Path]) -> list[Path]:
    """Sorted paths without hidden files, such as the `._*` files of macOS archives."""
    return [path for path in sorted(paths) if not path.name.startswith(".")]


def read_csv(path: Path, columns: Sequence[str], *, text: Sequence[str] = ()) -> "pd.DataFrame":
    """A CSV file with these columns; `text` columns are not converted to numbers.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a CSV file, or lacks a column.
    """
    import pandas as pd

    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}")
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(text, str))
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as CSV ({type(error).__name__})") from error
    if missing := sorted({*columns, *text} - set(table)):
        raise ValueError(f"{path} lacks the columns {missing}; it has {list(table)[:8]}")
    return table


def assign_listed_folds(cases: Sequence[FinetuneCase], file: Path) -> list[FinetuneCase]:
    """Cases with the folds of a JSON file: {"training": [{"fold": 0, "image": path}, ...]}, matched by file name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another structure, an unknown case, or a missing case.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no file of folds {file}")
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))["training"]
        fold_of = {Path(entry["image"]).name: int(entry["fold"]) for entry in entries}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{file} is not a list of folds ({type(error).__name__}); expected {{"training": [{{"fold": 0, "image": "name"}}]}}'
        ) from error
    names = {case.image.name for case in cases if case.split == "train"}
    if unknown := sorted(set(fold_of) - names):
        raise ValueError(f"{file} lists {len(unknown)} cases that are not in the data set, such as {unknown[:3]}")
    if missing := sorted(names - set(fold_of)):
        raise ValueError(f"{file} lacks {len(missing)} cases of the data set, such as {missing[:3]}")
    return [dataclasses.replace(case, fold=fold_of[case.image.name]) if case.split == "train" else case for case in cases]
