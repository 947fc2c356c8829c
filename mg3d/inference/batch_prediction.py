"""Predictions for many scans, written to files that stay valid when a run is killed and are continued by the next run."""

import csv
import io
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mg3d.files import write_bytes
from mg3d.inference.scan import Scan
from mg3d.inference.scan_model import JOINT, ScanModel
from mg3d.inference.scan_sources import ScanSource, UnreadableScan, batches, read_ahead
from mg3d.inference.search_index import Entry, IndexWriter

Track = Callable[[Iterable, int], Iterator]
"""Progress bar: passes items through; the second argument is their number."""
FAILED = "failed.csv"
_ENTRIES_PER_PART = 512
_SAVE_INTERVAL_S = 30.0


class NoUsableScanError(Exception):
    """None of the scans could be used."""


class Outcome(NamedTuple):
    """Number of scans by outcome."""

    new: int
    existing: int
    """Done by an earlier run."""
    failed: tuple[UnreadableScan, ...]

    def require_usable(self, where: Path) -> None:
        """Raise NoUsableScanError if every scan failed; `where` lists them."""
        if self.failed and not self.new and not self.existing:
            count = len(self.failed)
            raise NoUsableScanError(f"none of {count} scans can be used, see {where}; the first: {self.failed[0].reason}")

    def __str__(self) -> str:
        failed = f", {len(self.failed):,} failed (retried by the next run)" if self.failed else ""
        return f"{self.new:,} scans done, {self.existing:,} already done{failed}"


def build_index(
    model: ScanModel, sources: Sequence[ScanSource], folder: Path, *, workers: int = 2, track: Track = lambda items, _: items
) -> tuple[Outcome, int]:
    """Add scans with their reports and sentences to the search index in `folder`; unusable scans are listed in `failed.csv`.

    Returns:
        The outcome, and the number of entries of the index.

    Raises:
        ValueError: the folder has an index of another model.
    """
    writer = IndexWriter(folder, fingerprint=model.fingerprint)
    todo = [source for source in sources if source.key not in writer.keys]
    failed: list[UnreadableScan] = []
    pending: list[Entry] = []
    done = 0
    try:
        for batch in batches(track(read_ahead(todo, workers=workers), len(todo)), model.batch, failed):
            pending += _entries(model, batch)
            done += len(batch)
            if len(pending) >= _ENTRIES_PER_PART:
                writer.add(pending)
                pending = []
    finally:
        writer.add(pending)
    _write_csv(folder / FAILED, [("scan", "reason"), *failed])
    return Outcome(done, len(sources) - len(todo), tuple(failed)), writer.finish()


def _entries(model: ScanModel, batch: Sequence[tuple[ScanSource, Scan]]) -> list[Entry]:
    vectors = model.embed([scan for _, scan in batch])
    entries = [Entry(source.key, "scan", "", vector) for (source, _), vector in zip(batch, vectors, strict=True)]
    if model.space != JOINT or model.tokenizer is None:
        return entries
    texts = [(source.key, "report", source.report) for source, _ in batch if any(map(str.isalnum, source.report))]
    texts += [(key, "sentence", sentence) for key, _, report in texts for sentence in model.sentences(report)]
    if not texts:
        return entries
    embedded = model.embed_report([text for *_, text in texts])
    return entries + [Entry(*text, vector) for text, vector in zip(texts, embedded, strict=True)]


def write_predictions(
    model: ScanModel,
    sources: Sequence[ScanSource],
    path: Path,
    *,
    columns: Sequence[str],
    predict: Callable[[Sequence[Scan]], Sequence[Sequence[object]]],
    workers: int = 2,
    track: Track = lambda items, _: items,
) -> Outcome:
    """CSV table with one row per scan: key, `columns`, error of an unusable scan, and fingerprint of the model.

    predict: scans -> the values of `columns` of each scan.

    Raises:
        ValueError: the file exists and is not such a table, or is of another model or other columns.
    """
    table = _PredictionTable(path, columns, model.fingerprint[:16])
    todo = [source for source in sources if source.key not in table.rows]
    failed: list[UnreadableScan] = []
    try:
        for batch in batches(track(read_ahead(todo, workers=workers), len(todo)), model.batch, failed):
            values = predict([scan for _, scan in batch])
            table.add({source.key: row for (source, _), row in zip(batch, values, strict=True)})
    finally:
        table.save(failed)
    return Outcome(len(todo) - len(failed), len(sources) - len(todo), tuple(failed))


class _PredictionTable:
    def __init__(self, path: Path, columns: Sequence[str], model: str) -> None:
        self.path, self.header, self.model = path, ("scan", *columns, "error", "model"), model
        self.rows: dict[str, tuple[str, ...]] = {}
        self._saved = time.monotonic()
        if path.exists():
            self._read()

    def _read(self) -> None:
        try:
            with self.path.open(newline="", encoding="utf-8") as stream:
                header, *rows = csv.reader(stream)
        except (ValueError, csv.Error, OSError) as error:
            raise ValueError(
                f"{self.path} is not a table of predictions ({type(error).__name__}). Choose another file."
            ) from error
        if tuple(header) != self.header or any(len(row) != len(header) or row[-1] != self.model for row in rows):
            raise ValueError(f"{self.path} has predictions of another model or other columns. Choose another file, or remove it.")
        self.rows = {row[0]: tuple(row) for row in rows if not row[-2]}

    def add(self, rows: dict[str, Sequence[object]]) -> None:
        self.rows |= {key: (key, *map(str, values), "", self.model) for key, values in rows.items()}
        if time.monotonic() - self._saved > _SAVE_INTERVAL_S:
            self.save([])

    def save(self, failed: Sequence[UnreadableScan]) -> None:
        blank = [""] * (len(self.header) - 3)
        errors = [(key, *blank, reason, self.model) for key, reason in failed]
        _write_csv(self.path, [self.header, *self.rows.values(), *errors])
        self._saved = time.monotonic()


def _write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows(rows)
    write_bytes(path, stream.getvalue().encode())
