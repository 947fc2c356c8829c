"""Image encoders by name, and what every one of them offers."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from mg3d.models.vision.swin import SwinEncoder


class VisionEncoder(Protocol):
    """What the rest of mg3d asks of an image encoder (a `torch.nn.Module`)."""

    mask_token: nn.Parameter | None
    patch_size: Sequence[int]
    """Voxels (z, y, x) of the smallest piece that can be hidden."""

    @property
    def stride(self) -> tuple[int, int, int]:
        """Voxels (z, y, x) of one cell of the last map."""
        ...

    @property
    def channels(self) -> int:
        """Channels of the map that `encode` gives."""
        ...

    def grid(self, volume_shape: Sequence[int]) -> tuple[int, ...]:
        """Cells (z, y, x) of the last map of a volume of this shape in voxels."""
        ...

    def encode(self, volume: Tensor, hidden: Tensor | None = None) -> Tensor:
        """The last map [B, channels, d, h, w] of a volume [B, 1, D, H, W]; hidden cubes as bool [B, a, b, c]."""
        ...


VISION_ENCODERS: dict[str, Callable[..., VisionEncoder]] = {"swin": SwinEncoder}


def build_vision_encoder(kind: str, **arguments: Any) -> VisionEncoder:
    """The image encoder of this kind, built with its own plain arguments."""
    if kind not in VISION_ENCODERS:
        raise ValueError(f"vision encoder {kind!r} is not known; choose one of {sorted(VISION_ENCODERS)}")
    return VISION_ENCODERS[kind](**arguments)
