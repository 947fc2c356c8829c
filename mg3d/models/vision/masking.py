"""From the mask of hidden cubes to a mask of voxels or of patches, and what stands in their place."""

from collections.abc import Sequence

import torch
from einops import repeat
from torch import Tensor


def upsample_mask(patch_mask: Tensor, size: Sequence[int]) -> Tensor:
    """The mask of cubes [B, a, b, c] on a finer grid, [B, *size]; `size` holds a multiple of cells per cube on each axis."""
    cubes = tuple(patch_mask.shape[1:])
    if any(side % count for side, count in zip(size, cubes)):
        raise ValueError(
            f"a mask of {cubes} cubes does not divide a grid of {tuple(size)} cells; choose a cube whose side is a multiple "
            "of the patch size and a divisor of the volume"
        )
    depth, height, width = (side // count for side, count in zip(size, cubes))
    return repeat(patch_mask, "b z y x -> b (z d) (y h) (x w)", d=depth, h=height, w=width)


def hide(features: Tensor, hidden: Tensor | None, token: Tensor | None) -> Tensor:
    """[B, C, d, h, w] with `token` [C] in every cell of a hidden cube; hidden bool [B, a, b, c], None = nothing is hidden.

    Raises:
        ValueError: cubes are to be hidden and the encoder has no token for them.
    """
    if hidden is None:
        return features
    if token is None:
        raise ValueError("this encoder has no token for hidden cubes; build it with mask_token=True")
    cells = upsample_mask(hidden, features.shape[2:])
    return torch.where(cells[:, None], token.to(features.dtype)[:, None, None, None], features)
