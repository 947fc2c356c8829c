"""A search index of embeddings in one folder: exact, resumable, of one model."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from mg3d.files import remove_partial, replacing
from mg3d.inference.results import Neighbour, Neighbours

KINDS = ("scan", "report", "sentence")
WHOLE = "entries.arrow"
_PARTS = "part-*.arrow"


class Entry(NamedTuple):
    """One embedding and what it stands for."""

    key: str
    """Of a scan the path below its folder; a report and its sentences have that of their scan."""
    kind: str
    """One of KINDS."""
    text: str
    """Of a report or sentence."""
    vector: np.ndarray
    """float32 [E] of length 1."""


class SearchIndex:
    """Embeddings [n, E] of length 1 in memory, searched by one matrix product.

    Args:
        fingerprint: of the model that made them.
    """

    def __init__(self, vectors: np.ndarray, entries: pa.Table, fingerprint: str) -> None:
        self.vectors, self.entries, self.fingerprint = vectors, entries, fingerprint
        kinds = entries["kind"].to_numpy(zero_copy_only=False)
        self.rows_of = {kind: np.flatnonzero(kinds == kind) for kind in KINDS}

    def __len__(self) -> int:
        return len(self.vectors)

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(rows):,} of kind {kind}" for kind, rows in self.rows_of.items() if len(rows))
        return f"SearchIndex({counts or 'empty'}; {self.vectors.shape[1]} numbers each)"

    @classmethod
    def load(cls, folder: str | Path) -> "SearchIndex":
        """The index that `IndexWriter` wrote, finished or not.

        Raises:
            FileNotFoundError: there is none.
            ValueError: a file of it is damaged, or they are of more than one model.
        """
        table, fingerprint = _read(Path(folder))
        if table is None:
            raise FileNotFoundError(
                f"{folder} holds no search index; make one with `python tools/embed.py SCANS --model MODEL --out {folder}`"
            )
        column = table["vector"].combine_chunks()
        width = column.type.list_size
        vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        return cls(vectors, table.drop_columns("vector"), fingerprint)

    def require(self, fingerprint: str) -> None:
        """Refuses to be searched with embeddings of another model."""
        if fingerprint != self.fingerprint:
            raise ValueError(
                "the index was made by another model, or with other preprocessing, so that distances would mean nothing; make it "
                "anew with tools/embed.py, or load the model that made it"
            )

    def require_kind(self, kind: str | None) -> None:
        """Refuses (ValueError) a kind that no entry has; None stands for all."""
        if kind is not None and not len(self.rows_of.get(kind, ())):
            there = ", ".join(name for name, rows in self.rows_of.items() if len(rows))
            raise ValueError(f"the index has no entry of kind {kind!r}, only {there or 'nothing'}")

    def search(self, queries: np.ndarray, *, k: int = 10, kind: str | None = None) -> list[Neighbours]:
        """The `k` nearest entries of each row of queries [q, E], or all where there are fewer; ties in the order of the index.

        Raises:
            ValueError: k below 1, another width, numbers that are not finite, or a kind that is not there.
        """
        if k < 1:
            raise ValueError(f"k is {k}, expected at least 1")
        if queries.ndim != 2 or queries.shape[1] != self.vectors.shape[1] or not np.isfinite(queries).all():
            raise ValueError(f"expected finite queries [q, {self.vectors.shape[1]}], found an array {list(queries.shape)}")
        self.require_kind(kind)
        similarity = queries.astype(np.float32) @ self.vectors.T
        rows = self.rows_of[kind] if kind else np.arange(len(self))
        return [self._nearest(row[rows], rows, k) for row in similarity]

    def _nearest(self, similarity: np.ndarray, rows: np.ndarray, k: int) -> Neighbours:
        k = min(k, len(rows))
        # Everything at least as near as the k-th, so that the order among equals does not depend on the partition.
        least = np.partition(similarity, len(rows) - k)[len(rows) - k]
        near = np.flatnonzero(similarity >= least)
        near = near[np.argsort(-similarity[near], kind="stable")][:k]
        told = self.entries.take(rows[near]).to_pylist()
        pairs = zip(told, similarity[near])
        return Neighbours(
            tuple(
                Neighbour(place, entry["key"], entry["kind"], float(cosine), entry["text"])
                for place, (entry, cosine) in enumerate(pairs, start=1)
            )
        )


class IndexWriter:
    """Adds entries to the index in a folder; what was added is there when a run is killed, and the next goes on after it.

    Raises:
        ValueError: the folder holds an index of another model, or is damaged.
    """

    def __init__(self, folder: Path, *, fingerprint: str) -> None:
        self.folder, self.fingerprint = folder, fingerprint
        folder.mkdir(parents=True, exist_ok=True)
        remove_partial(folder)
        table, found = _read(folder)
        if table is not None and found != fingerprint:
            raise ValueError(f"{folder} holds an index of another model; name another folder, or remove it")
        self.keys: set[str] = set(table["key"].to_pylist()) if table is not None else set()
        self._number = 1 + max((int(path.stem.split("-")[1]) for path in folder.glob(_PARTS)), default=0)

    def add(self, entries: Sequence[Entry]) -> None:
        """Writes entries as one part; all entries of a key belong into one call."""
        if not entries:
            return
        vectors = np.stack([entry.vector for entry in entries]).astype(np.float32)
        columns = {name: [getattr(entry, name) for entry in entries] for name in ("key", "kind", "text")}
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        self._write(self.folder / f"part-{self._number:06d}.arrow", pa.table(columns | {"vector": column}))
        self._number += 1
        self.keys.update(columns["key"])

    def finish(self) -> int:
        """Makes one file of all parts; returns how many entries the index holds."""
        table, _ = _read(self.folder)
        if table is None:
            return 0
        parts = list(self.folder.glob(_PARTS))
        if parts:
            self._write(self.folder / WHOLE, table.combine_chunks())
        for part in parts:
            part.unlink()
        return len(table)

    def _write(self, path: Path, table: pa.Table) -> None:
        table = table.replace_schema_metadata({"mg3d": json.dumps({"fingerprint": self.fingerprint})})
        with replacing(path) as stream, pa.ipc.new_file(stream, table.schema) as writer:
            writer.write_table(table)


def _read(folder: Path) -> tuple[pa.Table | None, str]:
    """All entries, each key once, and the fingerprint; None where there is no index."""
    paths = [path for path in (folder / WHOLE, *sorted(folder.glob(_PARTS))) if path.is_file()]
    tables, found, seen = [], set(), set()
    for path in paths:
        try:
            with pa.memory_map(str(path)) as source:
                table = pa.ipc.open_file(source).read_all()
            found.add(json.loads(table.schema.metadata[b"mg3d"])["fingerprint"])
            keys = table["key"].to_pylist()
            table = table.select(["key", "kind", "text", "vector"])
        except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged or no part of a search index ({type(error).__name__}); remove it") from error
        new = _not_in(keys, seen)
        tables.append(table if all(new) else table.filter(pa.array(new)))  # a run was killed while it joined the parts
        seen.update(keys)
    if len(found) > 1:
        raise ValueError(f"{folder} holds embeddings of {len(found)} models; make the index anew in an empty folder")
    return (pa.concat_tables(tables) if tables else None), next(iter(found), "")


def _not_in(keys: Iterable[str], seen: set[str]) -> list[bool]:
    return [key not in seen for key in keys]
