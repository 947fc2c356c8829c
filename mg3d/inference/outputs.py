"""Outputs of a `ScanModel`: named tuples and small classes that print well."""

from dataclasses import dataclass, field
from textwrap import shorten
from typing import NamedTuple

import nibabel as nib
import numpy as np

from mg3d.inference.scan import Scan

_MAX_TEXT_SHOWN = 160


class FindingScore(NamedTuple):
    """Zero-shot score of one finding in one scan."""

    name: str
    probability: float
    """Softmax over the two prompts; not calibrated."""
    present: str
    """Prompt that states the finding."""
    absent: str
    """Prompt that negates it."""


class FindingScores(tuple[FindingScore, ...]):
    """Scores of one scan in the order of the request; `scores["Pleural effusion"]` is a probability."""

    def __getitem__(self, key: str | int) -> float | FindingScore:
        if isinstance(key, str):
            return next(row.probability for row in self if row.name == key)
        return super().__getitem__(key)

    def __str__(self) -> str:
        width = max(len(row.name) for row in self)
        return "\n".join(f"{row.name:<{width}}  {row.probability:.3f}  {row.present} | {row.absent}" for row in self)


class Neighbour(NamedTuple):
    """A search result."""

    rank: int
    """From 1."""
    key: str
    kind: str
    """scan, report or sentence."""
    similarity: float
    """Cosine."""
    text: str
    """Full text of a report or sentence; empty for scans."""


class Neighbours(tuple[Neighbour, ...]):
    """Search results, nearest first."""

    def __str__(self) -> str:
        return "\n".join(map(self._line, self)) or "no results"

    @staticmethod
    def _line(row: Neighbour) -> str:
        text = shorten(row.text, _MAX_TEXT_SHOWN, placeholder=" ...")
        return f"{row.rank:>3}  {row.similarity:+.3f}  {row.kind:<8}  {row.key}  {text}".rstrip()


_SIDES = (("right", "left"), ("anterior", "posterior"), ("superior", "inferior"))
"""Words for positive and negative coordinates of RAS."""


@dataclass(frozen=True, eq=False)
class GroundingMap:
    """Evidence for a sentence over the image tokens of a scan."""

    sentence: str = field(repr=False)
    cells: np.ndarray = field(repr=False)
    """float32 [d, h, w], one value per image token; 1 is the mean."""
    cell_voxels: tuple[int, ...]
    """Voxels z, y, x of the scan's `volume` per token."""
    scan: Scan
    similarity: float
    """Cosine of the whole scan and the sentence."""

    def in_file(self) -> nib.Nifti1Image:
        """The map in the geometry of the scan's file, float32; 0 outside the part that the model sees."""
        return self.scan.in_file(self.scan.upright(self.cells, self.cell_voxels))

    def peak_mm(self) -> tuple[float, float, float]:
        """Centre of the strongest token: right, anterior, superior in mm (RAS, as the affine of the file)."""
        cell = np.array(np.unravel_index(self.cells.argmax(), self.cells.shape))
        starts, ends = np.array(self.scan.box).T
        voxel = starts + (cell + 0.5) * self.cell_voxels * (ends - starts) / self.scan.volume.shape - 0.5
        return self.scan.position_mm(voxel)

    def __str__(self) -> str:
        fraction, unit = self.cells.max() / self.cells.sum(), "mm" if self.scan.spacing_mm else "voxels"
        position = ", ".join(
            f"{abs(distance):.0f} {unit} {sides[distance < 0]}" for distance, sides in zip(self.peak_mm(), _SIDES, strict=True)
        )
        return (
            f"cosine {self.similarity:+.3f}; the strongest of {self.cells.size} tokens has {fraction:.1%} of the map, {position} "
            "of the origin of the scan's coordinates"
        )
