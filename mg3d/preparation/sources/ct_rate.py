"""CT-RATE as it is distributed -> volume records: the tree of files, joined with four tables by volume name."""

import ast
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from mg3d.glossary import LABELS
from mg3d.preparation.quarantine import Quarantined
from mg3d.preparation.records import Scan, TableGeometry, VolumeRecord, carve_val
from mg3d.text_units import clean_section

DATASET = "ct_rate"
_NAME = re.compile(r"(?P<study>(?P<patient>(?P<split>train|valid)_[1-9]\d*)_[a-z]+)_(?P<reconstruction>[1-9]\d*)\.nii\.gz")
_TABLE_WORD = {"train": "train", "valid": "validation"}
_GEOMETRY = [
    "XYSpacing", "ZSpacing", "Rows", "Columns", "NumberofSlices", "RescaleSlope", "RescaleIntercept", "ImageOrientationPatient",
]  # fmt: skip
_UPRIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def scan_ct_rate(
    root: Path, *, val_patients: int, seed: int, limit: int | None = None, listing: Sequence[str] | None = None
) -> Scan:
    """All volumes below `root` (the folder that holds `dataset/`, or `dataset` itself), in the order of their ids.

    A volume may lie in `<split>_fixed` (preferred) or in `<split>`. Official valid becomes test; val is carved out of the
    patients of train, downloaded or not. A listed volume without a file has a record without files, so that the plan of shards
    and the splits stay as they are when more is downloaded; if its patient has a folder, it counts as missing as well.

    Args:
        root: CT-RATE's folder.
        val_patients: how many patients of train become val, see `carve_val`.
        seed: of that draw.
        limit: at most so many volumes of each official split, of those that have a file.
        listing: paths of all files as seen from `root`, if they are elsewhere; None = what lies below it.

    Raises:
        FileNotFoundError: a folder or table is missing.
        ValueError: a table lacks a column or cannot be read.
    """
    root = root / "dataset" if (root / "dataset").is_dir() else root
    listing = listing and [path.removeprefix("dataset/") for path in listing]
    splits = [split for split in ("train", "valid") if any(_folders(root, split, listing))]
    if not splits:
        raise FileNotFoundError(f"{root} holds none of train_fixed, valid_fixed, train, valid; give CT-RATE's folder")
    scan = Scan(root)
    for split in splits:
        part = _scan_split(root, split, listing)
        scan.records += _first(part.records, limit)
        scan.refused += part.refused
        scan.notes += part.notes
    train = [record.patient_id for record in scan.records if record.official_split == "train"]
    val, note = carve_val(train, val_patients, seed)
    scan.notes += [f"CT-RATE: {note}"] if note else []
    ours = {"train": "train", "valid": "test"}
    for place, record in enumerate(scan.records):
        split = "val" if record.patient_id in val else ours[record.official_split]
        scan.records[place] = replace(record, split=split)
    return scan


def _folders(root: Path, split: str, listing: Sequence[str] | None) -> list[str]:
    there = {path.partition("/")[0] for path in listing} if listing is not None else None
    return [name for name in (split, f"{split}_fixed") if (name in there if there is not None else (root / name).is_dir())]


def _first(records: Sequence[VolumeRecord], limit: int | None) -> list[VolumeRecord]:
    """Records up to the one with the `limit`-th file."""
    with_files = [place for place, record in enumerate(records) if record.files]
    return [*records] if limit is None or len(with_files) <= limit else [*records[: with_files[limit]]]


def _scan_split(root: Path, split: str, listing: Sequence[str] | None) -> Scan:
    files, patients, notes = _files(root, split, listing)
    word = _TABLE_WORD[split]
    reports = _table(root / "radiology_text_reports" / f"{word}_reports.csv", ["Findings_EN", "Impressions_EN"])
    metadata = _table(root / "metadata" / f"{word}_metadata.csv", _GEOMETRY)
    labels = _table(root / "multi_abnormality_labels" / f"{split}_predicted_labels.csv", LABELS)
    without_chest = _no_chest(root / "metadata" / f"no_chest_{split}.txt", notes)
    listed = {name for name in reports.keys() | metadata.keys() if _NAME.fullmatch(name)}
    absent = {name for name in listed - files.keys() if _NAME.fullmatch(name)["patient"] not in patients}
    notes += [f"CT-RATE: {len(absent)} listed volumes of {split} lie in no patient's folder: not downloaded"] if absent else []
    scan = Scan(root, notes=notes)
    for name in sorted(listed | files.keys()):
        findings, impression = (_section(text) for text in reports.get(name, ("", "")))
        code = "no_chest" if name in without_chest else None
        code = code or ("report_missing" if findings is None and impression is None else None)
        missing = name not in files
        match = _NAME.fullmatch(name)
        volume_id = f"{DATASET}/{name.removesuffix('.nii.gz')}"
        if (code or missing) and name not in absent:
            scan.refused.append(Quarantined(volume_id, DATASET, "scan", code or "missing_file"))
        if code:
            continue
        scan.records.append(
            VolumeRecord(
                volume_id=volume_id,
                study_id=f"{DATASET}/{match['study']}",
                patient_id=f"{DATASET}/{match['patient']}",
                dataset=DATASET,
                official_split=split,
                split="train",
                reconstruction=int(match["reconstruction"]),
                findings=findings,
                impression=impression,
                files=() if missing else (files[name],),
                source=files.get(name, name),
                reader="nifti",
                labels=tuple(_label(cell) for cell in labels[name]) if name in labels else (-1,) * len(LABELS),
                label_source="radbert" if name in labels else "none",
                table=table_geometry(dict(zip(_GEOMETRY, metadata[name]))) if name in metadata else None,
            )
        )
    return scan


def _files(root: Path, split: str, listing: Sequence[str] | None) -> tuple[dict[str, str], set[str], list[str]]:
    """Volume name -> path relative to root, names of the patients' folders, notes."""
    files, patients, strange = {}, set(), 0
    for folder in _folders(root, split, listing):
        if listing is None:
            paths = [path.relative_to(root).as_posix() for path in (root / folder).glob("*/*/*.nii.gz")]
            patients |= {path.name for path in (root / folder).iterdir()}
        else:
            paths = [path for path in listing if re.fullmatch(rf"{folder}/[^/]+/[^/]+/[^/]+\.nii\.gz", path)]
            patients |= {path.split("/")[1] for path in paths}
        for path in paths:
            name = path.rpartition("/")[2]
            match = _NAME.fullmatch(name)
            if match and match["split"] == split:
                files[name] = path
            else:
                strange += 1
    notes = [f"CT-RATE: {strange} files of {split} have a name that CT-RATE does not use; left out"] if strange else []
    return files, patients, notes


def _table(path: Path, columns: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Volume name -> cells of `columns` as text; the first row of a name counts."""
    if not path.is_file():
        raise FileNotFoundError(f"the table {path} is missing; download it from CT-RATE's page")
    wanted = ["VolumeName", *columns]
    try:
        present = pd.read_csv(path, nrows=0).columns
        cells = pd.read_csv(path, usecols=lambda name: name in wanted, dtype=str, keep_default_na=False)
    except ValueError as error:  # of pandas and of UTF-8; its message may hold a cell
        raise ValueError(
            f"{path} cannot be read as a CSV table ({type(error).__name__}); it should begin with the columns' names, among them "
            f"{', '.join(wanted[:3])}; download it again"
        ) from None
    missing = [name for name in wanted if name not in present]
    if missing:
        raise ValueError(f"{path} lacks the columns {missing}; it has {list(present)}")
    rows = zip(*(cells[name] for name in columns))
    table: dict[str, tuple[str, ...]] = {}
    for name, row in zip(cells["VolumeName"], rows):
        table.setdefault(name.strip(), row)
    return table


def _no_chest(path: Path, notes: list[str]) -> set[str]:
    """Names on a no_chest list, whose lines are names or whole paths."""
    if not path.is_file():
        notes.append(f"CT-RATE: {path.name} is missing, so that volumes without a chest stay in")
        return set()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text; one volume's name or path a line is expected; download it again") from None
    return {line.strip().rsplit("/", 1)[-1] for line in lines if line.strip()}


def _section(text: str) -> str | None:
    return clean_section(unicodedata.normalize("NFC", text))


def _label(cell: str) -> int:
    return {"0": 0, "0.0": 0, "1": 1, "1.0": 1}.get(cell.strip(), -1)


def table_geometry(cells: Mapping[str, str]) -> TableGeometry:
    """What a volume's row of the metadata table says of its grid and of HU; a missing column is an empty cell."""
    row = {column: cells.get(column) or "" for column in _GEOMETRY}
    spacing_xy = _numbers(row["XYSpacing"], 2)
    orientation = _numbers(row["ImageOrientationPatient"], 6)
    return TableGeometry(
        shape_zyx=(_number(row["NumberofSlices"]), _number(row["Rows"]), _number(row["Columns"])),
        # DICOM's PixelSpacing: between rows (y) first.
        spacing_zyx_mm=(_number(row["ZSpacing"]), spacing_xy[0], spacing_xy[1]),
        orientation=_UPRIGHT if any(value != value for value in orientation) else orientation,
        slope=_number(row["RescaleSlope"]),
        intercept=_number(row["RescaleIntercept"]),
    )


def _numbers(cell: str, count: int) -> tuple[float, ...]:
    """A list written as text, e.g. "[0.7, 0.7]"; nan when it is not that."""
    try:
        values = tuple(float(value) for value in ast.literal_eval(cell.strip()))
    except (ValueError, SyntaxError, TypeError):
        values = ()
    return values if len(values) == count else (float("nan"),) * count


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")
