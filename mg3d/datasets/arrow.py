"""Random access to the volumes of one index file."""

import os
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mg3d.datasets.schema import INDEX_SCHEMA, SCHEMA_VERSION, decode_metadata, index_path
from mg3d.datasets.shard import Shard, open_mapped
from mg3d.datasets.storage import Storage

MOST_OPEN = 200
"""Shards that an index keeps open, two file descriptors each; the one that was not read for longest is closed for another."""


class VolumeIndex:
    """One index file and its shards. Opening is lazy, so that it can be handed to loader processes, forked or spawned.

    Args:
        path: the index file.
        storage: where its shards lie; None = beside it.

    Raises:
        FileNotFoundError: the index or a shard is not there.
        ValueError: a file is cut off, of another program or of another version of the schema.
    """

    def __init__(self, path: Path, storage: Storage | None = None) -> None:
        self.path = path
        self.storage = storage or Storage(path.parent)
        self._shards: OrderedDict[str, Shard] = OrderedDict()
        if not path.is_file():
            raise FileNotFoundError(
                f"no Arrow file {path}; make it with `python prepro/prepro_pretraining_data.py "
                f"--ct-rate ROOT --ctrg ROOT --out {path.parent}` (one of the two roots is enough); "
                "without data, `bash run_scripts/pretrain.sh tiny` trains the small model on synthetic ones"
            )

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "storage": self.storage, "_shards": OrderedDict()}

    @cached_property
    def table(self) -> pa.Table:
        """Every row of the index, memory-mapped."""
        reader, _, file = open_mapped(self.path)
        os.close(file)
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

    @cached_property
    def stored_window_hu(self) -> tuple[float, float] | None:
        """HU that 8-bit voxels store as 0 and 255; None where the index says none."""
        window = decode_metadata(self.table.schema).get("intensity", {}).get("window")
        return None if window is None else tuple(window)

    @cached_property
    def recipe(self) -> dict[str, Any] | None:
        """How the volumes were prepared, step by step; None where the index does not say."""
        return decode_metadata(self.table.schema).get("preproc")

    def open_shards(self) -> None:
        """Opens every shard, so that a missing or damaged one is told before training, not hours into it.

        Of a URL's shards it only asks whether they are there: they are copied when a volume of theirs is first read.
        """
        names = self.table["shard"].unique().to_pylist()
        self.storage.check(names)
        for name in () if self.storage.is_remote else names:
            self._shard(name)

    def __len__(self) -> int:
        return len(self.table)

    def volume(self, row: int) -> np.ndarray:
        """The stored voxels of a row, read-only [z, y, x], int16 HU or uint8; a view of the file where it is not compressed."""
        names, codes, places, ids = self._places
        return self._shard(names[codes[row]]).volume(int(places[row]), ids[row])

    @cached_property
    def _places(self) -> tuple[list[str], np.ndarray, np.ndarray, pa.StringArray]:
        """(names of shards, number of the name, row in the shard and volume id of each row)."""
        coded = self.table["shard"].combine_chunks().dictionary_encode()
        codes, places = coded.indices.to_numpy(), self.table["shard_row"].combine_chunks().to_numpy()
        return coded.dictionary.to_pylist(), codes, places, self.table["volume_id"].combine_chunks()

    def _shard(self, name: str) -> Shard:
        if name not in self._shards:
            self._shards[name] = Shard(self.storage.path(name))
        self._shards.move_to_end(name)
        while len(self._shards) > MOST_OPEN:
            self._shards.popitem(last=False)
        return self._shards[name]


def open_index(storage: Storage, dataset: str, split: str) -> VolumeIndex:
    """The index of one split of a data set; errors as `VolumeIndex` and `Storage`."""
    return VolumeIndex(storage.path(index_path(Path(), dataset, split).name), storage)
