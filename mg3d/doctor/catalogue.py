"""What is to be examined: one row per volume, from raw folders or from index files."""

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.schema import DATASETS, SPLITS, index_path
from mg3d.glossary import LABELS
from mg3d.preparation.quarantine import Quarantined
from mg3d.preparation.records import Inventory, VolumeRecord
from mg3d.preparation.sources.ctrg import ANNOTATIONS
from mg3d.preparation.sources.custom import volumes_below
from mg3d.preparation.sources.options import SourceOptions
from mg3d.preparation.sources.registry import SOURCES
from mg3d.sentence_spans import normalise

LOOKED_INTO = 1000
"""Folders, at most, in which a volume is looked for before a folder is said to hold none."""
PHANTOM_MARKS = ("phantom.json", "truth")
_TREES = ("train_fixed", "valid_fixed", "train", "valid", "radiology_text_reports")


class RawPlace(NamedTuple):
    """A volume in a raw folder."""

    record: VolumeRecord
    root: Path


class ArrowPlace(NamedTuple):
    """A volume of an index file."""

    index: Path
    row: int
    unit: str


@dataclass
class Catalogue:
    """Every usable volume, and what is known before a voxel is read."""

    path: Path
    kind: Literal["raw", "arrow"]
    synthetic: bool
    rows: pd.DataFrame
    """volume_id, study_id, patient_id, dataset, official_split, split, report, report_key, has_findings, has_impression, group
    (whose HU are counted together), image_sha256 (Arrow: as the index says)."""
    labels: np.ndarray
    """int8 [rows, 18]: 1, 0, -1 = not known."""
    places: Sequence[RawPlace | ArrowPlace]
    refused: list[Quarantined] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    roots: dict[str, Path] = field(default_factory=dict)
    """Raw data set -> its root."""
    failures: list[str] = field(default_factory=list)
    """Why a part could not be examined at all."""

    @property
    def datasets(self) -> list[str]:
        """Data sets that are there, or should be."""
        return list(dict.fromkeys([*self.roots, *self.rows["dataset"]]))


def recognise(path: Path, kind: str | None = None) -> dict[str, Path]:
    """Raw data set -> its root, of a folder; empty for prepared Arrow files.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: the content is of no known kind.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}; give a raw folder, a folder of Arrow files or one index file")
    if path.suffix == ".arrow" or (path.is_dir() and index_files(path)):
        return {}
    if kind is not None:
        return {kind: path}
    found = {} if not path.is_dir() else {name: root for name in ("ct_rate", "ctrg") if (root := _root(path, name))}
    if not found and path.is_dir() and next(volumes_below(path, max_folders=LOOKED_INTO), None):
        raise ValueError(
            f"{path} holds NIfTI files or DICOM series in no layout that is known; say --kind custom (and --table FILE, if "
            "there are reports), or --kind with the name of the data set"
        )
    if not found:
        raise ValueError(
            f"{path} looks like none of {', '.join(SOURCES)} and holds no index file ({index_path(Path(), 'ct_rate', 'train')}); "
            "give the right folder, or say --kind"
        )
    return found


def _root(path: Path, name: str) -> Path | None:
    """The folder of a data set: `path`, or its child of the data set's name in a synthetic set."""
    for folder in (path, path / name):
        inner = folder / "dataset" if (folder / "dataset").is_dir() else folder
        marks = [inner / tree for tree in _TREES] if name == "ct_rate" else [folder / part for part in ANNOTATIONS]
        if any(mark.exists() for mark in marks):
            return folder
    return None


def index_files(folder: Path) -> dict[tuple[str, str], Path]:
    """(data set, split) -> index file that is there."""
    paths = {(name, split): index_path(folder, name, split) for name in DATASETS for split in SPLITS}
    return {key: path for key, path in paths.items() if path.is_file()}


def is_synthetic(path: Path) -> bool:
    """Whether the marks of a synthetic set lie in `path`, or up to two folders above."""
    absolute = path.absolute()
    return any((folder / mark).exists() for folder in (absolute, *absolute.parents[:2]) for mark in PHANTOM_MARKS)


def read_raw(
    path: Path,
    roots: Mapping[str, Path],
    *,
    prepared: Path | None,
    table: Path | None = None,
    val_patients: int,
    seed: int,
) -> Catalogue:
    """The catalogue of raw folders. A data set that cannot be scanned is a failure of the catalogue, not an error.

    prepared: the folder whose salt gives the ids of CTRG and of an own folder; without one they hold for this catalogue only.
    table: see `SourceOptions`.
    """
    scans, failures = {}, []
    with tempfile.TemporaryDirectory() as empty:
        for name, root in roots.items():
            draw = {"val_patients": val_patients, "seed": seed, "ctrg_split": "resplit", "limit": None}
            choice = SourceOptions(out=prepared or Path(empty), table=table, **draw)
            try:
                scans[name] = SOURCES[name](root, choice)
            except OSError as error:
                failures.append(f"{DATASETS[name].title}: {error if error.filename is None else type(error).__name__}")
            except ValueError as error:
                failures.append(f"{DATASETS[name].title}: {error}")
    return _from_scans(path, roots, scans, failures)


def _from_scans(path: Path, roots: Mapping[str, Path], scans: Mapping[str, Inventory], failures: list[str]) -> Catalogue:
    records = [(record, scan.root) for scan in scans.values() for record in scan.records if record.files]
    rows, keys = [], {}
    for record, _ in records:
        report = "\n".join(section for section in (record.findings, record.impression) if section)
        if report not in keys:
            keys[report] = hashlib.sha256(normalise(report).encode()).hexdigest()
        ids = {name: getattr(record, name) for name in ("volume_id", "study_id", "patient_id", "dataset", "official_split")}
        rows.append(
            {
                **ids,
                "split": record.split,
                "report": report,
                "report_key": keys[report],
                "has_findings": record.findings is not None,
                "has_impression": record.impression is not None,
                "group": _group(record),
                "image_sha256": "",
            }
        )
    labels = np.array([record.labels for record, _ in records], np.int8).reshape(len(records), len(LABELS))
    refused = [entry for scan in scans.values() for entry in scan.refused]
    notes = [note for scan in scans.values() for note in scan.notes]
    places = [RawPlace(*pair) for pair in records]
    table = pd.DataFrame(rows, columns=list(rows[0]) if rows else _COLUMNS)
    return Catalogue(path, "raw", is_synthetic(path), table, labels, places, refused, notes, dict(roots), failures)


_COLUMNS = [
    "volume_id", "study_id", "patient_id", "dataset", "official_split", "split", "report", "report_key", "has_findings",
    "has_impression", "group", "image_sha256",
]  # fmt: skip


def _group(record: VolumeRecord) -> str:
    tree = record.files[0].split("/")[0] if record.dataset == "ct_rate" else ""
    return " ".join(part for part in (DATASETS[record.dataset].title, tree) if part)


def read_arrow(path: Path) -> Catalogue:
    """The catalogue of a folder of index files or of one.

    Raises:
        FileNotFoundError, ValueError: an index file is not there or cannot be read.
    """
    folder = path if path.is_dir() else path.parent
    files = index_files(folder) if path.is_dir() else {("", path.stem.rsplit("_", 1)[-1]): path}
    parts, places, labels = [], [], []
    for (_, split), file in files.items():
        table = VolumeIndex(file).table
        names = ["volume_id", "study_id", "patient_id", "dataset", "official_split", "report", "image_sha256", "hu_source"]
        part = table.select(names).to_pandas().astype(object)
        part["report"] = part["report"].fillna("")
        part["split"], part["report_key"] = split, table["report_sha256"].to_pandas()
        part["has_findings"] = table["findings"].is_valid().to_numpy()
        part["has_impression"] = table["impression"].is_valid().to_numpy()
        part["group"] = [
            f"{DATASETS[name].title if name in DATASETS else name} {rule}"
            for name, rule in zip(part["dataset"], part["hu_source"])
        ]
        parts.append(part)
        places += [ArrowPlace(file, row, unit) for row, unit in enumerate(table["intensity_unit"].to_pylist())]
        flat = table["labels"].combine_chunks()
        labels.append(np.asarray(flat.flatten().to_numpy(zero_copy_only=False)).reshape(len(table), flat.type.list_size))
    rows = pd.concat(parts, ignore_index=True)
    refused = read_quarantine(folder / "quarantine.jsonl")
    return Catalogue(path, "arrow", is_synthetic(folder), rows, np.concatenate(labels), places, refused)


def read_quarantine(path: Path) -> list[Quarantined]:
    """The lines of a quarantine.jsonl; none without the file. A torn line is left out."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entries.append(Quarantined(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return entries
