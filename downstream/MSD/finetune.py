"""Medical Segmentation Decathlon: any of its ten tasks; see README.md."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import NonNegativeInt

from mg3d.finetune.cases import FinetuneCase
from mg3d.finetune.data_root import NO_ROOT, assign_listed_folds, find_level
from mg3d.finetune.dataset_json import read_dataset_json
from mg3d.finetune.distributed import info
from mg3d.finetune.run import run
from mg3d.finetune.settings import FinetuneSettings, Location, Size, Spacing
from mg3d.finetune.task import DownstreamTask, protocol

if TYPE_CHECKING:
    from mg3d.finetune.tasks.base import TaskType

LUNG, COLON = "Task06_Lung", "Task10_Colon"
SPACING_MM = {LUNG: (1.5, 1.5, 1.5), COLON: (1.0, 1.0, 1.0)}
WINDOW_HU = {LUNG: (-175.0, 250.0), COLON: (-57.0, 175.0)}
WIDE_WINDOW_HU = (-1000.0, 1000.0)
"""That of pre-training, for CT tasks without a published one."""
CASES = {LUNG: 63, COLON: 126}


class MSDSettings(FinetuneSettings):
    """Settings of MSD."""

    task: str = ""
    """Name of the task's folder. Empty: the task in data_root, or Task06_Lung."""
    channel: NonNegativeInt = 0
    """Image of a task with several, such as the four of Task01_BrainTumour."""
    spacing_mm: Spacing | None = None
    """Voxel size (z, y, x) that CT is resampled to, in mm. None: as published (1.5; colon 1); MR keeps its grid."""
    window_hu: tuple[float, float] | None = None
    """HU window of CT that becomes 0 to 1. None: as published for lung and colon, else -1000 to 1000."""
    patch_size: Size = (96, 96, 96)
    """Training patches and sliding windows, in voxels (z, y, x)."""
    patches_per_case: int = 4
    """Training patches per case and step, half of them around a structure."""
    folds_file: Location = ""
    """JSON file of folds, such as the published lists. Empty: folds by seed."""
    structures: tuple[str, ...] = ()
    """Names of the label values 1, 2, ... Empty: read from dataset.json."""
    modalities: tuple[str, ...] = ()
    """Modality of each channel. Empty: read from dataset.json."""


def resolve(settings: MSDSettings) -> MSDSettings:
    """Task, structures and modality of dataset.json (without data those of the lung), spacing and window of the task."""
    root, name = Path(settings.data_root), settings.task or LUNG
    structures, modalities = settings.structures or ("cancer",), settings.modalities or ("CT",)
    if not settings.structures and settings.data_root not in NO_ROOT:  # else stored in a checkpoint or an Arrow file
        name = settings.task or (root.absolute().name if (root / "dataset.json").is_file() else LUNG)
        folder = task_folder(root, name)
        if settings.task and folder.name != name and re.fullmatch(r"Task\d\d_\w+", folder.name):
            raise ValueError(f"data_root={root} holds {folder.name}, not task={name}")
        name = folder.name
        structures, modalities, _ = read_dataset_json(folder / "dataset.json", channel=settings.channel)
    window_hu = settings.window_hu or WINDOW_HU.get(name)
    if modalities[0] == "CT" and window_hu is None:
        window_hu = WIDE_WINDOW_HU
        info(f"{name} has no published window: using {window_hu[0]:g} to {window_hu[1]:g} HU; window_hu=[low,high] sets another")
    return settings.model_copy(
        update={
            "task": name,
            "structures": structures,
            "modalities": modalities,
            "spacing_mm": settings.spacing_mm or SPACING_MM.get(name, SPACING_MM[LUNG]),
            "window_hu": window_hu,
        }
    )


def task_folder(root: Path, task: str) -> Path:
    """A task's folder, which is `root` or in it."""
    return root / task if (root / task / "dataset.json").is_file() else find_level(root, "dataset.json")


def read_cases(root: Path, settings: MSDSettings) -> list[FinetuneCase]:
    """The labelled cases of a task's dataset.json."""
    folder = task_folder(root, settings.task)
    cases = []
    for image, mask in read_dataset_json(folder / "dataset.json", channel=settings.channel).pairs:
        name = image.name.removesuffix(".gz").removesuffix(".nii")
        cases.append(FinetuneCase(case_id=name, patient_id=name, image=image, mask=mask))
    return assign_listed_folds(cases, Path(settings.folds_file)) if settings.folds_file else cases


def build(settings: MSDSettings) -> "TaskType":
    """Segmentation as published for lung and colon; MR is z-scored on its own grid."""
    from monai import transforms as mt

    from mg3d.finetune import transforms as t
    from mg3d.finetune.tasks.segmentation import Segmentation

    is_colon, is_ct, size = settings.task == COLON, settings.modalities[0] == "CT", settings.patch_size
    intensity = [t.spacing(settings.spacing_mm), t.window(*settings.window_hu)] if is_ct else [t.z_score()]
    count = len(settings.structures)
    return Segmentation(
        settings,
        outputs=settings.structures,
        loss="dice_ce_squared" if is_colon else "dice",
        tolerance_mm=4.0,
        channel=settings.channel if len(settings.modalities) > 1 else None,
        patch_size=size,
        windows_per_batch=settings.batch_size * settings.patches_per_case,
        preprocess=[*intensity, t.crop_foreground(), t.pad(size)],
        crop=[t.foreground_patches(size, settings.patches_per_case, balanced_classes=count if count > 1 else 0)],
        augment=[
            mt.RandZoomd(t.KEYS, prob=0.3, min_zoom=1.3, max_zoom=1.5, mode=("area", "nearest"), allow_missing_keys=True),
            t.rotate_and_scale(1.0, (0.21, 0.0, 0.0), (0.1, 0.1, 0.1)),
            *t.flips(0.5, 0.5, 0.5),
            t.rotate_90(0.25 if is_colon else 0.3),
            mt.RandScaleIntensityd("image", factors=0.1, prob=0.5 if is_colon else 0.1),
            mt.RandShiftIntensityd("image", offsets=0.1, prob=0.1 if settings.task == LUNG else 0.0),
        ],
    )


TASK = DownstreamTask(
    folder="MSD",
    title="Medical Segmentation Decathlon",
    settings=MSDSettings,
    resolve=resolve,
    read_cases=read_cases,
    build=build,
    defaults=protocol(
        {"epochs": 1000, "batch_size": 2, "learning_rate": 1e-4, "warmup_epochs": 50, "grad_clip": 5.0, "val_epochs": 5},
        {"spacing_mm": (8.0, 8.0, 8.0), "patch_size": (24, 32, 32), "patches_per_case": 2, "epochs": 6, "learning_rate": 2e-3,
         "warmup_epochs": 1, "val_epochs": 2, "num_workers": 0},
    ),
    expected=lambda settings: {"train": CASES[settings.task]} if settings.task in CASES else {},
    variant="task",
    stored=("task", "folds_file", "structures", "modalities"),
    synthetic=lambda settings: {"tasks": [settings.task]},
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(run(TASK, sys.argv[1:]))
