"""Readers by name: from the files of a `VolumeRecord` to upright voxels."""

from collections.abc import Callable
from pathlib import Path, PurePath

from mg3d.preparation.readers.archive import read_archive
from mg3d.preparation.readers.dicom import read_dicom
from mg3d.preparation.readers.itk import data_file, read_itk
from mg3d.preparation.readers.jpeg_slices import read_jpeg_slices
from mg3d.preparation.readers.nifti import image_file, read_nifti_ct, read_nifti_grey
from mg3d.preparation.readers.npz import read_ct_clip, read_npz, read_rad_chestct
from mg3d.preparation.records import RawVolume, VolumeRecord

READERS: dict[str, Callable[[VolumeRecord, Path], RawVolume]] = {
    "nifti": read_nifti_ct,
    "grey_nifti": read_nifti_grey,
    "dicom": read_dicom,
    "itk": read_itk,
    "zip": lambda record, root: read_archive(record, root, READERS, reader_of),
    "jpeg_slices": read_jpeg_slices,
    "rad_chestct": read_rad_chestct,
    "ct_clip": read_ct_clip,
    "npz": read_npz,
}
"""Each takes a record and the root of its data set, and raises `Refusal` for a volume that cannot be used."""

READER_OF_SUFFIX = {
    ".nii": "nifti", ".nii.gz": "nifti", ".hdr": "nifti", ".mha": "itk", ".mhd": "itk", ".nrrd": "itk", ".nhdr": "itk",
    ".npz": "npz", ".zip": "zip",
}  # fmt: skip
"""File name suffix in lower case -> reader of single-file CT volumes. A folder is read as a DICOM series."""


def reader_of(path: PurePath) -> str | None:
    """The reader of a single-file CT volume by its suffix in any case; None for other files."""
    name = path.name.lower()
    return next((reader for suffix, reader in READER_OF_SUFFIX.items() if name.endswith(suffix)), None)


def files_of(path: Path) -> list[Path]:
    """A scan file and the file with its voxels, if that is another one. Raises OSError."""
    suffix = path.suffix.lower()
    voxels = image_file(path) if suffix == ".hdr" else data_file(path) if suffix in {".mhd", ".nhdr"} else None
    return [path] if voxels is None else [path, voxels]
