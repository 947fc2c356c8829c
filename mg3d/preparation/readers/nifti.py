"""NIfTI volumes in Hounsfield units, or in scanner values that a metadata table turns into them."""

import gzip
import math
import zlib
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from mg3d.preparation import geometry
from mg3d.preparation.hounsfield import choose_rule
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.records import RawVolume, VolumeRecord


def read_ct(record: VolumeRecord, root: Path) -> RawVolume:
    """The volume of one `.nii.gz` in HU.

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
    volume, spacing = geometry.to_lps(stored, geometry.table_affine(table) if affine is None else affine)
    rule = choose_rule(stored, table and (table.slope, table.intercept))
    return RawVolume(volume, spacing, rule.name, (rule.slope, rule.intercept))


def read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Stored numbers [i, j, k] and the affine (to RAS mm) of a `.nii.gz` or `.nii`; None when the header is blank.

    The whole file is decompressed at once, which checks its sum and is faster than reading through it.

    Raises:
        Refusal: missing_file, unreadable, gzip_truncated, nifti_header, not_3d.
    """
    try:
        content = path.read_bytes()
        content = content if path.suffix == ".nii" and not content.startswith(b"\x1f\x8b") else gzip.decompress(content)
    except FileNotFoundError:
        raise Refusal("missing_file") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Refusal("gzip_truncated", type(error).__name__) from None
    except OSError as error:
        raise Refusal("unreadable", type(error).__name__) from None
    try:
        header = _header(content)
        affine = None if is_blank(header) else header.get_best_affine()
        slope, intercept = header.get_slope_inter()
    except (ImageFileError, HeaderDataError, WrapStructError, KeyError, ValueError) as error:
        raise Refusal("nifti_header", type(error).__name__) from None
    shape = header.get_data_shape()
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or not all(shape):
        raise Refusal("not_3d", f"shape {'x'.join(map(str, shape))}")
    count, start = int(np.prod(shape)), int(header.get_data_offset())
    if len(content) < start + count * header.get_data_dtype().itemsize:
        raise Refusal("gzip_truncated", "fewer voxels than the header says")
    array = np.frombuffer(content, header.get_data_dtype(), count, start).reshape(shape, order="F")
    if (slope, intercept) not in {(None, None), (1.0, 0.0)}:
        array = array.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    return array, affine


def _header(content: bytes) -> nib.Nifti1Header:
    size = {int.from_bytes(content[:4], order) for order in ("little", "big")}
    kind = nib.Nifti2Header if 540 in size else nib.Nifti1Header
    header = kind.from_fileobj(BytesIO(content[: kind.sizeof_hdr + 4]), check=False)
    if header["sizeof_hdr"] != kind.sizeof_hdr or header.get_data_dtype().kind not in "iuf":
        raise HeaderDataError("no NIfTI header, or voxels that are no plain numbers")
    return header


def is_blank(header: nib.Nifti1Header) -> bool:
    """Whether a header says nothing of the geometry: no code, or nothing but ones, as in CT-RATE's first release."""
    if not header["qform_code"] and not header["sform_code"]:
        return True
    affine = header.get_best_affine()
    return bool((np.abs(affine) == np.eye(4)).all())
