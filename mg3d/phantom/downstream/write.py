"""Write labelled volumes as NIfTI, MetaImage or greyscale images."""

import io
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from PIL import Image

from mg3d.files import write_bytes
from mg3d.phantom.ct_rate import write_nifti
from mg3d.phantom.downstream.chest import LabelledVolume

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


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
