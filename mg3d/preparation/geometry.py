"""From a stored array to the model's grid: orientation, crop and resize."""

from functools import lru_cache

import nibabel as nib
import numpy as np
import torch
from nibabel import orientations
from torch import Tensor

from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.records import TableGeometry
from mg3d.settings.schema import CROP

SPACING_MM = (0.2, 15.0)
MIN_SLICES = 20
MAX_LENGTH_MM = 1500.0
_SLAB = 16


def table_affine(table: TableGeometry | None) -> np.ndarray:
    """The affine (to RAS mm) that the metadata table describes, without an origin.

    Raises:
        Refusal: nan_spacing.
    """
    if table is None or not np.isfinite(table.spacing_zyx_mm).all():
        raise Refusal("nan_spacing", "blank header, and no spacing in the metadata")
    along_i, along_j = np.array(table.orientation[:3]), np.array(table.orientation[3:])
    to_lps = np.stack([along_i, along_j, np.cross(along_i, along_j)], axis=1)
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.block(
        [[to_lps * np.array(table.spacing_zyx_mm)[::-1], np.zeros((3, 1))], [0, 0, 0, 1]]
    )


def to_lps(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, tuple[float, float, float]]:
    """A view [z, y, x] (+z superior, +y posterior, +x left) of an array [i, j, k], and its spacing z y x in mm.

    A tilted grid is taken as the nearest upright one.

    Raises:
        Refusal: nan_spacing, spacing_out_of_range, too_few_slices, too_long.
    """
    if not np.isfinite(affine).all():
        raise Refusal("nan_spacing", "the header's geometry is not a number")
    sizes = nib.affines.voxel_sizes(affine)
    if not all(SPACING_MM[0] <= size <= SPACING_MM[1] for size in sizes):
        raise Refusal("spacing_out_of_range", f"{' x '.join(f'{size:.4g}' for size in sizes)} mm")
    change = orientations.ornt_transform(orientations.io_orientation(affine), orientations.axcodes2ornt("LPS"))
    view = orientations.apply_orientation(array, change).transpose(2, 1, 0)
    spacing = np.empty(3)
    spacing[change[:, 0].astype(int)] = sizes
    spacing_zyx = tuple(float(size) for size in spacing[::-1])
    if len(view) < MIN_SLICES:
        raise Refusal("too_few_slices", f"{len(view)} slices, at least {MIN_SLICES} expected")
    if len(view) * spacing_zyx[0] > MAX_LENGTH_MM:
        raise Refusal("too_long", f"{len(view) * spacing_zyx[0]:.0f} mm")
    return view, spacing_zyx


def crop_center(volume: np.ndarray) -> np.ndarray:
    """The middle of a volume [z, y, x]: `CROP` of every axis, rounded, as a view."""
    kept = [max(1, round(share * length)) for share, length in zip(CROP, volume.shape)]
    return volume[tuple(slice((length - keep) // 2, (length - keep) // 2 + keep) for keep, length in zip(kept, volume.shape))]


@lru_cache(maxsize=64)
def resize_weights(before: int, after: int) -> Tensor:
    """Weights [after, before] of an antialiased linear resize of one axis; every row sums to 1.

    A triangle whose half width is one sample of the coarser grid, voxel edges aligned (`align_corners=False`).
    """
    scale = before / after
    centers = (torch.arange(after, dtype=torch.float64) + 0.5) * scale
    distance = (torch.arange(before, dtype=torch.float64) + 0.5 - centers[:, None]).abs() / max(scale, 1.0)
    weights = (1 - distance).clamp(min=0)
    return (weights / weights.sum(1, keepdim=True)).float()


def resize(
    volume: np.ndarray, shape: tuple[int, int, int], *, scale: tuple[float, float] = (1.0, 0.0), limits: tuple[float, float]
) -> Tensor:
    """`volume * scale[0] + scale[1]`, cut to `limits`, then resized to `shape`: float32 [z, y, x].

    The three axes are resized one after the other with `resize_weights`. Slabs of slices bound the memory, since a volume of
    1024 x 1024 pixels takes gigabytes as float.
    """
    along_z, along_y, along_x = (resize_weights(before, after) for before, after in zip(volume.shape, shape))
    planes = []
    for start in range(0, len(volume), _SLAB):
        slab = torch.from_numpy(np.array(volume[start : start + _SLAB], dtype=np.float32, order="C"))
        if scale != (1.0, 0.0):
            slab.mul_(scale[0]).add_(scale[1])
        planes.append(along_y @ (slab.clamp_(*limits) @ along_x.T))
    return (along_z @ torch.cat(planes).flatten(1)).view(shape)
