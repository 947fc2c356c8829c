"""CT-RATE as distributed: the folder tree joined with its tables of reports, metadata and labels by volume name."""

import ast
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from mg3d.glossary import LABELS
from mg3d.preparation.quarantine import Quarantined
from mg3d.preparation.records import Inventory, TableGeometry, VolumeRecord
from mg3d.preparation.sources.options import SourceOptions
from mg3d.preparation.sources.scan_walk import walk_scans
from mg3d.preparation.sources.tables import decode, flag, read_table, rows_by_key
from mg3d.preparation.split import draw_val_patients
from mg3d.report_sections import clean_section

DATASET = "ct_rate"
SPLITS = {"train": "train", "valid": "validation"}
"""Official split -> its name in file names of tables."""
NAME = re.compile(r"(?P<study>(?P<patient>(?P<split>train|valid)_[1-9]\d*)_[a-z]+)_(?P<reconstruction>[1-9]\d*)\.nii\.gz")
REPORT_COLUMNS = ("Findings_EN", "Impressions_EN")
GEOMETRY_COLUMNS = (
    "XYSpacing", "ZSpacing", "Rows", "Columns", "NumberofSlices", "RescaleSlope", "RescaleIntercept", "ImageOrientationPatient",
)  # fmt: skip
TABLES: dict[str, tuple[str, tuple[str, ...]]] = {
    "reports": ("radiology_text_reports/{long}_reports.csv", REPORT_COLUMNS),
    "metadata": ("metadata/{long}_metadata.csv", GEOMETRY_COLUMNS),
    "labels": ("multi_abnormality_labels/{split}_predicted_labels.csv", LABELS),
}
"""Table -> path below `dataset`, and required columns besides VolumeName."""
_TREES = ("{split}_fixed", "{split}", "{split}_preprocessed")
"""Folders of a split in order of preference: corrected, first release, CT-CLIP's arrays."""
_IDENTITY_ORIENTATION = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
_NUMPY_NUMBER = re.compile(r"np\.float\d+\(([^()]*)\)")
"""How NumPy 2 writes the numbers of a list."""
_ADVICE = "download it again from CT-RATE's page"


class _SplitTables(NamedTuple):
    """Volume name -> cells. Empty if the table was not downloaded."""

    reports: Mapping[str, Mapping[str, str]]
    metadata: Mapping[str, Mapping[str, str]]
    labels: Mapping[str, Mapping[str, str]]
    conflicts: set[str]
    """Names whose rows differ in report or metadata."""


def list_ct_rate(root: Path, options: SourceOptions) -> Inventory:
    """List all volumes below `root` (the folder with `dataset/`, or `dataset` itself), sorted by id.

    A volume is taken from `<split>_fixed`, else from `<split>`, else from CT-CLIP's arrays in `<split>_preprocessed`. Official
    valid becomes test; val is drawn from the patients of train, whether they are downloaded or not. A volume in the tables but
    without a file gets a record without files, so that shards and splits do not change when more is downloaded; if its patient
    has a folder, it is also reported as missing. Without metadata, only volumes whose header has a geometry can be read.

    Raises:
        FileNotFoundError: no folder of volumes, or no table of reports.
        ValueError: a table lacks a column, cannot be read, or contains no volume names.
    """
    outer, root = root, dataset_folder(root)
    paths = _list_files(root, outer) if options.listing is None else [path.removeprefix("dataset/") for path in options.listing]
    # A split with a table is listed even without files: raw volumes may be deleted after preparation.
    has_table = {split for split in SPLITS if table_path(root, "reports", split).is_file()}
    splits = [split for split in SPLITS if split in has_table or any(_tree(path, split) for path in paths)]
    if not splits:
        names = ", ".join(tree.format(split=split) for tree in _TREES for split in SPLITS)
        raise FileNotFoundError(f"{root} has none of the folders {names}; give CT-RATE's folder")
    inventory = Inventory(root)
    for split in splits:
        _add_split(inventory, paths, split, options.limit)
    train = [record.patient_id for record in inventory.records if record.official_split == "train"]
    val, note = draw_val_patients(train, options.val_patients, options.seed)
    inventory.notes = [f"CT-RATE: {text}" for text in (*inventory.notes, *([note] if note else []))]
    inventory.records = [replace(record, split="val") if record.patient_id in val else record for record in inventory.records]
    return inventory


def dataset_folder(root: Path) -> Path:
    """The folder `dataset` below `root`, or `root` itself."""
    return root / "dataset" if (root / "dataset").is_dir() else root


def table_path(root: Path, table: str, split: str) -> Path:
    """Path of a table (a key of `TABLES`) of an official split; `root` is the folder `dataset`."""
    return root / TABLES[table][0].format(split=split, long=SPLITS[split])


def read_ct_rate_table(root: Path, table: str, split: str, *, optional: Sequence[str] = ()) -> tuple[pd.DataFrame, list[str]]:
    """The columns VolumeName, those of `TABLES` and `optional`, and notes; see `read_table`.

    Raises:
        FileNotFoundError: the table does not exist.
        ValueError: it cannot be read, or less than half of its rows name a volume.
    """
    path = table_path(root, table, split)
    if not path.is_file():
        raise FileNotFoundError(f"the table {path} is missing; {_ADVICE}")
    required = ("VolumeName", *TABLES[table][1])
    rows, notes = read_table(path, dict.fromkeys((*required, *optional), ()), required=required, advice=_ADVICE)
    n_named = int(rows["VolumeName"].str.fullmatch(NAME.pattern).sum())
    if 2 * n_named < len(rows):
        raise ValueError(
            f"{path}: only {n_named} of {len(rows)} cells under VolumeName are volume names such as train_1_a_1.nii.gz; "
            f"its columns seem swapped; {_ADVICE}"
        )
    return rows, notes


def table_geometry(cells: Mapping[str, str]) -> TableGeometry:
    """Grid and rescaling of a volume from its row of the metadata table; missing columns count as empty cells."""
    row = {column: cells.get(column) or "" for column in GEOMETRY_COLUMNS}
    row_spacing, column_spacing = _floats(row["XYSpacing"], 2)  # DICOM's PixelSpacing: between rows (y) first
    orientation = _floats(row["ImageOrientationPatient"], 6)
    return TableGeometry(
        shape_zyx=(_float(row["NumberofSlices"]), _float(row["Rows"]), _float(row["Columns"])),
        spacing_zyx_mm=(_float(row["ZSpacing"]), row_spacing, column_spacing),
        orientation=_IDENTITY_ORIENTATION if any(value != value for value in orientation) else orientation,
        slope=_float(row["RescaleSlope"]),
        intercept=_float(row["RescaleIntercept"]),
    )


def _list_files(root: Path, outer: Path) -> list[str]:
    """Paths relative to `root` of all files and patient folders (with a final `/`). CT-CLIP's trees may be outside `dataset`."""
    names = [tree.format(split=split) for split in SPLITS for tree in _TREES]
    trees = [(root / name, "") for name in names]
    trees += [(outer / name, "../") for name in names if name.endswith("_preprocessed") and outer != root]
    paths = []
    for tree, prefix in trees:
        is_array_tree = tree.name.endswith("_preprocessed")
        files = [tree / path for path in walk_scans(tree, (".npz",)).scans] if is_array_tree else nifti_files(tree)
        paths += [f"{prefix}{tree.name}/{folder.name}/" for folder in tree.glob("*/")]
        paths += [f"{prefix}{path.relative_to(tree.parent).as_posix()}" for path in files]
    return paths


def nifti_files(tree: Path) -> list[Path]:
    """The volumes of a tree `<patient>/<study>/<volume>`, compressed or not."""
    return [path for path in tree.glob("*/*/*") if path.name.lower().endswith((".nii.gz", ".nii"))]


def _tree(path: str, split: str) -> str | None:
    """The tree of `split` that contains a path, None for other paths."""
    folder = path.removeprefix("../").partition("/")[0]
    return next((tree for tree in _TREES if folder == tree.format(split=split)), None)


def _add_split(inventory: Inventory, paths: Sequence[str], split: str, limit: int | None) -> None:
    files, patients = _group_files(paths, split, inventory.notes)
    tables = _read_tables(inventory.root, split, inventory.notes)
    no_chest = _read_no_chest(inventory.root / "metadata" / f"no_chest_{split}.txt", inventory.notes)
    listed = {name for name in tables.reports.keys() | tables.metadata.keys() if NAME.fullmatch(name)}
    absent = {name for name in listed - files.keys() if NAME.fullmatch(name)["patient"] not in patients}
    if absent:
        inventory.notes.append(f"{len(absent)} listed volumes of {split} are not downloaded: their patient has no folder")
    n_files = 0
    for name in sorted(listed | files.keys()):
        record = _make_record(name, files.get(name), tables)
        code = "no_chest" if name in no_chest else "duplicate_row" if name in tables.conflicts else None
        code = code or ("report_missing" if record is None else None)
        if (code or name not in files) and name not in absent:
            inventory.quarantined.append(Quarantined(_volume_id(name), DATASET, "scan", code or "missing_file"))
        if code:
            continue
        n_files += bool(record.files)
        if limit is None or n_files <= limit:
            inventory.records.append(record)


def volume_name(file: str) -> str:
    """A file name without the suffix of a volume."""
    return re.sub(r"(?:\.nii(?:\.gz)?)?(?:\.npz)?$", "", file, flags=re.IGNORECASE)


def _volume_id(name: str) -> str:
    return f"{DATASET}/{volume_name(name)}"


def _make_record(name: str, file: str | None, tables: _SplitTables) -> VolumeRecord | None:
    """None without a report."""
    report = tables.reports.get(name, {})
    findings, impression = (clean_section(unicodedata.normalize("NFC", report.get(column, ""))) for column in REPORT_COLUMNS)
    if findings is None and impression is None:
        return None
    match = NAME.fullmatch(name)
    labels, metadata = tables.labels.get(name), tables.metadata.get(name)
    is_array = file is not None and file.lower().endswith(".npz")
    return VolumeRecord(
        volume_id=_volume_id(name),
        study_id=f"{DATASET}/{match['study']}",
        patient_id=f"{DATASET}/{match['patient']}",
        dataset=DATASET,
        official_split=match["split"],
        split="train" if match["split"] == "train" else "test",
        reconstruction=int(match["reconstruction"]),
        findings=findings,
        impression=impression,
        files=() if file is None else (file,),
        source=(file or name).removeprefix("../"),
        reader="ct_clip" if is_array else "nifti",
        labels=tuple(flag(labels[label]) for label in LABELS) if labels else (-1,) * len(LABELS),
        label_source="radbert" if labels else "none",
        table=table_geometry(metadata) if metadata and not is_array else None,
    )


def _group_files(paths: Sequence[str], split: str, notes: list[str]) -> tuple[dict[str, str], set[str]]:
    """Volume name -> path in the preferred tree, and the names of the patient folders."""
    files: dict[str, str] = {}
    patients, n_strange = set(), 0
    inside = [(tree, path) for path in paths if (tree := _tree(path, split))]
    for _, path in sorted(inside, key=lambda pair: (_TREES.index(pair[0]), not pair[1].endswith(".gz"), pair[1])):
        *folders, last = path.removeprefix("../").split("/")
        name = f"{volume_name(last)}.nii.gz"
        match = NAME.fullmatch(name)
        patients |= set(folders[1:2])
        if match and match["split"] == split:
            files.setdefault(name, path)
            patients.add(match["patient"])
        else:
            n_strange += bool(last)
    n_arrays = sum(path.lower().endswith(".npz") for path in files.values())
    notes += [f"{n_strange} files of {split} do not have a CT-RATE file name and are skipped"] if n_strange else []
    notes += [f"{n_arrays} volumes of {split} are CT-CLIP's arrays, clipped to -1000..1000 HU"] if n_arrays else []
    return files, patients


def _read_tables(root: Path, split: str, notes: list[str]) -> _SplitTables:
    tables: dict[str, dict[str, dict[str, str]]] = {}
    conflicts: dict[str, set[str]] = {}
    missing = {
        "metadata": f"corrected volumes (`{split}_fixed`) are read by their headers; volumes of the first release, whose "
        "headers are blank, are quarantined",
        "labels": f"all labels of {split} are unknown",
    }
    for name in TABLES:
        if name in missing and not table_path(root, name, split).is_file():
            notes.append(f"{table_path(root, name, split).name} is missing: {missing[name]}")
            tables[name], conflicts[name] = {}, set()
            continue
        rows, more = read_ct_rate_table(root, name, split)
        notes += more
        tables[name], conflicts[name] = rows_by_key(rows, "VolumeName")
    if unsure := conflicts["labels"]:
        notes.append(f"{len(unsure)} volumes have contradicting rows of labels; their labels are unknown")
        tables["labels"] = {name: cells for name, cells in tables["labels"].items() if name not in unsure}
    if twice := conflicts["reports"] | conflicts["metadata"]:
        notes.append(f"{len(twice)} volumes of {split} have contradicting rows in reports or metadata and are quarantined")
    return _SplitTables(**tables, conflicts=twice)


def _read_no_chest(path: Path, notes: list[str]) -> set[str]:
    """Volume names of a no_chest list, one name or path per line."""
    if not path.is_file():
        notes.append(f"{path.name} is missing, so volumes without a chest, such as heads, are NOT excluded; {_ADVICE}")
        return set()
    try:
        lines = decode(path.read_bytes())[0].splitlines()
    except ValueError:
        raise ValueError(f"{path} is not a text file; expected one volume name or path per line; {_ADVICE}") from None
    names = {line.strip().replace("\\", "/").rsplit("/", 1)[-1] for line in lines if line.strip()}
    volumes = {f"{volume_name(name)}.nii.gz" for name in names}
    if names and not any(NAME.fullmatch(name) for name in volumes):
        raise ValueError(f"{path} contains no volume name; expected one volume name or path per line; {_ADVICE}")
    return volumes


def _floats(cell: str, count: int) -> tuple[float, ...]:
    """A list written as text, e.g. "[0.7, 0.7]"; NaN for anything else."""
    try:
        values = tuple(float(value) for value in ast.literal_eval(_NUMPY_NUMBER.sub(r"\1", cell.strip())))
    except (ValueError, SyntaxError, TypeError):
        values = ()
    return values if len(values) == count else (float("nan"),) * count


def _float(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")
