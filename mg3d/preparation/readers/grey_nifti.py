"""Grey volumes in NIfTI files, whose slices were 8-bit pictures."""

from pathlib import Path

import numpy as np

from mg3d.preparation import geometry
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.readers.nifti import read_nifti
from mg3d.preparation.records import RawVolume, VolumeRecord


def read_grey_nifti(record: VolumeRecord, root: Path) -> RawVolume:
    """Grey 0-255 [z, y, x]. A header that says nothing means [x, y, z] with slices from superior to inferior, as the pictures.

    Raises:
        Refusal: as `read_nifti` and `geometry.to_lps`; grey_range, too_few_slices, constant_image.
    """
    stored, affine = read_nifti(root / record.files[0])
    low, high = float(stored.min()), float(stored.max())
    if low == high:
        raise Refusal("constant_image", f"every voxel is {low:g}")
    if not (low >= 0 and high <= 255):
        raise Refusal("grey_range", f"{low:g} to {high:g}")
    if affine is not None:
        volume, spacing = geometry.to_lps(stored, affine)
        return RawVolume(volume, spacing, "uint8_unknown_window")
    if stored.shape[2] < geometry.MIN_SLICES:
        raise Refusal("too_few_slices", f"{stored.shape[2]} slices, at least {geometry.MIN_SLICES} expected")
    return RawVolume(np.flip(stored.transpose(2, 1, 0), axis=0), None, "uint8_unknown_window")
