"""Data sets that the preparation of pre-training stores: CT-RATE and CTRG as Arrow files, made first where there are none."""

import dataclasses
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.schema import DATASETS, SPLITS, index_path
from mg3d.finetune.cases import Case, PreparedRow, RawScan
from mg3d.finetune.ranks import first_does
from mg3d.preparation.leaks import LeakError
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.recipe import Recipe
from mg3d.preparation.records import VolumeRecord
from mg3d.preparation.run import Options, prepare
from mg3d.preparation.voxels import make_volume

ALLOWED_ASIDE = 0.02
"""Share of volumes that may be set aside without a word."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """How a raw data set is prepared."""

    dataset: str
    """A key of `mg3d.datasets.schema.DATASETS`."""
    out: Path
    shape: tuple[int, int, int] = (128, 96, 128)
    """Voxels z, y, x."""
    val_patients: int = 500
    seed: int = 0
    workers: int = 1


def is_prepared(root: Path, dataset: str) -> bool:
    """Whether a folder holds index files of a data set."""
    return any(index_path(root, dataset, split).is_file() for split in SPLITS)


def prepared(root: Path, order: Order, *, say: Callable[[str], None]) -> Path:
    """The folder of a data set's Arrow files: `root` where they lie there, else `order.out`, made or completed from `root` by the
    first process.

    Raises:
        FileNotFoundError, ValueError, OSError: as `mg3d.preparation.run.prepare`.
    """
    if is_prepared(root, order.dataset):
        return root
    files = [index_path(order.out, order.dataset, split) for split in SPLITS]
    first_does(lambda: _prepare(root, order, say), done=lambda: all(file.is_file() for file in files), what=str(order.out))
    return order.out


def _prepare(root: Path, order: Order, say: Callable[[str], None]) -> None:
    say(f"preparing {root} into {order.out}; what was prepared before is kept, and a run that is cut off goes on")
    options = Options(
        out=order.out, roots={order.dataset: root}, recipe=Recipe(shape=order.shape), workers=order.workers,
        val_patients=order.val_patients, seed=order.seed,
    )  # fmt: skip
    try:
        summary = prepare(options)
    except LeakError as error:
        raise ValueError(str(error)) from error
    for note in summary.notes:
        say(note)
    if summary.share > ALLOWED_ASIDE:
        say(f"{summary.share:.1%} of the volumes were set aside; {order.out / 'quarantine.jsonl'} says why")


def read_prepared_cases(folder: Path, dataset: str, *, every_reconstruction: bool = True, reports: bool = False) -> list[Case]:
    """The volumes of a prepared folder: official train less our val with fold 1, our val with fold 0, the official test part.

    every_reconstruction: False keeps the first reconstruction of each study of train and val; test is whole in any case.
    reports: keep the texts of all volumes in memory.

    Raises:
        FileNotFoundError: a split is not there.
        ValueError: val or train has no volume.
    """
    cases: list[Case] = []
    for split in SPLITS:
        path = index_path(folder, dataset, split)
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} lacks {path.name}; prepare {DATASETS[dataset].title} again with prepro/prepro_finetuning_data.py"
            )
        found = _split_cases(path, split, reports=reports, every=every_reconstruction or split == "test")
        if not found and split != "test":
            raise ValueError(
                f"{path} holds no volume, so there is nothing to {'learn from' if split == 'train' else 'choose by'}"
            )
        cases += found
    return cases


def _split_cases(path: Path, split: str, *, reports: bool, every: bool) -> list[Case]:
    table = VolumeIndex(path).table
    names, studies, patients = (table[name].to_pylist() for name in ("volume_id", "study_id", "patient_id"))
    labels = table["labels"].to_pylist()
    texts = table["report"].to_pylist() if reports else [""] * len(names)
    rows = range(len(names)) if every else sorted({study: row for row, study in reversed(list(enumerate(studies)))}.values())
    part, fold = ("test" if split == "test" else "train"), int(split == "train")
    return [
        Case(case_id=names[row], patient_id=patients[row], image=PreparedRow(path, row), target=tuple(labels[row]),
             report=texts[row], part=part, fold=fold)
        for row in rows
    ]  # fmt: skip


@lru_cache(maxsize=16)
def _index(path: Path) -> VolumeIndex:
    return VolumeIndex(path)


def read_prepared(source: PreparedRow | RawScan) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Voxels float32 [z, y, x] (HU, or grey values from 0 to 255) and their spacing in mm along z, y, x (1 = not known).

    Raises:
        ValueError: a file cannot be prepared.
    """
    if isinstance(source, RawScan):
        return _prepare_scan(source)
    index = _index(source.index)
    voxels, row = index.volume(source.row).astype(np.float32), index.table.slice(source.row, 1).to_pylist()[0]
    if row["intensity_unit"] == "hu8":
        low, high = index.stored_window_hu
        voxels = low + voxels / 255.0 * (high - low)
    return voxels, tuple(row["spacing_mm"] or (1.0, 1.0, 1.0))


def prepared_shape(folder: Path, dataset: str) -> tuple[int, int, int]:
    """Voxels z, y, x of the volumes of a prepared folder."""
    return VolumeIndex(next(path for split in SPLITS if (path := index_path(folder, dataset, split)).is_file())).shape


def _prepare_scan(source: RawScan) -> tuple[np.ndarray, tuple[float, float, float]]:
    if not source.path.name.lower().endswith((".nii", ".nii.gz")):
        raise ValueError(f"{source.path} is no NIfTI file (.nii, .nii.gz); convert it first")
    record = VolumeRecord(
        volume_id=source.path.name, study_id="", patient_id="", dataset="ct_rate", official_split="", split="test",
        reconstruction=1, findings=None, impression=None, files=(source.path.name,), source="", reader="nifti",
    )  # fmt: skip
    try:
        voxels, facts = make_volume(record, source.path.parent, Recipe(shape=source.shape))
    except Refusal as error:
        raise ValueError(f"{source.path} cannot be used: {error}") from error
    return voxels.astype(np.float32), tuple(facts["spacing_mm"] or (1.0, 1.0, 1.0))
