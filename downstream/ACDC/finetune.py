"""ACDC: the ventricles and the heart muscle in cine MR; see README.md."""

import json
import sys
from pathlib import Path

from mg3d.finetune.cases import Case
from mg3d.finetune.layout import find_level, visible
from mg3d.finetune.run import run
from mg3d.finetune.settings import FinetuneSettings
from mg3d.finetune.task import Augment, Preprocess, Task

GROUPS = ("NOR", "MINF", "DCM", "HCM", "RV")
NNUNET = "Dataset027_ACDC"


def read_cases(root: Path, settings: FinetuneSettings) -> list[Case]:
    """Both labelled frames of every patient of `training`, and of `testing` where its masks are there.

    split=original: the frames of ACDC_fold<fold>.json in the nnU-Net copy, which part frames and not patients.
    """
    if settings.split == "original":
        return original_cases(root, settings)
    top = find_level(root, "training")
    cases = []
    for place, part in (("training", "train"), ("testing", "test")):
        for mask in visible(list((top / place).glob("patient*/patient*_frame*_gt.nii*"))):
            image = mask.with_name(mask.name.replace("_gt", ""))
            name, patient = image.name.removesuffix(".gz").removesuffix(".nii"), mask.parent.name
            group = (disease(mask.parent / "Info.cfg"),)  # balances the folds; nothing is learned from it
            cases.append(Case(case_id=name, patient_id=patient, image=image, mask=mask, target=group, part=part))
    if not any(case.part == "train" for case in cases):
        raise FileNotFoundError(f"{top / 'training'} holds no patientNNN/patientNNN_frameFF_gt.nii.gz")
    return cases


def disease(info: Path) -> int:
    """Place in GROUPS of the patient's group."""
    if not info.is_file():
        raise FileNotFoundError(f"there is no {info}; every patient's folder has one")
    lines = dict(line.split(":", 1) for line in info.read_text(encoding="utf-8").splitlines() if ":" in line)
    group = lines.get("Group", "").strip()
    if group not in GROUPS:
        raise ValueError(f"{info}: Group is {group!r}; expected one of {', '.join(GROUPS)}")
    return GROUPS.index(group)


def original_cases(root: Path, settings: FinetuneSettings) -> list[Case]:
    """The frames of one list of the original."""
    if settings.folds == "all":
        raise ValueError("split=original has a list for each fold; run fold=0, fold=1 and fold=2 one by one")
    top = root / NNUNET if (root / NNUNET).is_dir() else find_level(root, "imagesTr")
    lists = visible(list(top.glob("ACDC_fold*.json")))
    file = top / f"ACDC_fold{settings.fold}.json"
    if file not in lists:
        raise FileNotFoundError(
            f"fold={settings.fold}: {top} holds {', '.join(path.name for path in lists) or 'no ACDC_fold*.json'}"
        )
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        pairs = {part: [(entry["image"], entry["label"]) for entry in stored[part]] for part in ("training", "validation")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} has no lists training and validation of image and label ({type(error).__name__})") from error
    cases = []
    for part, fold in (("training", (settings.fold + 1) % TASK.folds), ("validation", settings.fold)):
        for image, mask in pairs[part]:
            image, mask = top / image, top / mask
            name = mask.name.removesuffix(".gz").removesuffix(".nii")
            if not (image.is_file() and mask.is_file()):
                raise FileNotFoundError(f"{file} names {name}, which is not in {image.parent} and {mask.parent}")
            cases.append(Case(case_id=name, patient_id=name.split("_")[0], image=image, mask=mask, fold=fold))
    return cases


TASK = Task(
    folder="ACDC",
    title="ACDC: right ventricle, heart muscle, left ventricle",
    kind="segmentation",
    read_cases=read_cases,
    outputs=("RV", "MYO", "LV"),
    metric="dice",
    loss="dice_ce",
    background=False,
    preprocess=Preprocess(foreground=True, patch=(32, 192, 192), crops=2),
    augment=Augment(flip=(0.1, 0.1, 0.1)),
    tolerance_mm=2.0,
    defaults={
        "epochs": 300, "batch_size": 1, "learning_rate": 3e-4, "weight_decay": 1e-5, "warmup_epochs": 5, "val_epochs": 10,
        "overlap": 0.75,
    },
    phantom={
        "preprocess.patch": (16, 32, 32), "preprocess.crops": 2, "epochs": 10, "batch_size": 4, "learning_rate": 2e-3,
        "warmup_epochs": 1, "val_epochs": 2, "overlap": 0.5, "num_workers": 0,
    },
    synthetic={"nnunet": True},
    expected={"train": 200, "test": 100},
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(run(TASK, sys.argv[1:]))
