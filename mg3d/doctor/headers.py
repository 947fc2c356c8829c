"""Quick check of every raw NIfTI file by two short reads: its header, and checksum and size at the end of its gzip stream.

Cheap enough for all of CT-RATE; suspicious files are then read completely.
"""

import math
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

from mg3d.doctor.catalog import RawVolumeSource
from mg3d.preparation.geometry import SPACING_MM
from mg3d.preparation.readers.nifti import is_blank

_READ_BYTES = 1 << 14
_HEADER_BYTES = 348


class FileHeader(NamedTuple):
    """Empty if the file is not a readable `.nii.gz`."""

    shape: tuple[int, ...] = ()
    """x y z as stored."""
    spacing_mm: tuple[float, ...] = ()
    """x y z; empty for a blank header."""
    axes: str = ""
    """Directions of the stored axes, e.g. LPS; empty for a blank header."""
    is_complete: bool = False
    """Whether the uncompressed size at the end of the file matches the header."""
    checksum: tuple[int, int] = (0, 0)
    """CRC-32 and size of the uncompressed content."""


def read_file_headers(sources: Sequence[RawVolumeSource], threads: int = 8) -> Iterator[FileHeader]:
    """The header of each source's file, in order."""
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(lambda source: read_file_header(source.root / source.record.files[0]), sources)


def read_file_header(path: Path) -> FileHeader:
    """The header of one `.nii.gz`."""
    if not path.name.endswith(".nii.gz"):
        return FileHeader()
    try:
        with path.open("rb") as stream:
            start = stream.read(_READ_BYTES)
            stream.seek(-8, 2)
            checksum = struct.unpack("<II", stream.read(8))
        raw = zlib.decompressobj(31).decompress(start, _HEADER_BYTES + 4)
        header = nib.Nifti1Header.from_fileobj(BytesIO(raw), check=False)
        shape = tuple(int(length) for length in header.get_data_shape())
        size = int(header.get_data_offset()) + math.prod(shape) * header.get_data_dtype().itemsize
        affine = None if is_blank(header) else header.get_best_affine()
        spacing = () if affine is None else tuple(float(value) for value in nib.affines.voxel_sizes(affine))
        axes = "" if affine is None or not np.isfinite(affine).all() else "".join(map(str, nib.aff2axcodes(affine)))
    except (OSError, ValueError, zlib.error, struct.error, nib.spatialimages.HeaderDataError, nib.wrapstruct.WrapStructError):
        return FileHeader()
    return FileHeader(shape, spacing, axes, checksum[1] == size % (1 << 32), checksum)


def most_common_axes(headers: Mapping[int, FileHeader]) -> str:
    """The most common orientation; empty without any."""
    counts = Counter(header.axes for header in headers.values() if header.axes)
    return max(sorted(counts), key=counts.get) if counts else ""


def suspicious_rows(sources: Sequence[RawVolumeSource], headers: Mapping[int, FileHeader]) -> list[int]:
    """Rows whose file should be read: an implausible header, one that contradicts the table, or a checksum that occurs twice."""
    counts, axes = Counter(header.checksum for header in headers.values() if header.shape), most_common_axes(headers)
    return [
        row
        for row, header in headers.items()
        if counts[header.checksum] > 1 or _is_suspicious(sources[row], header) or header.axes not in {"", axes}
    ]


def _is_suspicious(source: RawVolumeSource, header: FileHeader) -> bool:
    file, table = source.record.files[0], source.record.table
    if not file.endswith(".nii.gz"):
        return False
    if len(header.shape) != 3 or not header.is_complete:
        return True
    if table is not None:
        if not np.isfinite(table.spacing_zyx_mm).all():
            return True
        if any(found != listed for found, listed in zip(header.shape[::-1], table.shape_zyx) if not math.isnan(listed)):
            return True
    if file.split("/")[0] in {"train", "valid"} and header.axes:  # volumes of the first release have blank headers
        return True
    return not all(SPACING_MM[0] <= size <= SPACING_MM[1] for size in header.spacing_mm)
