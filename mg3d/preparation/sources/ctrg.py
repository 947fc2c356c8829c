"""CTRG-Chest as distributed: 8-bit JPEG slices or NIfTI files and one JSON. Names of people are hashed."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import numpy as np

from mg3d.preparation.quarantine import Quarantined
from mg3d.preparation.records import Inventory, VolumeRecord
from mg3d.preparation.sources.options import SourceOptions
from mg3d.preparation.sources.pseudonyms import pseudonym, read_salt
from mg3d.preparation.split import draw_val_patients
from mg3d.report_sections import clean_section

DATASET = "ctrg"
ANNOTATIONS = ("chest_ctrg_jpg.json", "annotation.json", "chest_ctrg_nitfy_ori_split.json")
OFFICIAL_SPLITS = ("train", "test", "val")


@dataclass(frozen=True)
class _Entry:
    """One entry of the annotation. The repr contains no name."""

    folder: PurePosixPath = field(repr=False)
    item: dict[str, Any] = field(repr=False)
    official_split: str


def list_ctrg(root: Path, options: SourceOptions) -> Inventory:
    """List all cases of the annotation file in `root`, in its order. Each case counts as one patient.

    Paths in the annotation are looked up below `root` by their longest suffix that exists. `ctrg_split="resplit"` draws val from
    train and uses all other cases as test; `"original"` keeps the published splits.

    Raises:
        FileNotFoundError: the annotation file is missing.
        ValueError: the annotation has another structure, or has a case in two splits with `original`.
    """
    annotation = read_annotation(find_annotation(root))
    entries = [_Entry(case_folder(item), item, name) for name, items in annotation.items() for item in items[: options.limit]]
    inventory, notes = Inventory(root), []
    split_of = _assign_splits(entries, options, notes)
    entry_of: dict[PurePosixPath, _Entry] = {}
    for entry in entries:
        entry_of.setdefault(entry.folder, entry)
    n_named = Counter(folder.name for folder in entry_of)
    salt = read_salt(options.out / f"{DATASET}_salt.txt")
    for folder, entry in entry_of.items():
        case_id = f"{DATASET}/{pseudonym(folder.name if n_named[folder.name] == 1 else str(folder), salt)}"
        record = _make_record(root, entry, case_id, split_of[folder])
        (inventory.quarantined if isinstance(record, Quarantined) else inventory.records).append(record)
    inventory.notes = [f"CTRG: {note}" for note in (*notes, *_repetition_notes(entries, len(entry_of)))]
    return inventory


def find_annotation(root: Path) -> Path:
    """The annotation file in `root`; of several, the one with most of its first cases below `root`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not such a JSON.
    """
    paths = [root / name for name in ANNOTATIONS if (root / name).is_file()]
    if not paths:
        raise FileNotFoundError(f"{root} has neither {' nor '.join(ANNOTATIONS)}; give CTRG-Chest's folder")

    def n_found(path: Path) -> int:
        items = [item for part in read_annotation(path).values() for item in part[:10]]
        return sum(find_case(root, case_folder(item)) is not None for item in items)

    return max(paths, key=n_found) if len(paths) > 1 else paths[0]


def read_annotation(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Official split (train, test, val) -> its cases in file order; a flat list is divided as published (80 / 10 / 10 %).

    Raises:
        ValueError: not such a JSON. The message contains nothing of a case.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({type(error).__name__}); it may be incomplete, download it again") from None
    if isinstance(content, list):
        first, second = int(0.8 * len(content)) + 1, int(0.9 * len(content)) + 1
        content = {"train": content[:first], "test": content[first:second], "val": content[second:]}
    if not isinstance(content, dict) or not all(isinstance(content.get(name, []), list) for name in OFFICIAL_SPLITS):
        raise ValueError(f"{path} is neither a list of cases nor a dict of the lists train, val and test")
    parts = {name: content.get(name, []) for name in OFFICIAL_SPLITS}
    for name, items in parts.items():
        wrong = next((index for index, item in enumerate(items) if not _has_path(item)), None)
        if wrong is not None:
            raise ValueError(
                f"{path}: case {wrong} of {name} has no image_path, the path of a folder or a list of paths of slices; "
                "expected keys: id, image_path, report, result"
            )
    return parts


def case_folder(item: Mapping[str, Any]) -> PurePosixPath:
    """The folder of a case's slices, or its NIfTI file, as written in the annotation."""
    path = item["image_path"]
    return PurePosixPath(path) if isinstance(path, str) else PurePosixPath(path[0]).parent


def find_case(root: Path, folder: PurePosixPath) -> Path | None:
    """The folder or NIfTI file below `root` whose path ends like `folder`; the longest match wins."""
    parts = [part for part in folder.parts if part not in {"/", "."}]
    candidates = (root.joinpath(*parts[first:]) for first in range(len(parts)))
    return next((path for path in candidates if (path.is_file() if is_nifti(path) else path.is_dir())), None)


def is_nifti(path: PurePath) -> bool:
    """Whether a case is one NIfTI file instead of a folder of slices."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def slice_names(folder: Path) -> list[str]:
    """The JPEG files of a case's folder, unsorted."""
    return [path.name for path in folder.iterdir() if path.suffix.lower() in {".jpg", ".jpeg"}]


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sort key that compares numbers in a name by value: 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def missing_numbers(names: Sequence[str]) -> str | None:
    """A message about gaps in the numbers of a case's sorted slice names; None without gaps.

    The last number that differs between the names counts. A gap is a step larger than the median of the positive steps. Names of
    different patterns, or numbers that start again, are not checked.
    """
    keys = [natural_key(name) for name in names]
    if len({tuple(text for _, text in key) for key in keys}) != 1:
        return None
    columns = np.array([[number for number, _ in key] for key in keys])
    steps = np.diff(columns[:, (columns != columns[0]).any(axis=0)][:, -1:], axis=0)
    if not (steps > 0).any():
        return None
    usual = int(np.median(steps[steps > 0]))
    wide = steps[steps > usual]
    if not len(wide):
        return None
    return f"{int((wide // usual).sum()) - len(wide)} numbers missing in {len(wide)} gaps, {len(names)} slices found"


def _has_path(item: object) -> bool:
    path = item.get("image_path") if isinstance(item, dict) else None
    return bool(path) and (isinstance(path, str) or (isinstance(path, list) and all(isinstance(part, str) for part in path)))


def _assign_splits(entries: list[_Entry], options: SourceOptions, notes: list[str]) -> dict[PurePosixPath, str]:
    """Folder -> split. With `resplit`, a case in several published splits is not used for training."""
    official: dict[PurePosixPath, set[str]] = {}
    for entry in entries:
        official.setdefault(entry.folder, set()).add(entry.official_split)
    if options.ctrg_split == "original":
        if any(len(splits) > 1 for splits in official.values()):
            raise ValueError("the annotation has a case in more than one split; use --ctrg-split resplit")
        return {folder: next(iter(splits)) for folder, splits in official.items()}
    train = [str(folder) for folder, splits in official.items() if splits == {"train"}]
    val, note = draw_val_patients(train, options.val_patients, options.seed)
    notes += [note] if note else []
    return {
        folder: "val" if str(folder) in val else "train" if splits == {"train"} else "test" for folder, splits in official.items()
    }


def _make_record(root: Path, entry: _Entry, case_id: str, split: str) -> VolumeRecord | Quarantined:
    findings = clean_section(entry.item.get("report", entry.item.get("findings")))
    impression = clean_section(entry.item.get("result", entry.item.get("impression")))
    if findings is None and impression is None:
        return Quarantined(case_id, DATASET, "scan", "report_missing")
    try:
        files = _list_slices(root, entry)
    except OSError as error:  # its message contains the folder, hence possibly a person's name
        return Quarantined(case_id, DATASET, "scan", "unreadable", type(error).__name__)
    if not files:
        return Quarantined(case_id, DATASET, "scan", "missing_file", "no file, folder or slice found")
    as_nifti = is_nifti(PurePosixPath(files[0]))
    if not as_nifti and (gap := missing_numbers([PurePosixPath(file).name for file in files])):
        return Quarantined(case_id, DATASET, "scan", "missing_slices", gap)
    return VolumeRecord(
        volume_id=case_id,
        study_id=case_id,
        patient_id=case_id,
        dataset=DATASET,
        official_split=entry.official_split,
        split=split,
        reconstruction=1,
        findings=findings,
        impression=impression,
        files=files,
        source=case_id,
        reader="grey_nifti" if as_nifti else "jpeg_slices",
    )


def _list_slices(root: Path, entry: _Entry) -> tuple[str, ...]:
    """The NIfTI file or the sorted slices of a case, relative to `root`; empty if the case does not exist."""
    location = find_case(root, entry.folder)
    if location is None:
        return ()
    inside = location.relative_to(root)
    if is_nifti(location):
        return (inside.as_posix(),)
    path = entry.item["image_path"]
    names = slice_names(location) if isinstance(path, str) else [PurePosixPath(file).name for file in path]
    return tuple((inside / name).as_posix() for name in sorted(sorted(names), key=natural_key))


def _repetition_notes(entries: list[_Entry], n_cases: int) -> list[str]:
    val, test = ({entry.folder for entry in entries if entry.official_split == name} for name in ("val", "test"))
    if val and val == test:
        return [f"val and test of the annotation are the same {len(val)} cases; they are test here, and val is drawn from train"]
    n_repeated = len(entries) - n_cases
    return [f"{n_repeated} entries repeat a case; the first entry counts"] if n_repeated else []
