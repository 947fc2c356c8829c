"""Scans of every kind of file as MONAI's MetaTensor, with the geometry that predictions need on their way back."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow as pa
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from PIL import Image

from mg3d.finetune.cases import ArrowRow, PreparedRow, Source
from mg3d.finetune.prepared import read_prepared

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
VOLUME_SUFFIXES = (".nii", ".nii.gz", ".mha", ".mhd", ".npy", ".npz")
SLICE_SUFFIXES = (".png", ".jpg", ".jpeg")


def read_image(source: Source) -> MetaTensor:
    """A scan [1, i, j, k] in the order of its own file, its numbers unchanged as float32, with its affine (RAS, mm).

    Slices and bare arrays say nothing of their geometry: their first axis is taken as inferior to superior, then anterior to
    posterior, then right to left, with voxels of 1 mm.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it cannot be read, or holds no volume of one channel.
    """
    if isinstance(source, ArrowRow):
        return _from_arrow(source)
    if isinstance(source, PreparedRow):
        voxels, spacing_mm = read_prepared(source)
        return _meta(voxels, _bare_affine(spacing_mm))
    if isinstance(source, tuple):
        return _meta(_slices(source), _bare_affine())
    if not source.exists():
        raise FileNotFoundError(f"there is no file {source}")
    name = source.name.lower()
    try:
        if name.endswith((".nii", ".nii.gz")):
            image = nib.load(source)
            array, affine = np.asarray(image.dataobj, dtype=np.float32), image.affine
        elif name.endswith((".mha", ".mhd")):
            array, affine = _from_itk(sitk.ReadImage(str(source)))
        elif name.endswith((".npy", ".npz")):
            array, affine = _bare(source), _bare_affine()
        else:
            raise ValueError(f"its name ends in none of {', '.join(VOLUME_SUFFIXES)}")
    except (OSError, EOFError, RuntimeError, ValueError, nib.filebasedimages.ImageFileError) as error:
        short = str(error).strip().split("\n")[-1][:160]
        raise ValueError(f"{source} cannot be read as a scan ({type(error).__name__}: {short})") from error
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3 or min(array.shape) < 2:
        raise ValueError(f"{source} holds an array of shape {array.shape}; one volume of three axes is expected")
    return _meta(array, affine)


def _meta(array: np.ndarray, affine: np.ndarray) -> MetaTensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None]
    return MetaTensor(tensor, affine=torch.as_tensor(affine, dtype=torch.float64))


def _from_itk(image: sitk.Image) -> tuple[np.ndarray, np.ndarray]:
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError(f"{image.GetDimension()} axes and {image.GetNumberOfComponentsPerPixel()} channels, not one volume")
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0).astype(np.float32), LPS_TO_RAS @ affine


def _bare(path: Path) -> np.ndarray:
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.lib.npyio.NpzFile):
        with loaded:
            loaded = loaded[loaded.files[0]]
    return loaded.astype(np.float32)


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
                planes.append(np.asarray(picture.convert("L"), dtype=np.float32))
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{file} cannot be read as a picture ({type(error).__name__})") from error
    sizes = {plane.shape for plane in planes}
    if len(sizes) != 1:
        raise ValueError(f"the slices in {files[0].parent} have sizes {sorted(sizes)[:3]}; one size is expected")
    return np.stack(planes)


def write_mask(path: Path, mask: np.ndarray, affine: np.ndarray) -> None:
    """Label values [i, j, k] of a file's own order as compressed NIfTI with that file's affine (RAS)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}")
    image = nib.Nifti1Image(mask.astype(np.uint8), affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    nib.save(image, beside)
    beside.replace(path)


def _from_arrow(source: ArrowRow) -> MetaTensor:
    with pa.memory_map(str(source.file)) as stream:
        batch = pa.ipc.open_file(stream).get_batch(source.row)
        row = {name: batch.column(name)[0] for name in ("shape", "dtype", "affine", "image")}
        shape, kind = row["shape"].as_py(), row["dtype"].as_py()
        array = np.frombuffer(row["image"].as_buffer(), dtype=kind).reshape(shape).astype(np.float32)
        return _meta(array, np.array(json.loads(row["affine"].as_py())))
