"""Masks of volume patches on finer grids, and the mask token."""

from collections.abc import Sequence

import torch
from einops import repeat
from torch import Tensor


def upsample_mask(patch_mask: Tensor, size: Sequence[int]) -> Tensor:
    """Nearest-neighbour upsampling of patch_mask [B, a, b, c] to [B, *size]; `size` is a multiple of (a, b, c)."""
    patches = tuple(patch_mask.shape[1:])
    if any(side % count for side, count in zip(size, patches)):
        raise ValueError(
            f"a mask of {patches} patches does not divide a grid of {tuple(size)} cells. Choose a mim_patch_size that is a "
            "multiple of patch_size and divides the volume."
        )
    depth, height, width = (side // count for side, count in zip(size, patches))
    return repeat(patch_mask, "b z y x -> b (z d) (y h) (x w)", d=depth, h=height, w=width)


def apply_mask_token(features: Tensor, patch_mask: Tensor | None, token: Tensor | None) -> Tensor:
    """Features [B, C, d, h, w] with `token` [C] in every masked cell; patch_mask bool [B, a, b, c], None = nothing is masked.

    Raises:
        ValueError: there is a mask, but the encoder has no mask token.
    """
    if patch_mask is None:
        return features
    if token is None:
        raise ValueError("this encoder has no mask token; build it with mask_token=True")
    masked = upsample_mask(patch_mask, features.shape[2:])
    return torch.where(masked[:, None], token.to(features.dtype)[:, None, None, None], features)
