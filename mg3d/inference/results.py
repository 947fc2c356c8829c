"""What a model answers, as small objects that print well."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from textwrap import shorten
from typing import NamedTuple

import nibabel as nib
import numpy as np

from mg3d.inference.scans import Scan

_SHOWN_LETTERS = 160


class Finding(NamedTuple):
    """One finding of one scan."""

    name: str
    probability: float
    """That it is there, by the two prompts alone; not calibrated."""
    present: str
    """The prompt that says so."""
    absent: str
    """The prompt that denies it."""


@dataclass(frozen=True)
class Findings:
    """The findings of one scan, in the order in which they were asked for."""

    rows: tuple[Finding, ...]

    def __getitem__(self, name: str) -> float:
        """The probability of a finding."""
        return next(row.probability for row in self.rows if row.name == name)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        return "\n".join(f"{row.name:<{width}}  {row.probability:.3f}  {row.present} | {row.absent}" for row in self.rows)


class Neighbour(NamedTuple):
    """One entry of an index that is near to what was asked."""

    rank: int
    """From 1."""
    key: str
    kind: str
    """scan, report or sentence."""
    similarity: float
    """Cosine."""
    text: str
    """Of a report or sentence, whole; empty where none is stored."""


@dataclass(frozen=True)
class Neighbours:
    """The nearest entries of an index, nearest first."""

    rows: tuple[Neighbour, ...]

    def __getitem__(self, place: int) -> Neighbour:
        return self.rows[place]

    def __iter__(self) -> Iterator[Neighbour]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        return "\n".join(map(_line, self.rows)) or "nothing is near"


def _line(row: Neighbour) -> str:
    text = shorten(row.text, _SHOWN_LETTERS, placeholder=" ...")
    return f"{row.rank:>3}  {row.similarity:+.3f}  {row.kind:<8}  {row.key}  {text}".rstrip()


@dataclass(frozen=True)
class Report:
    """A report that the model wrote."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, eq=False)
class Region:
    """Where in a scan a sentence is looked for."""

    sentence: str = field(repr=False)
    cells: np.ndarray = field(repr=False)
    """float32 [d, h, w], one number for each image token: how much of the sentence is found there, 1 = as much as anywhere."""
    cell_voxels: tuple[int, ...]
    """Voxels z, y, x of the scan's `volume` that a token stands for."""
    scan: Scan
    similarity: float
    """Cosine of the whole scan and the sentence."""

    def in_file(self) -> nib.Nifti1Image:
        """The map in the geometry of the scan's own file, float32, 0 where the model saw nothing."""
        return self.scan.in_file(self.scan.upright(self.cells, self.cell_voxels))

    def peak_mm(self) -> tuple[float, float, float]:
        """Right, anterior and superior in mm (RAS, as the file's affine) of the middle of the strongest token."""
        cell = np.array(np.unravel_index(self.cells.argmax(), self.cells.shape))
        starts, ends = np.array(self.scan.box).T
        voxel = starts + (cell + 0.5) * self.cell_voxels * (ends - starts) / self.scan.volume.shape - 0.5
        return self.scan.place_mm(voxel)

    def __str__(self) -> str:
        right, anterior, superior = self.peak_mm()
        share = self.cells.max() / self.cells.sum()
        return (
            f"cosine {self.similarity:+.3f}; the strongest of {self.cells.size} places has {share:.1%} and lies at "
            f"R {right:.0f}, A {anterior:.0f}, S {superior:.0f} {'mm' if self.scan.spacing_mm else 'voxels'}"
        )
