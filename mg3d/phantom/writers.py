"""Write volumes and tables as NIfTI, MetaImage, PNG, JPEG and CSV."""

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from PIL import Image

from mg3d.files import write_bytes

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class LabelledVolume(NamedTuple):
    """Volume and mask [z, y, x] (superior, posterior, left); slices may be thicker than the pixels."""

    hu: np.ndarray
    """int16."""
    mask: np.ndarray
    """uint8."""
    spacing: tuple[float, float, float]
    """mm along z, y, x."""
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Centre of the first voxel (x, y, z) in mm, LPS."""


def write_nifti(path: Path, values: np.ndarray, affine: np.ndarray, *, coded: bool = False, units: Sequence[str] = ()) -> None:
    """Write a NIfTI file atomically. coded: set sform and qform to scanner coordinates; units: of space and time."""
    image = nib.Nifti1Image(np.ascontiguousarray(values), affine)
    if coded:
        image.set_sform(affine, code=1)
        image.set_qform(affine, code=1)
    if units:
        image.header.set_xyzt_units(*units)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    nib.save(image, partial)
    partial.replace(path)


def write_volume(path: Path, values: np.ndarray, volume: LabelledVolume, axis_codes: str = "LPS") -> None:
    """Write `values` [z, y, x] on the grid of a volume as NIfTI; axis_codes: orientation of the file axes, as in nibabel."""
    affine = np.diag([*volume.spacing[::-1], 1.0])
    affine[:3, 3] = volume.origin
    image = nib.Nifti1Image(values.transpose(2, 1, 0), LPS_TO_RAS @ affine)
    source, target = (nib.orientations.axcodes2ornt(codes) for codes in ("LPS", axis_codes))
    image = image.as_reoriented(nib.orientations.ornt_transform(source, target))
    write_nifti(path, np.asarray(image.dataobj), image.affine, coded=True)


def write_metaimage(path: Path, volume: LabelledVolume, *, flipped: bool = False) -> None:
    """Write HU as MetaImage: `.mha` compressed, `.mhd` with a `.raw` file.

    flipped: the file axes x and y point right and anterior (`TransformMatrix` of some LUNA16 scans).
    """
    image = sitk.GetImageFromArray(volume.hu)
    image.SetSpacing(volume.spacing[::-1])
    image.SetOrigin(volume.origin)
    if flipped:
        image = sitk.Flip(image, (True, True, False))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), useCompression=path.suffix == ".mha")


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 [y, x] as PNG, or JPEG for `.jpg`."""
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG" if path.suffix == ".jpg" else "PNG", quality=92, compress_level=1)
    write_bytes(path, encoded.getvalue(), durable=False)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV file atomically."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def grey_values(hu: np.ndarray, window_hu: tuple[float, float]) -> np.ndarray:
    """uint8 slices from superior to inferior of HU [z, y, x]; the window becomes 0 to 255."""
    low, high = window_hu
    return (np.clip((hu[::-1].astype(np.float32) - low) / (high - low), 0, 1) * 255).astype(np.uint8)
