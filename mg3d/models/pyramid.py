"""Image tokens from all maps of a feature pyramid."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mg3d.models.position import GridPosition


class PyramidTokens(nn.Module):
    """Pools every map to the same grid, concatenates and projects the channels, and adds positions.

    As report generation of the published code, which adds four convolutional blocks (1152 channels for Swin-B). Here the maps are
    the encoder's own: 48 + 96 + 192 + 384 + 768 = 1488 channels for Swin-B, 2976 for Swin-L, 2208 for the U-Net. Normalised over
    channels; the original normalises over the 27 cells.

    Args:
        channels: of each map, an encoder's `pyramid_channels`.
        width: C, of a token.
        side: cells along each axis.
    """

    def __init__(self, channels: Sequence[int], width: int, *, side: int = 3) -> None:
        super().__init__()
        self.grid = (side,) * 3
        self.project = nn.Sequential(nn.LayerNorm(sum(channels)), nn.Linear(sum(channels), width))
        self.position = GridPosition(width)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """[B, side ** 3, width], z-major, of maps [B, channels[i], d, h, w], each of any size."""
        pooled = torch.cat([F.adaptive_avg_pool3d(features, self.grid) for features in pyramid], 1)
        return self.project(pooled.flatten(2).transpose(1, 2)) + self.position(self.grid)
