"""What the convolutional encoders share: hidden voxels, the pyramid, blocks computed again in the backward pass."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mg3d.models.vision.masking import hide

HIDDEN_INTENSITY = -1.0
"""What hidden voxels hold before training: below every intensity in [0, 1], so that they are not taken for air."""


class ConvolutionalEncoder(nn.Module):
    """A pyramid of convolutions over voxels; a subclass computes the maps in `_maps`.

    Args:
        in_channels: channels of a volume.
        pyramid_channels: channels of each map.
        pyramid_strides: voxels along every axis of one cell of each map.
        mask_token: learn the intensity that stands for a hidden voxel, one per input channel.
        gradient_checkpointing: compute the blocks again in the backward pass instead of keeping their maps.
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
        self.mask_token = nn.Parameter(torch.full((in_channels,), HIDDEN_INTENSITY)) if mask_token else None
        self.gradient_checkpointing = gradient_checkpointing

    @property
    def stride(self) -> tuple[int, int, int]:
        """Voxels (z, y, x) of one cell of the last map."""
        return self.pyramid_strides[-1]

    @property
    def channels(self) -> int:
        """Channels of the map that `encode` gives."""
        return self.pyramid_channels[-1]

    def forward(self, volume: Tensor, hidden: Tensor | None = None) -> list[Tensor]:
        """The five maps of a volume [B, C, D, H, W], finest first.

        hidden bool [B, a, b, c], True = cube whose voxels take the learned intensity.
        """
        return list(self._maps(hide(volume, hidden, self.mask_token)))

    def encode(self, volume: Tensor, hidden: Tensor | None = None) -> Tensor:
        """The last map [B, channels, d, h, w] alone. `hidden` as in `forward`."""
        *_, last = self._maps(hide(volume, hidden, self.mask_token))
        return last

    def _maps(self, volume: Tensor) -> Iterator[Tensor]:
        raise NotImplementedError

    def _compute(self, block: nn.Module, features: Tensor) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, features, use_reentrant=False)
        return block(features)
