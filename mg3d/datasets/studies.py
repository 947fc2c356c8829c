"""The studies of one split: the reconstructions of each scan, and how one becomes a sample."""

from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.schema import CLAUSE, SENTENCE
from mg3d.datasets.windowing import window_bounds
from mg3d.sentence_spans import SpanKind
from mg3d.types import Sample

RECONSTRUCTION = 3
"""Last element of the seed that draws a reconstruction; see `collate` for the others."""


class ReportText(NamedTuple):
    """A report and its sentences."""

    report: str
    sentence_spans: tuple[tuple[int, int], ...]
    """Character spans (start, end)."""


class StudyRows(NamedTuple):
    """Index rows by study. Two arrays, since a list of lists would be copied into every loader worker."""

    rows: np.ndarray
    """int32 [rows]: grouped by study, ascending within each."""
    start: np.ndarray
    """int32 [studies + 1]: offset of each study in `rows`."""


class Studies:
    """The studies of one index file, ordered by their first row.

    Args:
        index: index file.
        text_unit: "sentence" or "clause".
        window_hu: HU mapped to 0 and 1.
        shuffle_seed: pair every volume with another patient's report; None = its own.
        with_report: exclude studies without a report.
    """

    def __init__(
        self,
        index: VolumeIndex,
        *,
        text_unit: SpanKind,
        window_hu: tuple[float, float],
        shuffle_seed: int | None = None,
        with_report: bool = False,
    ) -> None:
        self.index, self.window_hu, self.shuffle_seed, self.with_report = index, window_hu, shuffle_seed, with_report
        self.span_kind = CLAUSE if text_unit == "clause" else SENTENCE

    @cached_property
    def _grouped(self) -> StudyRows:
        rows, study_ids = np.arange(len(self.index), dtype=np.int32), self.index.table["study_id"].combine_chunks()
        if self.with_report:
            has_report = pc.greater(pc.binary_length(self.index.table["report"].combine_chunks()), 0)
            rows, study_ids = rows[has_report.to_numpy(zero_copy_only=False)], study_ids.filter(has_report)
        study = study_ids.dictionary_encode().indices.to_numpy()  # numbered in order of first occurrence
        order = np.argsort(study, kind="stable")
        return StudyRows(rows[order], np.concatenate([[0], np.cumsum(np.bincount(study))]).astype(np.int32))

    def __len__(self) -> int:
        return len(self._grouped.start) - 1

    def rows(self, study: int) -> np.ndarray:
        """Rows of the reconstructions of a study, int32, ascending."""
        start, end = self._grouped.start[study : study + 2]
        return self._grouped.rows[start:end]

    @property
    def first_rows(self) -> np.ndarray:
        """int32 [studies]: the first row of each study."""
        return self._grouped.rows[self._grouped.start[:-1]]

    @cached_property
    def max_sentences(self) -> int:
        """Maximum number of sentences of a report."""
        spans = self.index.table["sentence_spans"].combine_chunks()
        is_sentence = pc.equal(spans.flatten().field("kind"), self.span_kind).to_numpy(zero_copy_only=False)
        rows = pc.list_parent_indices(spans).to_numpy()[is_sentence]
        return int(np.bincount(rows).max()) if len(rows) else 0

    @property
    def excluded_volumes(self) -> int:
        """Number of volumes excluded because they have no report."""
        return len(self.index) - len(self._grouped.rows)

    @property
    def patients(self) -> np.ndarray:
        """Patient id of each study, str."""
        return self.index.table["patient_id"].take(self.first_rows).to_numpy()

    def patient(self, study: int) -> str:
        """Patient id of one study."""
        return self.index.table["patient_id"][int(self.rows(study)[0])].as_py()

    def report(self, study: int) -> ReportText:
        """The study's own report; empty, without sentences, if it has none."""
        row = int(self.rows(study)[0])
        spans = self.index.table["sentence_spans"][row].values
        chosen = spans.field("kind").to_numpy() == self.span_kind
        pairs = zip(*(spans.field(name).to_numpy()[chosen].tolist() for name in ("start", "end")), strict=True)
        return ReportText(self.index.table["report"][row].as_py(), tuple(pairs))

    def sample(self, study: int, seed: tuple[int, ...] | None = None) -> Sample:
        """One study, with a reconstruction drawn from `seed`, or the first one if there is no seed."""
        rows = self.rows(study)
        choice = 0 if seed is None or len(rows) == 1 else np.random.default_rng([*seed, RECONSTRUCTION]).integers(len(rows))
        row, table = int(rows[choice]), self.index.table
        text = self.report(study if self.shuffle_seed is None else int(self._shuffled[study]))
        return Sample(
            volume=self.index.volume(row)[None],
            window=window_bounds(table["intensity_unit"][row].as_py(), self.window_hu, self.index.stored_window_hu),
            report=text.report,
            sentence_spans=text.sentence_spans,
            labels=np.asarray(table["labels"][row].as_py(), dtype=np.int8),
            study_id=table["study_id"][row].as_py(),
            patient_id=table["patient_id"][row].as_py(),
            seed=seed if seed is not None else (0, 0, study),
        )

    @cached_property
    def _shuffled(self) -> np.ndarray:
        """For each study a study of another patient; a permutation, as far as the patients' study counts allow."""
        ids = self.index.table["patient_id"].combine_chunks().take(self.first_rows)
        patient = pc.rank(ids, tiebreaker="dense").to_numpy().astype(np.int64) - 1
        counts = np.bincount(patient)
        position = np.random.default_rng([self.shuffle_seed, len(self)]).permutation(len(counts))
        by_patient = np.argsort(position[patient], kind="stable")
        shuffled = np.empty(len(self), dtype=np.int64)
        shuffled[by_patient] = np.roll(by_patient, int(counts.max()))  # beyond the studies of any one patient
        return shuffled
