"""Voxels relative to what is usual at their place."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

SMALLEST_DEVIATION = 0.05
"""Deviation (of intensities in [0, 1]) that a quiet voxel, such as air outside the body, is given."""


class VoxelStandardiser(nn.Module):
    """(volume - mean) / deviation, both of each voxel over training volumes; stored with the weights, without gradient.

    Until `fit` the mean is 0 and the deviation 1. For volumes of one size that show the same region.
    """

    def __init__(self, volume_shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, *volume_shape))
        self.register_buffer("deviation", torch.ones(1, *volume_shape))

    def forward(self, volume: Tensor) -> Tensor:
        """[B, 1, D, H, W] of the same shape, for volumes in [0, 1]."""
        if volume.shape[1:] != self.mean.shape:
            raise ValueError(
                f"volumes of {tuple(volume.shape[2:])} voxels (z, y, x) came to a model whose voxel statistics are for "
                f"{tuple(self.mean.shape[1:])}; prepare them at that size"
            )
        return (volume - self.mean) / self.deviation

    @torch.no_grad()
    def fit(self, volumes: Iterable[Tensor]) -> None:
        """Takes mean and deviation from volumes [1, D, H, W] in [0, 1]; ValueError without any."""
        count, total, squares = 0, torch.zeros_like(self.mean, dtype=torch.float64), 0.0
        for volume in volumes:
            volume = volume.to(total)
            count, total, squares = count + 1, total + volume, squares + volume.square()
        if count == 0:
            raise ValueError("there is no training volume to take the mean and deviation of voxels from")
        mean = total / count
        self.mean.copy_(mean)
        self.deviation.copy_((squares / count - mean.square()).clamp(min=0).sqrt().clamp(min=SMALLEST_DEVIATION))
