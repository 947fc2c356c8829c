"""The declaration of a folder below downstream/, for scripts that are not in it."""

import importlib.util
from pathlib import Path

from mg3d.finetune.task import Task


def load_task(downstream: Path, name: str) -> Task:
    """TASK of `<downstream>/<name>/finetune.py`; ValueError when there is no such folder."""
    known = sorted(path.parent.name for path in downstream.glob("*/finetune.py"))
    if name not in known:
        raise ValueError(f"there is no folder {name!r} in {downstream.name}/; there are {', '.join(known)}")
    spec = importlib.util.spec_from_file_location(f"downstream_{name.replace('-', '_')}", downstream / name / "finetune.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TASK
