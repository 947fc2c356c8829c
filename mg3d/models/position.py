"""Position embedding of image tokens."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

BANDS = 3


class GridPosition(nn.Module):
    """Learned linear map of the relative coordinates of a token's centre (-1 to 1 along z, y, x) and their Fourier features.

    Independent of the grid size. Needed because windowed attention only knows relative positions.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * (1 + 2 * BANDS), width, bias=False)

    def forward(self, grid: Sequence[int]) -> Tensor:
        """[N, d] for the tokens of a grid (z, y, x), z-major."""
        weight = self.linear.weight
        axes = [(torch.arange(side, device=weight.device, dtype=weight.dtype) + 0.5) / side * 2 - 1 for side in grid]
        center = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)
        waves = [wave(math.pi * 2**band / 2 * center) for band in range(BANDS) for wave in (torch.sin, torch.cos)]
        return self.linear(torch.cat([center, *waves], -1))
