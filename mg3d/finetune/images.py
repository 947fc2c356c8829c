"""Scans of every file type as MONAI MetaTensors, with the affine that predictions need to return to the file's grid."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mg3d.finetune.cases import ArrowRow, Source, is_preprocessed

if TYPE_CHECKING:
    from monai.data import MetaTensor

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
ITK_SUFFIXES = (".mha", ".mhd", ".nrrd")
VOLUME_SUFFIXES = (".nii", ".nii.gz", *ITK_SUFFIXES, ".npy", ".npz")
SLICE_SUFFIXES = (".png", ".jpg", ".jpeg")
_GREY_16_BIT = ("I", "I;16", "I;16B", "I;16L")
"""Modes of PIL, which clips such values at 255 when it converts an image to 8 bits."""


def slice_files(files: Iterable[Path]) -> tuple[Path, ...]:
    """The slice images among files, sorted by the numbers in their names; hidden files are ignored."""
    from mg3d.preparation.sources.ctrg import natural_key

    images = [file for file in files if file.suffix.lower() in SLICE_SUFFIXES and not file.name.startswith(".")]
    return tuple(sorted(images, key=lambda file: (natural_key(file.name), file.name)))


def is_dicom_series(path: Path) -> bool:
    """Whether a path is a folder or a DICOM file, which stands for its series."""
    from mg3d.preparation.readers.dicom_series import is_dicom

    return path.is_dir() or (not path.name.lower().endswith(VOLUME_SUFFIXES) and is_dicom(path))


def reversed_slices(source: Source) -> Source:
    """A stack of slices that runs from superior to inferior, from inferior to superior; any other source unchanged."""
    return source[::-1] if isinstance(source, tuple) and all(isinstance(part, Path) for part in source) else source


def read_image(source: Source, *, channel: int | None = None) -> "MetaTensor":
    """A scan [1, i, j, k] in the axis order and units of its file, float32, with its affine (RAS, mm).

    Slice images and plain arrays have no geometry: their axes are taken as inferior to superior, anterior to posterior, right to
    left, with voxels of 1 mm. channel: index along the fourth axis of a multi-channel file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, not a 3D volume, has voxels that are NaN or Inf, or has an impossible or sheared grid.
    """
    import torch
    from monai.data import MetaTensor

    array, affine = read_volume(source, channel=channel)
    tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None]
    meta = {"prepared": is_preprocessed(source)}
    return MetaTensor(tensor, affine=torch.as_tensor(affine, dtype=torch.float64), meta=meta)


def read_volume(source: Source, *, channel: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """As `read_image`, but an array [i, j, k] in the type of its file."""
    array, affine = read_array(source)
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if channel is not None and array.ndim == 4 and -1 < channel < array.shape[-1]:
        array = array[..., channel]
    if array.ndim != 3 or min(array.shape) < 2:
        raise ValueError(f"{source} holds an array of shape {array.shape}; expected one 3D volume")
    if array.dtype.kind == "f" and (count := int(array.size - np.isfinite(array).sum())):
        raise ValueError(f"{source} holds {count} voxels that are NaN or Inf, of {array.size}; repair the file or leave it out")
    return array, affine


def read_array(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """As `read_volume`, with all channels; only NIfTI with a scaling becomes float32.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file cannot be read, or its values are not numbers.
    """
    if is_preprocessed(source):
        from mg3d.finetune.prepared import read_prepared

        voxels, spacing_mm = read_prepared(source)
        return voxels, array_affine(spacing_mm)
    if isinstance(source, ArrowRow):
        return _read_arrow(source)
    if isinstance(source, tuple):
        return _read_slices(source), array_affine()
    if not source.exists():
        raise FileNotFoundError(f"there is no file {source}")
    from mg3d.preparation.geometry import check_grid
    from mg3d.preparation.quarantine import Refusal

    if is_dicom_series(source):
        from mg3d.finetune.prepared import read_dicom

        return read_dicom(source)
    name = source.name.lower()
    try:
        if name.endswith((".nii", ".nii.gz")):
            array, affine = _read_nifti(source)
        elif name.endswith(ITK_SUFFIXES):
            array, affine = _read_with_itk(source)
        elif name.endswith((".npy", ".npz")):
            array, affine = _read_numpy(source)
        else:
            raise ValueError(f"unknown file type; expected {', '.join(VOLUME_SUFFIXES)}, or a DICOM series")
        if array.dtype.kind not in "biuf":
            raise ValueError(f"its values are of type {array.dtype}; expected numbers")
        check_grid(affine)
    except Refusal as refusal:
        raise ValueError(f"{source} cannot be used: {refusal.reason}") from None
    except Exception as error:  # libraries raise any type for a damaged file, such as zlib.error
        short = str(error).strip().split("\n")[-1][:160]
        raise ValueError(f"{source} cannot be read as a scan ({type(error).__name__}: {short})") from error
    return array, affine


def _read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import nibabel as nib

    from mg3d.preparation.readers.nifti import header_affine

    image = nib.load(path)
    scaled = (image.dataobj.slope, image.dataobj.inter) != (1, 0)
    affine = header_affine(image.header)
    return np.asarray(image.dataobj, dtype=np.float32 if scaled else None), image.affine if affine is None else affine


def _read_with_itk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import SimpleITK as sitk

    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:  # whose last line is of another call's errno
        raise ValueError("truncated, or the voxels are not where its header says") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError(f"{image.GetDimension()} axes and {image.GetNumberOfComponentsPerPixel()} channels; expected one volume")
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), LPS_TO_RAS @ affine


def _read_numpy(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """An array [z, y, x] with voxels of 1 mm; Rad-ChestCT's files by their key and geometry."""
    from mg3d.preparation.readers.npz import RAD_CHESTCT_MM

    loaded = np.load(path, allow_pickle=False)
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        return loaded, array_affine()
    with loaded:
        if "ct" in loaded.files:
            return loaded["ct"][::-1], array_affine(RAD_CHESTCT_MM)
        if len(loaded.files) != 1:
            raise ValueError(f"it has the arrays {', '.join(loaded.files[:4])}; expected one, or `ct` as in Rad-ChestCT")
        return loaded[loaded.files[0]], array_affine()


def array_affine(spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> np.ndarray:
    """Affine (RAS, mm) of array axes z, y, x with +z superior, +y posterior, +x left."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = spacing_mm[0], -spacing_mm[1], -spacing_mm[2], 1.0
    return affine


def _read_slices(files: tuple[Path, ...]) -> np.ndarray:
    from PIL import Image

    planes = []
    for file in files:
        try:
            with Image.open(file) as image:
                planes.append(np.asarray(image if image.mode in _GREY_16_BIT else image.convert("L")))
        except Exception as error:
            raise ValueError(f"{file} cannot be read as an image ({type(error).__name__})") from error
    sizes = {plane.shape for plane in planes}
    if len(sizes) != 1:
        raise ValueError(f"the slices in {files[0].parent} have sizes {sorted(sizes)[:3]}; expected one size")
    return np.stack(planes)


def _read_arrow(source: ArrowRow) -> tuple[np.ndarray, np.ndarray]:
    import pyarrow as pa

    batch = pa.ipc.open_file(pa.memory_map(str(source.file))).get_batch(source.row)
    stored = {name: batch.column(f"{source.column}_{name}")[0].as_py() for name in ("dtype", "shape", "affine")}
    voxels = np.frombuffer(batch.column(source.column)[0].as_buffer(), dtype=stored["dtype"])
    return voxels.reshape(stored["shape"]), np.array(json.loads(stored["affine"]))


def write_mask(path: Path, mask: np.ndarray, affine: np.ndarray) -> None:
    """Writes a label map [i, j, k] as compressed NIfTI with an affine (RAS, mm)."""
    import nibabel as nib

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}.{path.name}")  # two ranks may write one case
    image = nib.Nifti1Image(mask.astype(np.uint8), affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    if not np.allclose(image.get_qform(), affine, atol=1e-3):
        image.set_qform(None, code=0)  # a qform cannot express shear
    nib.save(image, partial)
    partial.replace(path)
