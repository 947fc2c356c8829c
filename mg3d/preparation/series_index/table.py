"""The table of series: one row each, with pseudonyms instead of patients, and the file that maps them back."""

import csv
import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any

from mg3d.files import write_bytes
from mg3d.preparation.quarantine import REASONS
from mg3d.preparation.readers.dicom_series import SeriesKey
from mg3d.preparation.series_index.read import FoundSeries
from mg3d.preparation.sources.pseudonyms import pseudonym

COLUMNS = (
    "volume", "patient", "study", "series", "accession", "date", "modality", "body_part", "kind", "kernel", "thickness_mm",
    "spacing_mm", "pixel_mm", "files", "slices", "rows", "columns", "image_type", "contrast", "orientation", "use", "verdict",
    "score",
)  # fmt: skip
"""`use` (1 or 0) decides; preparation, inference and fine-tuning leave out rows with 0. Reports are added as further columns."""
USABLE = "usable"
_CODES_OF_PARTS = {"too_few_slices", "missing_slices"}
"""Of a part of a series that may be usable as a whole."""
_PRIVATE = 0o600
_MAX_SHIFT_DAYS = 365


def make_rows(found: Sequence[FoundSeries], salt: bytes) -> list[dict[str, Any]]:
    """One row per series, sorted by patient, study and volume."""
    parts = defaultdict(list)
    for series in found:
        parts[series.key].append(series)
    owners = defaultdict(set)
    for series in found:
        for folder in (PurePosixPath(series.folder), *PurePosixPath(series.folder).parents):
            owners[folder].add(series.key)
    rows = [_row(parts[key], owners, salt) for key in parts]
    return sorted(rows, key=lambda row: (row["patient"], row["study"], row["volume"]))


def _row(parts: list[FoundSeries], owners: dict[PurePosixPath, set[SeriesKey]], salt: bytes) -> dict[str, Any]:
    """The row of a series. Copies are dropped; a series in several folders is used if no other series is among them."""
    parts = _without_copies(parts)
    series = parts[0]
    volume, verdict = (PurePosixPath(series.folder) / series.file).as_posix(), _verdict(series)
    if len(parts) > 1:
        common = PurePosixPath(_common([part.folder for part in parts]))
        alone = len(owners[common]) == 1 and str(common) not in {part.folder for part in parts}
        volume = common.as_posix() if alone else volume
        if all(part.code in {"", *_CODES_OF_PARTS} for part in parts):
            verdict = USABLE if alone else "files are in several folders with other series: move them into one folder"
    patient = make_patient(series.key.patient_id, series.key.study_uid, salt)
    return {
        "volume": volume,
        "patient": patient,
        "study": series.key.study_uid,
        "series": series.key.series_uid,
        "accession": series.accession,
        "date": _shifted(series.date, patient, salt),
        **{name: getattr(series, name) for name in ("modality", "body_part", "kind", "kernel", "thickness_mm")},
        "spacing_mm": series.spacing_mm and round(series.spacing_mm, 3),
        "pixel_mm": series.pixel_mm,
        "files": sum(part.files for part in parts),
        "slices": sum(part.slices for part in parts),
        **{name: getattr(series, name) for name in ("rows", "columns", "image_type", "contrast", "orientation")},
        "use": int(verdict == USABLE),
        "verdict": verdict,
        "score": "",
    }


def _without_copies(parts: list[FoundSeries]) -> list[FoundSeries]:
    """The largest part, the first of equal ones, and those with slices that no larger part has."""
    kept: list[FoundSeries] = []
    for part in sorted(parts, key=lambda part: (-len(part.heights), -part.files)):
        if not kept or not set(part.heights) <= {height for other in kept for height in other.heights}:
            kept.append(part)
    return kept


def _verdict(series: FoundSeries) -> str:
    if not series.code:
        return USABLE
    return f"{series.code}: {series.detail or REASONS[series.code]}"


def _common(folders: Sequence[str]) -> str:
    paths = [PurePosixPath(folder) for folder in folders]
    shared = [parent for parent in (paths[0], *paths[0].parents) if all(path.is_relative_to(parent) for path in paths)]
    return str(shared[0])


def make_patient(patient_id: str, study_uid: str, salt: bytes) -> str:
    """Pseudonym of a patient; without a PatientID, of the study."""
    return "p" + pseudonym(f"patient/{patient_id.strip()}" if patient_id.strip() else f"study/{study_uid}", salt)


def shift_days(patient: str, salt: bytes) -> int:
    """1 to 365 days by which all dates of a patient move back, so that intervals between the patient's studies stay."""
    digest = hashlib.blake2b(f"shift/{patient}".encode(), key=salt, digest_size=8).digest()
    return 1 + int.from_bytes(digest, "big") % _MAX_SHIFT_DAYS


def _shifted(date: str, patient: str, salt: bytes) -> str:
    try:
        return (datetime.strptime(date[:8], "%Y%m%d") - timedelta(days=shift_days(patient, salt))).date().isoformat()
    except (ValueError, OverflowError):
        return ""


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """Write a CSV file that only its owner can read."""
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, columns, extrasaction="ignore", restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, stream.getvalue().encode(errors="surrogateescape"), mode=_PRIVATE)


def write_key(path: Path, found: Sequence[FoundSeries], salt: bytes) -> None:
    """Write which pseudonym is which PatientID, and by how many days its dates were moved back."""
    patients = {make_patient(series.key.patient_id, series.key.study_uid, salt): series.key.patient_id for series in found}
    rows = [
        {"patient": name, "patient_id": patient_id, "date_shift_days": shift_days(name, salt)}
        for name, patient_id in sorted(patients.items())
    ]
    write_rows(path, ("patient", "patient_id", "date_shift_days"), rows)


def describe(rows: Sequence[dict[str, Any]], found: Sequence[FoundSeries], passed_over: Counter[str]) -> list[str]:
    """A summary without names."""
    used = [row for row in rows if row["use"]]
    n_patients, n_studies = len({row["patient"] for row in rows}), len({(row["patient"], row["study"]) for row in rows})
    n_files = sum(row["files"] for row in rows)
    lines = [
        f"{len(rows):,} series of {n_studies:,} studies of {n_patients:,} patients in {n_files:,} files",
        f"{len(used):,} series are used" + ("; the others:" if len(used) < len(rows) else ""),
        *(f"  {count:>7,}  {why}" for why, count in Counter(_short(row) for row in rows if not row["use"]).most_common()),
    ]
    n_unknown = len({series.key.study_uid for series in found if not series.key.patient_id.strip()})
    n_named = sum(series.path_has_name for series in found)
    if n_unknown:
        lines.append(f"{n_unknown:,} studies have no PatientID; each counts as one patient")
    if n_named:
        lines.append(f"warning: the paths of {n_named:,} series contain the patient's name or PatientID, so column `volume` does")
    counts = sorted(passed_over.items(), key=lambda item: (-item[1], item[0]))
    if counts:
        lines.append(f"passed over: {', '.join(f'{count:,} {what}' for what, count in counts)}")
    return lines


def _short(row: dict[str, Any]) -> str:
    code = row["verdict"].split(": ")[0]
    return f"{code}: {REASONS[code]}" if code in REASONS else row["verdict"]
