"""Base class of the image encoders."""

import math
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from mg3d.models.vision.masking import apply_mask_token


class VisionEncoder(nn.Module):
    """A feature pyramid of a volume, finest map first.

    Pre-training uses the last map (`encode`), fine-tuning all maps (`forward`): five for the published sizes. A subclass sets the
    attributes below and computes the maps in `_maps`.
    """

    mask_token: nn.Parameter | None
    """Replaces masked patches: a vector at the patch embedding, or an intensity for encoders that read voxels."""
    patch_size: Sequence[int]
    """Voxels (z, y, x) of the smallest patch that can be masked."""
    pyramid_channels: Sequence[int]
    """Channels of each map."""
    pyramid_strides: Sequence[tuple[int, int, int]]
    """Stride in voxels (z, y, x) of each map."""

    @property
    def stride(self) -> tuple[int, int, int]:
        """Stride in voxels (z, y, x) of the last map."""
        return self.pyramid_strides[-1]

    @property
    def channels(self) -> int:
        """Channels of the map of `encode`."""
        return self.pyramid_channels[-1]

    def grid(self, volume_shape: Sequence[int]) -> tuple[int, ...]:
        """Size (z, y, x) of the last map for a volume of this shape in voxels."""
        return tuple(math.ceil(side / step) for side, step in zip(volume_shape, self.stride))

    def forward(self, volume: Tensor, patch_mask: Tensor | None = None) -> list[Tensor]:
        """Maps [B, pyramid_channels[i], ...] of volumes [B, C, D, H, W]; patch_mask bool [B, a, b, c], True = masked."""
        return list(self._maps(apply_mask_token(volume, patch_mask, self.mask_token)))

    def encode(self, volume: Tensor, patch_mask: Tensor | None = None) -> Tensor:
        """The last map [B, channels, d, h, w]; arguments as in `forward`."""
        *_, last = self._maps(apply_mask_token(volume, patch_mask, self.mask_token))
        return last

    def _maps(self, volume: Tensor) -> Iterator[Tensor]:
        raise NotImplementedError
