"""Whether a scan shows a chest: air inside the body."""

import numpy as np
from scipy import ndimage

AIR_BELOW_HU = -500
MIN_CHEST_AIR = 0.05
"""Of `air_inside`: a real chest has 0.21; synthetic chests in voxels of 5 mm have at least 0.14, of 11 mm 0.065, heads 0.02."""
_PLANE = np.ones((1, 3, 3), bool)


def air_inside(volume_hu: np.ndarray) -> float:
    """Fraction of the body that is air, of a coarse volume in HU [z, y, x]: large in a chest, small in a head or an abdomen.

    The body is the largest part of the tissue after its thin structures are removed in every axial plane: couch, headrest and
    separate arms would enclose air outside of it. A voxel below -500 HU is inside the body if tissue is found in at least three
    of the four directions along y and x, at any distance.
    """
    tissue = volume_hu >= AIR_BELOW_HU
    body = _largest_thick_part(tissue)
    before, above = (np.logical_or.accumulate(body, axis=axis) for axis in (1, 2))
    after, below = (np.flip(np.logical_or.accumulate(np.flip(body, axis), axis=axis), axis) for axis in (1, 2))
    inside = int((~tissue & (before.astype(np.int8) + after + above + below >= 3)).sum())
    return inside / max(inside + int(body.sum()), 1)


def _largest_thick_part(tissue: np.ndarray) -> np.ndarray:
    """Without removing thin structures if more than half of the tissue is thin, as chest walls are in voxels of 10 mm."""
    thick = ndimage.binary_dilation(_largest_part(ndimage.binary_erosion(tissue, _PLANE)), _PLANE) & tissue
    return thick if 2 * thick.sum() > tissue.sum() else _largest_part(tissue)


def _largest_part(mask: np.ndarray) -> np.ndarray:
    parts, count = ndimage.label(mask)
    return parts == np.bincount(parts.ravel())[1:].argmax() + 1 if count else mask


def coarse(volume: np.ndarray, size: int = 64) -> np.ndarray:
    """A view of every nth voxel of a volume [z, y, x], with at most `size` voxels along each axis."""
    return volume[tuple(slice(None, None, -(-length // size)) for length in volume.shape)]
