"""CT-RATE and CTRG as the pre-training preparation stores them; a raw data set is prepared first."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.integrity import LeakError
from mg3d.datasets.schema import DATASETS, SPLITS, index_path
from mg3d.finetune.cases import ArrowRow, FinetuneCase, RawScan, split_and_fold
from mg3d.finetune.distributed import info, run_on_first_rank
from mg3d.preparation import geometry
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.readers.dicom_series import read_headers
from mg3d.preparation.readers.registry import READERS, reader_of
from mg3d.preparation.recipe import Recipe
from mg3d.preparation.records import VolumeRecord
from mg3d.preparation.run import PrepareOptions, prepare
from mg3d.preparation.voxels import make_volume

MAX_QUARANTINED = 0.02
"""Fraction of quarantined volumes above which a message is printed."""


def is_prepared(root: Path, dataset: str) -> bool:
    """Whether a folder has index files of a data set."""
    return any(index_path(root, dataset, split).is_file() for split in SPLITS)


def prepare_dataset(
    root: Path, dataset: str, out: Path, *, shape: tuple[int, int, int], val_patients: int = 500, workers: int = 1
) -> Path:
    """The folder with a data set's Arrow files: `root` if it has them, else `out`, written from `root` by the first rank.

    Raises:
        FileNotFoundError, ValueError, OSError: as `mg3d.preparation.run.prepare`.
    """
    if is_prepared(root, dataset):
        return root
    options = PrepareOptions(
        out=out, roots={dataset: root}, recipe=Recipe(shape=shape), workers=workers, val_patients=val_patients
    )
    files = [index_path(out, dataset, split) for split in SPLITS]
    run_on_first_rank(lambda: _prepare(root, options), done=lambda: all(file.is_file() for file in files), what=str(out))
    return out


def _prepare(root: Path, options: PrepareOptions) -> None:
    info(f"preparing {root} into {options.out}; an interrupted preparation continues")
    try:
        summary = prepare(options)
    except LeakError as error:
        raise ValueError(str(error)) from error
    for note in summary.notes:
        info(note)
    if summary.failed_fraction > MAX_QUARANTINED:
        info(f"{summary.failed_fraction:.1%} of the volumes could not be used; see {options.out / 'quarantine.jsonl'}")


def read_prepared_cases(
    folder: Path, dataset: str, *, every_reconstruction: bool = True, reports: bool = False
) -> list[FinetuneCase]:
    """The volumes of a prepared folder: the training split has fold 1, the validation split fold 0, the test split none.

    every_reconstruction: False keeps the first reconstruction of each training and validation study.
    reports: include the reports.

    Raises:
        FileNotFoundError: a split is missing.
        ValueError: the training or validation split is empty.
    """
    cases: list[FinetuneCase] = []
    for split in SPLITS:
        path = index_path(folder, dataset, split)
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} lacks {path.name}; prepare {DATASETS[dataset].title} again with prepro/prepro_finetuning_data.py"
            )
        split_cases = _split_cases(path, split, reports=reports, every=every_reconstruction or split == "test")
        if not split_cases and split != "test":
            raise ValueError(f"{path} is empty, so there is no {'training' if split == 'train' else 'validation'} case")
        cases += split_cases
    return cases


def _split_cases(path: Path, split: str, *, reports: bool, every: bool) -> list[FinetuneCase]:
    table = VolumeIndex(path).table
    names, studies, patients = (table[name].to_pylist() for name in ("volume_id", "study_id", "patient_id"))
    labels = table["labels"].to_pylist()
    texts = table["report"].to_pylist() if reports else [""] * len(names)
    rows = range(len(names)) if every else sorted({study: row for row, study in reversed(list(enumerate(studies)))}.values())
    official, fold = split_and_fold(split)
    return [
        FinetuneCase(
            case_id=names[row], patient_id=patients[row], image=ArrowRow(path, row, "prepared"), target=tuple(labels[row]),
            report=texts[row], split=official, fold=fold,
        )
        for row in rows
    ]  # fmt: skip


@lru_cache(maxsize=16)
def _index(path: Path) -> VolumeIndex:
    return VolumeIndex(path)


def read_prepared(source: ArrowRow | RawScan) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Voxels float32 [z, y, x] in HU (CTRG: grey values 0 to 255), and their spacing in mm along z, y, x (1 if unknown).

    Raises:
        ValueError: a file cannot be prepared.
    """
    if isinstance(source, RawScan):
        return _prepare_scan(source)
    index = _index(source.file)
    voxels, row = index.volume(source.row).astype(np.float32), index.table.slice(source.row, 1).to_pylist()[0]
    if row["intensity_unit"] == "hu8":
        low, high = index.stored_window_hu
        voxels = low + voxels / 255.0 * (high - low)
    return voxels, tuple(row["spacing_mm"] or (1.0, 1.0, 1.0))


def prepared_shape(folder: Path, dataset: str) -> tuple[int, int, int]:
    """Voxels z, y, x of the volumes of a prepared folder."""
    return VolumeIndex(next(path for split in SPLITS if (path := index_path(folder, dataset, split)).is_file())).shape


def _prepare_scan(source: RawScan) -> tuple[np.ndarray, tuple[float, float, float]]:
    with _refusal_as_error(source.path):
        voxels, facts = make_volume(_record(source.path), source.path.parent, Recipe(shape=source.shape))
    return voxels.astype(np.float32), tuple(facts["spacing_mm"] or (1.0, 1.0, 1.0))


def read_dicom(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels int16 HU [i, j, k] of the one axial CT series of a folder, or of the series of one slice; affine (RAS, mm).

    Raises:
        ValueError: there is none, or several, or a slice is missing or damaged.
    """
    with _refusal_as_error(path):
        series = {header.series for header in read_headers(path) if header.modality == "CT" and header.is_axial_slice}
        if len(series) > 1:
            raise ValueError(f"{path} holds {len(series)} axial series; name one slice of the right one instead of the folder")
        raw = READERS["dicom"](_record(path), path.parent)
    return geometry.from_lps(raw.voxels, raw.affine), raw.affine


def _record(path: Path) -> VolumeRecord:
    return VolumeRecord(
        volume_id=path.name, study_id="", patient_id="", dataset="ct_rate", official_split="", split="test", reconstruction=1,
        findings=None, impression=None, files=(path.name,), source="", reader=reader_of(path) or "dicom",
    )  # fmt: skip


@contextmanager
def _refusal_as_error(path: Path) -> Iterator[None]:
    try:
        yield
    except Refusal as refusal:
        raise ValueError(f"{path} cannot be used: {refusal.reason}") from None
