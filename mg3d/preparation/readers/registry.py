"""Name of a reader, as a volume record has it -> the function."""

from collections.abc import Callable
from pathlib import Path

from mg3d.preparation.readers.dicom import read_dicom
from mg3d.preparation.readers.grey_nifti import read_grey_nifti
from mg3d.preparation.readers.mha import read_mha
from mg3d.preparation.readers.nifti import read_ct
from mg3d.preparation.readers.npz import read_ct_clip, read_rad_chestct
from mg3d.preparation.readers.slices import read_slices
from mg3d.preparation.records import RawVolume, VolumeRecord

READERS: dict[str, Callable[[VolumeRecord, Path], RawVolume]] = {
    "nifti": read_ct,
    "ct_clip": read_ct_clip,
    "slices": read_slices,
    "grey_nifti": read_grey_nifti,
    "rad_chestct": read_rad_chestct,
    "dicom": read_dicom,
    "mha": read_mha,
}
"""Each takes a record and the data set's root and raises `Refusal` for a volume that cannot be used."""
