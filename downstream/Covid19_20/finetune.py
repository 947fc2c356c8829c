"""COVID-19-20: segmentation of COVID-19 lesions in CT; see README.md."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mg3d.finetune.cases import FinetuneCase
from mg3d.finetune.data_root import assign_listed_folds, find_level, visible
from mg3d.finetune.run import run
from mg3d.finetune.settings import FinetuneSettings, Location, Size, Spacing
from mg3d.finetune.task import DownstreamTask, protocol

if TYPE_CHECKING:
    from mg3d.finetune.tasks.base import TaskType

IMAGE, MASK = "_ct.nii.gz", "_seg.nii.gz"


class Covid19Settings(FinetuneSettings):
    """Settings of COVID-19-20."""

    spacing_mm: Spacing = (5.0, 1.25, 1.25)
    """Voxel size (z, y, x) that scans are resampled to, in mm."""
    patch_size: Size = (32, 192, 192)
    """Training patches and sliding windows, in voxels (z, y, x)."""
    patches_per_case: int = 3
    """Training patches per case and step, half of them around a lesion."""
    folds_file: Location = ""
    """JSON file of folds, such as the published Covid19_20_folds.json. Empty: folds by seed."""


def read_cases(root: Path, settings: Covid19Settings) -> list[FinetuneCase]:
    """The labelled pairs of Train; the scans of Validation have no public masks."""
    folder = find_level(root, "Train") / "Train"
    images = visible(list(folder.glob(f"*{IMAGE}")))
    if not images:
        raise FileNotFoundError(f"{folder} has no file *{IMAGE}")
    cases = []
    for image in images:
        name = image.name.removesuffix(IMAGE)
        mask = image.with_name(name + MASK)
        if not mask.is_file():
            raise FileNotFoundError(f"{image} has no mask {mask.name}")
        cases.append(FinetuneCase(case_id=name, patient_id=name, image=image, mask=mask))
    return assign_listed_folds(cases, Path(settings.folds_file)) if settings.folds_file else cases


def submission_name(case: str) -> str:
    """The challenge's file name: volume-covid19-A-0123_ct -> 123.nii.gz; other names are unchanged."""
    number = re.search(r"volume-covid19-A-0(\d{3})", case)
    return f"{number[1]}.nii.gz" if number else f"{case}.nii.gz"


def build(settings: Covid19Settings) -> "TaskType":
    """Segmentation of one structure."""
    from monai import transforms as mt

    from mg3d.finetune import transforms as t
    from mg3d.finetune.tasks.segmentation import Segmentation

    return Segmentation(
        settings,
        outputs=("lesion",),
        loss="dice_ce_squared",
        tolerance_mm=2.0,
        mask_name=submission_name,
        patch_size=settings.patch_size,
        windows_per_batch=settings.batch_size * settings.patches_per_case,
        preprocess=[t.spacing(settings.spacing_mm), t.window(-1000, 500), t.pad(settings.patch_size)],
        crop=[t.foreground_patches(settings.patch_size, settings.patches_per_case)],
        augment=[
            t.rotate_and_scale(0.15, (0.0, 0.05, 0.05), (0.0, 0.1, 0.1)),
            *t.flips(0.5, 0.5, 0.5),
            mt.RandGaussianNoised("image", prob=0.15, std=0.01),
        ],
    )


TASK = DownstreamTask(
    folder="Covid19_20",
    title="COVID-19-20: lesions of COVID-19",
    settings=Covid19Settings,
    read_cases=read_cases,
    build=build,
    defaults=protocol(
        {"epochs": 1000, "batch_size": 2, "learning_rate": 7.5e-5, "warmup_epochs": 50, "grad_clip": 5.0, "val_epochs": 5},
        {"spacing_mm": (8.0, 8.0, 8.0), "patch_size": (24, 32, 32), "patches_per_case": 2, "epochs": 6, "learning_rate": 2e-3,
         "warmup_epochs": 1, "val_epochs": 2, "num_workers": 0},
    ),
    expected=lambda settings: {"train": 199},
    stored=("folds_file",),
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(run(TASK, sys.argv[1:]))
