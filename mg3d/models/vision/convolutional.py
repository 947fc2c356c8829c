"""Base class of the convolutional encoders: mask token, feature pyramid, gradient checkpointing."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mg3d.models.vision.masking import apply_mask_token

MASK_INTENSITY = -1.0
"""Initial mask token: outside [0, 1], so that masked voxels differ from air."""


class ConvolutionalEncoder(nn.Module):
    """A convolutional feature pyramid; a subclass computes the maps in `_maps`.

    Args:
        in_channels: channels of a volume.
        pyramid_channels: channels of each map.
        pyramid_strides: stride of each map in voxels, equal along all axes.
        mask_token: learn the intensity of masked voxels, one per input channel.
        gradient_checkpointing: recompute the blocks in the backward pass instead of storing their activations.
    """

    patch_size = (1, 1, 1)

    def __init__(
        self,
        *,
        in_channels: int,
        pyramid_channels: Sequence[int],
        pyramid_strides: Sequence[int],
        mask_token: bool,
        gradient_checkpointing: bool,
    ) -> None:
        super().__init__()
        self.pyramid_channels = tuple(pyramid_channels)
        self.pyramid_strides = tuple((side, side, side) for side in pyramid_strides)
        self.mask_token = nn.Parameter(torch.full((in_channels,), MASK_INTENSITY)) if mask_token else None
        self.gradient_checkpointing = gradient_checkpointing

    @property
    def stride(self) -> tuple[int, int, int]:
        """Stride in voxels (z, y, x) of the last map."""
        return self.pyramid_strides[-1]

    @property
    def channels(self) -> int:
        """Channels of the map of `encode`."""
        return self.pyramid_channels[-1]

    def forward(self, volume: Tensor, patch_mask: Tensor | None = None) -> list[Tensor]:
        """The five maps of a volume [B, C, D, H, W], finest first.

        patch_mask bool [B, a, b, c], True = masked.
        """
        return list(self._maps(apply_mask_token(volume, patch_mask, self.mask_token)))

    def encode(self, volume: Tensor, patch_mask: Tensor | None = None) -> Tensor:
        """The last map [B, channels, d, h, w] alone. `patch_mask` as in `forward`."""
        *_, last = self._maps(apply_mask_token(volume, patch_mask, self.mask_token))
        return last

    def _maps(self, volume: Tensor) -> Iterator[Tensor]:
        raise NotImplementedError

    def _compute(self, block: nn.Module, features: Tensor) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, features, use_reentrant=False)
        return block(features)
