"""CC-CCII: normal, common pneumonia or COVID-19 from 8-bit slices; see README.md."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import NonNegativeInt

from mg3d.finetune.cases import FinetuneCase
from mg3d.finetune.data_root import read_csv
from mg3d.finetune.distributed import info
from mg3d.finetune.images import reversed_slices, slice_files
from mg3d.finetune.run import run
from mg3d.finetune.settings import FinetuneSettings, Size
from mg3d.finetune.task import DownstreamTask, protocol

if TYPE_CHECKING:
    import pandas as pd

    from mg3d.finetune.tasks.base import TaskType

CLASSES = ("Normal", "CP", "NCP")
SPLITS = Path(__file__).parent / "splits"


class CCCCIISettings(FinetuneSettings):
    """Settings of CC-CCII."""

    center_crop: NonNegativeInt = 0
    """Pixels of a central crop of each slice (published: 384 of 512). 0: the whole slice."""
    image_size: Size = (32, 384, 384)
    """Voxels (z, y, x) of the network's input."""


def read_cases(root: Path, settings: CCCCIISettings) -> list[FinetuneCase]:
    """Scans of <class>/<patient>/<scan>/*.png or .jpg, or p<patient>-s<scan>.npy with the published lists."""
    if not any((root / name).is_dir() for name in CLASSES):
        return read_arrays(root)
    cases = []
    for target, name in enumerate(CLASSES):
        for folder in sorted((root / name).glob("*/*/")):
            slices = slice_files(folder.iterdir())  # from superior to inferior
            if slices:
                cases.append(_case(folder.parent.name, folder.name, slices[::-1], target))
    return cases


def read_arrays(root: Path) -> list[FinetuneCase]:
    """Arrays [slice, y, x], with targets from the published lists of fold 0."""
    import pandas as pd

    files = sorted(root.glob("p*-s*.npy"))
    if not files:
        raise FileNotFoundError(
            f"{root} has none of the folders {', '.join(CLASSES)} and no p<patient>-s<scan>.npy; use the folder that holds them"
        )
    rows = pd.concat([read_list(root, part) for part in ("train", "valid")]).set_index("case_id")
    unlisted = [file.stem for file in files if file.stem not in rows.index]
    if unlisted:
        info(f"{len(unlisted)} arrays are in no list and are excluded, such as {unlisted[:3]}")
    return [
        _case(rows.at[file.stem, "patient_id"], rows.at[file.stem, "scan_id"], file, int(rows.at[file.stem, "target"]))
        for file in files
        if file.stem in rows.index
    ]


def read_list(root: Path, part: str) -> "pd.DataFrame":
    """Rows of a published list by `case_id`."""
    name = f"CC_CCII_fold0_{part}.csv"
    path = next((folder / name for folder in (root, root.parent, SPLITS) if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"there is no {name} in {root} or {SPLITS}; it comes with the published code, see README.md")
    table = read_csv(path, ("target", "label"), text=("patient_id", "scan_id"))
    wrong = table[table["label"].map({name: target for target, name in enumerate(CLASSES)}) != table["target"]]
    if len(wrong):
        raise ValueError(f"{path}, line {wrong.index[0] + 2}: target does not match label ({len(wrong)} rows)")
    return table.assign(case_id="p" + table["patient_id"] + "-s" + table["scan_id"])


def _case(patient: str, scan: str, image: Path | tuple[Path, ...], target: int) -> FinetuneCase:
    return FinetuneCase(case_id=f"p{patient}-s{scan}", patient_id=patient, image=image, target=(target,))


def build(settings: CCCCIISettings) -> "TaskType":
    """Three exclusive classes."""
    from monai import transforms as mt

    from mg3d.finetune import transforms as t
    from mg3d.finetune.tasks.classification import Classification

    crop = [t.crop_or_pad((-1, settings.center_crop, settings.center_crop))] if settings.center_crop else []
    return Classification(
        settings,
        outputs=CLASSES,
        exclusive=True,
        metric="accuracy",
        preprocess=[t.window(0, 255), *crop, t.resize(settings.image_size)],
        augment=[
            mt.RandScaleIntensityd("image", factors=0.05, prob=0.5),
            mt.RandShiftIntensityd("image", offsets=0.05, prob=0.5),
        ],
        prepare_scan=reversed_slices,
    )


TASK = DownstreamTask(
    folder="cc-ccii",
    title="CC-CCII: normal, common pneumonia, COVID-19",
    settings=CCCCIISettings,
    read_cases=read_cases,
    build=build,
    defaults=protocol(
        {"epochs": 130, "batch_size": 4, "learning_rate": 3e-4, "weight_decay": 0.01, "warmup_epochs": 30},
        {"image_size": (32, 48, 48), "epochs": 8, "learning_rate": 1e-3, "warmup_epochs": 1, "num_workers": 0},
    ),
    expected=lambda settings: {"train": 4178},
)

if __name__ == "__main__":
    sys.exit(run(TASK, sys.argv[1:]))
