"""A glance at every NIfTI file: its header and the last eight bytes of its gzip, which tell size and sum of what is inside.

It costs two short reads per file, so that all of CT-RATE can be looked at; what looks wrong is then read in full.
"""

import math
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

from mg3d.doctor.catalogue import RawPlace
from mg3d.preparation.geometry import SPACING_MM
from mg3d.preparation.readers.nifti import is_blank

HEAD_BYTES = 1 << 14
HEADER_BYTES = 348


class Head(NamedTuple):
    """What a file says of itself."""

    shape: tuple[int, ...] = ()
    """x y z as stored; empty = could not be read."""
    spacing_mm: tuple[float, ...] = ()
    """x y z; empty = the header is blank."""
    axes: str = ""
    """Where the stored axes run to, e.g. LPS; empty = the header is blank."""
    sound_size: bool = False
    """Whether the gzip's size is the one that the header tells."""
    content: tuple[int, int] = (0, 0)
    """Sum (CRC-32) and size of what is inside."""


def probe_all(places: Sequence[RawPlace], threads: int = 8) -> Iterator[Head]:
    """The heads of the places' files, in order; an empty one for what is no NIfTI file."""
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(lambda place: probe(place.root / place.record.files[0]), places)


def probe(path: Path) -> Head:
    """The head of one `.nii.gz`; empty when it has none."""
    if not path.name.endswith(".nii.gz"):
        return Head()
    try:
        with path.open("rb") as stream:
            start = stream.read(HEAD_BYTES)
            stream.seek(-8, 2)
            content = struct.unpack("<II", stream.read(8))
        raw = zlib.decompressobj(31).decompress(start, HEADER_BYTES + 4)
        header = nib.Nifti1Header.from_fileobj(BytesIO(raw), check=False)
        shape = tuple(int(length) for length in header.get_data_shape())
        expected = int(header.get_data_offset()) + math.prod(shape) * header.get_data_dtype().itemsize
        affine = None if is_blank(header) else header.get_best_affine()
        spacing = () if affine is None else tuple(float(size) for size in nib.affines.voxel_sizes(affine))
        axes = "" if affine is None or not np.isfinite(affine).all() else "".join(map(str, nib.aff2axcodes(affine)))
    except (OSError, ValueError, zlib.error, struct.error, nib.spatialimages.HeaderDataError, nib.wrapstruct.WrapStructError):
        return Head()
    return Head(shape, spacing, axes, content[1] == expected % (1 << 32), content)


def suspects(places: Sequence[RawPlace], heads: Sequence[Head]) -> list[int]:
    """Places whose file should be read in full: heads that are strange, contradict the table, or are of equal content."""
    equal = defaultdict(list)
    for number, head in enumerate(heads):
        if head.shape:
            equal[head.content].append(number)
    twins = {number for group in equal.values() if len(group) > 1 for number in group}
    usual = usual_axes(heads)
    return [
        number
        for number, (place, head) in enumerate(zip(places, heads))
        if number in twins or _is_strange(place, head) or (head.axes and head.axes != usual)
    ]


def usual_axes(heads: Sequence[Head]) -> str:
    """The most frequent orientation."""
    known = [head.axes for head in heads if head.axes]
    return max(sorted(set(known)), key=known.count) if known else ""


def _is_strange(place: RawPlace, head: Head) -> bool:
    table, tree = place.record.table, place.record.files[0].split("/")[0]
    if not place.record.files[0].endswith(".nii.gz"):
        return False
    if len(head.shape) != 3 or not head.sound_size:
        return True
    told = () if table is None else table.shape_zyx
    if any(said != there for said, there in zip(told, head.shape[::-1]) if not math.isnan(said)):
        return True
    if table is not None and not np.isfinite(table.spacing_zyx_mm).all():
        return True
    if tree in {"train", "valid"} and head.axes:  # the first release has blank headers
        return True
    return not all(SPACING_MM[0] <= size <= SPACING_MM[1] for size in head.spacing_mm)
