"""One open shard: volumes as views of the mapped file, fetched ahead from a slow disk."""

import mmap
import os
import weakref
from array import array
from pathlib import Path

import numpy as np
import pyarrow as pa

# A loader process has one thread, which also is enough to unpack a volume.
_OPTIONS = pa.ipc.IpcReadOptions(use_threads=False)

_BYTE = [bytearray(1)]
UNKNOWN = -1


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
        image = reader.schema.field("image").type
        self.shape, self._kind = tuple(image.shape), np.dtype(image.value_type.to_pandas_dtype())
        self._offsets = array("q", [UNKNOWN]) * reader.num_record_batches
        """Where each volume begins in the file, as far as it has been read."""
        is_plain = reader.num_record_batches == 0 or self._offset(reader.get_batch(0)) != UNKNOWN
        # Arrow's own map asks for the pages of what it reads, which a packed volume needs at once.
        self._reader = reader if is_plain else pa.ipc.open_file(pa.memory_map(str(path)), options=_OPTIONS)
        self.path = path

    def volume(self, place: int, volume_id: pa.StringScalar) -> np.ndarray:
        """Voxels [z, y, x] of a row, read-only; of an uncompressed file nothing is copied.

        Raises:
            ValueError: the row is another volume's, which is looked at when it is first read.
        """
        offset = self._offsets[place]
        if offset == UNKNOWN:  # to ask Arrow every time would take a tenth as long as the copy
            row = self._reader.get_batch(place)
            if not row.column(0)[0].equals(volume_id):
                raise ValueError(f"row {place} of {self.path} holds another volume than the index says; make both anew")
            offset = self._offsets[place] = self._offset(row)
            if offset == UNKNOWN:
                return row.column(1).to_numpy_ndarray()[0]
        voxels = np.ndarray(self.shape, self._kind, self._map, offset)
        self._fetch_ahead(offset, voxels.nbytes)
        return voxels

    def _offset(self, row: pa.RecordBatch) -> int:
        """Where a row's voxels begin in the file; UNKNOWN where they have been unpacked."""
        voxels = row.column(1).storage.buffers()[-1]
        offset = voxels.address - self._base
        return offset if 0 <= offset < len(self._map) else UNKNOWN

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
