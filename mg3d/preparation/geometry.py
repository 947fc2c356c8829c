"""Orientation, crop and resize of a volume."""

from collections.abc import Sequence
from functools import lru_cache

import nibabel as nib
import numpy as np
import torch
from nibabel import orientations
from scipy import ndimage
from torch import Tensor

from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.records import TableGeometry
from mg3d.settings.schema import CROP

SPACING_MM = (0.2, 15.0)
MIN_SLICES = 20
MAX_LENGTH_MM = 1500.0
AIR_HU = -1000
"""Value of voxels that a crop adds around a volume."""
BODY_HU = -300
COARSE_MM = 4.0
"""Sampling distance of the body search."""
MAX_SHEAR_DEGREES = 1.0
MAX_ROTATION_DEGREES = 5.0
"""Largest angle between a voxel axis and the patient axis nearest to it."""
_SLAB = 16

Spacing = tuple[float, float, float]
"""z y x in mm."""
Padding = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""Voxels before and after along z, y, x."""
Box = tuple[tuple[int, int], ...]
"""Start and stop along z, y, x; may extend beyond the volume."""


def table_affine(table: TableGeometry | None) -> np.ndarray:
    """The affine to RAS mm described by the metadata table, with the origin at 0.

    Raises:
        Refusal: nan_spacing.
    """
    if table is None or not np.isfinite(table.spacing_zyx_mm).all():
        raise Refusal("nan_spacing", "no geometry in the header and no spacing in the metadata")
    along_i, along_j = np.array(table.orientation[:3]), np.array(table.orientation[3:])
    to_lps = np.stack([along_i, along_j, np.cross(along_i, along_j)], axis=1)
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.block(
        [[to_lps * np.array(table.spacing_zyx_mm)[::-1], np.zeros((3, 1))], [0, 0, 0, 1]]
    )


def to_lps(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, tuple[float, float, float]]:
    """A view [z, y, x] (+z superior, +y posterior, +x left) of an array [i, j, k], and its spacing z y x in mm.

    A rotation of up to `MAX_ROTATION_DEGREES` from the patient axes is ignored.

    Raises:
        Refusal: nan_spacing, spacing_out_of_range, gantry_tilt (sheared axes), oblique, too_few_slices, too_long.
    """
    if not np.isfinite(affine).all():
        raise Refusal("nan_spacing", "NaN in the header's affine")
    sizes = nib.affines.voxel_sizes(affine)
    if not all(SPACING_MM[0] <= size <= SPACING_MM[1] for size in sizes):
        raise Refusal("spacing_out_of_range", f"{' x '.join(f'{size:.4g}' for size in sizes)} mm")
    _check_axes(affine[:3, :3] / sizes)
    change = _orientation_to_lps(affine)
    view = orientations.apply_orientation(array, change).transpose(2, 1, 0)
    spacing = np.empty(3)
    spacing[change[:, 0].astype(int)] = sizes
    spacing_zyx = tuple(float(size) for size in spacing[::-1])
    check_slices(len(view), spacing_zyx[0])
    return view, spacing_zyx


def check_slices(count: int, spacing_mm: float | None = None) -> None:
    """Raise `Refusal` too_few_slices or too_long for a stack of `count` axial slices."""
    if count < MIN_SLICES:
        raise Refusal("too_few_slices", f"{count} slices, at least {MIN_SLICES} expected")
    if spacing_mm is not None and count * spacing_mm > MAX_LENGTH_MM:
        raise Refusal("too_long", f"{count * spacing_mm:.0f} mm")


def _check_axes(directions: np.ndarray) -> None:
    """Refuse unit axes (columns) that are sheared or rotated away from the patient axes."""
    cosines = np.abs(directions.T @ directions)[np.triu_indices(3, 1)]
    shear = float(np.degrees(np.arcsin(cosines.max().clip(max=1))))
    if shear > MAX_SHEAR_DEGREES:
        raise Refusal("gantry_tilt", f"{shear:.1f} degrees of shear, {MAX_SHEAR_DEGREES:g} allowed")
    rotation = float(np.degrees(np.arccos(np.abs(directions).max(0).min().clip(max=1))))
    if rotation > MAX_ROTATION_DEGREES:
        raise Refusal("oblique", f"{rotation:.1f} degrees, {MAX_ROTATION_DEGREES:g} allowed; resample to axial slices")


def from_lps(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Inverse of `to_lps`: an array [i, j, k] from an LPS volume [z, y, x]."""
    back = orientations.ornt_transform(orientations.axcodes2ornt("LPS"), orientations.io_orientation(affine))
    return orientations.apply_orientation(volume.transpose(2, 1, 0), back)


def lps_affine(affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Affine from voxels [x, y, z] of the LPS volume of `shape` (z, y, x) to RAS mm; `affine` is that of the file."""
    in_file = from_lps(np.broadcast_to(np.int8(0), shape), affine).shape
    return affine @ orientations.inv_ornt_aff(_orientation_to_lps(affine), in_file)


def _orientation_to_lps(affine: np.ndarray) -> np.ndarray:
    return orientations.ornt_transform(orientations.io_orientation(affine), orientations.axcodes2ornt("LPS"))


def center_box(shape: Sequence[int]) -> Box:
    """The central fraction `CROP` of every axis of a volume of `shape` (z, y, x)."""
    sizes = [max(1, round(fraction * length)) for fraction, length in zip(CROP, shape)]
    return tuple(((length - size) // 2, (length - size) // 2 + size) for size, length in zip(sizes, shape))


def cut(volume: np.ndarray, box: Box) -> tuple[np.ndarray, Padding]:
    """The part of a box inside the volume (a view), and the padding that the rest of the box needs."""
    view = volume[tuple(slice(max(start, 0), end) for start, end in box)]
    return view, tuple((max(-start, 0), max(end - length, 0)) for (start, end), length in zip(box, volume.shape))


def body_box(volume: np.ndarray, scale: tuple[float, float], spacing_mm: Spacing | None) -> Box:
    """Bounding box of the body: the largest connected component above `BODY_HU`, to within `COARSE_MM`.

    Raises:
        Refusal: nan_spacing without a spacing, no_body.
    """
    if spacing_mm is None:
        raise Refusal("nan_spacing", "this crop needs the voxel spacing")
    steps = [max(1, int(COARSE_MM / mm)) for mm in spacing_mm]
    coarse = volume[tuple(slice(None, None, step) for step in steps)].astype(np.float32)
    parts, count = ndimage.label(coarse * np.float32(scale[0]) + np.float32(scale[1]) > BODY_HU)
    if not count:
        raise Refusal("no_body", f"no voxel above {BODY_HU} HU")
    (largest,) = ndimage.find_objects((parts == np.bincount(parts.ravel())[1:].argmax() + 1).astype(np.int8))
    ends = ((part.start * step, (part.stop - 1) * step + 1) for part, step in zip(largest, steps))
    return tuple(ends)


def margin_box(volume: np.ndarray, scale: tuple[float, float], spacing_mm: Spacing | None, margin_mm: float) -> Box:
    """The body's bounding box and a margin, clipped to the volume. Raises as `body_box`."""
    box = body_box(volume, scale, spacing_mm)
    margins = [round(margin_mm / mm) for mm in spacing_mm]
    return tuple(
        (max(first - more, 0), min(end + more, length)) for (first, end), more, length in zip(box, margins, volume.shape)
    )


def mm_box(volume: np.ndarray, scale: tuple[float, float], spacing_mm: Spacing | None, size_mm: Spacing) -> Box:
    """A box of `size_mm` (z, y, x, rounded to voxels) around the body's center; may extend beyond the volume."""
    body = body_box(volume, scale, spacing_mm)
    counts = [max(1, round(length / mm)) for length, mm in zip(size_mm, spacing_mm)]
    starts = [(first + end - count) // 2 for (first, end), count in zip(body, counts)]
    return tuple((start, start + count) for start, count in zip(starts, counts))


@lru_cache(maxsize=64)
def resize_weights(before: int, after: int) -> Tensor:
    """Weights [after, before] of an antialiased linear resize of one axis (`align_corners=False`); every row sums to 1.

    The kernel is a triangle with a half width of one voxel of the coarser grid.
    """
    scale = before / after
    centers = (torch.arange(after, dtype=torch.float64) + 0.5) * scale
    distance = (torch.arange(before, dtype=torch.float64) + 0.5 - centers[:, None]).abs() / max(scale, 1.0)
    weights = (1 - distance).clamp(min=0)
    return (weights / weights.sum(1, keepdim=True)).float()


@lru_cache(maxsize=64)
def linear_weights(before: int, after: int) -> Tensor:
    """Weights [after, before] of a linear resize of one axis without antialiasing.

    As `torch.nn.functional.interpolate(mode="trilinear", align_corners=False)`.
    """
    positions = ((torch.arange(after, dtype=torch.float64) + 0.5) * (before / after) - 0.5).clamp(0, before - 1)
    distance = (torch.arange(before, dtype=torch.float64) - positions[:, None]).abs()
    return (1 - distance).clamp(min=0).float()


KERNELS = {"antialias": resize_weights, "trilinear": linear_weights}
"""Values of `Recipe.resize` -> weights [after, before] of one axis."""


def resize(
    volume: np.ndarray, shape: tuple[int, int, int], *, scale: tuple[float, float] = (1.0, 0.0), limits: tuple[float, float],
    kernel: str = "antialias", padding: Padding = ((0, 0), (0, 0), (0, 0)),
) -> Tensor:  # fmt: skip
    """Rescale (`volume * scale[0] + scale[1]`), clip to `limits` and resize to `shape`: float32 [z, y, x].

    Axes are resized one after the other with the weights of `kernel`, in slabs of slices, as a float copy of a large volume would
    take gigabytes. `padding` adds voxels of `AIR_HU` around the volume without allocating them: air is subtracted from all
    values, so that padding contributes 0, and added again at the end. Voxels with zero weight are not read.
    """
    axes = [_axis(length, pads, after, kernel) for length, pads, after in zip(volume.shape, padding, shape)]
    (along_z, rows_z), (along_y, rows_y), (along_x, rows_x) = axes
    air = float(np.clip(AIR_HU, *limits)) if any(map(any, padding)) else 0.0
    planes = []
    for start in range(0, len(rows_z), _SLAB):
        part = volume[rows_z[start : start + _SLAB]] if len(rows_z) < len(volume) else volume[start : start + _SLAB]
        part = part if len(rows_y) == volume.shape[1] else part[:, rows_y]
        part = part if len(rows_x) == volume.shape[2] else part[:, :, rows_x]
        slab = torch.from_numpy(np.array(part, dtype=np.float32, order="C"))
        if scale != (1.0, 0.0):
            slab.mul_(scale[0]).add_(scale[1])
        planes.append(along_y @ (slab.clamp_(*limits).sub_(air) @ along_x.T))
    return (along_z @ torch.cat(planes).flatten(1)).view(shape).add_(air)


def _axis(length: int, pads: tuple[int, int], after: int, kernel: str) -> tuple[Tensor, np.ndarray]:
    """Weights [after, n] of the n voxels of an axis with a nonzero weight, and the indices of these voxels."""
    weights = KERNELS[kernel](length + sum(pads), after)[:, pads[0] : pads[0] + length]
    used = weights.any(0)
    return weights[:, used].contiguous(), used.nonzero().flatten().numpy()
