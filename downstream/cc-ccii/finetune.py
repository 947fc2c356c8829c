"""CC-CCII: normal, common pneumonia or COVID-19 from 8-bit slices; see README.md."""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from mg3d.finetune.cases import Case
from mg3d.finetune.images import slices_of
from mg3d.finetune.run import run, say
from mg3d.finetune.settings import FinetuneSettings
from mg3d.finetune.task import Augment, Preprocess, Task

CLASSES = ("Normal", "CP", "NCP")
COLUMNS = ("target", "label", "patient_id", "scan_id")
ORIGINAL_FOLDS = 3
LISTS = "CC_CCII_fold{fold}_{part}.csv"
SPLITS = Path(__file__).parent / "splits"
CROPS = ("none", "original")


def read_cases(root: Path, settings: FinetuneSettings) -> list[Case]:
    """Scans of <class>/<patient>/<scan>/*.png or .jpg, or p<patient>-s<scan>.npy with the lists of the published code.

    split=original: the published code's lists of one fold, in data_root or in splits/.
    """
    if any((root / name).is_dir() for name in CLASSES):
        cases = read_pictures(root)
    else:
        cases = read_arrays(root)
    return as_published(cases, root, settings) if settings.split == "original" else cases


def read_pictures(root: Path) -> list[Case]:
    """Folders of slices, which run from the top of the chest down, numbers in their names counting as numbers."""
    cases = []
    for target, name in enumerate(CLASSES):
        for folder in sorted((root / name).glob("*/*/")):
            downwards = slices_of(folder.iterdir())
            if downwards:
                cases.append(_case(folder.parent.name, folder.name, downwards[::-1], target))
    return cases


def read_arrays(root: Path) -> list[Case]:
    """Arrays [slice, y, x] with targets out of the published code's lists."""
    files = sorted(root.glob("p*-s*.npy"))
    if not files:
        raise FileNotFoundError(
            f"{root} has none of the folders {', '.join(CLASSES)} and no p<patient>-s<scan>.npy; name the folder that holds them"
        )
    rows = pd.concat([read_list(root, 0, part) for part in ("train", "valid")]).set_index("case_id")
    unlisted = [file.stem for file in files if file.stem not in rows.index]
    if unlisted:
        say(f"{len(unlisted)} arrays are in no list and are left out, such as {unlisted[:3]}")
    return [
        _case(rows.at[file.stem, "patient_id"], rows.at[file.stem, "scan_id"], file, int(rows.at[file.stem, "target"]))
        for file in files
        if file.stem in rows.index
    ]


def read_list(root: Path, fold: int, part: str) -> pd.DataFrame:
    """Rows of a published list by `case_id`; ValueError or FileNotFoundError with what is wrong."""
    name = LISTS.format(fold=fold, part=part)
    path = next((folder / name for folder in (root, root.parent, SPLITS) if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"there is no {name} in {root} or {SPLITS}; it comes with the published code, see README.md")
    table = pd.read_csv(path, dtype={"patient_id": str, "scan_id": str})
    missing = set(COLUMNS) - set(table)
    if missing:
        raise ValueError(f"{path} lacks the columns {sorted(missing)}; it has {list(table)[:8]}")
    wrong = table[table["label"].map({name: target for target, name in enumerate(CLASSES)}) != table["target"]]
    if len(wrong):
        line = wrong.index[0] + 2
        raise ValueError(f"{path}: the target of {len(wrong)} rows is not that of their label, the first in line {line}")
    return table.assign(case_id="p" + table["patient_id"] + "-s" + table["scan_id"])


def as_published(cases: list[Case], root: Path, settings: FinetuneSettings) -> list[Case]:
    """Cases divided by the published lists of one fold; those in neither list are left out."""
    if settings.folds == "all" or not 0 <= settings.fold < ORIGINAL_FOLDS:
        raise ValueError("split=original of CC-CCII has folds 0, 1 and 2, one run each: their valid parts overlap, so no pooling")
    say("split=original: 60 % train, 40 % valid and no test; the valid parts of the three folds share scans")
    fold_of = dict.fromkeys(read_list(root, settings.fold, "train")["case_id"], (settings.fold + 1) % ORIGINAL_FOLDS)
    fold_of |= dict.fromkeys(read_list(root, settings.fold, "valid")["case_id"], settings.fold)
    absent = set(fold_of) - {case.case_id for case in cases}
    if absent:
        say(f"{len(absent)} of {len(fold_of)} listed scans are not in {root}, such as {sorted(absent)[:3]}")
    return [dataclasses.replace(case, fold=fold_of[case.case_id]) for case in cases if case.case_id in fold_of]


def _case(patient: str, scan: str, image: Path | tuple[Path, ...], target: int) -> Case:
    return Case(case_id=f"p{patient}-s{scan}", patient_id=patient, image=image, target=(target,))


def adapt(task: Task, options: Mapping[str, Any]) -> Task:
    """With the published code's central 384 x 384 of 512 x 512 pixels, or with all of every slice."""
    if options["crop"] not in CROPS:
        raise ValueError(f"crop={options['crop']!r}: expected one of {', '.join(CROPS)}")
    if options["crop"] == "none":
        return task
    cropped = dataclasses.replace(task.preprocess, extent=(-1, 384, 384))
    return dataclasses.replace(task, preprocess=cropped, phantom={**task.phantom, "preprocess.extent": (-1, 36, 36)})


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
    options={"crop": "none"},
    top_first=True,
    adapt=adapt,
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(run(TASK, sys.argv[1:]))
