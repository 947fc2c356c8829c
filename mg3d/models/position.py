"""Where an image token lies, as numbers."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

BANDS = 3


class GridPosition(nn.Module):
    """A learned linear map of where a token's centre lies within its volume (-1 to 1 along z, y, x, and waves of it).

    Works for any grid: a volume of another size gives the same position to the same place. Attention in windows alone cannot
    tell where in the chest a token lies.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * (1 + 2 * BANDS), width, bias=False)

    def forward(self, grid: Sequence[int]) -> Tensor:
        """[N, d] for the tokens of a grid (z, y, x), z-major."""
        weight = self.linear.weight
        axes = [(torch.arange(side, device=weight.device, dtype=weight.dtype) + 0.5) / side * 2 - 1 for side in grid]
        place = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)
        waves = [wave(math.pi * 2**band / 2 * place) for band in range(BANDS) for wave in (torch.sin, torch.cos)]
        return self.linear(torch.cat([place, *waves], -1))
