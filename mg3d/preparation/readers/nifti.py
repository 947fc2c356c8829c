"""NIfTI volumes in Hounsfield units, or in scanner values that a metadata table turns into them."""

import math
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from typing import IO

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from mg3d.preparation import geometry
from mg3d.preparation.hounsfield import choose_hu_rescale
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.records import RawVolume, VolumeRecord

MAX_BYTES = 3 * 10**9
"""Of a volume's voxels as the file stores them; 512 x 512 x 600 of eight bytes are 1.26 GB."""
MAX_AXIS = 4096
_GZIP = b"\x1f\x8b"
_MOST_PER_BYTE = 1032  # what deflate makes of one byte at the very best
_HEAD = 540
_MAX_START = 1 << 24
_SLACK = 1 << 16
_PIECE = 1 << 24


def read_ct(record: VolumeRecord, root: Path) -> RawVolume:
    """The volume of one `.nii` or `.nii.gz` in HU.

    Raises:
        Refusal: the file cannot be read, contradicts the metadata, or its air lies nowhere near -1000 HU.
    """
    stored, affine = read_nifti(root / record.files[0])
    table = record.table
    # The header of such a volume was made from the same table: what it says in z is not to be trusted.
    if table is not None and math.isnan(table.spacing_zyx_mm[0]):
        raise Refusal("nan_spacing", "the metadata's ZSpacing is not a number")
    if table is not None:
        found, expected = stored.shape[::-1], table.shape_zyx
        if any(there != said for there, said in zip(found, expected) if not math.isnan(said)):
            sizes = ("x".join(f"{length:g}" for length in lengths) for lengths in (found, expected))
            raise Refusal("shape_mismatch", "{} voxels (z y x), {} in the metadata".format(*sizes))
    affine = geometry.table_affine(table) if affine is None else affine
    volume, spacing = geometry.to_lps(stored, affine)
    rescale = choose_hu_rescale(stored, table and (table.slope, table.intercept))
    return RawVolume(volume, spacing, rescale.source, (rescale.slope, rescale.intercept), affine=affine)


def read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Stored numbers [i, j, k] and the affine (to RAS mm) of a `.nii` or `.nii.gz`; None when the header is blank.

    The header comes first and says how much may follow: no more is decompressed, whatever the file would unpack to. The sums of
    all gzip members are checked.

    Raises:
        Refusal: missing_file, unreadable, gzip_truncated, nifti_header, not_3d, too_large.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(len(_GZIP)) == _GZIP
            most = path.stat().st_size * (_MOST_PER_BYTE if packed else 1)
            raw.seek(0)
            with igzip.IGzipFile(fileobj=raw, mode="rb") if packed else nullcontext(raw) as stream:
                return _read_volume(stream, most)
    except FileNotFoundError:
        raise Refusal("missing_file") from None
    except (EOFError, isal_zlib.error, igzip.BadGzipFile) as error:
        raise Refusal("gzip_truncated", type(error).__name__) from None
    except OSError as error:
        raise Refusal("unreadable", type(error).__name__) from None


def _read_volume(stream: IO[bytes], most: int) -> tuple[np.ndarray, np.ndarray | None]:
    """most: bytes that the file can hold at the very best."""
    head = stream.read(_HEAD)
    try:
        header = _header(head)
        affine = None if is_blank(header) else header.get_best_affine()
        slope, intercept = _scaling(header)
        shape = _shape(header)
        start = int(header["vox_offset"])
    except (ImageFileError, HeaderDataError, WrapStructError, KeyError, IndexError, ValueError, OverflowError) as error:
        raise Refusal("nifti_header", type(error).__name__) from None
    count, dtype = math.prod(shape), header.get_data_dtype()
    if max(shape) > MAX_AXIS or count * dtype.itemsize > MAX_BYTES:
        said = f"{'x'.join(map(str, shape))} voxels of {dtype.itemsize} bytes"
        raise Refusal("too_large", f"{said}; at most {MAX_BYTES / 1e9:g} GB and {MAX_AXIS} along an axis")
    if not header["sizeof_hdr"] <= start <= _MAX_START:
        raise Refusal("nifti_header", f"voxels that begin at byte {start}")
    end = start + count * dtype.itemsize
    if end > most:
        raise Refusal("gzip_truncated", "fewer voxels than the header says")
    content = np.empty(end, np.uint8)
    given = np.frombuffer(head[:end], np.uint8)
    content[: len(given)] = given
    if len(given) + _fill(stream, content[len(given) :]) < end:
        raise Refusal("gzip_truncated", "fewer voxels than the header says")
    if len(stream.read(_SLACK + 1)) > _SLACK:
        raise Refusal("nifti_header", "more behind the voxels than the header says")
    array = content[start:].view(dtype) if start % dtype.itemsize == 0 else np.frombuffer(content, dtype, count, start)
    return _scaled(array.reshape(shape, order="F"), slope, intercept), affine


def _fill(stream: IO[bytes], target: np.ndarray) -> int:
    """Reads into `target`, uint8, until it is full or the stream ends; returns how many bytes came."""
    view, done = memoryview(target), 0
    while done < len(view):
        came = stream.readinto(view[done : done + _PIECE])
        if not came:
            break
        done += came
    return done


def _scaled(array: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    if (slope, intercept) == (1.0, 0.0):
        return array
    scaled = array.astype(np.float32)
    scaled *= np.float32(slope)
    scaled += np.float32(intercept)
    return scaled


def _scaling(header: nib.Nifti1Header) -> tuple[float, float]:
    """Slope and intercept; slope and intercept 0 stand for none, as the standard has it."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if (slope, intercept) == (0.0, 0.0):
        return 1.0, 0.0
    if slope == 0 or not math.isfinite(slope) or not math.isfinite(intercept):
        raise HeaderDataError("a slope or intercept that is no number")
    return slope, intercept


def _shape(header: nib.Nifti1Header) -> tuple[int, int, int]:
    """Voxels along i, j, k; further axes of one voxel are dropped."""
    if not 1 <= int(header["dim"][0]) <= 7:
        raise HeaderDataError("no number of axes")
    shape = tuple(int(length) for length in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1:
        raise Refusal("not_3d", f"shape {'x'.join(map(str, shape))}")
    return shape


def _header(head: bytes) -> nib.Nifti1Header:
    size = {int.from_bytes(head[:4], order) for order in ("little", "big")}
    kind = nib.Nifti2Header if 540 in size else nib.Nifti1Header
    header = kind.from_fileobj(BytesIO(head[: kind.sizeof_hdr]), check=False)
    if header["sizeof_hdr"] != kind.sizeof_hdr or header["magic"].item()[:3] not in {b"n+1", b"n+2"}:
        raise HeaderDataError("no NIfTI header, or one whose voxels lie in another file")
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf" or header["bitpix"] != 8 * dtype.itemsize:
        raise HeaderDataError("voxels that are no plain numbers, or of another size than they should be")
    return header


def is_blank(header: nib.Nifti1Header) -> bool:
    """Whether a header says nothing of the geometry: no code, or nothing but ones, as in CT-RATE's first release."""
    if not header["qform_code"] and not header["sform_code"]:
        return True
    affine = header.get_best_affine()
    return bool((np.abs(affine) == np.eye(4)).all())
