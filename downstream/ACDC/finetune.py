"""ACDC: segmentation of the ventricles and the myocardium in cine MR; see README.md."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mg3d.finetune.cases import FinetuneCase
from mg3d.finetune.data_root import find_level, visible
from mg3d.finetune.run import run
from mg3d.finetune.settings import FinetuneSettings, Size
from mg3d.finetune.task import DownstreamTask, protocol

if TYPE_CHECKING:
    from mg3d.finetune.tasks.base import TaskType

GROUPS = ("NOR", "MINF", "DCM", "HCM", "RV")


class ACDCSettings(FinetuneSettings):
    """Settings of ACDC."""

    patch_size: Size = (32, 192, 192)
    """Training patches and sliding windows, in voxels (z, y, x)."""
    patches_per_case: int = 2
    """Training patches per case and step, half of them around the heart."""


def read_cases(root: Path, settings: ACDCSettings) -> list[FinetuneCase]:
    """Both labelled frames of every patient of `training`, and of `testing` if its masks are there."""
    top = find_level(root, "training")
    cases = []
    for folder, split in (("training", "train"), ("testing", "test")):
        for mask in visible(list((top / folder).glob("patient*/patient*_frame*_gt.nii*"))):
            image = mask.with_name(mask.name.replace("_gt", ""))
            name, patient = image.name.removesuffix(".gz").removesuffix(".nii"), mask.parent.name
            group = (read_group(mask.parent / "Info.cfg"),)  # stratifies the folds only
            cases.append(FinetuneCase(case_id=name, patient_id=patient, image=image, mask=mask, target=group, split=split))
    if not any(case.split == "train" for case in cases):
        raise FileNotFoundError(f"{top / 'training'} has no patientNNN/patientNNN_frameFF_gt.nii.gz")
    return cases


def read_group(info: Path) -> int:
    """Index in GROUPS of a patient's disease group."""
    if not info.is_file():
        raise FileNotFoundError(f"there is no {info}; every patient's folder has one")
    lines = dict(line.split(":", 1) for line in info.read_text(encoding="utf-8").splitlines() if ":" in line)
    group = lines.get("Group", "").strip()
    if group not in GROUPS:
        raise ValueError(f"{info}: Group is {group!r}; expected one of {', '.join(GROUPS)}")
    return GROUPS.index(group)


def build(settings: ACDCSettings) -> "TaskType":
    """Segmentation of three structures."""
    from mg3d.finetune import transforms as t
    from mg3d.finetune.tasks.segmentation import Segmentation

    return Segmentation(
        settings,
        outputs=("RV", "MYO", "LV"),
        loss="dice_ce",
        include_background=False,
        tolerance_mm=2.0,
        patch_size=settings.patch_size,
        windows_per_batch=settings.batch_size * settings.patches_per_case,
        preprocess=[t.z_score(), t.crop_foreground(), t.pad(settings.patch_size)],
        crop=[t.foreground_patches(settings.patch_size, settings.patches_per_case)],
        augment=t.flips(0.1, 0.1, 0.1),
    )


TASK = DownstreamTask(
    folder="ACDC",
    title="ACDC: right ventricle, myocardium, left ventricle",
    settings=ACDCSettings,
    read_cases=read_cases,
    build=build,
    defaults=protocol(
        {"epochs": 300, "batch_size": 1, "learning_rate": 3e-4, "warmup_epochs": 5, "val_epochs": 10, "overlap": 0.75},
        {"patch_size": (16, 32, 32), "epochs": 10, "batch_size": 4, "learning_rate": 2e-3, "warmup_epochs": 1, "val_epochs": 2,
         "overlap": 0.5, "num_workers": 0},
    ),
    expected=lambda settings: {"train": 200, "test": 100},
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(run(TASK, sys.argv[1:]))
