"""Boxes to which volumes are cropped: a central part, the body, or a size in mm around the body."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from mg3d.preparation.quarantine import Refusal
from mg3d.settings.schema import CROP

BODY_HU = -300
COARSE_MM = 4.0
"""Sampling distance of the body search."""
HOLE_MM = 30.0
"""Diameter of a disc that fits into a lung, but not into a hollow couch or the gap above it."""
COUCH_MM = 24.0
"""Diameter of a disc that does not fit into the couch, the headrest, or the contact of an arm with the chest."""

Spacing = tuple[float, float, float]
"""z y x in mm."""
Padding = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""Voxels before and after along z, y, x."""
Box = tuple[tuple[int, int], ...]
"""Start and stop along z, y, x; may extend beyond the volume."""


def center_box(shape: Sequence[int]) -> Box:
    """The central fraction `CROP` of every axis of a volume of `shape` (z, y, x)."""
    sizes = [max(1, round(fraction * length)) for fraction, length in zip(CROP, shape)]
    return tuple(((length - size) // 2, (length - size) // 2 + size) for size, length in zip(sizes, shape))


def cut(volume: np.ndarray, box: Box) -> tuple[np.ndarray, Padding]:
    """The part of a box inside the volume (a view), and the padding that the rest of the box needs."""
    view = volume[tuple(slice(max(start, 0), end) for start, end in box)]
    return view, tuple((max(-start, 0), max(end - length, 0)) for (start, end), length in zip(box, volume.shape))


def body_mask(hu: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    """Bool [z, y, x]: the body with its lungs, without couch, headrest and separate arms, of a coarse volume in HU [z, y, x].

    The largest connected component above `BODY_HU` after two steps in every axial plane: enclosed air that is wider than
    `HOLE_MM` is filled, and whatever is thinner than `COUCH_MM` is cut off. False everywhere if nothing is above `BODY_HU`.
    """
    tissue = hu > BODY_HU
    holes = ndimage.binary_fill_holes(tissue, _disc(1, (1, 1))) & ~tissue
    labels, _ = ndimage.label(holes, _disc(1, (1, 1)))
    wide = np.unique(labels[ndimage.binary_opening(holes, _disc(HOLE_MM / 2, spacing_mm[1:]))])
    solid = tissue | np.isin(labels, wide[wide > 0])
    disc = _disc(COUCH_MM / 2, spacing_mm[1:])
    thick = ndimage.binary_erosion(solid, disc)
    return ndimage.binary_dilation(_largest_part(thick), disc) if thick.any() else _largest_part(solid)


def _largest_part(mask: np.ndarray) -> np.ndarray:
    parts, count = ndimage.label(mask)
    return parts == np.bincount(parts.ravel())[1:].argmax() + 1 if count else mask


def _disc(radius_mm: float, spacing_mm: tuple[float, float]) -> np.ndarray:
    """Structuring element [3, y, x] of a disc in an axial plane, between two empty planes."""
    reach = [max(1, round(radius_mm / mm)) for mm in spacing_mm]
    y, x = np.ogrid[-reach[0] : reach[0] + 1, -reach[1] : reach[1] + 1]
    disc = (y / reach[0]) ** 2 + (x / reach[1]) ** 2 <= 1
    return np.pad(disc[None], ((1, 1), (0, 0), (0, 0)))


def body_box(volume: np.ndarray, scale: tuple[float, float], spacing_mm: Spacing | None) -> Box:
    """Bounding box of the body (see `body_mask`), to within `COARSE_MM`.

    Raises:
        Refusal: nan_spacing without a spacing, no_body.
    """
    if spacing_mm is None:
        raise Refusal("nan_spacing", "this crop needs the voxel spacing")
    steps = [max(1, int(COARSE_MM / mm)) for mm in spacing_mm]
    coarse = volume[tuple(slice(None, None, step) for step in steps)].astype(np.float32)
    hu = coarse * np.float32(scale[0]) + np.float32(scale[1])
    found = ndimage.find_objects(body_mask(hu, tuple(step * mm for step, mm in zip(steps, spacing_mm))).astype(np.int8))
    if not found:
        raise Refusal("no_body", f"no voxel above {BODY_HU} HU")
    return tuple((part.start * step, (part.stop - 1) * step + 1) for part, step in zip(found[0], steps))


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
