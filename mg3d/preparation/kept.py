"""Rows that an earlier run stored: taken over into a shard that is written anew, so that no volume is read twice.

Every record batch of a shard carries what the index says of its volume, so that a shard without its sidecar, or one that was cut
off by a kill, still gives all its whole rows.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mg3d.datasets.schema import decode_metadata

FACTS = b"mg3d.facts"
_MAGIC_BYTES = 8
"""What an Arrow file has before the stream of its batches."""


def encode_facts(facts: Mapping[str, Any]) -> dict[bytes, bytes]:
    """What a batch carries of its volume."""
    return {FACTS: json.dumps(facts, sort_keys=True).encode()}


class KeptRows:
    """The sound rows of one file of a shard, whole or cut off, that were made by the preprocessing `preproc_hash`."""

    def __init__(self, path: Path, preproc_hash: str) -> None:
        self.path, self.preproc_hash = path, preproc_hash
        self.facts: dict[str, tuple[int, dict[str, Any]]] = {}
        """Volume id -> place in the file and what its batch says."""
        for place, (volume_id, facts, batch) in enumerate(self._batches()):
            if hashlib.sha256(_voxels(batch)).hexdigest() == facts.get("image_sha256"):
                self.facts[volume_id] = (place, facts)
        self._place, self._rest = 0, self._batches()

    def voxels(self, volume_id: str) -> np.ndarray:
        """Stored voxels [z, y, x], read-only. Fast when asked for in the order of the file."""
        place, _ = self.facts[volume_id]
        if place < self._place:
            self._place, self._rest = 0, self._batches()
        _, _, batch = next(islice(self._rest, place - self._place, None))
        self._place = place + 1
        return _voxels(batch)

    def _batches(self) -> Iterator[tuple[str, dict[str, Any], pa.RecordBatch]]:
        try:
            source = pa.memory_map(str(self.path))
            source.seek(_MAGIC_BYTES)
            reader = pa.ipc.open_stream(source)
            if decode_metadata(reader.schema).get("preproc_hash") != self.preproc_hash:
                return
            while True:
                batch, metadata = reader.read_next_batch_with_custom_metadata()
                yield batch["volume_id"][0].as_py(), json.loads(metadata[FACTS]), batch
        except (OSError, pa.ArrowException, StopIteration, ValueError, KeyError, TypeError, IndexError):
            return  # its end, or where it is cut off or damaged


def _voxels(batch: pa.RecordBatch) -> np.ndarray:
    return batch["image"].to_numpy_ndarray()[0]
