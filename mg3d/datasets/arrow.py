"""Random access to prepared volumes: index files, and the shards that hold the voxels."""

import mmap
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mg3d.datasets.schema import SCHEMA_VERSION, decode_metadata, index_path
from mg3d.datasets.storage import Storage
from mg3d.files import raise_open_file_limit

MAX_OPEN_SHARDS = 200
"""Size of the LRU cache of open shards; each shard holds a file descriptor."""


class VolumeIndex:
    """Index file of one split and its memory-mapped shards. Opened lazily, so it can be pickled into data-loader workers.

    Args:
        path: index file.
        storage: folder or URL of the shards; default: the folder of the index file.

    Raises:
        FileNotFoundError: the index file or a shard does not exist.
        ValueError: a file is truncated, is not an Arrow file, or has a different schema version.
    """

    def __init__(self, path: Path, storage: Storage | None = None) -> None:
        raise_open_file_limit()
        self.path = path
        self.storage = storage or Storage(path.parent)
        self._shards: OrderedDict[str, pa.ipc.RecordBatchFileReader] = OrderedDict()
        if not path.is_file():
            others = ", ".join(sorted(other.name for other in path.parent.glob("clm_*_train.arrow")))
            raise FileNotFoundError(
                f"{path} does not exist."
                + (f" The folder contains {others}: select data sets with datasets=['NAME']." if others else "")
                + " Create it with `python prepro/prepro_pretraining_data.py --ct-rate ROOT --ctrg ROOT "
                f"--out {path.parent}`, or train on synthetic data with `bash run_scripts/pretrain.sh tiny`"
            )

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "storage": self.storage, "_shards": OrderedDict()}

    @cached_property
    def table(self) -> pa.Table:
        """All rows of the index, memory-mapped."""
        reader = open_arrow(self.path)
        version = decode_metadata(reader.schema).get("schema_version")
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"{self.path} has schema version {version}; this version of mg3d reads {SCHEMA_VERSION}. "
                "Rerun prepro/prepro_pretraining_data.py"
            )
        return reader.read_all()

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """Metadata of the index file, see `schema.encode_metadata`."""
        return decode_metadata(self.table.schema)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels (z, y, x) of every volume."""
        return tuple(self.metadata["shape"])

    @property
    def stored_window_hu(self) -> tuple[float, float] | None:
        """HU stored as 0 and 255 in 8-bit volumes; None if the index does not say."""
        window = self.metadata.get("intensity", {}).get("window")
        return None if window is None else tuple(window)

    @property
    def recipe(self) -> dict[str, Any] | None:
        """Preprocessing steps and their parameters; None if the index does not say."""
        return self.metadata.get("preproc")

    def open_shards(self) -> None:
        """Open every shard, so that missing or truncated files fail before training starts.

        Shards behind a URL are only checked for existence; they are downloaded when first read.
        """
        names = self.table["shard"].unique().to_pylist()
        self.storage.check(names)
        for name in () if self.storage.is_remote else names:
            self._shard(name)

    def __len__(self) -> int:
        return len(self.table)

    def volume(self, row: int) -> np.ndarray:
        """Stored voxels [z, y, x] of a row, int16 HU or uint8; a read-only view of the mapped file unless it is compressed.

        Raises:
            ValueError: the shard holds another volume there.
        """
        names, codes, shard_rows, ids = self._locations
        name, shard_row, volume_id = names[codes[row]], int(shard_rows[row]), ids[row].as_py()
        batch = self._shard(name).get_batch(shard_row)
        if batch.column(0)[0].as_py() != volume_id:
            raise ValueError(
                f"row {shard_row} of {self.storage}/{name} is not {volume_id}: the index is stale. Rerun the preparation"
            )
        return batch.column(1).to_numpy_ndarray()[0]

    @cached_property
    def _locations(self) -> tuple[list[str], np.ndarray, np.ndarray, pa.StringArray]:
        """(shard names, and for each row: index of its shard's name, row in the shard, volume id).

        Arrays rather than lists: they stay in memory that all workers share.
        """
        coded = self.table["shard"].combine_chunks().dictionary_encode()
        shard_rows = self.table["shard_row"].combine_chunks().to_numpy()
        return coded.dictionary.to_pylist(), coded.indices.to_numpy(), shard_rows, self.table["volume_id"].combine_chunks()

    def _shard(self, name: str) -> pa.ipc.RecordBatchFileReader:
        """The mapped shard: an Arrow file with one record batch per volume."""
        if name not in self._shards:
            self._shards[name] = open_arrow(self.storage.path(name))
        self._shards.move_to_end(name)
        while len(self._shards) > MAX_OPEN_SHARDS:
            self._shards.popitem(last=False)
        return self._shards[name]


def open_arrow(path: Path) -> pa.ipc.RecordBatchFileReader:
    """Memory-maps a complete Arrow IPC file. Single-threaded, since every loader worker has one core.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is truncated or not an Arrow file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. Rerun prepro/prepro_pretraining_data.py; it writes only what is missing")
    try:
        # Ten times faster per volume than pa.memory_map, which advises the kernel about every range it reads.
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return pa.ipc.open_file(pa.py_buffer(mapped), options=pa.ipc.IpcReadOptions(use_threads=False))
    except (pa.ArrowInvalid, ValueError) as error:
        raise ValueError(f"{path} is not a complete Arrow file ({error}). Delete it and rerun the preparation") from error


def open_index(storage: Storage, dataset: str, split: str) -> VolumeIndex:
    """The index of one split of a data set; errors as `VolumeIndex` and `Storage`."""
    return VolumeIndex(storage.path(index_path(Path(), dataset, split).name), storage)
