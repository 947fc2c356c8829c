"""The volumes that a custom table or folder names, before ids are assigned."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pandas as pd

from mg3d.glossary import LABELS
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.readers.dicom_series import SeriesKey, has_slices, read_series_key, series_files
from mg3d.preparation.readers.registry import reader_of
from mg3d.preparation.sources.scan_walk import SCAN_SUFFIXES, is_or_may_be_dicom, walk_scans
from mg3d.preparation.sources.tables import flag, read_table
from mg3d.report_sections import clean_section, split_report

COLUMNS: dict[str, tuple[str, ...]] = {
    "volume": ("volumename", "volumepath", "path", "file", "filepath", "filename", "image", "imagepath", "series", "nifti",
               "scan"),
    "patient": ("patientid", "subject", "subjectid", "mrn"),
    "study": ("studyid", "accession", "accessionnumber", "studyinstanceuid", "studyuid"),
    "split": ("set", "subset", "partition"),
    "findings": ("finding", "findings_en"),
    "impression": ("impressions", "impressions_en", "conclusion"),
    "report": ("reporttext", "text"),
    "use": (),
    "verdict": (),
}  # fmt: skip
"""Column of the table -> other names for it. Each of the 18 labels may be a column as well. A row with use = 0 is left out."""
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
_ADVICE = "fix its header (docs/data.md lists the column names) or save it again as CSV in UTF-8"
_MIN_TEXT_LENGTH = 60
_PATIENT_RULE = "DICOM by PatientID, each other top-level folder or file as one patient"


@dataclass(frozen=True)
class ListedVolume:
    """A volume as named in the folder or table. The repr contains no name."""

    path: PurePosixPath = field(repr=False)
    """Relative to the root: a file, a folder of DICOM slices, or one slice that represents its series."""
    patient: str = field(repr=False)
    study: str = field(repr=False)
    split: str | None = None
    findings: str | None = field(default=None, repr=False)
    impression: str | None = field(default=None, repr=False)
    labels: tuple[int, ...] = (-1,) * len(LABELS)
    quarantine_code: str | None = None
    """Why the volume cannot be used; None: it can."""
    row: int = field(default=0, compare=False)
    """Of the table, from 1."""


class Listing(NamedTuple):
    """The volumes of a folder or table before ids are assigned."""

    volumes: list[ListedVolume]
    notes: list[str]
    has_labels: bool


def read_listing(root: Path, table: Path | None) -> Listing:
    """The volumes that a table names, or without a table all volumes below `root`.

    Without a column `patient`, DICOM has the patient of its header; each other top-level folder or file is a patient.

    Raises:
        FileNotFoundError: no volume, or no table.
        ValueError: the table cannot be read, or names no file.
    """
    if table is not None:
        return _read_table_listing(root, table)
    volumes, walk = {}, walk_scans(root)
    for path in walk.scans:
        volumes[path] = _unlabelled_volume(path, _folder_key(root / path))
    if not volumes:
        passed_over = f"; {walk.note}" if walk.note else ""
        raise FileNotFoundError(f"{root} has no {', '.join(SCAN_SUFFIXES)} files or DICOM series{passed_over}; check the path")
    n_patients = len({volume.patient for volume in volumes.values()})
    notes = [f"custom: {n_patients} patients: {_PATIENT_RULE}"]
    notes += [f"custom: {walk.note}"] if walk.note else []
    return Listing([*volumes.values()], notes, has_labels=False)


def _read_table_listing(root: Path, path: Path) -> Listing:
    if not path.is_file():
        raise FileNotFoundError(f"the table {path} does not exist; give a CSV, Excel or JSON file")
    table, notes = read_table(path, {**COLUMNS, **dict.fromkeys(LABELS, ())}, required=["volume"], advice=_ADVICE)
    notes = [f"custom: {note}" for note in notes]
    table, left_out = _leave_out(table, path, notes)
    paths = [_locate(root, cell) for cell in table["volume"]]
    _check_located(root, path, table, sum(located is not None for located in paths))
    first_slice: dict[tuple[PurePosixPath, SeriesKey], PurePosixPath] = {}
    rows: dict[PurePosixPath, list[ListedVolume]] = {}
    unusable = []
    for (row, cells), located in zip(table.to_dict("index").items(), paths):
        code, key = "missing_file", None
        if located is not None:
            located, code, key = _representative(root, located, first_slice)
        volume = _listed_volume(cells, located or PurePosixPath(f"row {row}"), row, key)
        if code:
            unusable.append(_quarantine(volume, code))
        else:
            rows.setdefault(volume.path, []).append(volume)
    volumes = {name: _merge_rows(same) for name, same in rows.items()}
    slices = set(first_slice.values())
    series = [name for name in volumes if reader_of(name) is None]
    for folder in {folder for name in series for folder in name.parents} & volumes.keys():
        if folder in {name.parent for name in slices} or _includes_subfolders(root / folder):
            volumes[folder] = _quarantine(volumes[folder], "nested_series")  # it would be read as another listed series
    named = volumes.keys() | {name.parent for name in slices} | left_out
    notes += _table_notes(root, table, named, n_repeated=len(table) - len(unusable) - len(volumes))
    return Listing([*volumes.values(), *unusable], notes, has_labels=any(label in table for label in LABELS))


def _leave_out(table: pd.DataFrame, path: Path, notes: list[str]) -> tuple[pd.DataFrame, set[PurePosixPath]]:
    """The rows without those of use = 0, and the volumes and folders that these name; adds the counts to `notes`."""
    if "use" not in table:
        return table, set()
    if n_unclear := sum(bool(cell) and flag(cell) < 0 for cell in table["use"]):
        raise ValueError(f"{path}: {n_unclear} cells of the column `use` are neither 1 nor 0; write 1 into the rows to use")
    used = table["use"].map(lambda cell: not cell or flag(cell) == 1)
    if len(table) and not used.any():
        raise ValueError(f"{path}: every row has use = 0; write 1 into the rows to use")
    rest = table[~used]
    verdicts = Counter(rest["verdict"].str.replace(r"(?<!^rule):.*", "", regex=True) if "verdict" in rest else [])
    counts = "".join(f", {count:,} {verdict}" for verdict, count in verdicts.most_common())
    notes += [f"custom: {len(rest):,} rows with use = 0 are left out{counts}"] if len(rest) else []
    cells = [PurePosixPath(cell.replace("\\", "/")) for cell in rest["volume"]]
    return table[used], {name for cell in cells for name in (cell, cell.parent)}


def _table_notes(root: Path, table: pd.DataFrame, named: set[PurePosixPath], *, n_repeated: int) -> list[str]:
    walk = walk_scans(root)
    n_bad_labels = sum(bool(cell) and flag(cell) < 0 for label in LABELS if label in table for cell in table[label])
    n_unlisted = sum(
        path not in named and not any(_includes_subfolders(root / folder) for folder in named.intersection(path.parents))
        for path in walk.scans
    )
    notes = {
        f"{n_repeated} rows repeat a volume; a text that differs is joined as an addendum, other contradicting rows are "
        "quarantined": n_repeated,
        f"{n_bad_labels} label cells are neither 1, 0 nor empty; they are stored as unknown": n_bad_labels,
        f"{n_unlisted} volumes of the folder are not in the table and are skipped": n_unlisted,
        walk.note: walk.note,
        f"the table has no column `patient`: {_PATIENT_RULE}": "patient" not in table,
    }
    return [f"custom: {note}" for note, count in notes.items() if count]


def _merge_rows(rows: list[ListedVolume]) -> ListedVolume:
    """The volume of rows that differ at most in their texts, which are joined in row order; else it is quarantined."""
    first = rows[0]
    if any(replace(row, findings=first.findings, impression=first.impression) != first for row in rows):
        return _quarantine(first, "duplicate_row")
    texts = {name: [text for row in rows if (text := getattr(row, name))] for name in ("findings", "impression")}
    return replace(first, **{name: "\n\n".join(dict.fromkeys(parts)) or None for name, parts in texts.items()})


def _unlabelled_volume(path: PurePosixPath, key: SeriesKey | None) -> ListedVolume:
    patient = _default_patient(path, key)
    if key and key.study_uid:
        return ListedVolume(path, patient, f"{patient}/{key.study_uid}")
    return ListedVolume(path, patient, str(path.parent) if len(path.parts) > 1 else patient)


def _listed_volume(cells: Mapping[str, str], path: PurePosixPath, row: int, key: SeriesKey | None) -> ListedVolume:
    split = cells.get("split", "").lower()
    if split and split not in SPLIT_NAMES:
        raise ValueError(f"row {row} of the table has a split other than train, val or test; use one of these or leave it empty")
    patient, study = cells.get("patient") or _default_patient(path, key), cells.get("study")
    findings, impression = split_report(cells.get("report"))
    return ListedVolume(
        path=path,
        patient=patient,
        study=f"{patient}/{study}" if study else strip_suffix(path),
        split=SPLIT_NAMES.get(split),
        findings=clean_section(cells.get("findings")) or findings,
        impression=clean_section(cells.get("impression")) or impression,
        labels=tuple(flag(cells.get(label, "")) for label in LABELS),
        row=row,
    )


def _quarantine(volume: ListedVolume, code: str) -> ListedVolume:
    return ListedVolume(volume.path, volume.patient, volume.study, quarantine_code=code, row=volume.row)


def _includes_subfolders(folder: Path) -> bool:
    """Whether a listed folder is read with its subfolders; an unreadable one is not."""
    try:
        return not has_slices(folder)
    except OSError:
        return False


def _default_patient(path: PurePosixPath, key: SeriesKey | None) -> str:
    if key and key.patient_id.strip():
        return key.patient_id.strip()
    return path.parts[0] if len(path.parts) > 1 else strip_suffix(path)


def _folder_key(folder: Path) -> SeriesKey | None:
    """The series of the first DICOM file with a PatientID of a folder or its subfolders, else of the first DICOM file.

    None for a file, or if there is none.
    """
    first = None
    for path in sorted(_files_of(folder)):
        try:
            key = read_series_key(path) if is_or_may_be_dicom(path) else None
        except Refusal:
            continue
        if key and key.patient_id.strip():
            return key
        first = first or key
    return first


def _files_of(folder: Path) -> list[Path]:
    try:
        return series_files(folder) if folder.is_dir() else []
    except OSError:
        return []


def _locate(root: Path, cell: str) -> PurePosixPath | None:
    """The file or folder below `root` that a cell names, with or without its suffix; None if it does not exist."""
    path, base = PurePosixPath(cell.replace("\\", "/")), root.absolute().as_posix()
    if path.is_absolute() and path.is_relative_to(base):
        path = path.relative_to(base)
    if not cell or path.is_absolute() or ".." in path.parts:
        return None
    try:
        suffixes = (".nii.gz", ".nii", *SCAN_SUFFIXES)
        names = [f"{path}{suffix}" for suffix in ("", *suffixes, *map(str.upper, suffixes))]
        return next((PurePosixPath(name) for name in names if (root / name).exists()), None)
    except OSError:  # name too long or not accessible; the message contains the cell
        return None


def _representative(
    root: Path, path: PurePosixPath, first_slice: dict[tuple[PurePosixPath, SeriesKey], PurePosixPath]
) -> tuple[PurePosixPath, str | None, SeriesKey | None]:
    """The path of a volume, a reason code if it cannot be used, and its DICOM series.

    All slices of a series get the path of the first one.
    """
    if (root / path).is_dir() or reader_of(path):
        return path, None, _folder_key(root / path)
    if not is_or_may_be_dicom(root / path):
        return path, "unknown_format", None
    try:
        key = read_series_key(root / path)
    except Refusal as refusal:
        return path, refusal.code, None
    return first_slice.setdefault((path.parent, key), path), None, key


def _check_located(root: Path, path: Path, table: pd.DataFrame, n_located: int) -> None:
    """Raise ValueError for a table whose column `volume` contains something else."""
    if table.empty:
        raise ValueError(f"{path} has no rows; expected one row per volume")
    n_texts = sum(len(cell) > _MIN_TEXT_LENGTH and cell.count(" ") > 5 for cell in table["volume"])
    if n_located and 2 * n_texts < len(table):
        return
    swapped = f"; {n_texts} cells contain text, so the columns seem swapped" if n_texts else ""
    raise ValueError(
        f"{path}: the column `volume` names a file or folder below {root} in {n_located} of {len(table)} rows{swapped}; "
        f"write paths relative to that folder (columns read: {', '.join(table.columns)})"
    )


def strip_suffix(path: PurePosixPath) -> str:
    """A path without the suffix of a scan file."""
    suffix = next((suffix for suffix in (".nii.gz", *SCAN_SUFFIXES) if path.name.lower().endswith(suffix)), "")
    return str(path)[: len(str(path)) - len(suffix)]
