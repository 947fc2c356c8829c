"""Whether the raw files of a volume are still those that it was made from: told by size, time and pieces, not by reading all."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mg3d.preparation.records import VolumeRecord

PIECE_BYTES = 4096
PIECES, LEAST_PIECES = 16, 3
"""Of a volume that is one file, and of each file of one that has many; they lie evenly from the first byte to the last."""


def fingerprint(record: VolumeRecord, root: Path) -> dict[str, Any] | None:
    """What is kept of a volume's raw files: their number, bytes, and a sum of pieces of them. None: they cannot be looked at.

    No time is in it, so that copies of the same files give the same shards.
    """
    try:
        files = _files(record, root)
        stats = [path.stat() for path in files]
        return {**_size(stats), "pieces": _pieces(files, stats)} if files else None
    except OSError:
        return None


def exchanged(record: VolumeRecord, root: Path, known: Mapping[str, Any] | None, since_ns: int | None = None) -> bool:
    """Whether the raw files of a volume are others than those of the fingerprint `known`.

    Without a fingerprint nothing is known, and files that are gone, or fewer than before, were removed: False.

    Args:
        record: the volume.
        root: what its files are relative to.
        known: see `fingerprint`.
        since_ns: files of the same size that were last written or put in place before this time are taken for the same, unread.
    """
    if not known:
        return False
    try:
        files = _files(record, root)
        stats = [path.stat() for path in files]
        size = _size(stats)
        if size["files"] < known["files"]:
            return False
        if any(known[name] != value for name, value in size.items()):
            return True
        if since_ns is not None and all(max(found.st_mtime_ns, found.st_ctime_ns) < since_ns for found in stats):
            return False
        return _pieces(files, stats) != known["pieces"]
    except OSError:
        return False


def _files(record: VolumeRecord, root: Path) -> list[Path]:
    """The files of a record; those of a DICOM series in the order of their paths."""
    places = [root / name for name in record.files]
    if record.reader != "dicom":
        return places
    found = (path for place in places for path in place.rglob("*") if path.is_file())
    return sorted(path for path in found if path.name != "DICOMDIR" and not path.name.startswith("."))


def _size(stats: Sequence[os.stat_result]) -> dict[str, int]:
    return {"files": len(stats), "bytes": sum(found.st_size for found in stats)}


def _pieces(files: Sequence[Path], stats: Sequence[os.stat_result]) -> str:
    """The last piece of a `.gz` holds the checksum of all that was compressed."""
    total = hashlib.blake2b(digest_size=8)
    count = max(LEAST_PIECES, PIECES // len(files))
    for path, found in zip(files, stats):
        last = max(found.st_size - PIECE_BYTES, 0)
        with path.open("rb", buffering=0) as stream:
            for place in sorted({last * number // (count - 1) for number in range(count)}):
                stream.seek(place)
                total.update(stream.read(PIECE_BYTES))
    return total.hexdigest()
