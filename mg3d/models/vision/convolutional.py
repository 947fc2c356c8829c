"""Base class of the convolutional encoders: an intensity as mask token, gradient checkpointing."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mg3d.models.vision.base import VisionEncoder

MASK_INTENSITY = -1.0
"""Initial mask token: outside [0, 1], so that masked voxels differ from air."""


class ConvolutionalEncoder(VisionEncoder):
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

    def _compute(self, block: nn.Module, features: Tensor) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, features, use_reentrant=False)
        return block(features)
