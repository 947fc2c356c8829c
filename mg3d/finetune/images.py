"""Scans of every kind of file as MONAI's MetaTensor, with the geometry that predictions need on their way back."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow as pa
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from PIL import Image

from mg3d.finetune.cases import ArrowRow, PreparedRow, RawScan, Source
from mg3d.finetune.prepared import read_prepared
from mg3d.preparation.sources.ctrg import natural_key

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
VOLUME_SUFFIXES = (".nii", ".nii.gz", ".mha", ".mhd", ".npy", ".npz")
SLICE_SUFFIXES = (".png", ".jpg", ".jpeg")


def slices_of(files: Iterable[Path]) -> tuple[Path, ...]:
    """The pictures among files, by the numbers in their names; hidden files are left out."""
    pictures = [file for file in files if file.suffix.lower() in SLICE_SUFFIXES and not file.name.startswith(".")]
    return tuple(sorted(pictures, key=lambda file: (natural_key(file.name), file.name)))


def read_image(source: Source, *, channel: int | None = None) -> MetaTensor:
    """A scan [1, i, j, k] in the order of its own file, its numbers unchanged as float32, with its affine (RAS, mm).

    Slices and bare arrays say nothing of their geometry: their first axis is taken as inferior to superior, then anterior to
    posterior, then right to left, with voxels of 1 mm. channel: which entry of a fourth axis is taken.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it cannot be read, or holds no volume of one channel, or not this channel.
    """
    array, affine = read_volume(source, channel=channel)
    tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None]
    return MetaTensor(tensor, affine=torch.as_tensor(affine, dtype=torch.float64))


def read_volume(source: Source, *, channel: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """As `read_image`, but [i, j, k], and numbers as `read_array` gives them."""
    array, affine = read_array(source)
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if channel is not None and array.ndim == 4 and -1 < channel < array.shape[-1]:
        array = array[..., channel]
    if array.ndim != 3 or min(array.shape) < 2:
        raise ValueError(f"{source} holds an array of shape {array.shape}; one volume of three axes is expected")
    if array.dtype.kind == "f" and (count := int(array.size - np.isfinite(array).sum())):
        raise ValueError(f"{source} holds {count} voxels that are NaN or Inf, of {array.size}; repair the file or leave it out")
    return array, affine


def read_array(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """As `read_image`, but all channels and the numbers in the type of the file; only NIfTI with a scaling becomes float32.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it cannot be read, or its values are no plain numbers.
    """
    if isinstance(source, ArrowRow):
        return _from_arrow(source)
    if isinstance(source, (PreparedRow, RawScan)):
        voxels, spacing_mm = read_prepared(source)
        return voxels, _bare_affine(spacing_mm)
    if isinstance(source, tuple):
        return _slices(source), _bare_affine()
    if not source.exists():
        raise FileNotFoundError(f"there is no file {source}")
    name = source.name.lower()
    try:
        if name.endswith((".nii", ".nii.gz")):
            array, affine = _from_nifti(source)
        elif name.endswith((".mha", ".mhd")):
            array, affine = _from_itk(source)
        elif name.endswith((".npy", ".npz")):
            array, affine = _bare(source), _bare_affine()
        else:
            raise ValueError(f"its name ends in none of {', '.join(VOLUME_SUFFIXES)}")
        if array.dtype.kind not in "biuf":
            raise ValueError(f"its values are of type {array.dtype}; plain numbers are expected")
    except Exception as error:  # libraries raise what they like of a damaged file, such as zlib.error
        short = str(error).strip().split("\n")[-1][:160]
        raise ValueError(f"{source} cannot be read as a scan ({type(error).__name__}: {short})") from error
    return array, affine


def _from_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image = nib.load(path)
    scaled = (image.dataobj.slope, image.dataobj.inter) != (1, 0)
    return np.asarray(image.dataobj, dtype=np.float32 if scaled else None), image.affine


def _from_itk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:  # whose last line is of another call's errno
        raise ValueError("cut off, or its voxels are not where its header says") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError(f"{image.GetDimension()} axes and {image.GetNumberOfComponentsPerPixel()} channels, not one volume")
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), LPS_TO_RAS @ affine


def _bare(path: Path) -> np.ndarray:
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.lib.npyio.NpzFile):
        with loaded:
            loaded = loaded[loaded.files[0]]
    return loaded


def _bare_affine(spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> np.ndarray:
    """Array axes z, y, x with +z superior, +y posterior, +x left."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = spacing_mm[0], -spacing_mm[1], -spacing_mm[2], 1.0
    return affine


def _slices(files: tuple[Path, ...]) -> np.ndarray:
    planes = []
    for file in files:
        try:
            with Image.open(file) as picture:
                planes.append(np.asarray(picture.convert("L")))
        except Exception as error:
            raise ValueError(f"{file} cannot be read as a picture ({type(error).__name__})") from error
    sizes = {plane.shape for plane in planes}
    if len(sizes) != 1:
        raise ValueError(f"the slices in {files[0].parent} have sizes {sorted(sizes)[:3]}; one size is expected")
    return np.stack(planes)


def write_mask(path: Path, mask: np.ndarray, affine: np.ndarray) -> None:
    """Label values [i, j, k] of a file's own order as compressed NIfTI with that file's affine (RAS)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{os.getpid()}.{path.name}")  # two ranks may write one case
    image = nib.Nifti1Image(mask.astype(np.uint8), affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    nib.save(image, beside)
    beside.replace(path)


def _from_arrow(source: ArrowRow) -> tuple[np.ndarray, np.ndarray]:
    batch = pa.ipc.open_file(pa.memory_map(str(source.file))).get_batch(source.row)
    held = {name: batch.column(f"{source.name}_{name}")[0].as_py() for name in ("dtype", "shape", "affine")}
    pixels = batch.column(source.name)[0].as_buffer()
    return np.frombuffer(pixels, dtype=held["dtype"]).reshape(held["shape"]), np.array(json.loads(held["affine"]))
