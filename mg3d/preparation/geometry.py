"""Upright volumes: axes reordered by the affine, and sheared or rotated grids resampled to the patient axes."""

from collections.abc import Sequence

import nibabel as nib
import numpy as np
from nibabel import orientations
from scipy import ndimage

from mg3d.preparation.hounsfield import CLIP_HU, HuRescale, fill_nan
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.records import Change, RawVolume, TableGeometry

SPACING_MM = (0.2, 15.0)
"""Voxel size of a chest CT."""
ANY_SPACING_MM = (0.05, 50.0)
"""Voxel size of a scan of any modality."""
MIN_SLICES = 20
MAX_LENGTH_MM = 1500.0
SHORT_MM = 100.0
"""Shorter scans are read and noted: they are stretched to the grid of a whole chest."""
UPRIGHT_DEGREES = 1.0
"""Shear, and angles between a voxel axis and the nearest patient axis, that are ignored."""
MAX_DEGREES = 45.0
"""Larger angles are refused: then two patient axes are equally near, or the header is wrong."""
_MIN_DETERMINANT = 0.35
_SLAB = 16
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def table_affine(table: TableGeometry | None) -> np.ndarray:
    """The affine to RAS mm described by the metadata table, with the origin at 0.

    Raises:
        Refusal: nan_spacing.
    """
    if table is None or not np.isfinite(table.spacing_zyx_mm).all():
        raise Refusal("nan_spacing", "no geometry in the header and no spacing in the metadata")
    along_i, along_j = np.array(table.orientation[:3]), np.array(table.orientation[3:])
    axes = np.stack([along_i, along_j, np.cross(along_i, along_j)], axis=1)
    return ras_affine(axes * np.array(table.spacing_zyx_mm)[::-1], (0.0, 0.0, 0.0))


def ras_affine(axes_lps: np.ndarray, origin_lps: Sequence[float]) -> np.ndarray:
    """Affine to RAS mm from the steps (columns) along the voxel axes and the position of the first voxel, both LPS mm."""
    return LPS_TO_RAS @ np.block([[axes_lps, np.reshape(origin_lps, (3, 1))], [0, 0, 0, 1]])


def raw_volume(stored: np.ndarray, affine: np.ndarray, rescale: HuRescale, changes: Sequence[Change] = ()) -> RawVolume:
    """A CT volume in the patient axes from stored values [i, j, k]: a view if the grid is upright to 1 degree, else resampled.

    A resampled volume (linear interpolation) has the number of voxels, the voxel size and the centre of the stored one. Corners
    of the stored grid outside it are cut off, and its own corners are filled with air.

    Raises:
        Refusal: as `fill_nan`; nan_spacing, spacing_out_of_range, gantry_tilt (shear) and oblique above `MAX_DEGREES`,
            too_few_slices, too_long.
    """
    scale = (rescale.slope, rescale.intercept)
    air = (CLIP_HU[0] - rescale.intercept) / rescale.slope
    stored, filled = fill_nan(stored, air)
    changes = [*changes, *filled]
    if not (deviations := _deviations(affine)):
        view, spacing = to_lps(stored, affine)
        return RawVolume(view, spacing, rescale.source, scale, (*changes, *note_length(view, spacing)), affine)
    shape, upright_affine = _upright_grid(stored.shape, affine)
    spacing = tuple(float(size) for size in nib.affines.voxel_sizes(upright_affine)[::-1])
    check_slices(shape[0], spacing[0])
    upright = _resample(stored, affine, shape, upright_affine, air)
    changes = (*changes, *deviations, *note_length(upright, spacing))
    return RawVolume(upright, spacing, rescale.source, scale, changes, upright_affine)


def to_lps(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, tuple[float, float, float]]:
    """A view [z, y, x] of an array [i, j, k] in the patient axes (+z superior, +y posterior, +x left), and its spacing in mm.

    Raises:
        Refusal: as `raw_volume`; any sheared or rotated grid.
    """
    for deviation in _deviations(affine):
        raise Refusal(deviation.code, f"{deviation.detail}, {UPRIGHT_DEGREES:g} allowed; resample it to axial slices")
    change = _orientation_to_lps(affine)
    view = orientations.apply_orientation(array, change).transpose(2, 1, 0)
    spacing = np.empty(3)
    spacing[change[:, 0].astype(int)] = nib.affines.voxel_sizes(affine)
    check_slices(len(view), float(spacing[2]))
    return view, tuple(float(size) for size in spacing[::-1])


def check_slices(count: int, spacing_mm: float | None = None) -> None:
    """Raise `Refusal` too_few_slices or too_long for a stack of `count` axial slices."""
    if count < MIN_SLICES:
        raise Refusal("too_few_slices", f"{count} slices, at least {MIN_SLICES} expected")
    if spacing_mm is not None and count * spacing_mm > MAX_LENGTH_MM:
        raise Refusal("too_long", f"{count * spacing_mm:.0f} mm")


def note_length(volume: np.ndarray, spacing_mm: tuple[float, float, float]) -> list[Change]:
    """The change of a volume [z, y, x] that is shorter than `SHORT_MM`."""
    length = len(volume) * spacing_mm[0]
    return [Change("short", f"{length:.0f} mm")] if length < SHORT_MM else []


def from_lps(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Inverse of `to_lps`: an array [i, j, k] from an LPS volume [z, y, x]."""
    back = orientations.ornt_transform(orientations.axcodes2ornt("LPS"), orientations.io_orientation(affine))
    return orientations.apply_orientation(volume.transpose(2, 1, 0), back)


def lps_affine(affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Affine from voxels [x, y, z] of the LPS volume of `shape` (z, y, x) to RAS mm; `affine` is that of the file."""
    in_file = from_lps(np.broadcast_to(np.int8(0), shape), affine).shape
    return affine @ orientations.inv_ornt_aff(_orientation_to_lps(affine), in_file)


def check_grid(affine: np.ndarray) -> None:
    """Refuse a grid of any modality without voxels of plausible size at right angles; it may be rotated.

    Raises:
        Refusal: nan_spacing, spacing_out_of_range, gantry_tilt.
    """
    _check_sizes(affine, ANY_SPACING_MM)
    if (shear := _shear_degrees(affine)) > UPRIGHT_DEGREES:
        raise Refusal("gantry_tilt", f"{shear:.1f} degrees of shear, {UPRIGHT_DEGREES:g} allowed; resample scan and mask")


def _shear_degrees(affine: np.ndarray) -> float:
    directions = affine[:3, :3] / nib.affines.voxel_sizes(affine)
    cosines = np.abs(directions.T @ directions)[np.triu_indices(3, 1)]
    return float(np.degrees(np.arcsin(cosines.max().clip(max=1))))


def _check_sizes(affine: np.ndarray, limits_mm: tuple[float, float] = SPACING_MM) -> None:
    if not np.isfinite(affine).all():
        raise Refusal("nan_spacing", "NaN in the header's affine")
    sizes = nib.affines.voxel_sizes(affine)
    if not all(limits_mm[0] <= size <= limits_mm[1] for size in sizes):
        raise Refusal("spacing_out_of_range", f"{' x '.join(f'{size:.4g}' for size in sizes)} mm{_guess_unit(sizes)}")


def _guess_unit(sizes: np.ndarray) -> str:
    for factor, unit in ((1000, "metres"), (10, "centimetres"), (0.001, "micrometres")):
        if all(SPACING_MM[0] <= size * factor <= SPACING_MM[1] for size in sizes):
            return f"; the header seems to be in {unit}, so store it in mm"
    return ""


def _deviations(affine: np.ndarray) -> list[Change]:
    """Shear and rotation beyond `UPRIGHT_DEGREES`; raises as `raw_volume`."""
    _check_sizes(affine)
    directions = affine[:3, :3] / nib.affines.voxel_sizes(affine)
    shear = _shear_degrees(affine)
    if shear > MAX_DEGREES or abs(np.linalg.det(directions)) < _MIN_DETERMINANT:
        raise Refusal("gantry_tilt", f"{shear:.1f} degrees of shear; up to {MAX_DEGREES:g} are resampled")
    # A sheared grid has one axis that differs from its patient axis, a rotated one has two or three.
    rotation = float(np.sort(np.degrees(np.arccos(np.abs(directions).max(0).clip(max=1))))[-2])
    if len(set(np.abs(directions).argmax(0))) < 3:
        raise Refusal("oblique", f"{rotation:.1f} degrees, and two voxel axes are nearest to the same patient axis")
    if rotation > MAX_DEGREES:
        raise Refusal("oblique", f"{rotation:.1f} degrees; up to {MAX_DEGREES:g} are resampled")
    found = [("gantry_tilt", shear), ("oblique", rotation)]
    return [Change(code, f"{degrees:.1f} degrees") for code, degrees in found if degrees > UPRIGHT_DEGREES]


def _orientation_to_lps(affine: np.ndarray) -> np.ndarray:
    return orientations.ornt_transform(orientations.io_orientation(affine), orientations.axcodes2ornt("LPS"))


def _upright_grid(shape: Sequence[int], affine: np.ndarray) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape [z, y, x] and affine of the upright grid for a stored one of `shape` [i, j, k].

    Its spacing is that of the voxel axes after Gram-Schmidt in the order x, y, z, so a tilt keeps pixels and distance of slices.
    """
    file_axis = np.abs(affine[:3, :3] / nib.affines.voxel_sizes(affine)).argmax(0).argsort()
    sizes = np.abs(np.diag(np.linalg.qr(affine[:3, file_axis], mode="r")))
    counts = np.array(shape)[file_axis]
    upright = np.diag([-sizes[0], -sizes[1], sizes[2], 1.0])
    center = affine @ [*(np.array(shape) - 1) / 2, 1.0]
    upright[:3, 3] = center[:3] - upright[:3, :3] @ (counts - 1) / 2
    return tuple(int(count) for count in counts[::-1]), upright


def _resample(
    stored: np.ndarray, affine: np.ndarray, shape: tuple[int, int, int], upright_affine: np.ndarray, air: float
) -> np.ndarray:
    """Linear interpolation of `stored` [i, j, k] on an upright grid [z, y, x], in slabs, in the stored type."""
    to_stored = np.linalg.inv(affine) @ upright_affine
    matrix, offset = to_stored[:3, 2::-1], to_stored[:3, 3]
    is_integer = stored.dtype.kind in "iu"
    limits = np.iinfo(stored.dtype) if is_integer else None
    air = float(np.clip(air, limits.min, limits.max)) if is_integer else air
    result = np.empty(shape, stored.dtype if is_integer else np.float32)
    for start in range(0, shape[0], _SLAB):
        slab = result[start : start + _SLAB]
        values = ndimage.affine_transform(
            stored, matrix, offset + matrix[:, 0] * start, slab.shape, np.float32, order=1, mode="constant", cval=air
        )
        slab[...] = np.rint(values) if is_integer else values
    return result
