"""What a scan of a raw data set yields: one record per volume, before any voxel is read."""

from collections.abc import Sequence
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
    """None = not given; both None = an image alone, where `DatasetFacts.has_reports` is False."""
    files: tuple[str, ...] = field(repr=False)
    """Relative to the data set's root: one file, slices from superior to inferior, or the folder of a DICOM series."""
    source: str
    """What the index says of `files`; without personal names."""
    reader: str
    """How `files` are read, a key of readers.registry.READERS."""
    labels: tuple[int, ...] = (-1,) * len(LABELS)
    label_source: str = "none"
    table: TableGeometry | None = None

    @property
    def image_key(self) -> str:
        """Everything that decides the stored voxels, besides the preprocessing."""
        return repr((self.volume_id, self.reader, self.files, self.table))


class RawVolume(NamedTuple):
    """What a reader gives."""

    voxels: np.ndarray
    """Stored numbers [z, y, x]: +z superior, +y posterior, +x left."""
    spacing_mm: tuple[float, float, float] | None
    """z y x; None = not documented."""
    rule: str
    """Where HU come from: baked (stored so), csv (table), header (DICOM), ctclip (its arrays, cut to -1000..1000); grey8 = no HU."""
    scale: tuple[float, float] = (1.0, 0.0)
    """Slope and intercept from stored numbers to HU."""
    note: str = ""
    """What a person should know of the reading, in words that are the same for all such volumes."""


@dataclass
class Scan:
    """A scanned data set, its records in an order that does not depend on the machine."""

    root: Path
    """What the records' files are relative to."""
    records: list[VolumeRecord] = field(default_factory=list)
    refused: list[Quarantined] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Sentences for the person who runs the preparation."""


def carve_val(patients: Sequence[str], count: int, seed: int) -> tuple[set[str], str | None]:
    """The patients of train that become val, drawn with `seed`, and a sentence when it is not `count` that was drawn.

    Args:
        patients: all training patients in a fixed order.
        count: how many to draw; at most a tenth of them (but one) is, so that a small set keeps its training data.
    """
    unique = list(dict.fromkeys(patients))
    allowed = min(count, max(1, len(unique) // 10), max(len(unique) - 1, 0))
    chosen = np.random.default_rng([seed, 1]).permutation(len(unique))[:allowed]
    if count == 0:
        return set(), "no patient was carved out of train: val is empty"
    note = f"val has {allowed} of {len(unique)} training patients, not {count}: at most a tenth is taken"
    return {unique[place] for place in chosen}, note if allowed != count else None
