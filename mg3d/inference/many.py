"""Answers for many scans, into files that a killed run leaves whole and the next run goes on with."""

import csv
import io
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mg3d.files import write_bytes
from mg3d.inference.index import Entry, IndexWriter
from mg3d.inference.model import JOINT, ScanModel
from mg3d.inference.scans import Scan
from mg3d.inference.sources import Item, SetAside, batches, read_ahead

Track = Callable[[Iterable, int], Iterator]
"""Passes items on and shows how far it is; the second argument is how many there are."""
SET_ASIDE = "set_aside.csv"
_ENTRIES_A_PART = 512
_SAVE_EVERY_S = 30.0


class Outcome(NamedTuple):
    """What became of the scans."""

    new: int
    before: int
    """Done by an earlier run."""
    set_aside: tuple[SetAside, ...]

    def __str__(self) -> str:
        told = f"{self.new:,} scans done, {self.before:,} were there"
        return told + (f", {len(self.set_aside):,} set aside (tried again by the next run)" if self.set_aside else "")


def embed_all(
    model: ScanModel, items: Sequence[Item], folder: Path, *, workers: int = 2, track: Track = lambda items, _: items
) -> tuple[Outcome, int]:
    """Adds scans, and the reports and sentences known with them, to the search index in `folder`.

    Scans that cannot be used are listed in `set_aside.csv`. A report without a word counts as none.

    Returns:
        What became of the scans, and how many entries the index holds.

    Raises:
        ValueError: the folder holds an index of another model.
    """
    writer = IndexWriter(folder, fingerprint=model.fingerprint)
    todo = [item for item in items if item.key not in writer.keys]
    set_aside: list[SetAside] = []
    held: list[Entry] = []
    done = 0
    try:
        for batch in batches(track(read_ahead(todo, workers=workers), len(todo)), model.batch, set_aside):
            held += _entries(model, batch)
            done += len(batch)
            if len(held) >= _ENTRIES_A_PART:
                writer.add(held)
                held = []
    finally:
        writer.add(held)
    _write_csv(folder / SET_ASIDE, [("scan", "reason"), *set_aside])
    return Outcome(done, len(items) - len(todo), tuple(set_aside)), writer.finish()


def _entries(model: ScanModel, batch: Sequence[tuple[Item, Scan]]) -> list[Entry]:
    vectors = model.embed([scan for _, scan in batch])
    entries = [Entry(item.key, "scan", "", vector) for (item, _), vector in zip(batch, vectors, strict=True)]
    if model.space != JOINT or model.tokenizer is None:
        return entries
    texts = [(item.key, "report", item.report) for item, _ in batch if any(map(str.isalnum, item.report))]
    texts += [(key, "sentence", sentence) for key, _, report in texts for sentence in model.sentences(report)]
    if not texts:
        return entries
    embedded = model.embed_report([text for *_, text in texts])
    return entries + [Entry(*text, vector) for text, vector in zip(texts, embedded, strict=True)]


def answer_all(
    model: ScanModel,
    items: Sequence[Item],
    path: Path,
    *,
    columns: Sequence[str],
    ask: Callable[[Sequence[Scan]], Sequence[Sequence[object]]],
    workers: int = 2,
    track: Track = lambda items, _: items,
) -> Outcome:
    """A CSV table with one row per scan: its key, `columns`, why it was set aside, and the model's fingerprint.

    ask: scans -> a value of each column for each of them.

    Raises:
        ValueError: the file is no such table, or one of another model or of other columns.
    """
    table = _AnswerTable(path, columns, model.fingerprint[:16])
    todo = [item for item in items if item.key not in table.rows]
    set_aside: list[SetAside] = []
    try:
        for batch in batches(track(read_ahead(todo, workers=workers), len(todo)), model.batch, set_aside):
            values = ask([scan for _, scan in batch])
            table.add({item.key: row for (item, _), row in zip(batch, values, strict=True)})
    finally:
        table.save(set_aside)
    return Outcome(len(todo) - len(set_aside), len(items) - len(todo), tuple(set_aside))


class _AnswerTable:
    def __init__(self, path: Path, columns: Sequence[str], mark: str) -> None:
        self.path, self.head, self.mark = path, ("scan", *columns, "set_aside", "model"), mark
        self.rows: dict[str, tuple[str, ...]] = {}
        self._saved = time.monotonic()
        if path.exists():
            self._read()

    def _read(self) -> None:
        try:
            with self.path.open(newline="", encoding="utf-8") as stream:
                head, *rows = csv.reader(stream)
        except (ValueError, csv.Error, OSError) as error:
            raise ValueError(f"{self.path} is no table of answers ({type(error).__name__}); name another file") from error
        if tuple(head) != self.head or any(len(row) != len(head) or row[-1] != self.mark for row in rows):
            raise ValueError(f"{self.path} holds answers of another model or to other questions; name another file, or remove it")
        self.rows = {row[0]: tuple(row) for row in rows if not row[-2]}

    def add(self, rows: dict[str, Sequence[object]]) -> None:
        self.rows |= {key: (key, *map(str, values), "", self.mark) for key, values in rows.items()}
        if time.monotonic() - self._saved > _SAVE_EVERY_S:
            self.save([])

    def save(self, set_aside: Sequence[SetAside]) -> None:
        blank = [""] * (len(self.head) - 3)
        failed = [(key, *blank, reason, self.mark) for key, reason in set_aside]
        _write_csv(self.path, [self.head, *self.rows.values(), *failed])
        self._saved = time.monotonic()


def _write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows(rows)
    write_bytes(path, stream.getvalue().encode())


def numbers(values: Iterable[float]) -> list[str]:
    """Numbers as a table holds them."""
    return [np.format_float_positional(value, precision=6, trim="0") for value in values]
