"""CTRG-Chest as it is distributed (8-bit JPEG slices or NIfTI, and one JSON) -> volume records, names of people hashed."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Literal

import numpy as np

from mg3d.preparation.quarantine import Quarantined
from mg3d.preparation.records import Inventory, VolumeRecord
from mg3d.preparation.sources.pseudonyms import pseudonym
from mg3d.preparation.split import draw_val_patients
from mg3d.sentence_spans import clean_section

DATASET = "ctrg"
ANNOTATIONS = ("chest_ctrg_jpg.json", "annotation.json", "chest_ctrg_nitfy_ori_split.json")
OFFICIAL_SPLITS = ("train", "test", "val")
CtrgSplit = Literal["resplit", "original"]


@dataclass(frozen=True)
class _Case:
    folder: PurePosixPath = field(repr=False)
    item: dict[str, Any] = field(repr=False)
    official_split: str


def list_ctrg(
    root: Path, *, salt: bytes, val_patients: int, seed: int, split: CtrgSplit = "resplit", limit: int | None = None
) -> Inventory:
    """All cases of the annotation file in `root`, in its order. A case counts as a patient.

    Args:
        root: folder of the annotation file; paths of slices or of NIfTI files are taken relative to it, as far as their end can
            be found there.
        salt: keeps the ids from being guessed, see `pseudonyms.read_salt`.
        val_patients: own: how many cases of train become val, see `draw_val_patients`.
        seed: of that draw.
        split: own: val is carved out of train, all the rest is test. original: as published; for the flat list its order
            (train up to place int(0.8 n), test up to int(0.9 n), the rest val).
        limit: at most so many cases of each official split.

    Raises:
        FileNotFoundError: the folder or the annotation file is missing.
        ValueError: the annotation has another shape, or puts a case into two splits with `original`.
    """
    cases = list(_cases(root, limit))
    scan = Inventory(root)
    ours, note = _splits(cases, split, val_patients=val_patients, seed=seed)
    scan.notes += [f"CTRG: {note}"] if note else []
    first: dict[PurePosixPath, _Case] = {}
    for case in cases:
        known = first.setdefault(case.folder, case).official_split
        if known != case.official_split and split == "original":
            raise ValueError(f"the annotation puts a case into both {known} and {case.official_split}; use --ctrg-split resplit")
    called = Counter(folder.name for folder in first)
    for folder, case in first.items():
        name = folder.name if called[folder.name] == 1 else str(folder)
        record = _record(root, case, f"{DATASET}/{pseudonym(name, salt)}", ours[folder])
        (scan.refused if isinstance(record, Quarantined) else scan.records).append(record)
    scan.notes += [f"CTRG: {sentence}" for sentence in _repeats(cases, len(first))]
    return scan


def find_annotation(root: Path) -> Path:
    """The annotation file of `root`; of several, the one most of whose first cases lie there.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no such JSON.
    """
    there = [root / name for name in ANNOTATIONS if (root / name).is_file()]
    if not there:
        raise FileNotFoundError(f"{root} holds neither {' nor '.join(ANNOTATIONS)}; give CTRG-Chest's folder")
    if len(there) == 1:
        return there[0]

    def found(path: Path) -> int:
        first = [item for items in read_annotation(path).values() for item in items[:10]]
        return sum(find_case(root, case_folder(item)) is not None for item in first)

    return max(there, key=found)


def slice_names(folder: Path) -> list[str]:
    """The JPEG files of a case's folder, in no order."""
    return [path.name for path in folder.iterdir() if path.suffix.lower() in {".jpg", ".jpeg"}]


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sorts numbers in a name by value: 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def left_out(names: Sequence[str]) -> str | None:
    """How many numbers are left out between the sorted names of a case's slices; None when none is.

    Of the numbers in a name the last that differs between names counts. A gap is a step above the usual one, the median of those
    that go up. Names built in several ways tell nothing, and neither do numbers that begin anew.
    """
    keys = [natural_key(name) for name in names]
    if len({tuple(text for _, text in key) for key in keys}) != 1:
        return None
    columns = np.array([[number for number, _ in key] for key in keys])
    differing = columns[:, (columns != columns[0]).any(axis=0)]
    steps = np.diff(differing[:, -1:], axis=0)
    if not (steps > 0).any():
        return None
    usual = int(np.median(steps[steps > 0]))
    wide = steps[steps > usual]
    if not len(wide):
        return None
    return f"{int((wide // usual).sum()) - len(wide)} numbers left out in {len(wide)} gaps, {len(names)} slices are there"


def read_annotation(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Official split (train, test, val) -> its cases, in the order of the file; a flat list is cut as published.

    Raises:
        ValueError: the file is no such JSON. What it says of a case is never repeated.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON ({type(error).__name__}); it may be cut, download it again") from None
    if isinstance(content, list):
        first, second = int(0.8 * len(content)) + 1, int(0.9 * len(content)) + 1
        content = {"train": content[:first], "test": content[first:second], "val": content[second:]}
    known = isinstance(content, dict) and all(isinstance(content.get(name, []), list) for name in OFFICIAL_SPLITS)
    if not known:
        raise ValueError(f"{path} is neither a list of cases nor a dict of the lists train, val and test")
    parts = {name: content.get(name, []) for name in OFFICIAL_SPLITS}
    for name, items in parts.items():
        wrong = next((place for place, item in enumerate(items) if not _has_path(item)), None)
        if wrong is not None:
            raise ValueError(
                f"{path}: case {wrong} of {name} has no image_path, which should be the path of a folder or a list of the paths "
                "of slices; keys expected: id, image_path, report, result"
            )
    return parts


def case_folder(item: Mapping[str, Any]) -> PurePosixPath:
    """The folder of a case's slices, or its NIfTI file, as the annotation writes it."""
    path = item["image_path"]
    return PurePosixPath(path) if isinstance(path, str) else PurePosixPath(path[0]).parent


def _has_path(item: object) -> bool:
    path = item.get("image_path") if isinstance(item, dict) else None
    return bool(path) and (isinstance(path, str) or (isinstance(path, list) and all(isinstance(part, str) for part in path)))


def _cases(root: Path, limit: int | None) -> Iterator[_Case]:
    for name, items in read_annotation(find_annotation(root)).items():
        yield from (_Case(case_folder(item), item, name) for item in items[:limit])


def _splits(cases: list[_Case], rule: CtrgSplit, *, val_patients: int, seed: int) -> tuple[dict[PurePosixPath, str], str | None]:
    """Folder -> our split. A case in several published splits is kept from training."""
    if rule == "original":
        return {case.folder: case.official_split for case in cases}, None
    ours = {case.folder: "train" for case in cases}
    ours |= {case.folder: "test" for case in cases if case.official_split != "train"}
    val, note = draw_val_patients([str(folder) for folder, split in ours.items() if split == "train"], val_patients, seed)
    return {folder: "val" if str(folder) in val else split for folder, split in ours.items()}, note


def _record(root: Path, case: _Case, case_id: str, split: str) -> VolumeRecord | Quarantined:
    findings = clean_section(case.item.get("report", case.item.get("findings")))
    impression = clean_section(case.item.get("result", case.item.get("impression")))
    if findings is None and impression is None:
        return Quarantined(case_id, DATASET, "scan", "report_missing")
    path = case.item["image_path"]
    try:
        place = find_case(root, case.folder)
        if place is None:
            return Quarantined(case_id, DATASET, "scan", "missing_file", "no file" if is_nifti(case.folder) else "no folder")
        inside = place.relative_to(root)
        if is_nifti(place):
            files, reader = [inside.as_posix()], "grey_nifti"
        else:
            names = slice_names(place) if isinstance(path, str) else [PurePosixPath(file).name for file in path]
            names = sorted(sorted(names), key=natural_key)
            if gap := left_out(names):
                return Quarantined(case_id, DATASET, "scan", "missing_slices", gap)
            files, reader = [(inside / name).as_posix() for name in names], "jpeg_slices"
    except OSError as error:  # its message names the folder, hence a person
        return Quarantined(case_id, DATASET, "scan", "unreadable", type(error).__name__)
    if not files:
        return Quarantined(case_id, DATASET, "scan", "missing_file", "no slice")
    return VolumeRecord(
        volume_id=case_id,
        study_id=case_id,
        patient_id=case_id,
        dataset=DATASET,
        official_split=case.official_split,
        split=split,
        reconstruction=1,
        findings=findings,
        impression=impression,
        files=tuple(files),
        source=case_id,
        reader=reader,
    )


def is_nifti(path: PurePath) -> bool:
    """Whether a case is one file rather than a folder of slices."""
    return path.name.endswith((".nii", ".nii.gz"))


def _repeats(cases: list[_Case], different: int) -> list[str]:
    """Sentences about cases that the annotation names more than once."""
    val, test = ({case.folder for case in cases if case.official_split == name} for name in ("val", "test"))
    if val and val == test:
        return [f"val and test of the annotation are the same {len(val)} cases; they are test here, val is carved out of train"]
    again = len(cases) - different
    return [f"{again} entries name a case once more; the first entry counts"] if again else []


def find_case(root: Path, folder: PurePosixPath) -> Path | None:
    """The folder or NIfTI file below root whose path ends as `folder` does; the longest end that is there wins."""
    parts = [part for part in folder.parts if part not in {"/", "."}]
    candidates = (root.joinpath(*parts[first:]) for first in range(len(parts)))
    return next((path for path in candidates if (path.is_file() if is_nifti(path) else path.is_dir())), None)
