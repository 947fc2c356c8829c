"""What a folder of downstream/ declares; everything else is shared by all folders."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mg3d.finetune.cases import FinetuneCase
from mg3d.finetune.settings import FinetuneSettings

if TYPE_CHECKING:
    from mg3d.finetune.tasks.base import TaskType


@dataclasses.dataclass(frozen=True, kw_only=True)
class DownstreamTask:
    """A data set and what is learned from it. Functions receive the folder's own settings."""

    folder: str
    """Name of the folder in `downstream/`."""
    title: str
    settings: type[FinetuneSettings] = FinetuneSettings
    """Subclass with the folder's own settings."""
    data_setting: Literal["data_root", "table"] = "data_root"
    """Setting that names the data. A table also allows evaluation on other tables, without training cases."""
    defaults: Callable[[Mapping[str, Any], bool], Mapping[str, Any]]
    """(user's settings, whether the data are synthetic) -> defaults; see `protocol`."""
    resolve: Callable[[Any], Any] = lambda settings: settings
    """Fills in settings that depend on the data set or the weights."""
    read_cases: Callable[[Path, Any], list[FinetuneCase]]
    """(data root, settings) -> cases; raises ValueError or FileNotFoundError if the layout is wrong."""
    build: Callable[[Any], "TaskType"]
    """Settings -> the task type with its transforms."""
    folds: int = 5
    """Cross-validation folds."""
    expected: Callable[[Any], Mapping[str, int]] = lambda settings: {}
    """Published number of `train`, `test`, `scans` and `candidates`; another number only triggers a warning."""
    run_prefix: Callable[[Any], str] = lambda settings: ""
    """Start of the default run name."""
    variant: str = ""
    """Setting that names a subfolder of the results."""
    stored: tuple[str, ...] = ()
    """Settings that decide which cases are read; an Arrow file of the cases keeps them."""
    synthetic: Callable[[Any], Mapping[str, Any]] = lambda settings: {}
    """Options of the synthetic data set."""

    def results_folder(self, settings: FinetuneSettings) -> Path:
        """Folder of all runs."""
        return Path(settings.log_dir, self.folder, str(getattr(settings, self.variant)) if self.variant else "")


def protocol(published: Mapping[str, Any], phantom: Mapping[str, Any]) -> Callable[[Mapping[str, Any], bool], Mapping[str, Any]]:
    """Defaults of the published protocol, and what replaces them on synthetic data."""
    return lambda overrides, synthetic: {**published, **(phantom if synthetic else {})}


def load_task(downstream: Path, name: str) -> DownstreamTask:
    """TASK of `<downstream>/<name>/finetune.py`; ValueError if there is no such folder."""
    import importlib.util
    import sys

    known = sorted(path.parent.name for path in downstream.glob("*/finetune.py"))
    if name not in known:
        raise ValueError(f"there is no folder {name!r} in {downstream.name}/; expected one of {', '.join(known)}")
    module_name = f"downstream_{name.replace('-', '_')}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, downstream / name / "finetune.py")
        sys.modules[module_name] = importlib.util.module_from_spec(spec)  # pydantic reads the source of its classes
        spec.loader.exec_module(sys.modules[module_name])
    return sys.modules[module_name].TASK
