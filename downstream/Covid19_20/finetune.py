"""COVID-19-20: lesions of COVID-19 in CT; see README.md."""

import dataclasses
import functools
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mg3d.finetune.cases import Case
from mg3d.finetune.layout import find_level, visible, with_folds
from mg3d.finetune.run import run
from mg3d.finetune.settings import FinetuneSettings
from mg3d.finetune.task import Augment, Preprocess, Task

IMAGE, MASK = "_ct.nii.gz", "_seg.nii.gz"


def read_cases(root: Path, settings: FinetuneSettings, *, folds_file: str = "") -> list[Case]:
    """The labelled pairs of Train; the scans of Validation have no public masks."""
    folder = find_level(root, "Train") / "Train"
    images = visible(list(folder.glob(f"*{IMAGE}")))
    if not images:
        raise FileNotFoundError(f"{folder} holds no file that ends in {IMAGE}")
    cases = []
    for image in images:
        name = image.name.removesuffix(IMAGE)
        mask = image.with_name(name + MASK)
        if not mask.is_file():
            raise FileNotFoundError(f"{image} has no mask {mask.name} beside it")
        cases.append(Case(case_id=name, patient_id=name, image=image, mask=mask))
    return with_folds(cases, Path(folds_file)) if folds_file else cases


def submission_name(case: str) -> str:
    """As the challenge wants it: volume-covid19-A-0123_ct -> 123.nii.gz; other names as they are."""
    number = re.search(r"volume-covid19-A-0(\d{3})", case)
    return f"{number[1]}.nii.gz" if number else f"{case}.nii.gz"


def adapt(task: Task, options: Mapping[str, Any]) -> Task:
    """Reads folds from a file where one is named."""
    return dataclasses.replace(task, read_cases=functools.partial(read_cases, folds_file=str(options["folds_file"])))


TASK = Task(
    folder="Covid19_20",
    title="COVID-19-20: lesions of COVID-19",
    kind="segmentation",
    read_cases=read_cases,
    outputs=("lesion",),
    metric="dice",
    loss="dice_ce_squared",
    preprocess=Preprocess(spacing_mm=(5.0, 1.25, 1.25), window=(-1000, 500), patch=(32, 192, 192), crops=3),
    augment=Augment(
        flip=(0.5, 0.5, 0.5), affine=0.15, rotate_rad=(0.0, 0.05, 0.05), scale=(0.0, 0.1, 0.1), noise=0.15, noise_deviation=0.01
    ),
    tolerance_mm=2.0,
    original_axes="LPS",
    defaults={
        "epochs": 1000, "batch_size": 2, "learning_rate": 7.5e-5, "weight_decay": 1e-5, "warmup_epochs": 50, "grad_clip": 5.0,
        "val_epochs": 5, "overlap": 0.5,
    },
    phantom={
        "preprocess.spacing_mm": (8.0, 8.0, 8.0), "preprocess.patch": (24, 32, 32), "preprocess.crops": 2, "epochs": 6,
        "learning_rate": 2e-3, "warmup_epochs": 1, "val_epochs": 2, "num_workers": 0,
    },
    expected={"train": 199},
    options={"folds_file": ""},
    adapt=adapt,
    mask_name=submission_name,
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(run(TASK, sys.argv[1:]))
