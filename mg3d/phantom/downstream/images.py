"""Writes scans as NIfTI, MetaImage and grey pictures."""

import io
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from mg3d.files import write_bytes
from mg3d.phantom.ct_rate import write_whole
from mg3d.phantom.downstream.chest import Scan

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Turns LPS millimetres into NIfTI's RAS ones, and back."""
TYPES = {np.dtype(np.int16): "MET_SHORT", np.dtype(np.uint8): "MET_UCHAR"}


def nifti(values: np.ndarray, scan: Scan, codes: str = "LPS") -> nib.Nifti1Image:
    """An image of `values` [z, y, x] on the scan's grid; codes: where the file's own three axes run to, as nibabel names it."""
    affine = np.diag([*scan.spacing[::-1], 1.0])
    affine[:3, 3] = scan.origin
    image = nib.Nifti1Image(np.ascontiguousarray(values.transpose(2, 1, 0)), LPS @ affine)
    turned = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("LPS"), nib.orientations.axcodes2ornt(codes))
    image = image.as_reoriented(turned)
    image.set_qform(image.affine, code=1)
    image.set_sform(image.affine, code=1)
    return image


def write_nifti(path: Path, values: np.ndarray, scan: Scan, codes: str = "LPS") -> None:
    """See `nifti`."""
    write_whole(path, nifti(values, scan, codes))


def write_meta(path: Path, scan: Scan, *, flipped: bool = False) -> None:
    """A scan as MetaImage: `.mhd` beside a `.raw`, or `.mha` in one compressed piece.

    flipped: x and y run to the right and the front, and the header says so (`TransformMatrix`), as some scans of LUNA16 do.
    """
    values, origin = scan.hu, np.array(scan.origin)
    depth, height, width = values.shape
    if flipped:
        values = values[:, ::-1, ::-1]
        origin = origin + np.array([width - 1, height - 1, 0]) * scan.spacing[::-1]
    sign = "-1 0 0 0 -1 0 0 0 1" if flipped else "1 0 0 0 1 0 0 0 1"
    pixels = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")).tobytes()
    whole = path.suffix == ".mha"
    packed = zlib.compress(pixels, 1) if whole else pixels
    lines = ["ObjectType = Image", "NDims = 3", "BinaryData = True", "BinaryDataByteOrderMSB = False"]
    lines += [f"CompressedData = {whole}", *([f"CompressedDataSize = {len(packed)}"] if whole else [])]
    lines += [f"TransformMatrix = {sign}", f"Offset = {_numbers(origin)}", "CenterOfRotation = 0 0 0"]
    lines += ["AnatomicalOrientation = " + ("LPI" if flipped else "RAI"), f"ElementSpacing = {_numbers(scan.spacing[::-1])}"]
    lines += [f"DimSize = {width} {height} {depth}", f"ElementType = {TYPES[values.dtype]}"]
    raw = path.with_suffix(".raw")
    header = "\n".join([*lines, f"ElementDataFile = {'LOCAL' if whole else raw.name}", ""]).encode()
    if not whole:
        write_bytes(raw, packed, durable=False)
    write_bytes(path, header + packed if whole else header, durable=False)


def _numbers(values: np.ndarray | tuple[float, ...]) -> str:
    return " ".join(repr(float(value)) for value in values)


def write_picture(path: Path, pixels: np.ndarray) -> None:
    """uint8 [y, x] as PNG or, for `.jpg`, JPEG."""
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG" if path.suffix == ".jpg" else "PNG", quality=92, compress_level=1)
    write_bytes(path, encoded.getvalue(), durable=False)
