"""STOIC2021: COVID-19 and its severity from one CT; see README.md."""

import sys
from pathlib import Path

import pandas as pd

from mg3d.finetune.cases import UNKNOWN, Case
from mg3d.finetune.run import run, say
from mg3d.finetune.settings import FinetuneSettings
from mg3d.finetune.task import Augment, Preprocess, Task


def read_cases(root: Path, settings: FinetuneSettings) -> list[Case]:
    """Scans of metadata/reference.csv; severity is not known of patients without COVID-19, so it is not learned from them.

    split=original: learned from all patients, as the published code did, and scored among the positive ones all the same.
    """
    reference, scans = root / "metadata" / "reference.csv", root / "data" / "mha"
    if not reference.is_file():
        raise FileNotFoundError(f"{root} has no metadata/reference.csv; name the folder that holds data/mha and metadata")
    table = pd.read_csv(reference, dtype={"PatientID": str})
    missing = {"PatientID", "probCOVID", "probSevere"} - set(table)
    if missing:
        raise ValueError(f"{reference} lacks the columns {sorted(missing)}; it has {list(table)[:6]}")
    words = table[["probCOVID", "probSevere"]].isin([0, 1])
    if not words.all(axis=None):
        line = int(words.all(axis=1).argmin()) + 2
        raise ValueError(f"{reference}: probCOVID and probSevere are 0 or 1, but not in line {line}")
    table = table.astype({"probCOVID": int, "probSevere": int})
    if settings.split == "original":
        say("split=original: severity is also learned from patients without COVID-19; the published code's own lists were never "
            "published, so the folds are ours")  # fmt: skip
    cases = []
    for row in table.itertuples():
        covid, severe = row.probCOVID, row.probSevere
        known = covid == 1 or settings.split == "original"
        file = scans / f"{row.PatientID}.mha"
        cases.append(
            Case(case_id=row.PatientID, patient_id=row.PatientID, image=file, target=(covid, severe if known else UNKNOWN))
        )
    if not any(case.image.is_file() for case in cases):
        raise FileNotFoundError(f"none of the {len(cases)} scans of {reference} is in {scans}")
    return cases


TASK = Task(
    folder="stoic2021",
    title="STOIC2021: COVID-19 and severe COVID-19",
    kind="classification",
    read_cases=read_cases,
    outputs=("probCOVID", "probSevere"),
    among={"probSevere": "probCOVID"},
    metric="auroc/probSevere",
    preprocess=Preprocess(
        spacing_mm=(1.6, 1.6, 1.6), window=(-1100, 300), extent=(240, 240, 240), extent_top=True, size=(128, 128, 128)
    ),
    augment=Augment(affine=0.3, rotate_rad=(0.26, 0.0, 0.0), scale=(0.1, 0.1, 0.1), noise=0.3, noise_deviation=0.02),
    defaults={"epochs": 40, "batch_size": 2, "learning_rate": 5e-5, "schedule": "constant", "weight_decay": 0.01},
    phantom={
        "preprocess.spacing_mm": (5.0, 5.0, 5.0), "preprocess.extent": (72, 72, 72), "preprocess.size": (48, 48, 48),
        "epochs": 8, "batch_size": 4, "learning_rate": 1e-3, "num_workers": 0,
    },
    expected={"train": 2000},
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(run(TASK, sys.argv[1:]))
