"""Custom data: any folder of scan files or DICOM series, with an optional table of reports and labels."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pandas as pd

from mg3d.glossary import LABELS
from mg3d.preparation.quarantine import Quarantined, Refusal
from mg3d.preparation.readers.dicom_series import SeriesKey, has_slices, load_pydicom, read_series_key
from mg3d.preparation.readers.registry import reader_of
from mg3d.preparation.records import Inventory, VolumeRecord
from mg3d.preparation.sources.options import SourceOptions
from mg3d.preparation.sources.pseudonyms import pseudonym, read_salt
from mg3d.preparation.sources.scan_walk import SCAN_SUFFIXES, is_or_may_be_dicom, walk_scans
from mg3d.preparation.sources.tables import flag, read_table
from mg3d.preparation.split import draw_val_patients
from mg3d.report_sections import clean_section, split_report

DATASET = "custom"
COLUMNS: dict[str, tuple[str, ...]] = {
    "volume": ("volumename", "volumepath", "path", "file", "filepath", "filename", "image", "imagepath", "series", "nifti",
               "scan"),
    "patient": ("patientid", "subject", "subjectid", "mrn"),
    "study": ("studyid", "accession", "accessionnumber", "studyinstanceuid", "studyuid"),
    "split": ("set", "subset", "partition"),
    "findings": ("finding", "findings_en"),
    "impression": ("impressions", "impressions_en", "conclusion"),
    "report": ("reporttext", "text"),
}  # fmt: skip
"""Column of the table -> other names for it. Each of the 18 labels may be a column as well."""
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
_ADVICE = "fix its header (docs/data.md lists the column names) or save it again as CSV in UTF-8"
_MIN_TEXT_LENGTH = 60


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


def list_custom(root: Path, options: SourceOptions) -> Inventory:
    """List the volumes of `options.table`, or without a table all volumes below `root`, sorted by path.

    Volumes without a split are train. If no row has the split val, val is drawn from the patients of train.

    Raises:
        FileNotFoundError: no volume, or no table.
        ValueError: the table cannot be read or names no file, or a patient is in two splits.
    """
    listing = read_listing(root, options.table)
    salt = None if options.keep_ids else read_salt(options.out / f"{DATASET}_salt.txt")

    def make_id(kind: str, name: str) -> str:
        return f"{DATASET}/{name if salt is None else pseudonym(f'{kind}/{name}', salt)}"

    inventory = Inventory(root, notes=list(listing.notes))
    split_of = _assign_splits(listing.volumes, options, inventory.notes)
    names = _unique_names([volume.path for volume in listing.volumes])
    n_split, n_study = defaultdict(int), defaultdict(int)
    for volume in sorted(listing.volumes, key=lambda volume: volume.path):
        volume_id = make_id("volume", names[volume.path])
        if code := volume.quarantine_code:
            inventory.quarantined.append(Quarantined(volume_id, DATASET, "scan", code, f"row {volume.row}" if volume.row else ""))
            continue
        split = split_of[volume.patient]
        n_split[split] += 1
        if options.limit is not None and n_split[split] > options.limit:
            continue
        n_study[volume.study] += 1
        inventory.records.append(
            VolumeRecord(
                volume_id=volume_id,
                study_id=make_id("study", volume.study),
                patient_id=make_id("patient", volume.patient),
                dataset=DATASET,
                official_split=volume.split or "none",
                split=split,
                reconstruction=n_study[volume.study],
                findings=volume.findings,
                impression=volume.impression,
                files=(str(volume.path),),
                source=volume_id,
                reader=reader_of(volume.path) or "dicom",
                labels=volume.labels,
                label_source="table" if listing.has_labels else "none",
            )
        )
    n_unreported = sum(record.findings is None and record.impression is None for record in inventory.records)
    if n_unreported:
        inventory.notes.append(f"custom: {n_unreported} of {len(inventory.records)} volumes have no report")
    if any(record.reader == "dicom" for record in inventory.records):
        _require_pydicom()
        inventory.notes.append(
            "custom: of a folder with several DICOM series, the axial series with most slices is used, then the thinnest"
        )
    return inventory


def read_listing(root: Path, table: Path | None) -> Listing:
    """The volumes that a table names, or without a table all volumes below `root`; then each top-level folder is a patient.

    Raises:
        FileNotFoundError: no volume, or no table.
        ValueError: the table cannot be read, or names no file.
    """
    if table is not None:
        return _read_table_listing(root, table)
    volumes, walk = {}, walk_scans(root)
    for path in walk.scans:
        patient = _default_patient(path)
        volumes[path] = ListedVolume(path, patient, str(path.parent) if len(path.parts) > 1 else patient)
    if not volumes:
        passed_over = f"; {walk.note}" if walk.note else ""
        raise FileNotFoundError(f"{root} has no {', '.join(SCAN_SUFFIXES)} files or DICOM series{passed_over}; check the path")
    n_patients = len({volume.patient for volume in volumes.values()})
    notes = [f"custom: without a table, each of the {n_patients} top-level folders or files counts as one patient"]
    notes += [f"custom: {walk.note}"] if walk.note else []
    return Listing([*volumes.values()], notes, has_labels=False)


def _read_table_listing(root: Path, path: Path) -> Listing:
    if not path.is_file():
        raise FileNotFoundError(f"the table {path} does not exist; give a CSV or JSON file")
    table, notes = read_table(path, {**COLUMNS, **dict.fromkeys(LABELS, ())}, required=["volume"], advice=_ADVICE)
    paths = [_locate(root, cell) for cell in table["volume"]]
    _check_located(root, path, table, sum(located is not None for located in paths))
    first_slice: dict[tuple[PurePosixPath, SeriesKey], PurePosixPath] = {}
    volumes: dict[PurePosixPath, ListedVolume] = {}
    unusable = []
    for (row, cells), located in zip(table.to_dict("index").items(), paths):
        code = "missing_file"
        if located is not None:
            located, code = _representative(root, located, first_slice)
        volume = _listed_volume(cells, located or PurePosixPath(f"row {row}"), row)
        if code:
            unusable.append(_quarantine(volume, code))
        elif volumes.setdefault(volume.path, volume) != volume:
            volumes[volume.path] = _quarantine(volumes[volume.path], "duplicate_row")
    slices = set(first_slice.values())
    series = [path for path in volumes if reader_of(path) is None]
    for folder in {folder for path in series for folder in path.parents} & volumes.keys():
        if folder in {path.parent for path in slices} or _includes_subfolders(root / folder):
            volumes[folder] = _quarantine(volumes[folder], "nested_series")  # it would be read as another listed series
    named, walk = volumes.keys() | {path.parent for path in slices}, walk_scans(root)
    n_repeated = len(table) - len(unusable) - len(volumes)
    n_bad_labels = sum(bool(cell) and flag(cell) < 0 for label in LABELS if label in table for cell in table[label])
    n_unlisted = sum(
        path not in named and not any(_includes_subfolders(root / folder) for folder in named.intersection(path.parents))
        for path in walk.scans
    )
    notes += [
        f"custom: {note}"
        for count, note in (
            (n_repeated, f"{n_repeated} rows repeat a volume; identical rows count once, contradicting rows are quarantined"),
            (n_bad_labels, f"{n_bad_labels} label cells are neither 1, 0 nor empty; they are stored as unknown"),
            (n_unlisted, f"{n_unlisted} volumes of the folder are not in the table and are skipped"),
            (walk.note, walk.note),
            ("patient" not in table, "the table has no column `patient`; each top-level folder or file counts as one patient"),
        )
        if count
    ]
    return Listing([*volumes.values(), *unusable], notes, has_labels=any(label in table for label in LABELS))


def _listed_volume(cells: Mapping[str, str], path: PurePosixPath, row: int) -> ListedVolume:
    split = cells.get("split", "").lower()
    if split and split not in SPLIT_NAMES:
        raise ValueError(f"row {row} of the table has a split other than train, val or test; use one of these or leave it empty")
    patient, study = cells.get("patient") or _default_patient(path), cells.get("study")
    findings, impression = split_report(cells.get("report"))
    return ListedVolume(
        path=path,
        patient=patient,
        study=f"{patient}/{study}" if study else _strip_suffix(path),
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


def _default_patient(path: PurePosixPath) -> str:
    return path.parts[0] if len(path.parts) > 1 else _strip_suffix(path)


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
) -> tuple[PurePosixPath, str | None]:
    """The path of a volume, and a reason code if it cannot be used. All slices of a series get the path of the first one."""
    if (root / path).is_dir() or reader_of(path):
        return path, None
    if not is_or_may_be_dicom(root / path):
        return path, "unknown_format"
    _require_pydicom()
    try:
        return first_slice.setdefault((path.parent, read_series_key(root / path)), path), None
    except Refusal as refusal:
        return path, refusal.code


def _require_pydicom() -> None:
    try:
        load_pydicom()
    except Refusal:
        raise ValueError("the folder contains DICOM series; to read them, run: pip install -e '.[dicom]'") from None


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


def _assign_splits(volumes: list[ListedVolume], options: SourceOptions, notes: list[str]) -> dict[str, str]:
    """Patient -> split."""
    splits = defaultdict(set)
    for volume in volumes:
        if not volume.quarantine_code:
            splits[volume.patient].add(volume.split or "train")
    n_mixed = sum(len(values) > 1 for values in splits.values())
    if n_mixed:
        raise ValueError(f"custom: {n_mixed} patients are in more than one split; give all volumes of a patient the same `split`")
    split_of = {patient: next(iter(values)) for patient, values in sorted(splits.items())}
    if "val" in split_of.values():
        return split_of
    train = [patient for patient, split in split_of.items() if split == "train"]
    val, note = draw_val_patients(train, options.val_patients, options.seed)
    notes += [f"custom: {note}"] if note else []
    return split_of | dict.fromkeys(val, "val")


def _unique_names(paths: list[PurePosixPath]) -> dict[PurePosixPath, str]:
    """Path -> name for its id: without suffix, unless a folder or `.nii.gz` of that name takes precedence."""
    owner: dict[str, PurePosixPath] = {}
    for path in sorted(paths, key=lambda path: (reader_of(path) is not None, not path.name.lower().endswith(".gz"), path)):
        owner.setdefault(_strip_suffix(path), path)
    return {path: _strip_suffix(path) if owner[_strip_suffix(path)] == path else str(path) for path in paths}


def _strip_suffix(path: PurePosixPath) -> str:
    suffix = next((suffix for suffix in (".nii.gz", *SCAN_SUFFIXES) if path.name.lower().endswith(suffix)), "")
    return str(path)[: len(str(path)) - len(suffix)]
