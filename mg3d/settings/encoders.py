"""Settings that each volume encoder reads, and the patch size and stride that follow from them."""

from collections.abc import Callable
from dataclasses import dataclass, fields

from mg3d.settings.schema import VisionSettings


@dataclass(frozen=True, kw_only=True)
class EncoderRow:
    """Properties of one encoder that are known without building it."""

    reads: tuple[str, ...]
    """VisionSettings that this encoder uses."""
    patch_size: Callable[[VisionSettings], tuple[int, ...]]
    """Sides (z, y, x) of the smallest maskable patch in voxels."""
    stride: Callable[[VisionSettings], tuple[int, ...]]
    """Stride (z, y, x) of the last feature map in voxels."""


def _patch_size(vision: VisionSettings) -> tuple[int, ...]:
    side = vision.patch_size
    return (side,) * 3 if isinstance(side, int) else side


ENCODERS: dict[str, EncoderRow] = {
    "swin": EncoderRow(
        reads=("embed_dim", "patch_size", "window_size", "depths", "num_heads", "patch_merging", "token_projection",
               "gradient_checkpointing"),
        patch_size=_patch_size,
        stride=lambda vision: tuple(side * 2 ** len(vision.depths) for side in _patch_size(vision)),
    ),
    "vit": EncoderRow(
        reads=("embed_dim", "patch_size", "depths", "num_heads", "gradient_checkpointing"),
        patch_size=_patch_size,
        stride=_patch_size,
    ),
    "unet": EncoderRow(
        reads=("embed_dim", "norm_statistics", "gradient_checkpointing"),
        patch_size=lambda vision: (1, 1, 1),
        stride=lambda vision: (32, 32, 32),
    ),
    "nnunet": EncoderRow(
        reads=("embed_dim", "gradient_checkpointing"),
        patch_size=lambda vision: (1, 1, 1),
        stride=lambda vision: (32, 32, 32),
    ),
}  # fmt: skip
"""Key of mg3d/models/vision/registry.py -> properties."""

_FOR_ALL = ("vision_encoder", "standardise_voxels")


def unread(vision: VisionSettings) -> list[str]:
    """Vision settings that the chosen encoder ignores."""
    read = (*_FOR_ALL, *ENCODERS[vision.vision_encoder].reads)
    return [entry.name for entry in fields(vision) if entry.name not in read]
