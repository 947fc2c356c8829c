"""One open shard: volumes as views of the mapped file, fetched ahead from a slow disk."""

import mmap
import os
import weakref
from pathlib import Path

import pyarrow as pa

# A loader process has one thread, which also is enough to unpack a volume.
_OPTIONS = pa.ipc.IpcReadOptions(use_threads=False)

_BYTE = [bytearray(1)]


class Shard:
    """A mapped Arrow file of one record batch per volume.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is cut off or no Arrow file.
    """

    def __init__(self, path: Path) -> None:
        reader, self._map, self._file = open_mapped(path)
        self._base = pa.py_buffer(self._map).address
        weakref.finalize(self, os.close, self._file)
        self._map.madvise(mmap.MADV_RANDOM)  # else the system reads megabytes around every page, of volumes not asked for
        self._is_plain = reader.num_record_batches == 0 or self._place(reader.get_batch(0)) is not None
        # Arrow's own map asks for the pages of what it reads, which a packed volume needs at once.
        self._reader = reader if self._is_plain else pa.ipc.open_file(pa.memory_map(str(path)), options=_OPTIONS)

    def row(self, place: int) -> pa.RecordBatch:
        """One row, volume_id and image; of an uncompressed file nothing is copied."""
        row = self._reader.get_batch(place)
        if self._is_plain:
            self._fetch_ahead(*self._place(row))
        return row

    def _place(self, row: pa.RecordBatch) -> tuple[int, int] | None:
        """(offset, bytes) of a row's voxels in the file; None where they have been unpacked."""
        voxels = row.column(1).storage.buffers()[-1]
        offset = voxels.address - self._base
        return (offset, voxels.size) if 0 <= offset < len(self._map) else None

    def _fetch_ahead(self, offset: int, size: int) -> None:
        """Asks for all pages of a volume at once where they are not in memory: faults one after another would take half as long
        again. To ask always would cost a tenth of the copy."""
        try:
            os.preadv(self._file, _BYTE, offset + size // 2, os.RWF_NOWAIT)
        except OSError:  # not in memory, or a file system that cannot tell
            start = offset - offset % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, start, offset + size - start)


def open_mapped(path: Path) -> tuple[pa.ipc.RecordBatchFileReader, mmap.mmap, int]:
    """(reader, map, file descriptor) of a complete Arrow file; errors as `Shard`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; prepro/prepro_pretraining_data.py writes again what is missing")
    file = os.open(path, os.O_RDONLY)
    try:
        mapped = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
        return pa.ipc.open_file(pa.py_buffer(mapped), options=_OPTIONS), mapped, file
    except (pa.ArrowInvalid, ValueError) as error:
        os.close(file)
        raise ValueError(f"{path} is no complete Arrow file ({error}); remove it and run the preparation again") from error
