"""STOIC2021: COVID-19 and its severity from one CT; see README.md."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mg3d.finetune.cases import UNKNOWN, FinetuneCase
from mg3d.finetune.data_root import read_csv
from mg3d.finetune.run import run
from mg3d.finetune.settings import FinetuneSettings, Size, Spacing
from mg3d.finetune.task import DownstreamTask, protocol

if TYPE_CHECKING:
    from mg3d.finetune.tasks.base import TaskType

OUTPUTS = ("probCOVID", "probSevere")


class Stoic2021Settings(FinetuneSettings):
    """Settings of STOIC2021."""

    spacing_mm: Spacing = (1.6, 1.6, 1.6)
    """Voxel size (z, y, x) that scans are resampled to, in mm."""
    crop_or_pad_size: Size = (240, 240, 240)
    """Voxels (z, y, x) around the centre, along z from the superior end."""
    image_size: Size = (128, 128, 128)
    """Voxels (z, y, x) of the network's input."""


def read_cases(root: Path, settings: Stoic2021Settings) -> list[FinetuneCase]:
    """Scans of metadata/reference.csv; the severity of patients without COVID-19 is unknown."""
    reference, scans = root / "metadata" / "reference.csv", root / "data" / "mha"
    if not reference.is_file():
        raise FileNotFoundError(f"{root} has no metadata/reference.csv; use the folder that holds data/mha and metadata")
    table = read_csv(reference, OUTPUTS, text=["PatientID"])
    valid = table[list(OUTPUTS)].isin([0, 1]).all(axis=1)
    if not valid.all():
        raise ValueError(f"{reference}, line {int(valid.argmin()) + 2}: probCOVID and probSevere must be 0 or 1")
    cases = []
    for row in table.itertuples():
        covid, severe = int(row.probCOVID), int(row.probSevere)
        file = scans / f"{row.PatientID}.mha"
        target = (covid, severe if covid else UNKNOWN)
        cases.append(FinetuneCase(case_id=row.PatientID, patient_id=row.PatientID, image=file, target=target))
    if not any(case.image.is_file() for case in cases):
        raise FileNotFoundError(f"none of the {len(cases)} scans of {reference} is in {scans}")
    return cases


def build(settings: Stoic2021Settings) -> "TaskType":
    """Two labels; severity is scored among patients with COVID-19."""
    from monai import transforms as mt

    from mg3d.finetune import transforms as t
    from mg3d.finetune.tasks.classification import Classification

    return Classification(
        settings,
        outputs=OUTPUTS,
        condition={"probSevere": "probCOVID"},
        metric="auroc/probSevere",
        preprocess=[
            t.spacing(settings.spacing_mm),
            t.window(-1100, 300),
            t.crop_superior(settings.crop_or_pad_size[0]),
            t.crop_or_pad(settings.crop_or_pad_size),
            t.resize(settings.image_size),
        ],
        augment=[
            t.rotate_and_scale(0.3, (0.26, 0.0, 0.0), (0.1, 0.1, 0.1)),
            mt.RandGaussianNoised("image", prob=0.3, std=0.02),
        ],
    )


TASK = DownstreamTask(
    folder="stoic2021",
    title="STOIC2021: COVID-19 and severe COVID-19",
    settings=Stoic2021Settings,
    read_cases=read_cases,
    build=build,
    defaults=protocol(
        {"epochs": 40, "batch_size": 2, "learning_rate": 5e-5, "schedule": "constant", "weight_decay": 0.01},
        {"spacing_mm": (5.0, 5.0, 5.0), "crop_or_pad_size": (72, 72, 72), "image_size": (48, 48, 48), "epochs": 8,
         "batch_size": 4, "learning_rate": 1e-3, "num_workers": 0},
    ),
    expected=lambda settings: {"train": 2000},
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(run(TASK, sys.argv[1:]))
