"""Random access to the volumes of one index file."""

from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from mg3d.datasets.schema import INDEX_SCHEMA, SCHEMA_VERSION, decode_metadata


class VolumeIndex:
    """One index file and its shards. Opening is lazy, so that it can be handed to loader processes.

    Raises:
        FileNotFoundError: the index or a shard is not there.
        ValueError: a file is cut off, of another program or of another version of the schema.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._shards: dict[str, pa.ipc.RecordBatchFileReader] = {}
        if not path.is_file():
            raise FileNotFoundError(
                f"no Arrow file {path}; make it with `python prepro/prepro_pretraining_data.py "
                f"--ct-rate ROOT --ctrg ROOT --out {path.parent}` (one of the two roots is enough)"
            )

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_shards": {}}

    @cached_property
    def table(self) -> pa.Table:
        """Every row of the index, memory-mapped."""
        reader = _open(self.path)
        version = decode_metadata(reader.schema).get("schema_version")
        missing = [name for name in INDEX_SCHEMA.names if name not in reader.schema.names]
        if version != SCHEMA_VERSION or missing:
            raise ValueError(
                f"{self.path} has schema version {version} and lacks {missing or 'nothing'}; this program reads version "
                f"{SCHEMA_VERSION}. Make it anew with prepro/prepro_pretraining_data.py"
            )
        return reader.read_all()

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Voxels (z, y, x) of every volume."""
        return tuple(decode_metadata(self.table.schema)["shape"])

    def open_shards(self) -> None:
        """Opens every shard, so that a missing or damaged one is told before training, not hours into it."""
        for name in self.table["shard"].unique().to_pylist():
            self._shard(name)

    def __len__(self) -> int:
        return len(self.table)

    def volume(self, row: int) -> np.ndarray:
        """The stored voxels of a row, read-only [z, y, x], int16 HU or uint8 grey."""
        name, place = self.table["shard"][row].as_py(), self.table["shard_row"][row].as_py()
        batch = self._shard(name).get_batch(place)
        if batch["volume_id"][0].as_py() != self.table["volume_id"][row].as_py():
            raise ValueError(f"row {place} of {name} holds another volume than {self.path} says; make both anew")
        return batch["image"].to_numpy_ndarray()[0]

    def _shard(self, name: str) -> pa.ipc.RecordBatchFileReader:
        if name not in self._shards:
            self._shards[name] = _open(self.path.parent / name)
        return self._shards[name]


def _open(path: Path) -> pa.ipc.RecordBatchFileReader:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; prepro/prepro_pretraining_data.py writes again what is missing")
    try:
        return pa.ipc.open_file(pa.memory_map(str(path)))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no complete Arrow file ({error}); remove it and run the preparation again") from error
