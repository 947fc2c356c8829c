"""CC-CCII: normal, common pneumonia or COVID-19 from 8-bit slices; see README.md."""

import re
import sys
from pathlib import Path

from mg3d.finetune.cases import Case
from mg3d.finetune.images import SLICE_SUFFIXES
from mg3d.finetune.run import run
from mg3d.finetune.settings import FinetuneSettings
from mg3d.finetune.task import Augment, Preprocess, Task

CLASSES = ("Normal", "CP", "NCP")


def read_cases(root: Path, settings: FinetuneSettings) -> list[Case]:
    """Scans of <class>/<patient>/<scan>/*.png or .jpg; slices run from the top of the chest down."""
    if not any((root / name).is_dir() for name in CLASSES):
        raise FileNotFoundError(f"{root} has none of the folders {', '.join(CLASSES)}; name the folder that holds them")
    cases = []
    for target, name in enumerate(CLASSES):
        for folder in sorted((root / name).glob("*/*/")):
            files = [file for file in folder.iterdir() if file.suffix.lower() in SLICE_SUFFIXES and file.name[0] != "."]
            if files:
                patient, scan = folder.parent.name, folder.name
                downwards = sorted(files, key=lambda file: [int(number) for number in re.findall(r"\d+", file.stem)])
                cases.append(
                    Case(
                        case_id=f"p{patient}-s{scan}",
                        patient_id=patient,
                        image=tuple(reversed(downwards)),
                        target=(target,),
                    )
                )
    return cases


TASK = Task(
    folder="cc-ccii",
    title="CC-CCII: normal, common pneumonia, COVID-19",
    kind="classification",
    read_cases=read_cases,
    outputs=CLASSES,
    exclusive=True,
    metric="accuracy",
    preprocess=Preprocess(window=(0, 255), size=(32, 384, 384)),
    augment=Augment(flip=(0.0, 0.0, 0.0), intensity_scale=0.5, intensity_shift=0.5, intensity_factor=0.05),
    defaults={"epochs": 130, "batch_size": 4, "learning_rate": 3e-4, "weight_decay": 0.01, "warmup_epochs": 30},
    phantom={
        "preprocess.size": (32, 48, 48), "epochs": 8, "batch_size": 4, "learning_rate": 1e-3, "warmup_epochs": 1,
        "num_workers": 0,
    },
    expected={"train": 4178},
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(run(TASK, sys.argv[1:]))
