"""The volumes of raw folders or of index files, one row each, before any voxel is read."""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.schema import DATASETS, SPLITS, index_path
from mg3d.glossary import LABELS
from mg3d.preparation.quarantine import Quarantined, read_quarantine
from mg3d.preparation.records import Inventory, VolumeRecord
from mg3d.preparation.sources.ct_rate import TABLES, dataset_folder, table_path
from mg3d.preparation.sources.ctrg import ANNOTATIONS
from mg3d.preparation.sources.options import SourceOptions
from mg3d.preparation.sources.registry import SOURCES
from mg3d.preparation.sources.scan_walk import walk_scans
from mg3d.sentence_spans import normalize_text

MAX_FOLDERS = 1000
"""Folders to search for volumes of an unknown data set."""
PHANTOM_MARKS = ("phantom.json", "truth")
_IDS = ["volume_id", "study_id", "patient_id", "dataset", "official_split"]
COLUMNS = [*_IDS, "split", "report", "report_key", "has_findings", "has_impression", "group", "image_sha256"]


class RawVolumeSource(NamedTuple):
    """A volume of a raw folder."""

    record: VolumeRecord
    root: Path


class StoredVolumeSource(NamedTuple):
    """A volume of an index file."""

    index: Path
    row: int
    intensity_unit: str


@dataclass
class VolumeCatalog:
    """All usable volumes with their ids, reports and labels."""

    path: Path
    kind: Literal["raw", "arrow"]
    is_synthetic: bool
    rows: pd.DataFrame
    """`COLUMNS`: `group` = source whose intensities are compared; `image_sha256` of stored voxels, empty for raw volumes."""
    labels: np.ndarray
    """int8 [rows, 18]: 1, 0, -1 = unknown."""
    sources: Sequence[RawVolumeSource | StoredVolumeSource]
    quarantined: list[Quarantined] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    roots: dict[str, Path] = field(default_factory=dict)
    """Raw data set -> its root."""
    failures: list[str] = field(default_factory=list)
    """Data sets that could not be read, with the reason."""

    @property
    def datasets(self) -> list[str]:
        """Data sets that are present, or should be."""
        return list(dict.fromkeys([*self.roots, *self.rows["dataset"]]))

    def table_row(self, row: int) -> int:
        """Row of the table that names a raw volume, from 1; 0: none."""
        source = self.sources[row]
        return source.record.row if isinstance(source, RawVolumeSource) else 0

    def ids(self, mask_or_rows: Any) -> tuple[str, ...]:
        """Sorted volume ids of selected rows."""
        return tuple(sorted(map(str, self.rows.loc[mask_or_rows, "volume_id"])))


def detect_datasets(path: Path, dataset: str | None = None) -> dict[str, Path]:
    """Raw data set -> its root, for a raw folder; empty for prepared Arrow files.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: the data set is not recognized.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give a raw folder, a folder of Arrow files or one index file")
    if path.suffix == ".arrow" or (path.is_dir() and index_files(path)):
        return {}
    if dataset is not None:
        return {dataset: path}
    roots = {name: root for name in ("ct_rate", "ctrg") if path.is_dir() and (root := _find_root(path, name))}
    if not roots and path.is_dir() and walk_scans(path, max_folders=MAX_FOLDERS).scans:
        raise ValueError(
            f"{path} contains scans in an unknown layout; give --dataset custom (and --table FILE if there "
            "are reports), or --dataset with the name of the data set"
        )
    if not roots:
        raise ValueError(
            f"{path} looks like none of {', '.join(SOURCES)} and has no index file ({index_path(Path(), 'ct_rate', 'train')}); "
            "check the path, or give --dataset"
        )
    return roots


def index_files(folder: Path) -> dict[tuple[str, str], Path]:
    """(data set, split) -> existing index file."""
    paths = {(name, split): index_path(folder, name, split) for name in DATASETS for split in SPLITS}
    return {key: path for key, path in paths.items() if path.is_file()}


def read_raw(path: Path, roots: Mapping[str, Path], *, prepared: Path | None, **options: Any) -> VolumeCatalog:
    """The catalog of raw folders. A data set that cannot be listed is reported in `failures`.

    prepared: output folder whose salt gives the ids of CTRG and custom data; without one, ids are valid in this catalog only.
    options: of `SourceOptions`.
    """
    inventories: dict[str, Inventory] = {}
    failures = []
    with tempfile.TemporaryDirectory() as empty:
        for name, root in roots.items():
            try:
                inventories[name] = SOURCES[name](root, SourceOptions(out=prepared or Path(empty), **options))
            except (OSError, ValueError) as error:
                has_file_name = isinstance(error, OSError) and error.filename is not None
                failures.append(f"{DATASETS[name].title}: {type(error).__name__ if has_file_name else error}")
    sources = [
        RawVolumeSource(record, inventory.root)
        for inventory in inventories.values()
        for record in inventory.records
        if record.files
    ]
    labels = np.array([source.record.labels for source in sources], np.int8).reshape(len(sources), len(LABELS))
    return VolumeCatalog(
        path=path,
        kind="raw",
        is_synthetic=is_synthetic(path),
        rows=pd.DataFrame([_raw_row(source.record) for source in sources], columns=COLUMNS),
        labels=labels,
        sources=sources,
        quarantined=[entry for inventory in inventories.values() for entry in inventory.quarantined],
        notes=[note for inventory in inventories.values() for note in inventory.notes],
        roots=dict(roots),
        failures=failures,
    )


def read_arrow(path: Path) -> VolumeCatalog:
    """The catalog of a folder of index files, or of one.

    Raises:
        FileNotFoundError, ValueError: an index file is missing or unreadable.
    """
    folder = path if path.is_dir() else path.parent
    files = index_files(folder) if path.is_dir() else {("", path.stem.rsplit("_", 1)[-1]): path}
    parts, sources, labels = [], [], []
    for (_, split), file in files.items():
        table = VolumeIndex(file).table
        part = table.select([*_IDS, "report", "image_sha256", "hu_source"]).to_pandas().astype(object)
        titles = part["dataset"].map(lambda name: DATASETS[name].title if name in DATASETS else name)
        part["split"], part["group"], part["report"] = split, titles + " " + part["hu_source"], part["report"].fillna("")
        part["report_key"] = table["report_sha256"].to_pandas()
        part["has_findings"], part["has_impression"] = (table[name].is_valid().to_numpy() for name in ("findings", "impression"))
        parts.append(part[COLUMNS])
        sources += [StoredVolumeSource(file, row, unit) for row, unit in enumerate(table["intensity_unit"].to_pylist())]
        labels += table["labels"].to_pylist()
    return VolumeCatalog(
        path=path,
        kind="arrow",
        is_synthetic=is_synthetic(folder),
        rows=pd.concat(parts, ignore_index=True),
        labels=np.array(labels, np.int8).reshape(len(sources), len(LABELS)),
        sources=sources,
        quarantined=read_quarantine(folder / "quarantine.jsonl"),
    )


def is_synthetic(path: Path) -> bool:
    """Whether `path`, or one of the two folders above, is marked as a synthetic set."""
    path = path.absolute()
    return any((folder / mark).exists() for folder in (path, *path.parents[:2]) for mark in PHANTOM_MARKS)


def _find_root(path: Path, dataset: str) -> Path | None:
    """The folder of a data set: `path`, or its subfolder in a synthetic set."""
    for folder in (path, path / dataset):
        inner = dataset_folder(folder)
        trees = [inner / name for name in ("train_fixed", "valid_fixed", "train", "valid")]
        tables = [table_path(inner, table, "train") for table in TABLES]
        marks = [*trees, *tables] if dataset == "ct_rate" else [folder / name for name in ANNOTATIONS]
        if any(mark.exists() for mark in marks):
            return folder
    return None


def _raw_row(record: VolumeRecord) -> dict[str, Any]:
    report = "\n".join(section for section in (record.findings, record.impression) if section)
    tree = record.files[0].split("/")[0] if record.dataset == "ct_rate" else ""
    return {
        **{name: getattr(record, name) for name in _IDS},
        "split": record.split,
        "report": report,
        "report_key": hashlib.sha256(normalize_text(report).encode()).hexdigest(),
        "has_findings": record.findings is not None,
        "has_impression": record.impression is not None,
        "group": f"{DATASETS[record.dataset].title} {tree}".strip(),
        "image_sha256": "",
    }
