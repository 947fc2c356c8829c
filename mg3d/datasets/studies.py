"""The studies of one split: which rows are reconstructions of one scan, and how one becomes a sample."""

from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.schema import CLAUSE, SENTENCE
from mg3d.datasets.windowing import window_bounds
from mg3d.sentence_spans import UnitKind
from mg3d.types import Sample

RECONSTRUCTION = 3
"""Last seed word of the draw of a reconstruction; the collator uses the others."""


class ReportText(NamedTuple):
    """A report and its units."""

    report: str
    sentence_spans: tuple[tuple[int, int], ...]
    """Character offsets (start, end)."""


class Grouping(NamedTuple):
    """Rows by study, as two arrays: a list of studies would grow every loader process with the data set."""

    rows: np.ndarray
    """int32 [rows]: study by study, ascending within each."""
    start: np.ndarray
    """int32 [studies + 1]: where each study's rows begin."""


class Studies:
    """The studies of one index file, by their first row.

    Args:
        index: the index file.
        text_unit: what counts as one sentence.
        window_hu: HU that become 0 and 1.
        shuffle_seed: pair every volume with the report of another patient, by this seed; None = its own.
        with_report: leave out studies without a report.
    """

    def __init__(
        self,
        index: VolumeIndex,
        *,
        text_unit: UnitKind,
        window_hu: tuple[float, float],
        shuffle_seed: int | None = None,
        with_report: bool = False,
    ) -> None:
        self.index, self.window_hu, self.shuffle_seed, self.with_report = index, window_hu, shuffle_seed, with_report
        self.unit_kind = CLAUSE if text_unit == "clause" else SENTENCE

    @cached_property
    def _grouping(self) -> Grouping:
        rows, names = np.arange(len(self.index), dtype=np.int32), self.index.table["study_id"].combine_chunks()
        if self.with_report:
            told = pc.greater(pc.binary_length(self.index.table["report"].combine_chunks()), 0)
            rows, names = rows[told.to_numpy(zero_copy_only=False)], names.filter(told)
        study = names.dictionary_encode().indices.to_numpy()  # numbered as they first come
        order = np.argsort(study, kind="stable")
        return Grouping(rows[order], np.concatenate([[0], np.cumsum(np.bincount(study))]).astype(np.int32))

    def rows(self, study: int) -> np.ndarray:
        """Rows of the reconstructions of a study, int32, ascending."""
        start, end = self._grouping.start[study : study + 2]
        return self._grouping.rows[start:end]

    @property
    def first_rows(self) -> np.ndarray:
        """int32 [studies]: the first row of each study."""
        return self._grouping.rows[self._grouping.start[:-1]]

    @property
    def patients(self) -> np.ndarray:
        """Patient id of each study, text."""
        return self.index.table["patient_id"].take(self.first_rows).to_numpy()

    def patient(self, study: int) -> str:
        """Patient id of one study."""
        return self.index.table["patient_id"][int(self.rows(study)[0])].as_py()

    @property
    def rows_read(self) -> int:
        """Volumes that belong to a study, which those without a report may not."""
        return len(self._grouping.rows)

    def __len__(self) -> int:
        return len(self._grouping.start) - 1

    def report(self, study: int) -> ReportText:
        """The true report of a study; one without has no text and no units."""
        row = int(self.rows(study)[0])
        units = self.index.table["sentence_spans"][row].values
        chosen = units.field("kind").to_numpy() == self.unit_kind
        spans = zip(*(units.field(name).to_numpy()[chosen].tolist() for name in ("start", "end")), strict=True)
        return ReportText(self.index.table["report"][row].as_py(), tuple(spans))

    def sample(self, study: int, draw: tuple[int, ...] | None = None) -> Sample:
        """One study; of its reconstructions the one that `draw` picks, or the first without a draw."""
        rows = self.rows(study)
        place = 0 if draw is None or len(rows) == 1 else int(np.random.default_rng([*draw, RECONSTRUCTION]).integers(len(rows)))
        row, table = int(rows[place]), self.index.table
        text = self.report(study if self.shuffle_seed is None else int(self._strangers[study]))
        return Sample(
            volume=self.index.volume(row)[None],
            window=window_bounds(table["intensity_unit"][row].as_py(), self.window_hu, self.index.stored_window_hu),
            report=text.report,
            sentence_spans=text.sentence_spans,
            labels=np.asarray(table["labels"][row].as_py(), dtype=np.int8),
            study_id=table["study_id"][row].as_py(),
            patient_id=table["patient_id"][row].as_py(),
            seed=draw if draw is not None else (0, 0, study),
        )

    @cached_property
    def _strangers(self) -> np.ndarray:
        """For each study one of another patient; every study is given once, as far as patients allow."""
        names = self.index.table["patient_id"].combine_chunks().take(self.first_rows)
        patient = pc.rank(names, tiebreaker="dense").to_numpy().astype(np.int64) - 1
        counts = np.bincount(patient)
        place = np.random.default_rng([self.shuffle_seed, len(self)]).permutation(len(counts))
        by_patient = np.argsort(place[patient], kind="stable")
        strangers = np.empty(len(self), dtype=np.int64)
        strangers[by_patient] = np.roll(by_patient, int(counts.max()))  # further than any patient's studies reach
        return strangers
