"""Everything that the checks look at."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from mg3d.doctor.catalog import VolumeCatalog
from mg3d.doctor.statistics import VolumeStatistics
from mg3d.preparation.records import TableGeometry
from mg3d.preparation.sources.ct_rate import (
    SPLITS,
    TABLES,
    dataset_folder,
    nifti_files,
    read_ct_rate_table,
    table_geometry,
    table_path,
    volume_name,
)  # fmt: skip


@dataclass
class CtRateTables:
    """The tables of an official split of CT-RATE by volume name, and the names in its folders. Missing tables are empty."""

    split: str
    tables: Mapping[str, pd.DataFrame]
    """Keys of `TABLES`."""
    files: frozenset[str]
    patients: frozenset[str]
    """Names of patient folders, which exist for downloaded patients."""

    @cached_property
    def names(self) -> dict[str, frozenset[str]]:
        """Table -> names of its volumes."""
        return {name: frozenset(table.index) for name, table in self.tables.items()}

    @property
    def listed(self) -> frozenset[str]:
        """Names in the tables of reports and metadata."""
        return self.names["reports"] | self.names["metadata"]

    @cached_property
    def grids(self) -> dict[str, TableGeometry]:
        """Volume name -> geometry by the metadata; the first row of a name counts."""
        metadata = self.tables["metadata"]
        rows = metadata[~metadata.index.duplicated()].to_dict("index")
        return {name: table_geometry(cells) for name, cells in rows.items()}


@dataclass
class DoctorData:
    """Inputs of all checks."""

    catalog: VolumeCatalog
    ct_rate: list[CtRateTables] = field(default_factory=list)
    statistics: dict[int, VolumeStatistics] = field(default_factory=dict)
    """Row of the catalog -> statistics of the voxels that were read."""
    evaluation_lists: dict[str, set[str]] = field(default_factory=dict)
    """File name -> ids of volumes, studies or patients."""


def read_ct_rate_tables(root: Path) -> Iterator[CtRateTables]:
    """The tables of all official splits that have any.

    Raises:
        ValueError: a table cannot be read.
    """
    root = dataset_folder(root)
    for split in SPLITS:
        exists = {name: table_path(root, name, split).is_file() for name in TABLES}
        if not any(exists.values()):
            continue
        tables = {name: _read(root, name, split) if exists[name] else pd.DataFrame(index=pd.Index([], str)) for name in TABLES}
        trees = [root / split, root / f"{split}_fixed"]
        files = frozenset(volume_name(path.name) for tree in trees for path in nifti_files(tree))
        yield CtRateTables(split, tables, files, frozenset(path.name for tree in trees for path in tree.glob("*")))


def _read(root: Path, name: str, split: str) -> pd.DataFrame:
    table, _ = read_ct_rate_table(root, name, split, optional=("PatientPosition",))
    return table.set_index(table.pop("VolumeName").str.removesuffix(".nii.gz"))


def read_evaluation_list(path: Path) -> set[str]:
    """Ids of an evaluation list: one volume, study or patient per line, as id, file name or path; `#` begins a comment.

    Raises:
        ValueError: the file is empty or not a text file.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file; expected one id per line") from None
    ids = {bare_id(line.split("#")[0]) for line in lines} - {""}
    if not ids:
        raise ValueError(f"{path} contains no id; expected one volume, study or patient per line")
    return ids


def bare_id(name: str) -> str:
    """An id without folders, data set and file suffix."""
    return volume_name(name.strip().strip(",;").replace("\\", "/").rsplit("/", 1)[-1])
