"""Records of a raw data set: one per volume, before any voxel is read."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mg3d.glossary import LABELS
from mg3d.preparation.quarantine import Quarantined


class TableGeometry(NamedTuple):
    """Geometry of a volume in the metadata table; nan = empty cell."""

    shape_zyx: tuple[float, float, float]
    spacing_zyx_mm: tuple[float, float, float]
    orientation: tuple[float, ...]
    """Six cosines (LPS) of a row and of a column, as DICOM's ImageOrientationPatient."""
    slope: float
    intercept: float


@dataclass(frozen=True)
class VolumeRecord:
    """One volume with its report. The repr contains no text and no file name."""

    volume_id: str
    study_id: str
    patient_id: str
    dataset: str
    official_split: str
    split: str
    """train, val or test."""
    reconstruction: int
    findings: str | None = field(repr=False)
    impression: str | None = field(repr=False)
    """None = not given; both None = an image alone, where `DatasetInfo.has_reports` is False."""
    files: tuple[str, ...] = field(repr=False)
    """Relative to the data set's root: one file, slices from superior to inferior, or the folder of a DICOM series.
    None = listed, but not downloaded yet."""
    source: str
    """Origin of the volume for the index: the relative path, or an id where paths may contain names."""
    reader: str
    """A key of readers.registry.READERS."""
    labels: tuple[int, ...] = (-1,) * len(LABELS)
    label_source: str = "none"
    table: TableGeometry | None = None
    row: int = field(default=0, compare=False)
    """Row of the table that names the volume, from 1; 0: no table."""
    hu: str = "infer"
    """As `Recipe.hu`."""

    @property
    def image_key(self) -> str:
        """Hash of everything but the preprocessing that determines the stored voxels."""
        return hashlib.sha256(repr((self.volume_id, self.reader, self.files, self.table)).encode()).hexdigest()[:32]


CHANGES: dict[str, str] = {
    "other_series": "chosen from a folder with other series",
    "other_grid": "of a series with slices of another size, spacing or direction, which were left out",
    "acquisitions": "of a series with several acquisitions, of which the one with most slices is used",
    "stray": "of a series with slices between its regular positions, which were left out",
    "longest_run": "of a series with a large gap, of which the longest part without one is used",
    "interpolated": "with single missing slices, interpolated",
    "respaced": "with changing distances of slices, interpolated to equal ones",
    "gantry_tilt": "resampled from a sheared grid, as of a tilted gantry",
    "oblique": "resampled from a rotated grid",
    "no_air": "in HU by the header, without air near -1000 HU to confirm it",
    "filled_nan": "with NaN outside the field of view, replaced by air",
    "assumed_axes": "in an Analyze file, whose axes are assumed to run to left, anterior and superior",
    "short": "shorter than 100 mm, and stretched to the grid of a whole chest",
}
"""Code of a change -> what was done to a volume."""


class Change(NamedTuple):
    """A step that only some volumes need, stored with the volume and counted in the summary."""

    code: str
    """A key of CHANGES."""
    detail: str = ""

    def __str__(self) -> str:
        return CHANGES[self.code] + (f" ({self.detail})" if self.detail else "")


class RawVolume(NamedTuple):
    """A volume as read, before preprocessing."""

    voxels: np.ndarray
    """Stored values [z, y, x]: +z superior, +y posterior, +x left."""
    spacing_mm: tuple[float, float, float] | None
    """z y x; None = not documented."""
    hu_source: str
    """Where HU come from: already_hu (as stored), trusted (as stored, not checked), metadata_table, dicom_header,
    ct_clip (HU / 1000 clipped to -1..1); uint8_unknown_window: no HU."""
    scale: tuple[float, float] = (1.0, 0.0)
    """Slope and intercept from stored values to HU."""
    changes: tuple[Change, ...] = ()
    """What was changed or chosen while reading."""
    affine: np.ndarray | None = None
    """To RAS mm, from voxels [i, j, k] of the file, or [x, y, z] of a resampled volume; None = not documented."""


@dataclass
class Inventory:
    """The volumes found in a raw data set, in an order that does not depend on the machine."""

    root: Path
    """Folder that the records' files are relative to."""
    records: list[VolumeRecord] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Remarks for the summary."""
    hides_files: bool = False
    """Whether ids are hashes of file names; the run then writes a private file that maps them back."""
