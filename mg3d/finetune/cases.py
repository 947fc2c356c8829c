"""Cases of a downstream data set: what a folder reads, how it is divided, and what is refused before an epoch is spent."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

NO_FOLD = -1
UNKNOWN = -1
"""A target that nobody knows; it is left out of losses and metrics."""


class ArrowRow(NamedTuple):
    """A volume that was prepared into an Arrow file."""

    file: Path
    row: int
    name: str = "image"
    """`image` or `mask`."""


class PreparedRow(NamedTuple):
    """A volume that the preparation of pre-training has stored: a row of its index file."""

    index: Path
    row: int


class RawScan(NamedTuple):
    """A NIfTI file that is to be prepared as pre-training prepares its volumes."""

    path: Path
    shape: tuple[int, int, int]
    """Voxels z, y, x of the volume that it becomes."""


Source = Path | tuple[Path, ...] | ArrowRow | PreparedRow | RawScan
"""A file, the slices of a folder from the first to the last, or a row of an Arrow file."""


class Candidate(NamedTuple):
    """A place in a scan that may hold a nodule."""

    centre_mm: tuple[float, float, float]
    """World x, y, z: +x left, +y posterior, +z superior (LPS)."""
    target: int


class Finding(NamedTuple):
    """A nodule of the reference."""

    centre_mm: tuple[float, float, float]
    """As of a `Candidate`."""
    diameter_mm: float
    excluded: bool
    """Neither to be found nor false when it is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One scan with what is to be learned from it."""

    case_id: str
    patient_id: str
    image: Source
    mask: Source | None = None
    """Label values on the image's grid; None where nobody drew one."""
    target: tuple[int, ...] = ()
    """One number per output of a classification (0, 1, `UNKNOWN`), or the class alone."""
    candidates: tuple[Candidate, ...] = ()
    findings: tuple[Finding, ...] = ()
    """What candidates are judged by."""
    report: str = ""
    part: Literal["train", "test"] = "train"
    """The data set's own division; `test` is never trained on."""
    fold: int = NO_FOLD
    """The data set's own fold, where there is one."""


class Parts(NamedTuple):
    """What one run learns from, chooses by, and is judged on."""

    train: list[Case]
    val: list[Case]
    test: list[Case]
    """Empty where the data set has no labelled test part: then `val` is reported."""


def assign_folds(cases: Sequence[Case], folds: int, *, seed: int) -> list[Case]:
    """Training cases with folds 0 .. folds - 1 where they have none: by patient, balanced over targets, equal for equal seeds.

    Raises:
        ValueError: fewer patients than folds.
    """
    free = [case for case in cases if case.part == "train" and case.fold == NO_FOLD]
    if not free:
        return list(cases)
    ordered = sorted(free, key=lambda case: case.case_id)
    patients = np.array([case.patient_id for case in ordered])
    count = len(set(patients))
    if count < folds:
        raise ValueError(f"{count} patients cannot be divided into {folds} folds; at least one patient per fold is needed")
    words = np.array([str(case.target) for case in ordered])
    common = Counter(words.tolist())
    strata = np.array([word if common[word] >= folds else "few" for word in words])
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    fold_of = {}
    for fold, (_, rows) in enumerate(splitter.split(strata, strata, patients)):
        fold_of |= {ordered[row].case_id: fold for row in rows}
    return [dataclasses.replace(case, fold=fold_of[case.case_id]) if case.case_id in fold_of else case for case in cases]


def divide(cases: Sequence[Case], *, fold: int, folds: int) -> Parts:
    """Training, validation and test cases of one fold.

    Raises:
        ValueError: a fold that does not exist, or a part without cases.
    """
    if not 0 <= fold < folds:
        raise ValueError(f"fold={fold}: there are {folds} folds, 0 to {folds - 1}; folds=all runs every one")
    train = [case for case in cases if case.part == "train" and case.fold != fold]
    val = [case for case in cases if case.part == "train" and case.fold == fold]
    test = [case for case in cases if case.part == "test"]
    for name, part in (("training", train), ("validation", val)):
        if not part:
            raise ValueError(f"fold {fold} has no {name} case (of {len(cases)} cases in all); check the folds of the data set")
    return Parts(train, val, test)


def check_cases(cases: Sequence[Case], *, where: Path) -> None:
    """Refuses what would make every number wrong: no cases, or one case twice.

    Raises:
        ValueError: see above.
    """
    if not cases:
        raise ValueError(f"{where} holds no case; is it one level too high or too low? The folder's README shows what it must be")
    twice = [name for name, count in Counter(case.case_id for case in cases).items() if count > 1]
    if twice:
        raise ValueError(f"{len(twice)} cases occur twice in {where}, such as {twice[:3]}; every case must have one entry")


def divided(parts: Parts) -> dict[str, str]:
    """Part -> how many cases it has and a word, both equal for the same cases."""
    names = {name: "\n".join(sorted(case.case_id for case in part)) for name, part in parts._asdict().items()}
    words = {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in names.items()}
    return {name: f"{len(part)}-{words[name]}" for name, part in parts._asdict().items()}


def refuse_other_cases(folder: Path, theirs: Mapping[str, str] | None, ours: Mapping[str, str]) -> None:
    """Raises ValueError when the run in `folder` was divided otherwise (see `divided`), or does not tell how."""
    other = [f"{name} {(theirs or {}).get(name, '?').split('-')[0]} (now {ours[name].split('-')[0]})" for name in ours
             if (theirs or {}).get(name) != ours[name]]  # fmt: skip
    if other:
        raise ValueError(
            f"{folder} holds a run on other cases or folds, {', '.join(other)}: data_root or what decides the folds has changed; "
            "run_name=... starts another beside it"
        )


def shared_patients(parts: Parts) -> list[str]:
    """Patients that are learned from and also judged on."""
    learned = {case.patient_id for case in parts.train}
    return sorted(learned & {case.patient_id for case in (*parts.val, *parts.test)})
