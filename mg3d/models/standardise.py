"""Voxel-wise standardisation of volumes."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

MIN_DEVIATION = 0.05
"""Lower bound of the standard deviation (intensities in [0, 1]), for constant voxels such as air outside the body."""


class VoxelStandardiser(nn.Module):
    """(volume - mean) / standard deviation per voxel over the training volumes; buffers, without gradient.

    The identity before `fit`. For volumes of one size that show the same region.
    """

    def __init__(self, volume_shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, *volume_shape))
        self.register_buffer("deviation", torch.ones(1, *volume_shape))

    def forward(self, volume: Tensor) -> Tensor:
        """[B, 1, D, H, W] of the same shape, for volumes in [0, 1]."""
        if volume.shape[1:] != self.mean.shape:
            raise ValueError(
                f"the volumes have {tuple(volume.shape[2:])} voxels (z, y, x), the model's voxel statistics "
                f"{tuple(self.mean.shape[1:])}. Prepare volumes of that size."
            )
        return (volume - self.mean) / self.deviation

    def restore(self, values: Tensor) -> Tensor:
        """Inverse of `forward`."""
        return values * self.deviation + self.mean

    @torch.no_grad()
    def fit(self, volumes: Iterable[Tensor]) -> None:
        """Fits mean and standard deviation to volumes [1, D, H, W] in [0, 1]; ValueError without any."""
        count, total, squares = 0, torch.zeros_like(self.mean, dtype=torch.float64), 0.0
        for volume in volumes:
            volume = volume.to(total)
            count, total, squares = count + 1, total + volume, squares + volume.square()
        if count == 0:
            raise ValueError("standardise_voxels needs training volumes, but there are none")
        mean = total / count
        self.mean.copy_(mean)
        self.deviation.copy_((squares / count - mean.square()).clamp(min=0).sqrt().clamp(min=MIN_DEVIATION))
