"""CT-RATE as it is distributed -> volume records: the tree of files, joined with four tables by volume name."""

import ast
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mg3d.glossary import LABELS
from mg3d.preparation.quarantine import Quarantined
from mg3d.preparation.records import Inventory, TableGeometry, VolumeRecord
from mg3d.preparation.sources.tables import by_key, decode, flag, read_table
from mg3d.preparation.split import draw_val_patients
from mg3d.sentence_spans import clean_section

DATASET = "ct_rate"
_NAME = re.compile(r"(?P<study>(?P<patient>(?P<split>train|valid)_[1-9]\d*)_[a-z]+)_(?P<reconstruction>[1-9]\d*)\.nii\.gz")
_TABLE_WORD = {"train": "train", "valid": "validation"}
_TREES = ("{split}_fixed", "{split}", "{split}_preprocessed")
"""Folders of one split, the preferred first: corrected, first release, CT-CLIP's arrays."""
_TEXTS = ("Findings_EN", "Impressions_EN")
_GEOMETRY = [
    "XYSpacing", "ZSpacing", "Rows", "Columns", "NumberofSlices", "RescaleSlope", "RescaleIntercept", "ImageOrientationPatient",
]  # fmt: skip
_UPRIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
_ADVICE = "download it again from CT-RATE's page"


@dataclass
class _Tables:
    """Volume name -> cells. An empty one was not downloaded."""

    reports: Mapping[str, tuple[str, ...]]
    metadata: Mapping[str, tuple[str, ...]]
    labels: Mapping[str, tuple[str, ...]]
    conflicts: Collection[str] = field(default_factory=set)
    """Names with rows that differ in report or metadata."""


def list_ct_rate(
    root: Path, *, val_patients: int, seed: int, limit: int | None = None, listing: Sequence[str] | None = None
) -> Inventory:
    """All volumes below `root` (the folder that holds `dataset/`, or `dataset` itself), in the order of their ids.

    A volume may lie in `<split>_fixed` (preferred), in `<split>`, or as CT-CLIP's array in `<split>_preprocessed`. Official valid
    becomes test; val is carved out of the patients of train, downloaded or not. A listed volume without a file has a record
    without files, so that the plan of shards and the splits stay as they are when more is downloaded; if its patient has a
    folder, it counts as missing as well. Without metadata only volumes whose header tells their geometry can be read.

    Args:
        root: CT-RATE's folder.
        val_patients: how many patients of train become val, see `draw_val_patients`.
        seed: of that draw.
        limit: at most so many volumes of each official split, of those that have a file.
        listing: paths of all files as seen from `root`, if they are elsewhere; None = what lies below it.

    Raises:
        FileNotFoundError: there is no folder of volumes, or no table of reports.
        ValueError: a table lacks a column or cannot be read, or its names are no volumes.
    """
    outside = root
    root = root / "dataset" if (root / "dataset").is_dir() else root
    paths = _below(root, outside) if listing is None else [path.removeprefix("dataset/") for path in listing]
    listed = {split for split in _TABLE_WORD if _reports(root, split).is_file()}  # its volumes may have gone, once prepared
    splits = [split for split in _TABLE_WORD if split in listed or any(_tree_of(path, split) for path in paths)]
    if not splits:
        names = ", ".join(tree.format(split=split) for tree in _TREES for split in ("train", "valid"))
        raise FileNotFoundError(f"{root} holds none of {names}; give CT-RATE's folder")
    scan = Inventory(root)
    for split in splits:
        part = _scan_split(root, paths, split)
        scan.records += _first(part.records, limit)
        scan.refused += part.refused
        scan.notes += [f"CT-RATE: {note}" for note in part.notes]
    train = [record.patient_id for record in scan.records if record.official_split == "train"]
    val, note = draw_val_patients(train, val_patients, seed)
    scan.notes += [f"CT-RATE: {note}"] if note else []
    ours = {"train": "train", "valid": "test"}
    for place, record in enumerate(scan.records):
        split = "val" if record.patient_id in val else ours[record.official_split]
        scan.records[place] = replace(record, split=split)
    return scan


def _below(root: Path, outside: Path) -> list[str]:
    """Paths from root of all files and patients' folders (these end in `/`) of the trees; CT-CLIP's may lie beside `dataset`."""
    names = [tree.format(split=split) for split in ("train", "valid") for tree in _TREES]
    places = [(root, "", name) for name in names]
    places += [(outside, "../", name) for name in names if name.endswith("_preprocessed") and outside != root]
    found = []
    for base, up, name in places:
        files = (base / name).glob("**/*.npz" if name.endswith("_preprocessed") else "*/*/*.nii.gz")
        folders = (f"{up}{name}/{path.name}/" for path in (base / name).glob("*/"))
        found += [*folders, *(f"{up}{path.relative_to(base).as_posix()}" for path in files)]
    return found


def _tree_of(path: str, split: str) -> str | None:
    """The tree of `split` that a path lies in, None if in none."""
    first = path.removeprefix("../").partition("/")[0]
    return next((tree for tree in _TREES if first == tree.format(split=split)), None)


def _first(records: Sequence[VolumeRecord], limit: int | None) -> list[VolumeRecord]:
    """Records up to the one with the `limit`-th file."""
    with_files = [place for place, record in enumerate(records) if record.files]
    return [*records] if limit is None or len(with_files) <= limit else [*records[: with_files[limit]]]


def _scan_split(root: Path, paths: Sequence[str], split: str) -> Inventory:
    files, patients, notes = _files(paths, split)
    tables = _tables(root, split, notes)
    without_chest = _no_chest(root / "metadata" / f"no_chest_{split}.txt", notes)
    listed = {name for name in tables.reports.keys() | tables.metadata.keys() if _NAME.fullmatch(name)}
    absent = {name for name in listed - files.keys() if _NAME.fullmatch(name)["patient"] not in patients}
    notes += [f"{len(absent)} listed volumes of {split} lie in no patient's folder: not downloaded"] if absent else []
    scan = Inventory(root, notes=notes)
    for name in sorted(listed | files.keys()):
        record = _record(name, files.get(name), tables)
        code = "no_chest" if name in without_chest else "duplicate_row" if name in tables.conflicts else None
        code = code or ("report_missing" if record is None else None)
        if (code or name not in files) and name not in absent:
            volume_id = f"{DATASET}/{name.removesuffix('.nii.gz')}"
            scan.refused.append(Quarantined(volume_id, DATASET, "scan", code or "missing_file"))
        scan.records += [] if code else [record]
    return scan


def _record(name: str, file: str | None, tables: _Tables) -> VolumeRecord | None:
    """The record of a volume, without files when it is not there; None without a report."""
    findings, impression = (_section(text) for text in tables.reports.get(name, ("", "")))
    if findings is None and impression is None:
        return None
    match = _NAME.fullmatch(name)
    labels, metadata = tables.labels.get(name), tables.metadata.get(name)
    arrays = file is not None and file.endswith(".npz")
    return VolumeRecord(
        volume_id=f"{DATASET}/{name.removesuffix('.nii.gz')}",
        study_id=f"{DATASET}/{match['study']}",
        patient_id=f"{DATASET}/{match['patient']}",
        dataset=DATASET,
        official_split=match["split"],
        split="train",
        reconstruction=int(match["reconstruction"]),
        findings=findings,
        impression=impression,
        files=() if file is None else (file,),
        source=(file or name).removeprefix("../"),
        reader="ct_clip" if arrays else "nifti",
        labels=tuple(map(flag, labels)) if labels else (-1,) * len(LABELS),
        label_source="radbert" if labels else "none",
        table=table_geometry(dict(zip(_GEOMETRY, metadata))) if metadata and not arrays else None,
    )


def _files(paths: Sequence[str], split: str) -> tuple[dict[str, str], set[str], list[str]]:
    """Volume name -> path relative to root, of several the one in the preferred tree; names of the patients' folders; notes."""
    files: dict[str, str] = {}
    patients, strange = set(), 0
    inside = [(tree, path) for path in paths if (tree := _tree_of(path, split))]
    for _, path in sorted(inside, key=lambda pair: (_TREES.index(pair[0]), pair[1])):
        *folders, last = path.removeprefix("../").split("/")
        name = f"{last.removesuffix('.npz').removesuffix('.nii.gz')}.nii.gz"
        match = _NAME.fullmatch(name)
        patients |= set(folders[1:2])
        if match and match["split"] == split:
            files.setdefault(name, path)
            patients.add(match["patient"])
        else:
            strange += bool(last)
    arrays = sum(path.endswith(".npz") for path in files.values())
    notes = [f"{strange} files of {split} have a name that CT-RATE does not use; left out"] if strange else []
    notes += [f"{arrays} volumes of {split} are CT-CLIP's arrays, whose HU end at -1000 and 1000"] if arrays else []
    return files, patients, notes


def _reports(root: Path, split: str) -> Path:
    return root / "radiology_text_reports" / f"{_TABLE_WORD[split]}_reports.csv"


def _tables(root: Path, split: str, notes: list[str]) -> _Tables:
    reports, twice = _table(_reports(root, split), _TEXTS, notes)
    metadata_path = root / "metadata" / f"{_TABLE_WORD[split]}_metadata.csv"
    labels_path = root / "multi_abnormality_labels" / f"{split}_predicted_labels.csv"
    metadata, labels, unsure = {}, {}, set()
    if metadata_path.is_file():
        metadata, again = _table(metadata_path, _GEOMETRY, notes)
        twice |= again
    else:
        notes.append(
            f"{metadata_path.name} is missing: corrected volumes (`{split}_fixed`) are read by their headers, those of the first "
            "release, whose headers are blank, are set aside one by one"
        )
    if labels_path.is_file():
        labels, unsure = _table(labels_path, LABELS, notes)
        labels = {name: cells for name, cells in labels.items() if name not in unsure}
        notes += [f"{len(unsure)} volumes have rows of labels that differ; their labels count as not known"] if unsure else []
    else:
        notes.append(f"{labels_path.name} is missing: all labels of {split} count as not known")
    notes += [f"{len(twice)} volumes of {split} have rows that differ in report or metadata; set aside"] if twice else []
    return _Tables(reports, metadata, labels, twice)


def _table(path: Path, columns: Sequence[str], notes: list[str]) -> tuple[dict[str, tuple[str, ...]], set[str]]:
    """Volume name -> cells of `columns`, and the names whose rows differ; of these the first row is given."""
    if not path.is_file():
        raise FileNotFoundError(f"the table {path} is missing; download it from CT-RATE's page")
    wanted = ["VolumeName", *columns]
    _, rows, more = read_table(path, dict.fromkeys(wanted, ()), required=wanted, advice=_ADVICE)
    notes += more
    named = sum(bool(_NAME.fullmatch(name)) for name, *_ in rows)
    if 2 * named < len(rows):
        raise ValueError(
            f"{path}: {named} of {len(rows)} rows have a volume's name, such as train_1_a_1.nii.gz, under VolumeName; its "
            f"columns seem swapped; {_ADVICE}"
        )
    return by_key(rows)


def _no_chest(path: Path, notes: list[str]) -> set[str]:
    """Names on a no_chest list, whose lines are names or whole paths."""
    if not path.is_file():
        notes.append(f"{path.name} is missing, so that volumes without a chest, heads among them, STAY IN; {_ADVICE}")
        return set()
    try:
        lines = decode(path.read_bytes())[0].splitlines()
    except ValueError:
        raise ValueError(f"{path} is no text; one volume's name or path a line is expected; download it again") from None
    names = {line.strip().replace("\\", "/").rsplit("/", 1)[-1] for line in lines if line.strip()}
    volumes = {f"{name.removesuffix('.npz').removesuffix('.nii.gz')}.nii.gz" for name in names}
    if names and not any(_NAME.fullmatch(name) for name in volumes):
        raise ValueError(f"{path} names no volume; one volume's name or path a line is expected; download it again")
    return volumes


def _section(text: str) -> str | None:
    return clean_section(unicodedata.normalize("NFC", text))


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
