"""Search index of embeddings in one folder: exact search, resumable writing, one model per index."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from mg3d.files import remove_partial, replacing
from mg3d.inference.outputs import Neighbour, Neighbours

KINDS = ("scan", "report", "sentence")
COMPLETE = "entries.arrow"
_PARTS = "part-*.arrow"


class Entry(NamedTuple):
    """One embedding and the item it represents."""

    key: str
    """Path of the scan below its folder; a report and its sentences have the key of their scan."""
    kind: str
    """One of `KINDS`."""
    text: str
    """Text of a report or sentence."""
    vector: np.ndarray
    """float32 [E] of unit length."""


class SearchIndex:
    """Embeddings [n, E] of unit length in memory, searched with one matrix product.

    Args:
        fingerprint: of the model that computed them.
    """

    def __init__(self, vectors: np.ndarray, entries: pa.Table, fingerprint: str) -> None:
        self.vectors, self.entries, self.fingerprint = vectors, entries, fingerprint
        kinds = entries["kind"].to_numpy(zero_copy_only=False)
        self.rows_of = {kind: np.flatnonzero(kinds == kind) for kind in KINDS}

    def __len__(self) -> int:
        return len(self.vectors)

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(rows):,} {kind}s" for kind, rows in self.rows_of.items() if len(rows))
        return f"SearchIndex({counts or 'empty'}; dimension {self.vectors.shape[1]})"

    @classmethod
    def load(cls, folder: str | Path) -> "SearchIndex":
        """Load an index of `IndexWriter`, finished or not.

        Raises:
            FileNotFoundError: the folder has no index.
            ValueError: a file is damaged, or the files are of several models.
        """
        table, fingerprint = _read(Path(folder))
        if table is None:
            raise FileNotFoundError(
                f"{folder} has no search index. Make one with `python tools/embed.py SCANS --model MODEL --out {folder}`."
            )
        column = table["vector"].combine_chunks()
        vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)
        return cls(vectors, table.drop_columns("vector"), fingerprint)

    def require(self, fingerprint: str) -> None:
        """Raise ValueError unless the index is of this model."""
        if fingerprint != self.fingerprint:
            raise ValueError(
                "the index was made with another model or other preprocessing. Rebuild it with tools/embed.py, or load its model."
            )

    def require_kind(self, kind: str | None) -> None:
        """Raise ValueError for a kind without entries; None means all kinds."""
        if kind is not None and not len(self.rows_of.get(kind, ())):
            available = ", ".join(name for name, rows in self.rows_of.items() if len(rows))
            raise ValueError(f"the index has no entry of kind {kind!r}. Available: {available or 'none'}.")

    def search(self, queries: np.ndarray, *, k: int = 10, kind: str | None = None) -> list[Neighbours]:
        """The `k` nearest entries (or all, if fewer) of each query [q, E]; ties keep the order of the index.

        Raises:
            ValueError: k is below 1, the queries have another dimension or are not finite, or the kind has no entries.
        """
        if k < 1:
            raise ValueError(f"k={k} must be at least 1")
        if queries.ndim != 2 or queries.shape[1] != self.vectors.shape[1] or not np.isfinite(queries).all():
            raise ValueError(f"expected finite queries [q, {self.vectors.shape[1]}], got an array {list(queries.shape)}")
        self.require_kind(kind)
        similarity = queries.astype(np.float32) @ self.vectors.T
        rows = self.rows_of[kind] if kind else np.arange(len(self))
        return [self._nearest(row[rows], rows, k) for row in similarity]

    def _nearest(self, similarity: np.ndarray, rows: np.ndarray, k: int) -> Neighbours:
        near = np.argsort(-similarity, kind="stable")[:k]
        entries = self.entries.take(rows[near]).to_pylist()
        return Neighbours(
            Neighbour(rank, entry["key"], entry["kind"], float(cosine), entry["text"])
            for rank, (entry, cosine) in enumerate(zip(entries, similarity[near]), start=1)
        )


class IndexWriter:
    """Append entries to the index in a folder. Added entries survive a killed run, and the next run continues after them.

    Raises:
        ValueError: the folder has a damaged index, or one of another model.
    """

    def __init__(self, folder: Path, *, fingerprint: str) -> None:
        self.folder, self.fingerprint = folder, fingerprint
        folder.mkdir(parents=True, exist_ok=True)
        remove_partial(folder)
        table, existing = _read(folder)
        if table is not None and existing != fingerprint:
            raise ValueError(f"{folder} has an index of another model. Choose another folder, or remove it.")
        self.keys: set[str] = set(table["key"].to_pylist()) if table is not None else set()
        self._number = 1 + max((int(path.stem.split("-")[1]) for path in folder.glob(_PARTS)), default=0)

    def add(self, entries: Sequence[Entry]) -> None:
        """Write entries as one part; all entries of a key must be in one call."""
        if not entries:
            return
        vectors = np.stack([entry.vector for entry in entries]).astype(np.float32)
        columns = {name: [getattr(entry, name) for entry in entries] for name in ("key", "kind", "text")}
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        self._write(self.folder / f"part-{self._number:06d}.arrow", pa.table(columns | {"vector": column}))
        self._number += 1
        self.keys.update(columns["key"])

    def finish(self) -> int:
        """Merge all parts into one file; returns the number of entries of the index."""
        table, _ = _read(self.folder)
        if table is None:
            return 0
        parts = list(self.folder.glob(_PARTS))
        if parts:
            self._write(self.folder / COMPLETE, table.combine_chunks())
        for part in parts:
            part.unlink()
        return len(table)

    def _write(self, path: Path, table: pa.Table) -> None:
        table = table.replace_schema_metadata({"mg3d": json.dumps({"fingerprint": self.fingerprint})})
        with replacing(path) as stream, pa.ipc.new_file(stream, table.schema) as writer:
            writer.write_table(table)


def _read(folder: Path) -> tuple[pa.Table | None, str]:
    """All entries, each key once, and the fingerprint; None without an index."""
    paths = [path for path in (folder / COMPLETE, *sorted(folder.glob(_PARTS))) if path.is_file()]
    tables, fingerprints, seen = [], set(), set()
    for path in paths:
        try:
            with pa.memory_map(str(path)) as source:
                table = pa.ipc.open_file(source).read_all()
            fingerprints.add(json.loads(table.schema.metadata[b"mg3d"])["fingerprint"])
            keys = table["key"].to_pylist()
            table = table.select(["key", "kind", "text", "vector"])
        except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged or not part of a search index ({type(error).__name__}). Remove it.") from error
        tables.append(table.filter(pa.array([key not in seen for key in keys])))  # a run killed while merging leaves duplicates
        seen.update(keys)
    if len(fingerprints) > 1:
        raise ValueError(f"{folder} has embeddings of {len(fingerprints)} models. Rebuild the index in an empty folder.")
    return (pa.concat_tables(tables) if tables else None), next(iter(fingerprints), "")
