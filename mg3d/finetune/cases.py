"""Cases of a downstream data set and their division into training, validation and test."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

NO_FOLD = -1
UNKNOWN = -1
"""Unknown label; excluded from losses and metrics."""


class ArrowRow(NamedTuple):
    """A volume in an Arrow file."""

    file: Path
    row: int
    column: Literal["image", "mask", "prepared"] = "image"
    """image, mask: of a file of cases (`mg3d.finetune.arrows`). prepared: a row of an index of the pre-training preparation."""


class RawScan(NamedTuple):
    """A NIfTI file that is preprocessed as the pre-training preparation does."""

    path: Path
    shape: tuple[int, int, int]
    """Voxels z, y, x of the prepared volume."""


Source = Path | tuple[Path, ...] | ArrowRow | RawScan
"""A file, a stack of slice images from inferior to superior, or a row of an Arrow file."""


class Candidate(NamedTuple):
    """A candidate position for a nodule."""

    centre_mm: tuple[float, float, float]
    """World x, y, z in LPS."""
    target: int


class ReferenceNodule(NamedTuple):
    """A nodule of the reference standard."""

    centre_mm: tuple[float, float, float]
    """World x, y, z in LPS."""
    diameter_mm: float
    excluded: bool
    """Counts neither as a nodule nor as a false positive."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneCase:
    """A scan with its targets."""

    case_id: str
    patient_id: str
    image: Source | None
    """None: a case of text alone."""
    mask: Source | None = None
    """Label map on the grid of the image."""
    target: tuple[float, ...] = ()
    """One label per output (0, 1 or `UNKNOWN`), the class index alone, or numbers (nan = unknown)."""
    candidates: tuple[Candidate, ...] = ()
    nodules: tuple[ReferenceNodule, ...] = ()
    """Reference standard of the candidates."""
    report: str = ""
    split: Literal["train", "test"] = "train"
    """Official split; `test` is never used for training."""
    fold: int = NO_FOLD
    """Official fold, if there is one."""
    error: str = ""
    """Why a row of a table cannot be used; such a case has nothing else."""


def is_preprocessed(source: Source | None) -> bool:
    """Whether a volume is cropped, resized and checked as in pre-training."""
    return isinstance(source, RawScan) or (isinstance(source, ArrowRow) and source.column == "prepared")


def split_and_fold(prepared_split: str) -> tuple[Literal["train", "test"], int]:
    """Split and fold of a split of the pre-training preparation: its training split is fold 1, its validation split fold 0."""
    return ("test" if prepared_split == "test" else "train"), int(prepared_split == "train")


class Split(NamedTuple):
    """Training, validation and test cases of one fold."""

    train: list[FinetuneCase]
    val: list[FinetuneCase]
    test: list[FinetuneCase]
    """Empty if the data set has no labelled test split; then validation scores are reported."""


def assign_folds(cases: Sequence[FinetuneCase], folds: int, *, seed: int) -> list[FinetuneCase]:
    """Training cases with folds 0 .. folds - 1 where they have none: split by patient, stratified by target.

    Raises:
        ValueError: fewer patients than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    unassigned = sorted((case for case in cases if case.split == "train" and case.fold == NO_FOLD), key=lambda case: case.case_id)
    if not unassigned:
        return list(cases)
    patients = np.array([case.patient_id for case in unassigned])
    count = len(set(patients))
    if count < folds:
        raise ValueError(f"{count} patients cannot be divided into {folds} folds; at least one patient per fold is needed")
    targets = [str(case.target) for case in unassigned]
    frequency = Counter(targets)
    strata = np.array([target if frequency[target] >= folds else "rare" for target in targets])
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    fold_of = {}
    for fold, (_, rows) in enumerate(splitter.split(strata, strata, patients)):
        fold_of |= {unassigned[row].case_id: fold for row in rows}
    return [dataclasses.replace(case, fold=fold_of.get(case.case_id, case.fold)) for case in cases]


def split_fold(cases: Sequence[FinetuneCase], *, fold: int, folds: int, max_cases: int = 0) -> Split:
    """Training, validation and test cases of one fold; at most `max_cases` of each (0 = all).

    Raises:
        ValueError: the fold does not exist, a split is empty, or a patient is in training and evaluation.
    """
    if not 0 <= fold < folds:
        raise ValueError(f"fold={fold}: expected 0 to {folds - 1}; folds=all runs every fold")
    train = [case for case in cases if case.split == "train" and case.fold != fold]
    val = [case for case in cases if case.split == "train" and case.fold == fold]
    test = [case for case in cases if case.split == "test"]
    for name, part in (("training", train), ("validation", val)):
        if not part:
            raise ValueError(f"fold {fold} has no {name} case (of {len(cases)} cases); check the folds of the data set")
    shared = sorted({case.patient_id for case in train} & {case.patient_id for case in (*val, *test)})
    if shared:
        raise ValueError(f"{len(shared)} patients are in training and evaluation, such as {shared[:3]}; check the split files")
    return Split(*(draw_cases(part, max_cases) for part in (train, val, test)))


def draw_cases(cases: list[FinetuneCase], count: int) -> list[FinetuneCase]:
    """`count` cases in their order, evenly spaced; first one of every target, as far as `count` allows. All for 0."""
    if not 0 < count < len(cases):
        return cases
    frequency = Counter(case.target for case in cases)
    first = {case.target: index for index, case in reversed(list(enumerate(cases)))}
    chosen = {first[target] for target, _ in frequency.most_common(count)}
    others = [index for index in range(len(cases)) if index not in chosen]
    missing = count - len(chosen)
    chosen |= {others[index * len(others) // missing] for index in range(missing)}
    return [cases[index] for index in sorted(chosen)]


def require_cases(listed: Sequence[FinetuneCase], *, where: Path) -> list[FinetuneCase]:
    """The cases without an error; ValueError if there is none, or two with one name."""
    cases = [case for case in listed if not case.error]
    if listed and not cases:
        raise ValueError(f"none of the {len(listed)} rows of {where} can be used; the first: {listed[0].error}")
    if not cases:
        raise ValueError(f"{where} holds no case; is it one level too high or too low? The folder's README shows the layout")
    duplicates = [name for name, count in Counter(case.case_id for case in cases).items() if count > 1]
    if duplicates:
        raise ValueError(f"{len(duplicates)} case names are not unique in {where}, such as {duplicates[:3]}")
    return cases


def scan_key(case: FinetuneCase) -> str:
    """Hash of a scan's file name and size, by which it is recognized in another table."""
    source = case.image[0] if isinstance(case.image, tuple) and not isinstance(case.image, ArrowRow) else case.image
    size = source.stat().st_size if isinstance(source, Path) and source.is_file() else 0
    name = source.name if isinstance(source, Path) else ""
    return hashlib.sha256(f"{name} {size}".encode() if size else case.case_id.encode()).hexdigest()[:16]


def split_digests(split: Split) -> dict[str, str]:
    """Name of a split -> number of cases and a hash of their names."""
    names = {name: "\n".join(sorted(case.case_id for case in part)) for name, part in split._asdict().items()}
    return {
        name: f"{len(part)}-{hashlib.sha256(names[name].encode()).hexdigest()[:16]}" for name, part in split._asdict().items()
    }
