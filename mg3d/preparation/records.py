"""What a scan of a raw data set yields: one record per volume, before any voxel is read."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mg3d.glossary import LABELS
from mg3d.preparation.quarantine import Quarantined


class TableGeometry(NamedTuple):
    """What the metadata table says of a volume; nan = the cell is empty."""

    shape_zyx: tuple[float, float, float]
    spacing_zyx_mm: tuple[float, float, float]
    orientation: tuple[float, ...]
    """Six cosines (LPS) of a row and of a column, as DICOM's ImageOrientationPatient."""
    slope: float
    intercept: float


@dataclass(frozen=True)
class VolumeRecord:
    """One volume with its text. The repr holds no text and no file name."""

    volume_id: str
    study_id: str
    patient_id: str
    dataset: str
    official_split: str
    split: str
    """Ours: train, val, test."""
    reconstruction: int
    findings: str | None = field(repr=False)
    impression: str | None = field(repr=False)
    """None = not given; both None = an image alone, where `DatasetInfo.has_reports` is False."""
    files: tuple[str, ...] = field(repr=False)
    """Relative to the data set's root: one file, slices from superior to inferior, or the folder of a DICOM series.
    None = listed, but not downloaded yet."""
    source: str
    """What the index says of `files`; without personal names."""
    reader: str
    """How `files` are read, a key of readers.registry.READERS."""
    labels: tuple[int, ...] = (-1,) * len(LABELS)
    label_source: str = "none"
    table: TableGeometry | None = None

    @property
    def image_key(self) -> str:
        """Tells everything that decides the stored voxels, besides the preprocessing, in few letters."""
        return hashlib.sha256(repr((self.volume_id, self.reader, self.files, self.table)).encode()).hexdigest()[:32]


class RawVolume(NamedTuple):
    """What a reader gives."""

    voxels: np.ndarray
    """Stored numbers [z, y, x]: +z superior, +y posterior, +x left."""
    spacing_mm: tuple[float, float, float] | None
    """z y x; None = not documented."""
    hu_source: str
    """Where HU come from: already_hu (as stored), metadata_table, dicom_header, ct_clip (HU / 1000 clipped to -1..1);
    uint8_unknown_window: no HU."""
    scale: tuple[float, float] = (1.0, 0.0)
    """Slope and intercept from stored numbers to HU."""
    note: str = ""
    """What a person should know of the reading, in words that are the same for all such volumes."""
    affine: np.ndarray | None = None
    """Of the voxels [i, j, k] as the file has them to RAS mm, which `geometry.to_lps` turned; None = not documented."""


@dataclass
class Inventory:
    """A scanned data set, its records in an order that does not depend on the machine."""

    root: Path
    """What the records' files are relative to."""
    records: list[VolumeRecord] = field(default_factory=list)
    refused: list[Quarantined] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Sentences for the person who runs the preparation."""
