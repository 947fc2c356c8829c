"""CTRG-Chest-548K: the findings section of a report from the scan; see README.md."""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from mg3d.datasets.arrow import VolumeIndex
from mg3d.finetune.cases import Case
from mg3d.finetune.kinds.report import OPTIONS
from mg3d.finetune.prepared import is_prepared, read_prepared_cases
from mg3d.finetune.run import run, say
from mg3d.finetune.settings import FinetuneSettings
from mg3d.finetune.task import Preprocess, Task
from mg3d.metrics.captions import tokenize
from mg3d.preparation.sources.ctrg import case_folder, find_annotation, find_case, is_nifti, read_annotation, slice_names
from mg3d.settings.schema import CROP, volume_shape

NIFTI_SPLIT = "chest_ctrg_nitfy_ori_split.json"
LABEL_TABLE = "CTRG_finding_labels.csv"
LABELS = (
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia",
    "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices", "No Finding",
)  # fmt: skip
FOLDS = 10
"""A tenth of the training cases chooses the epoch."""


def read_cases(root: Path, settings: FinetuneSettings) -> list[Case]:
    """Cases of a folder of pictures or NIfTI files with their list, or of our Arrow files; those without findings are left out.

    split=original: chosen by the cases that are reported, as the published code did.
    """
    cases = from_arrow(root) if is_prepared(root, "ctrg") else from_list(root, seed=settings.seed)
    told = [case for case in cases if tokenize(case.report)]
    if len(told) < len(cases):
        say(f"left out: {len(cases) - len(told)} of {len(cases)} cases, whose report has no findings")
    if settings.split == "ours":
        return told
    if settings.folds == "all":
        raise ValueError("split=original has one division of the cases; leave folds=all out")
    say("split=original: the epoch is chosen by the very cases that are reported, so scores are too high")
    places = {"train": settings.fold + 1, "test": settings.fold}
    return [dataclasses.replace(case, part="train", fold=places[case.part]) for case in told]


def from_arrow(root: Path) -> list[Case]:
    """Our own division of a prepared folder: fold 0 validates on its val part."""
    cases = read_prepared_cases(root, "ctrg")
    findings = {path: VolumeIndex(path).table["findings"].to_pylist() for path in {case.image.index for case in cases}}
    return [dataclasses.replace(case, target=(), report=findings[case.image.index][case.image.row] or "") for case in cases]


def from_list(root: Path, *, seed: int) -> list[Case]:
    """A seeded tenth of the training cases as fold 0; every case that is not for training alone is tested on.

    A case is named by its number, or by its place in the list: names of folders may be names of people.
    """
    listed = find_list(root)
    labels = read_labels(root / LABEL_TABLE)
    parts: dict[PurePosixPath, str] = {}
    first: dict[PurePosixPath, Mapping[str, Any]] = {}
    for part, items in read_annotation(listed).items():
        for item in items:
            folder = case_folder(item)
            first.setdefault(folder, item)
            parts[folder] = part if parts.get(folder, part) == part == "train" else "test"
    cases = []
    for place, (folder, item) in enumerate(first.items()):
        number = str(item.get("id", "")).removesuffix(".gz").removesuffix(".nii")
        name = number if number.isdigit() else f"place{place}"
        there = find_case(root, folder)
        if there is None:
            continue
        image = there if is_nifti(there) else tuple(there / file for file in sorted(slice_names(there)))
        text = item.get("report", item.get("findings")) or ""
        cases.append(
            Case(case_id=name, patient_id=name, image=image, target=labels.get(name, ()), report=text, part=parts[folder])
        )
    if not cases:
        raise FileNotFoundError(f"none of the {len(first)} scans of {listed} is below {root}")
    if len(cases) < len(first):
        say(f"left out: {len(first) - len(cases)} of {len(first)} scans of {listed.name}, which are not below {root}")
    training = sorted(case.case_id for case in cases if case.part == "train")
    drawn = np.random.default_rng(seed).permutation(len(training))
    folds = {case: int(place) % FOLDS for case, place in zip(training, drawn, strict=True)}
    return [dataclasses.replace(case, fold=folds.get(case.case_id, case.fold)) for case in cases]


def find_list(root: Path) -> Path:
    """The list of the NIfTI form where its scans are there too, else the one that `find_annotation` finds."""
    path = root / NIFTI_SPLIT
    listed = [item for items in read_annotation(path).values() for item in items[:10]] if path.is_file() else []
    return path if any(find_case(root, case_folder(item)) for item in listed) else find_annotation(root)


def read_labels(path: Path) -> dict[str, tuple[int, ...]]:
    """Case -> 1 where a label is stated, else 0; empty without the table."""
    if not path.is_file():
        return {}
    table = pd.read_csv(path, dtype={"id": str})
    missing = {"id", *LABELS} - set(table)
    if missing:
        raise ValueError(f"{path} lacks the columns {sorted(missing)}; it has {list(table)[:6]}")
    names = table["id"].str.removesuffix(".nii.gz")
    return dict(zip(names, map(tuple, (table[list(LABELS)] == 1).astype(int).to_numpy().tolist()), strict=True))


def adapt(task: Task, options: Mapping[str, Any]) -> Task:
    """The declaration with its options; a decoder for synthetic reports is small."""
    small = {"width": 96, "heads": 4, "layers": 2} if options["synthetic"] else {"width": 512, "heads": 8, "layers": 3}
    return dataclasses.replace(task, options={**options, **{name: options[name] or value for name, value in small.items()}})


TASK = Task(
    folder="CTRG",
    title="CTRG-Chest: findings in words",
    kind="report",
    read_cases=read_cases,
    outputs=LABELS,
    metric="bleu4",
    preprocess=Preprocess(window=(0, 255), keep=CROP, size=volume_shape(128)),
    folds=FOLDS,
    defaults={
        "epochs": 30, "batch_size": 2, "learning_rate": 1e-4, "encoder_rate": 0.5, "schedule": "step", "weight_decay": 5e-5,
        "dropout": 0.1,
    },
    phantom={
        "preprocess.size": (48, 36, 48), "epochs": 15, "batch_size": 4, "learning_rate": 1e-3, "encoder_rate": 1.0,
        "schedule": "constant", "num_workers": 0,
    },
    expected={"train": 1444, "test": 360},
    options={**OPTIONS, "width": 0, "heads": 0, "layers": 0},
    adapt=adapt,
    top_first=True,
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(run(TASK, sys.argv[1:]))
