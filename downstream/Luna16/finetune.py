"""LUNA16: which candidates in a chest CT are nodules (false-positive reduction); see README.md."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from mg3d.finetune.cases import Candidate, FinetuneCase, ReferenceNodule
from mg3d.finetune.data_root import read_csv
from mg3d.finetune.distributed import info
from mg3d.finetune.run import run
from mg3d.finetune.settings import FinetuneSettings, Size
from mg3d.finetune.task import DownstreamTask, protocol

if TYPE_CHECKING:
    from mg3d.finetune.tasks.base import TaskType

SUBSETS = 10
TABLES = {"V1": "candidates.csv", "V2": "candidates_V2.csv"}
CANDIDATES = {"V1": 551_065, "V2": 754_975}
PUBLISHED_VAL, PUBLISHED_TEST = (5, 6), (7, 8, 9)
UNKNOWN_DIAMETER_MM = 10.0
"""Used by the organizers' script for negative diameters in annotations_excluded.csv."""


class Luna16Settings(FinetuneSettings):
    """Settings of LUNA16."""

    candidates: Literal["V1", "V2"] = "V2"
    """List of candidates; the organizers advise against V1, which finds fewer nodules."""
    division: Literal["ten_folds", "published"] = "ten_folds"
    """ten_folds: the challenge's folds (one per subset). published: subsets 0-4 train, 5-6 val, 7-9 test, as in the paper."""
    negatives: Annotated[float, Field(gt=0)] = 1.0
    """Negative candidates per positive one that an epoch draws."""
    cube_size: Size = (48, 48, 48)
    """Voxels (z, y, x) of the cube around a candidate, at the scan's own spacing."""


def read_table(path: Path, column: str) -> dict[str, list[tuple[tuple[float, float, float], float]]]:
    """Scan -> (centre x, y, z in mm, value of the column) of its rows."""
    import numpy as np
    import pandas as pd

    numeric = ["coordX", "coordY", "coordZ", column]
    table = read_csv(path, numeric, text=["seriesuid"])
    values = table[numeric].apply(pd.to_numeric, errors="coerce")
    bad = values[~np.isfinite(values).all(axis=1)]
    if len(bad):
        raise ValueError(f"{path}: {len(bad)} rows have a value that is not a number, the first in line {bad.index[0] + 2}")
    rows: dict[str, list[tuple[tuple[float, float, float], float]]] = {}
    for scan, x, y, z, value in zip(table["seriesuid"], *values.to_numpy().T.tolist(), strict=True):
        rows.setdefault(scan, []).append(((x, y, z), value))
    return rows


def read_nodules(root: Path) -> dict[str, list[ReferenceNodule]]:
    """Scan -> nodules, and findings to be ignored if annotations_excluded.csv is there."""
    nodules: dict[str, list[ReferenceNodule]] = {}
    for name, excluded in (("annotations.csv", False), ("annotations_excluded.csv", True)):
        if excluded and not (root / name).is_file():
            info(f"{root} has no {name}: irrelevant findings count as false positives, so the CPM is not the official one")
            continue
        for scan, rows in read_table(root / name, "diameter_mm").items():
            listed = [ReferenceNodule(centre, size if size >= 0 else UNKNOWN_DIAMETER_MM, excluded) for centre, size in rows]
            nodules.setdefault(scan, []).extend(listed)
    return nodules


def read_cases(root: Path, settings: Luna16Settings) -> list[FinetuneCase]:
    """Scans of subset*/<seriesuid>.mhd with their candidates."""
    scans = sorted((subset, file) for subset in range(SUBSETS) for file in (root / f"subset{subset}").rglob("*.mhd"))
    if not scans:
        raise FileNotFoundError(f"{root} has no subset0 to subset9 with .mhd files; use the folder that holds them")
    table = root / TABLES[settings.candidates]
    candidates, nodules = read_table(table, "class"), read_nodules(root)
    classes = {value for rows in candidates.values() for _, value in rows}
    if not classes <= {0, 1}:
        raise ValueError(f"{table} has the classes {sorted(classes)[:5]}; expected 0 and 1")
    absent = set(candidates) - {file.stem for _, file in scans}
    if absent:
        info(f"{len(absent)} scans of {table.name} are in no subset of {root} and are excluded")
    published = settings.division == "published"
    if published and (settings.fold or settings.folds == "all"):
        raise ValueError("division=published is one division; leave out fold and folds")
    return [
        FinetuneCase(
            case_id=file.stem,
            patient_id=file.stem,
            image=file,
            candidates=tuple(Candidate(centre, int(value)) for centre, value in candidates.get(file.stem, ())),
            nodules=tuple(nodules.get(file.stem, ())),
            split="test" if published and subset in PUBLISHED_TEST else "train",
            fold=int(subset not in PUBLISHED_VAL) if published else subset,
        )
        for subset, file in scans
    ]


def build(settings: Luna16Settings) -> "TaskType":
    """Binary classification of cubes."""
    from mg3d.finetune import transforms as t
    from mg3d.finetune.tasks.candidates import CandidateClassification

    return CandidateClassification(
        settings,
        outputs=("nodule",),
        cube_size=settings.cube_size,
        negatives=settings.negatives,
        preprocess=[t.window(-1000, 600)],
        augment=[t.rotate_and_scale(0.6, (0.35, 0.0, 0.0)), *t.flips(0.0, 0.5, 0.5), t.rotate_90(0.5)],
    )


TASK = DownstreamTask(
    folder="Luna16",
    title="LUNA16: nodules among candidates",
    settings=Luna16Settings,
    read_cases=read_cases,
    build=build,
    folds=SUBSETS,
    defaults=protocol(
        {
            "epochs": 100,
            "batch_size": 32,
            "learning_rate": 1.5e-4,
            "schedule": "constant",
            "weight_decay": 1e-6,
            "val_epochs": 10,
        },
        {"cube_size": (8, 8, 8), "epochs": 12, "batch_size": 16, "learning_rate": 3e-3, "num_workers": 0, "val_epochs": 1},
    ),
    expected=lambda settings: {"scans": 888, "candidates": CANDIDATES[settings.candidates]},
    stored=("candidates", "division"),
)

if __name__ == "__main__":
    sys.exit(run(TASK, sys.argv[1:]))
