"""LUNA16: which candidates of a lung CT are nodules (false-positive reduction); see README.md."""

import dataclasses
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mg3d.finetune.cases import Candidate, Case, Finding
from mg3d.finetune.run import run, say
from mg3d.finetune.settings import FinetuneSettings
from mg3d.finetune.task import Augment, Preprocess, Task

PLACE = ["coordX", "coordY", "coordZ"]
SUBSETS = 10
TABLES = {"V1": "candidates.csv", "V2": "candidates_V2.csv"}
PUBLISHED = {"V1": 551_065, "V2": 754_975}
ORIGINAL_VAL, ORIGINAL_TEST = (5, 6), (7, 8, 9)
UNKNOWN_DIAMETER_MM = 10.0
"""What the organisers' script takes where annotations_excluded.csv has a negative diameter."""


def read_table(path: Path, last: str) -> dict[str, list[tuple[tuple[float, float, float], float]]]:
    """Scan -> (centre x, y, z in mm, value of the column `last`) of its rows."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; data_root is the folder that holds subset0 to subset9 and the CSV files")
    table = pd.read_csv(path, dtype={"seriesuid": str})
    missing = {"seriesuid", *PLACE, last} - set(table)
    if missing:
        raise ValueError(f"{path} lacks the columns {sorted(missing)}; it has {list(table)[:6]}")
    numbers = table[[*PLACE, last]].apply(pd.to_numeric, errors="coerce")
    bad = numbers[~np.isfinite(numbers).all(axis=1)]
    if len(bad):
        raise ValueError(f"{path}: {len(bad)} rows hold no number where one is expected, the first in line {bad.index[0] + 2}")
    found: dict[str, list[tuple[tuple[float, float, float], float]]] = {}
    for scan, x, y, z, value in zip(table["seriesuid"], *numbers.to_numpy().T.tolist(), strict=True):
        found.setdefault(scan, []).append(((x, y, z), value))
    return found


def read_findings(root: Path) -> dict[str, list[Finding]]:
    """Scan -> nodules to be found, and those that count nothing where annotations_excluded.csv is there."""
    found: dict[str, list[Finding]] = {}
    for name, excluded in (("annotations.csv", False), ("annotations_excluded.csv", True)):
        if excluded and not (root / name).is_file():
            say(f"{root} has no {name}: candidates on irrelevant findings count as false, so the CPM is not the official one")
            continue
        for scan, rows in read_table(root / name, "diameter_mm").items():
            nodules = [Finding(place, size if size >= 0 else UNKNOWN_DIAMETER_MM, excluded) for place, size in rows]
            found.setdefault(scan, []).extend(nodules)
    return found


def read_cases(root: Path, settings: FinetuneSettings, *, candidates: str = "V2") -> list[Case]:
    """Scans of subset*/<seriesuid>.mhd with their candidates; folds are the subsets.

    split=original: subsets 0-4, 5-6, 7-9 as training, validation, test, one division.
    """
    scans = sorted((subset, file) for subset in range(SUBSETS) for file in (root / f"subset{subset}").rglob("*.mhd"))
    if not scans:
        raise FileNotFoundError(f"{root} has no subset0 to subset9 with .mhd files; name the folder that holds them")
    places, findings = read_table(root / TABLES[candidates], "class"), read_findings(root)
    classes = {value for rows in places.values() for _, value in rows}
    if not classes <= {0, 1}:
        raise ValueError(f"{root / TABLES[candidates]} has the classes {sorted(classes)[:5]}; 0 and 1 are expected")
    absent = set(places) - {file.stem for _, file in scans}
    if absent:
        say(f"{len(absent)} scans of {TABLES[candidates]} are in no subset of {root} and are left out")
    original = settings.split == "original"
    if original and (settings.fold or settings.folds == "all"):
        raise ValueError("split=original of LUNA16 is one division into subsets 0-4, 5-6 and 7-9; leave fold and folds out")
    if original:
        say("split=original: one division (subsets 0-4, 5-6, 7-9), not the organisers' ten folds; not comparable with theirs")
    return [
        Case(
            case_id=file.stem,
            patient_id=file.stem,
            image=file,
            candidates=tuple(Candidate(place, int(value)) for place, value in places.get(file.stem, ())),
            findings=tuple(findings.get(file.stem, ())),
            part="test" if original and subset in ORIGINAL_TEST else "train",
            fold=int(subset not in ORIGINAL_VAL) if original else subset,
        )
        for subset, file in scans
    ]


def adapt(task: Task, options: Mapping[str, Any]) -> Task:
    """The list of candidates and the share of negatives that were asked for."""
    version, negatives = str(options["candidates"]), options["negatives"]
    if version not in TABLES:
        raise ValueError(f"candidates={version!r}: expected one of {', '.join(TABLES)}")
    if isinstance(negatives, bool) or not isinstance(negatives, (int, float)) or negatives <= 0:
        raise ValueError(f"negatives={negatives!r}: expected a number above 0, negatives drawn for each positive candidate")
    if version == "V1":
        say("candidates=V1: the organisers say not to use this list any more; V2 finds more nodules")
    return dataclasses.replace(
        task,
        read_cases=partial(read_cases, candidates=version),
        negatives=float(negatives),
        expected={**task.expected, "candidates": PUBLISHED[version]},
    )


TASK = Task(
    folder="Luna16",
    title="LUNA16: nodules among candidates",
    kind="candidates",
    read_cases=read_cases,
    outputs=("nodule",),
    metric="auroc",
    preprocess=Preprocess(window=(-1000, 600), patch=(48, 48, 48)),
    augment=Augment(flip=(0.0, 0.5, 0.5), rot90=0.5, affine=0.6, rotate_rad=(0.35, 0.0, 0.0)),
    folds=SUBSETS,
    defaults={
        "epochs": 100, "batch_size": 32, "learning_rate": 1.5e-4, "schedule": "constant", "weight_decay": 1e-6, "val_epochs": 10,
    },
    phantom={
        "preprocess.patch": (8, 8, 8), "epochs": 12, "batch_size": 16, "learning_rate": 3e-3, "num_workers": 0, "val_epochs": 1,
    },
    expected={"scans": 888},
    options={"candidates": "V2", "negatives": 1.0},
    stored=("candidates",),
    adapt=adapt,
    original_axes="LPS",
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(run(TASK, sys.argv[1:]))
