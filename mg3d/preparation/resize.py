"""Resize of an upright volume."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from mg3d.preparation.crop import Padding

AIR_HU = -1000
"""Value of voxels that a crop adds around a volume."""
_SLAB = 16


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
