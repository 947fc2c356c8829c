"""Registry of image encoders and their common interface."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from mg3d.models.vision.nnunet import NNUNetEncoder
from mg3d.models.vision.swin import SwinEncoder
from mg3d.models.vision.unet import UNetEncoder


class VisionEncoder(Protocol):
    """Interface of an image encoder (a `torch.nn.Module`).

    Pre-training uses `encode`, fine-tuning the feature pyramid of `forward`: five maps for the published sizes, finest first.
    """

    mask_token: nn.Parameter | None
    """Replaces masked patches: a vector at the patch embedding, or an intensity for encoders that read voxels."""
    patch_size: Sequence[int]
    """Voxels (z, y, x) of the smallest patch that can be masked."""
    pyramid_channels: Sequence[int]
    """Channels of each map of `forward`."""
    pyramid_strides: Sequence[tuple[int, int, int]]
    """Stride in voxels (z, y, x) of each map of `forward`."""

    @property
    def stride(self) -> tuple[int, int, int]:
        """Stride in voxels (z, y, x) of the last map."""
        ...

    @property
    def channels(self) -> int:
        """Channels of the map of `encode`; the last of `pyramid_channels` without a projection."""
        ...

    def grid(self, volume_shape: Sequence[int]) -> tuple[int, ...]:
        """Size (z, y, x) of the last map for a volume of this shape in voxels."""
        ...

    def encode(self, volume: Tensor, patch_mask: Tensor | None = None) -> Tensor:
        """The last map [B, channels, d, h, w] of volumes [B, 1, D, H, W]; patch_mask bool [B, a, b, c], True = masked."""
        ...

    def __call__(self, volume: Tensor, patch_mask: Tensor | None = None) -> list[Tensor]:
        """Feature pyramid: maps [B, pyramid_channels[i], ...] of volumes [B, 1, D, H, W]; patch_mask as in `encode`."""
        ...


VISION_ENCODERS: dict[str, Callable[..., VisionEncoder]] = {"swin": SwinEncoder, "unet": UNetEncoder, "nnunet": NNUNetEncoder}
"""Kind -> class. mg3d/settings/encoders.py lists the settings that each kind reads."""


def build_vision_encoder(kind: str, **arguments: Any) -> VisionEncoder:
    """Builds the image encoder of this kind; `arguments` are those of its class."""
    if kind not in VISION_ENCODERS:
        raise ValueError(f"vision encoder {kind!r} is unknown; choose one of {sorted(VISION_ENCODERS)}")
    return VISION_ENCODERS[kind](**arguments)
