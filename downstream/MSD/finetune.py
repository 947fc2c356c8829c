"""Medical Segmentation Decathlon: any of its ten tasks; see README.md."""

import dataclasses
import functools
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mg3d.finetune.cases import Case
from mg3d.finetune.layout import find_level, with_folds
from mg3d.finetune.run import run
from mg3d.finetune.settings import FinetuneSettings
from mg3d.finetune.task import Augment, Preprocess, Task

LUNG = "Task06_Lung"
PUBLISHED: dict[str, dict[str, Any]] = {
    LUNG: {"loss": "dice", "spacing_mm": (1.5, 1.5, 1.5), "window": (-175, 250), "expected": {"train": 63}, "shift": 0.1},
    "Task10_Colon": {
        "loss": "dice_ce_squared", "spacing_mm": (1.0, 1.0, 1.0), "window": (-57, 175), "expected": {"train": 126}, "rot90": 0.25,
        "scale": 0.5,
    },
}  # fmt: skip
"""The two tasks of the publication; the other CT tasks take the lung's steps, MR tasks z-scores on their own grid."""


def read_cases(root: Path, settings: FinetuneSettings, *, task: str = LUNG, folds_file: str = "") -> list[Case]:
    """The labelled cases of a task's dataset.json."""
    folder = task_folder(root, task)
    cases = []
    for entry in description(folder)["training"]:
        image, mask = (folder / entry[name] for name in ("image", "label"))
        if not mask.is_file():
            raise FileNotFoundError(f"there is no mask {mask}, which dataset.json names")
        name = image.name.removesuffix(".gz").removesuffix(".nii")
        cases.append(Case(case_id=name, patient_id=name, image=image, mask=mask))
    return with_folds(cases, Path(folds_file)) if folds_file else cases


def task_folder(root: Path, task: str) -> Path:
    """A task's folder, which is `root` itself or in it."""
    return root / task if (root / task / "dataset.json").is_file() else find_level(root, "dataset.json")


def description(folder: Path) -> dict[str, Any]:
    """Labels by value, modalities and labelled pairs of a task's dataset.json; ValueError where it is something else."""
    try:
        found = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        told = {
            "labels": {int(value): str(label) for value, label in found["labels"].items()},
            "modality": [found["modality"][str(place)] for place in range(len(found["modality"]))],
            "training": [{"image": entry["image"], "label": entry["label"]} for entry in found["training"]],
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / 'dataset.json'} is not as the Decathlon has it ({type(error).__name__}: {error})") from error
    if sorted(told["labels"]) != list(range(len(told["labels"]))):
        values = ", ".join(map(str, sorted(told["labels"])))
        raise ValueError(f"{folder / 'dataset.json'} has labels of the values {values}; they must be 0, 1, 2, ... without a gap")
    return told


def adapt(task: Task, options: Mapping[str, Any]) -> Task:
    """The declaration of the chosen task, or of the one in `data_root`."""
    root, name = Path(options["data_root"]), options["task"]
    wanted = name or (LUNG if not (root / "dataset.json").is_file() else root.absolute().name)
    found: dict[str, Any] = {"labels": {0: "background", 1: "cancer"}, "modality": ["CT"]}
    if options["data_root"] not in ("", "phantom") and root.is_dir():
        folder = task_folder(root, wanted)
        if name and folder.name != name and re.fullmatch(r"Task\d\d_\w+", folder.name):
            raise ValueError(f"data_root={root} holds {folder.name}, not task={name}")
        wanted, found = folder.name, description(folder)
    elif options["data_root"] and root.name != "phantom":
        raise FileNotFoundError(f"data_root={root}: there is no such folder")
    labels = found["labels"]
    published = PUBLISHED.get(wanted, PUBLISHED[LUNG])
    ct = found["modality"][0] == "CT"
    steps = {"spacing_mm": published["spacing_mm"], "window": published["window"]} if ct else {}
    if options["channel"] not in range(len(found["modality"])):
        raise ValueError(f"channel={options['channel']!r}: {wanted} has {len(found['modality'])} image(s), counted from 0")
    channel = options["channel"] if len(found["modality"]) > 1 else None
    return dataclasses.replace(
        task,
        title=f"Medical Segmentation Decathlon, {wanted}",
        variant=wanted,
        outputs=tuple(labels[value] for value in sorted(labels) if value),
        read_cases=functools.partial(read_cases, task=wanted, folds_file=str(options["folds_file"])),
        loss=published["loss"],
        preprocess=dataclasses.replace(task.preprocess, channel=channel, by_structure=len(labels) > 2, **steps),
        augment=dataclasses.replace(
            task.augment, rot90=published.get("rot90", 0.3), intensity_scale=published.get("scale", 0.1),
            intensity_shift=published.get("shift", 0.0),
        ),
        expected=published["expected"] if wanted in PUBLISHED else {},
        synthetic={"tasks": [wanted]},
    )  # fmt: skip


TASK = Task(
    folder="MSD",
    title="Medical Segmentation Decathlon",
    kind="segmentation",
    read_cases=read_cases,
    outputs=("cancer",),
    metric="dice",
    preprocess=Preprocess(foreground=True, patch=(96, 96, 96), crops=4),
    augment=Augment(
        flip=(0.5, 0.5, 0.5), affine=1.0, rotate_rad=(0.21, 0.0, 0.0), scale=(0.1, 0.1, 0.1), zoom=0.3, zoom_range=(1.3, 1.5)
    ),
    tolerance_mm=4.0,
    defaults={
        "epochs": 1000, "batch_size": 2, "learning_rate": 1e-4, "weight_decay": 1e-5, "warmup_epochs": 50, "grad_clip": 5.0,
        "val_epochs": 5, "overlap": 0.5,
    },
    phantom={
        "preprocess.spacing_mm": (8.0, 8.0, 8.0), "preprocess.patch": (24, 32, 32), "preprocess.crops": 2, "epochs": 6,
        "learning_rate": 2e-3, "warmup_epochs": 1, "val_epochs": 2, "num_workers": 0,
    },
    options={"task": "", "folds_file": "", "channel": 0},
    stored=("task", "folds_file"),
    adapt=adapt,
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(run(TASK, sys.argv[1:]))
