"""Image encoders by name, and what every one of them offers."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from mg3d.models.vision.nnunet import NNUNetEncoder
from mg3d.models.vision.swin import SwinEncoder
from mg3d.models.vision.unet import UNetEncoder


class VisionEncoder(Protocol):
    """What the rest of mg3d asks of an image encoder (a `torch.nn.Module`).

    Pre-training reads `encode`, fine-tuning the pyramid that `forward` gives: five maps for the published sizes, finest first.
    """

    mask_token: nn.Parameter | None
    """Stands for what is hidden: a vector at the patch embedding, or an intensity for encoders that read voxels."""
    patch_size: Sequence[int]
    """Voxels (z, y, x) of the smallest piece that can be hidden."""
    pyramid_channels: Sequence[int]
    """Channels of each map that `forward` gives."""
    pyramid_strides: Sequence[tuple[int, int, int]]
    """Voxels (z, y, x) of one cell of each map that `forward` gives."""

    @property
    def stride(self) -> tuple[int, int, int]:
        """Voxels (z, y, x) of one cell of the last map."""
        ...

    @property
    def channels(self) -> int:
        """Channels of the map that `encode` gives; the last of `pyramid_channels` where nothing is projected."""
        ...

    def grid(self, volume_shape: Sequence[int]) -> tuple[int, ...]:
        """Cells (z, y, x) of the last map of a volume of this shape in voxels."""
        ...

    def encode(self, volume: Tensor, hidden: Tensor | None = None) -> Tensor:
        """The last map [B, channels, d, h, w] of a volume [B, 1, D, H, W]; hidden cubes as bool [B, a, b, c]."""
        ...

    def __call__(self, volume: Tensor, hidden: Tensor | None = None) -> list[Tensor]:
        """The pyramid: maps [B, pyramid_channels[i], ...] of a volume [B, 1, D, H, W]; hidden as in `encode`."""
        ...


VISION_ENCODERS: dict[str, Callable[..., VisionEncoder]] = {"swin": SwinEncoder, "unet": UNetEncoder, "nnunet": NNUNetEncoder}
"""Kind -> class. mg3d/settings/encoders.py says which settings each kind reads."""


def build_vision_encoder(kind: str, **arguments: Any) -> VisionEncoder:
    """The image encoder of this kind, built with its own plain arguments."""
    if kind not in VISION_ENCODERS:
        raise ValueError(f"vision encoder {kind!r} is not known; choose one of {sorted(VISION_ENCODERS)}")
    return VISION_ENCODERS[kind](**arguments)
