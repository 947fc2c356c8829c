"""NIfTI and Analyze files, single or as `.hdr` and `.img`: CT in HU or rescaled by a table, and 8-bit grey volumes."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from mg3d.preparation import geometry
from mg3d.preparation.hounsfield import file_rescale
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.readers.limits import check_range, check_shape
from mg3d.preparation.records import Change, RawVolume, TableGeometry, VolumeRecord

_GZIP_MAGIC = b"\x1f\x8b"
_NIFTI2_HEADER_BYTES = 540
_HEADER_BYTES = 348
SINGLE_FILES = {b"n+1": nib.Nifti1Header, b"n+2": nib.Nifti2Header}
PAIRS = {b"ni1": nib.nifti1.Nifti1PairHeader, b"ni2": nib.nifti2.Nifti2PairHeader, b"": nib.Spm99AnalyzeHeader}
"""Magic -> header; Analyze has none."""
_MAX_TRAILING_BYTES = 1 << 16
_CHUNK_BYTES = 1 << 24


def read_nifti_ct(record: VolumeRecord, root: Path) -> RawVolume:
    """CT volume of one `.nii` or `.nii.gz` in HU; `record.table` replaces a blank header.

    Raises:
        Refusal: the file is unreadable, contradicts the metadata table, or its air is not near -1000 HU.
    """
    stored, affine = read_nifti(root / record.files[0])
    if record.table is not None:
        _check_table(record.table, stored.shape[::-1])
    is_from_table = affine is None or (record.table is not None and is_identity(affine))
    affine = geometry.table_affine(record.table) if is_from_table else affine
    rescale, changes = file_rescale(stored, record)
    changes += [Change("assumed_axes")] if is_analyze(root / record.files[0]) else []
    return geometry.raw_volume(stored, affine, rescale, changes)


def read_nifti_grey(record: VolumeRecord, root: Path) -> RawVolume:
    """Grey values 0 to 255. A blank header is taken as [x, y, z] with slices from superior to inferior, like CTRG's JPEGs.

    Raises:
        Refusal: as `read_nifti` and `geometry.to_lps`; grey_range, too_few_slices, constant_image.
    """
    stored, affine = read_nifti(root / record.files[0])
    low, high = float(stored.min()), float(stored.max())
    check_range(low, high)
    if not (low >= 0 and high <= 255):
        raise Refusal("grey_range", f"{low:g} to {high:g}")
    if affine is not None and not is_identity(affine):
        volume, spacing = geometry.to_lps(stored, affine)
        return RawVolume(volume, spacing, "uint8_unknown_window")
    geometry.check_slices(stored.shape[2])
    return RawVolume(np.flip(stored.transpose(2, 1, 0), axis=0), None, "uint8_unknown_window")


def read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Voxels [i, j, k] with the header's scaling applied, and the affine to RAS mm (None for a blank header).

    The whole stream is read, so that every gzip checksum is verified, but no more than the header announces is decompressed.

    Raises:
        Refusal: missing_file, unreadable, gzip_truncated, nifti_header, not_3d, too_large.
    """
    try:
        if path.suffix.lower() == ".hdr":
            with _open(path) as header, _open(image_file(path)) as stream:
                return _read_voxels(_read_header(header, PAIRS), stream)
        with _open(path) as stream:
            return _read_voxels(_read_header(stream, SINGLE_FILES), stream)
    except FileNotFoundError:
        raise Refusal("missing_file") from None
    except (EOFError, isal_zlib.error, igzip.BadGzipFile) as error:
        raise Refusal("gzip_truncated", type(error).__name__) from None
    except OSError as error:
        raise Refusal("unreadable", type(error).__name__) from None


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    with path.open("rb") as raw:
        is_gzip = raw.read(2) == _GZIP_MAGIC
        raw.seek(0)
        # isal decompresses twice as fast as the zlib that nibabel uses.
        with igzip.IGzipFile(fileobj=raw, mode="rb") if is_gzip else nullcontext(raw) as stream:
            yield stream


def image_file(header: Path) -> Path:
    """The file with the voxels of a `.hdr`: `.img` or `.img.gz` in any case."""
    names = {f"{header.stem}{suffix}".lower() for suffix in (".img", ".img.gz")}
    return next((path for path in sorted(header.parent.iterdir()) if path.name.lower() in names), header.with_suffix(".img"))


def is_analyze(path: Path) -> bool:
    """Whether a `.hdr` is an Analyze header, which does not say how the axes run."""
    return path.suffix.lower() == ".hdr" and path.read_bytes()[344:347] not in PAIRS


def is_identity(affine: np.ndarray) -> bool:
    """Whether voxels are 1 mm and start at 0, as CT-RATE's first release and CTRG wrote without knowing the geometry."""
    return bool((np.abs(affine) == np.eye(4)).all())


def header_affine(header: nib.Nifti1Header) -> np.ndarray | None:
    """The sform, or the qform if there is no sform or it is all zeros; None if there is neither.

    Raises:
        HeaderDataError: an impossible qform.
    """
    if header["sform_code"] and (sform := header.get_sform())[:3, :3].any():
        return sform
    if not header["qform_code"]:
        return None
    header = header.copy()
    header["pixdim"][0] = header["pixdim"][0] or 1  # 0 means 1 by the standard
    return header.get_qform()


def _read_header(stream: IO[bytes], magics: Mapping[bytes, type[nib.analyze.AnalyzeHeader]]) -> nib.analyze.AnalyzeHeader:
    head = stream.read(_HEADER_BYTES)
    stream.seek(0)
    is_nifti2 = _NIFTI2_HEADER_BYTES in {int.from_bytes(head[:4], order) for order in ("little", "big")}
    kind = magics.get(head[4:7] if is_nifti2 else head[344:347]) or magics.get(b"")
    if kind is None:
        raise Refusal("nifti_header", "voxels in another file, or not a NIfTI file")
    try:
        return kind.from_fileobj(stream)
    except (ImageFileError, HeaderDataError, WrapStructError, ValueError) as error:
        raise Refusal("nifti_header", type(error).__name__) from None


def _read_voxels(header: nib.analyze.AnalyzeHeader, stream: IO[bytes]) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        affine = header_affine(header) if "sform_code" in header else header.get_base_affine()
        slope, intercept = (none if value is None else float(value) for value, none in zip(header.get_slope_inter(), (1, 0)))
        shape, dtype, offset = header.get_data_shape(), header.get_data_dtype(), header.get_data_offset()
        stream.seek(offset)
    except (HeaderDataError, WrapStructError, ValueError, OverflowError) as error:
        raise Refusal("nifti_header", type(error).__name__) from None
    if dtype.kind not in "iuf":
        raise Refusal("nifti_header", f"voxels of type {dtype}")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    check_shape(shape, dtype.itemsize)
    array = np.empty(math.prod(map(int, shape)), dtype)
    if not _fill(stream, array.view(np.uint8)):
        raise Refusal("gzip_truncated", "fewer voxels than the header says")
    if len(stream.read(_MAX_TRAILING_BYTES + 1)) > _MAX_TRAILING_BYTES:
        raise Refusal("nifti_header", "more data after the voxels than the header says")
    array = array.reshape(shape, order="F")
    if (slope, intercept) != (1, 0):
        array = array.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    return array, affine


def _fill(stream: IO[bytes], target: np.ndarray) -> bool:
    """Read into `target` (uint8) in chunks, without a second copy of the volume; False if the stream ends early."""
    view, done = memoryview(target), 0
    while done < len(view):
        count = stream.readinto(view[done : done + _CHUNK_BYTES])
        if not count:
            return False
        done += count
    return True


def _check_table(table: TableGeometry, shape_zyx: tuple[int, ...]) -> None:
    """Refuse a volume that contradicts its row of the metadata table."""
    # Such a header was written from the same table, so its own z spacing cannot be trusted either.
    if math.isnan(table.spacing_zyx_mm[0]):
        raise Refusal("nan_spacing", "the metadata's ZSpacing is not a number")
    if any(found != expected for found, expected in zip(shape_zyx, table.shape_zyx) if not math.isnan(expected)):
        sizes = ("x".join(f"{length:g}" for length in lengths) for lengths in (shape_zyx, table.shape_zyx))
        raise Refusal("shape_mismatch", "{} voxels (z y x), {} in the metadata".format(*sizes))
