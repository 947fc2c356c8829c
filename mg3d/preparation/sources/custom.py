"""A hospital's own folder (NIfTI files, DICOM series), with or without a table -> volume records whose ids tell no name."""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from mg3d.glossary import LABELS
from mg3d.preparation.quarantine import Quarantined, Refusal
from mg3d.preparation.readers.dicom_series import is_dicom, load_pydicom, read_series_uid
from mg3d.preparation.records import Inventory, VolumeRecord
from mg3d.preparation.sources.pseudonyms import pseudonym
from mg3d.preparation.sources.tables import Table, flag, read_table
from mg3d.preparation.split import draw_val_patients
from mg3d.sentence_spans import clean_section

DATASET = "custom"
COLUMNS: dict[str, tuple[str, ...]] = {
    "volume": (
        "volumename",
        "volumepath",
        "path",
        "file",
        "filepath",
        "filename",
        "image",
        "imagepath",
        "series",
        "nifti",
        "scan",
    ),
    "patient": ("patientid", "subject", "subjectid", "mrn"),
    "study": ("studyid", "accession", "accessionnumber", "studyinstanceuid", "studyuid"),
    "split": ("set", "subset", "partition"),
    "findings": ("finding", "findings_en"),
    "impression": ("impressions", "impressions_en", "conclusion"),
    "report": ("reporttext", "text"),
}
"""Column of the table -> other names for it. Any of the 18 labels may be a column too."""
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
_SUFFIXES = (".nii", ".nii.gz")
_ADVICE = "mend its first line (docs/data.md lists the names of columns) or save it again as a CSV file in UTF-8"
_LONG_CELL = 60


@dataclass(frozen=True)
class ListedVolume:
    """A volume as it is named below the root. The repr holds no name."""

    path: PurePosixPath = field(repr=False)
    patient: str = field(repr=False)
    study: str = field(repr=False)
    split: str | None = None
    findings: str | None = field(default=None, repr=False)
    impression: str | None = field(default=None, repr=False)
    labels: tuple[int, ...] = (-1,) * len(LABELS)
    fault: str | None = None
    """Reason code of a volume that cannot be used."""
    row: int = field(default=0, compare=False)
    """Of the table, from 1."""


class Naming(NamedTuple):
    """How ids are made."""

    salt: bytes
    keep: bool = False
    """Names stay as they are: only where no file and no id is a person's name."""

    def id(self, kind: str, name: str) -> str:
        """custom/<id> of a volume, study or patient."""
        return f"{DATASET}/{name if self.keep else pseudonym(f'{kind}/{name}', self.salt)}"


class Listing(NamedTuple):
    """What lies in the folder or stands in the table, before ids are made."""

    volumes: list[ListedVolume]
    notes: list[str]
    labelled: bool
    """The table has a column of labels."""


def list_custom(
    root: Path, listing: Listing, *, naming: Naming, val_patients: int, seed: int, limit: int | None = None
) -> Inventory:
    """The records of `listing`, in the order of their names.

    Where no row says val, val is carved out of the patients of train, see `draw_val_patients`; a volume without a split is train.

    Args:
        root: what the listing's paths are relative to.
        listing: see `read_listing`.
        naming: how ids are made.
        val_patients: how many patients of train become val.
        seed: of that draw.
        limit: at most so many volumes of each split.

    Raises:
        ValueError: a patient is in two splits.
    """
    scan = Inventory(root, notes=list(listing.notes))
    ours = _splits(listing.volumes, val_patients=val_patients, seed=seed, notes=scan.notes)
    taken, reconstructions = defaultdict(int), defaultdict(int)
    names = _names([volume.path for volume in listing.volumes])
    for volume in sorted(listing.volumes, key=lambda volume: volume.path):
        volume_id = naming.id("volume", names[volume.path])
        if volume.fault:
            scan.refused.append(Quarantined(volume_id, DATASET, "scan", volume.fault, f"row {volume.row}"))
            continue
        split = ours[volume.patient]
        taken[split] += 1
        if limit is not None and taken[split] > limit:
            continue
        reconstructions[volume.study] += 1
        scan.records.append(
            VolumeRecord(
                volume_id=volume_id,
                study_id=naming.id("study", volume.study),
                patient_id=naming.id("patient", volume.patient),
                dataset=DATASET,
                official_split=volume.split or "none",
                split=split,
                reconstruction=reconstructions[volume.study],
                findings=volume.findings,
                impression=volume.impression,
                files=(str(volume.path),),
                source=volume_id,
                reader="nifti" if volume.path.name.endswith(_SUFFIXES) else "dicom",
                labels=volume.labels,
                label_source="table" if listing.labelled else "none",
            )
        )
    alone = sum(record.findings is None and record.impression is None for record in scan.records)
    scan.notes += [f"custom: {alone} of {len(scan.records)} volumes have no report"] if alone else []
    if any(record.reader == "dicom" for record in scan.records):
        _need_pydicom()
        scan.notes.append(
            "custom: of a folder with several DICOM series the axial one with most slices is taken, then the thinnest"
        )
    return scan


def read_listing(root: Path, table: Path | None, *, suffixes: tuple[str, ...] = _SUFFIXES) -> Listing:
    """The volumes of a folder: those that the table names, or without one all that lie there, each top folder a patient.

    suffixes: endings of files that are volumes. Of the other files a row may name a DICOM slice, which stands for its series.

    Raises:
        FileNotFoundError: there is no volume, or no table.
        ValueError: the table cannot be read, or names no file.
    """
    if table is not None:
        return _list_table(root, table, suffixes)
    volumes = []
    for path in volumes_below(root, suffixes):
        patient = path.parts[0] if len(path.parts) > 1 else _stem(path)
        study = str(path.parent) if len(path.parts) > 1 else patient
        volumes.append(ListedVolume(path, patient, study))
    if not volumes:
        raise FileNotFoundError(f"{root} holds neither files {', '.join(suffixes)} nor DICOM series; give the folder that does")
    patients = len({volume.patient for volume in volumes})
    note = f"custom: no table, so each of {patients} folders or files at the top counts as a patient"
    return Listing(volumes, [note], labelled=False)


def volumes_below(root: Path, suffixes: tuple[str, ...] = _SUFFIXES, most_folders: int | None = None) -> Iterator[PurePosixPath]:
    """Files that end in one of `suffixes` and folders of DICOM slices below `root`, relative to it, folder by folder.

    most_folders: look into so many and no more.
    """
    for folder, inside, names in islice(os.walk(root), most_folders):
        inside.sort()
        here = Path(folder)
        names = sorted(name for name in names if not name.startswith(".") and name != "DICOMDIR")
        yield from (PurePosixPath((here / name).relative_to(root).as_posix()) for name in names if name.endswith(suffixes))
        others = [name for name in names if Path(name).suffix.lower() in {".dcm", ".ima", ""} or Path(name).suffix[1:].isdigit()]
        if any(_may_be_dicom(here / name) for name in others[:3]):
            yield PurePosixPath(here.relative_to(root).as_posix())


def _may_be_dicom(path: Path) -> bool:
    """True also for a file that cannot be opened, whose reader will say so."""
    try:
        return is_dicom(path)
    except OSError:
        return True


def _list_table(root: Path, path: Path, suffixes: tuple[str, ...]) -> Listing:
    if not path.is_file():
        raise FileNotFoundError(f"there is no table {path}; name a CSV or JSON file")
    table = read_table(path, {**COLUMNS, **dict.fromkeys(LABELS, ())}, required=["volume"], advice=_ADVICE, title="custom")
    rows = [dict(zip(table.names, cells)) for cells in table.rows]
    places = _one_name_a_series(root, [_place(root, row["volume"], suffixes) for row in rows], suffixes)
    _check_found(root, path, table, [place is not None for place in places])
    notes, volumes = list(table.notes), {}
    rejected = []
    for number, (row, place) in enumerate(zip(rows, places), start=1):
        volume = _volume(row, place or PurePosixPath(f"row {number}"), number)
        fault = "missing_file" if place is None else _fault_of_file(root, place, suffixes)
        if fault:
            rejected.append(_with_fault(volume, fault))
            continue
        first = volumes.setdefault(place, volume)
        if first != volume:
            volumes[place] = _with_fault(first, "duplicate_row")
    again = len(rows) - len(rejected) - len(volumes)
    notes += [f"custom: {again} rows name a volume once more; equal ones count once, others are set aside"] if again else []
    strange = sum(bool(row.get(label)) and flag(row[label]) < 0 for row in rows for label in LABELS)
    notes += [f"custom: {strange} cells of labels are neither 1, 0 nor empty; they count as not known"] if strange else []
    named = volumes.keys() | {place.parent for place in volumes if (root / place).is_file() and not place.name.endswith(suffixes)}
    left = sum(not named & {path, *path.parents} for path in volumes_below(root, suffixes))
    notes += [f"custom: {left} volumes of the folder are not in the table; left out"] if left else []
    if "patient" not in table.names:
        notes.append("custom: the table has no column `patient`; each folder at the top, or each file there, counts as one")
    return Listing([*volumes.values(), *rejected], notes, labelled=bool(set(LABELS) & set(table.names)))


def _volume(row: Mapping[str, str], place: PurePosixPath, number: int) -> ListedVolume:
    split = row.get("split", "").lower()
    if split and split not in SPLIT_WORDS:
        raise ValueError(f"row {number} of the table has another split than train, val, test; write one, or leave it empty")
    patient = row.get("patient") or (place.parts[0] if len(place.parts) > 1 else _stem(place))
    study = row.get("study")
    return ListedVolume(
        path=place,
        patient=patient,
        study=f"{patient}/{study}" if study else _stem(place),
        split=SPLIT_WORDS.get(split),
        findings=clean_section(row.get("findings")) or clean_section(row.get("report")),
        impression=clean_section(row.get("impression")),
        labels=tuple(flag(row.get(label, "")) for label in LABELS),
        row=number,
    )


def _with_fault(volume: ListedVolume, fault: str) -> ListedVolume:
    return ListedVolume(volume.path, volume.patient, volume.study, fault=fault, row=volume.row)


def _need_pydicom() -> None:
    try:
        load_pydicom()
    except Refusal:
        raise ValueError("the folder holds DICOM series; reading them needs more packages: pip install -e '.[dicom]'") from None


def _place(root: Path, cell: str, suffixes: tuple[str, ...]) -> PurePosixPath | None:
    """The file or folder below root that a cell names, with or without its suffix; None if it does not exist."""
    written = PurePosixPath(cell.replace("\\", "/"))
    if written.is_absolute() and written.is_relative_to(root.absolute().as_posix()):
        written = written.relative_to(root.absolute().as_posix())
    if not cell or written.is_absolute() or ".." in written.parts or len(cell) > 1000:
        return None
    try:
        for name in (f"{written}{suffix}" for suffix in ("", *reversed(_SUFFIXES), *suffixes)):
            path = root / name
            if path.exists():
                return PurePosixPath(name)
    except OSError:  # longer than a name may be, or not to be looked at; its message repeats the cell
        return None
    return None


def _fault_of_file(root: Path, place: PurePosixPath, suffixes: tuple[str, ...]) -> str | None:
    """Reason code if `place` is a file in a format that is not read here; a DICOM slice names its series."""
    path = root / place
    if path.is_dir() or place.name.endswith(suffixes) or _may_be_dicom(path):
        return None
    return "unknown_format"


def _one_name_a_series(root: Path, places: list[PurePosixPath | None], suffixes: tuple[str, ...]) -> list[PurePosixPath | None]:
    """The same places, where all slices of one series are replaced by the first of them in the table."""
    first: dict[tuple[PurePosixPath, str], PurePosixPath] = {}

    def canonical(place: PurePosixPath | None) -> PurePosixPath | None:
        if place is None or place.name.endswith(suffixes) or not (root / place).is_file() or not _may_be_dicom(root / place):
            return place
        try:
            return first.setdefault((place.parent, read_series_uid(root / place)), place)
        except Refusal as refusal:
            if refusal.code == "codec_missing":
                _need_pydicom()
            return place  # its reader will say what is wrong

    return [canonical(place) for place in places]


def _check_found(root: Path, path: Path, table: Table, found: list[bool]) -> None:
    """Refuses a table whose column `volume` holds something else."""
    if not found:
        raise ValueError(f"{path} has no rows; one row a volume is expected")
    cells = [row[table.names.index("volume")] for row in table.rows]
    texts = sum(len(cell) > _LONG_CELL and cell.count(" ") > 5 for cell in cells)
    if any(found) and 2 * texts < len(found):
        return
    what = f"; {texts} of them hold text, so columns seem swapped" if texts else ""
    raise ValueError(
        f"{path}: the column `volume` names a file or folder below {root} in {sum(found)} of {len(found)} rows{what}; "
        f"columns understood: {', '.join(table.names)}; write paths relative to that folder"
    )


def _splits(volumes: list[ListedVolume], *, val_patients: int, seed: int, notes: list[str]) -> dict[str, str]:
    """Patient -> our split."""
    said = defaultdict(set)
    for volume in volumes:
        if not volume.fault:
            said[volume.patient].add(volume.split or "train")
    twice = sum(len(splits) > 1 for splits in said.values())
    if twice:
        raise ValueError(f"custom: {twice} patients lie in more than one split; give all volumes of a patient the same `split`")
    ours = {patient: next(iter(splits)) for patient, splits in sorted(said.items())}
    if "val" in ours.values():
        return ours
    val, note = draw_val_patients([patient for patient, split in ours.items() if split == "train"], val_patients, seed)
    notes += [f"custom: {note}"] if note else []
    return ours | dict.fromkeys(val, "val")


def _names(paths: list[PurePosixPath]) -> dict[PurePosixPath, str]:
    """Path -> what its id is made of: without its ending, unless a folder or a `.nii.gz` beside it has that name already."""
    taken: dict[str, PurePosixPath] = {}
    for path in sorted(paths, key=lambda path: (path.name.endswith(_SUFFIXES), path.name.endswith(".nii"), path)):
        taken.setdefault(_stem(path), path)
    return {path: _stem(path) if taken[_stem(path)] == path else str(path) for path in paths}


def _stem(path: PurePosixPath) -> str:
    return str(path).removesuffix(".gz").removesuffix(".nii")
