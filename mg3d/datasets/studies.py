"""The studies of one split: which rows are reconstructions of one scan, and how one becomes a sample."""

from functools import cached_property
from typing import NamedTuple

import numpy as np

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.schema import CLAUSE, SENTENCE
from mg3d.datasets.window import to_unit_range
from mg3d.text_units import UnitKind
from mg3d.types import Sample

RECONSTRUCTION = 3
"""Last seed word of the draw of a reconstruction; the collator uses the ones before."""


class ReportText(NamedTuple):
    """A report and its units."""

    report: str
    units: tuple[tuple[int, int], ...]
    """Character offsets (start, end)."""


class Studies:
    """The studies of one index file, by their first row.

    Args:
        index: the index file.
        text_unit: what counts as one sentence.
        window_hu: HU that become 0 and 1.
        shuffle_seed: pair every volume with the report of another patient, by this seed; None = its own.
    """

    def __init__(
        self, index: VolumeIndex, *, text_unit: UnitKind, window_hu: tuple[float, float], shuffle_seed: int | None = None
    ) -> None:
        self.index, self.window_hu, self.shuffle_seed = index, window_hu, shuffle_seed
        self.unit_kind = CLAUSE if text_unit == "clause" else SENTENCE

    @cached_property
    def rows(self) -> list[np.ndarray]:
        """Rows of the reconstructions of each study, ascending."""
        names = np.array(self.index.table["study_id"].to_pylist(), dtype=object)
        if len(names) == 0:
            return []
        _, first, inverse = np.unique(names, return_index=True, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        groups = np.split(order, np.cumsum(np.bincount(inverse))[:-1])
        return [groups[place] for place in np.argsort(first, kind="stable")]

    @cached_property
    def patients(self) -> np.ndarray:
        """Patient id of each study."""
        return np.array([self.index.table["patient_id"][int(rows[0])].as_py() for rows in self.rows], dtype=object)

    def __len__(self) -> int:
        return len(self.rows)

    def report(self, study: int) -> ReportText:
        """The true report of a study."""
        row = int(self.rows[study][0])
        units = self.index.table["units"][row].as_py()
        spans = tuple((unit["start"], unit["end"]) for unit in units if unit["kind"] == self.unit_kind)
        return ReportText(self.index.table["report"][row].as_py(), spans)

    def sample(self, study: int, draw: tuple[int, ...] | None = None) -> Sample:
        """One study; of its reconstructions the one that `draw` picks, or the first without a draw."""
        rows = self.rows[study]
        place = 0 if draw is None else int(np.random.default_rng([*draw, RECONSTRUCTION]).integers(len(rows)))
        row, table = int(rows[place]), self.index.table
        text = self.report(study if self.shuffle_seed is None else int(self._strangers[study]))
        return Sample(
            volume=to_unit_range(self.index.volume(row), unit=table["unit"][row].as_py(), window_hu=self.window_hu),
            report=text.report,
            units=text.units,
            labels=np.asarray(table["labels"][row].as_py(), dtype=np.int8),
            study_id=table["study_id"][row].as_py(),
            patient_id=table["patient_id"][row].as_py(),
            draw=draw if draw is not None else (0, 0, study),
        )

    @cached_property
    def _strangers(self) -> np.ndarray:
        """For each study one of another patient; every study is given once, as far as patients allow."""
        _, patient, counts = np.unique(self.patients, return_inverse=True, return_counts=True)
        place = np.random.default_rng([self.shuffle_seed, len(self)]).permutation(len(counts))
        by_patient = np.argsort(place[patient], kind="stable")
        strangers = np.empty(len(self), dtype=np.int64)
        strangers[by_patient] = np.roll(by_patient, int(counts.max()))  # further than any patient's studies reach
        return strangers
