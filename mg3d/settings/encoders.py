"""What each kind of volume encoder reads of the settings, and the geometry that follows from them."""

from collections.abc import Callable
from dataclasses import dataclass, fields

from mg3d.settings.schema import VisionSettings


@dataclass(frozen=True, kw_only=True)
class EncoderRow:
    """One kind of encoder, as far as settings can tell without building it."""

    reads: tuple[str, ...]
    """Names of VisionSettings that shape this encoder; the others are not read by it."""
    patch_size: Callable[[VisionSettings], int]
    """Voxels per side of the smallest piece that can be hidden."""
    stride: Callable[[VisionSettings], int]
    """Voxels per side of one cell of the last map."""


ENCODERS: dict[str, EncoderRow] = {
    "swin": EncoderRow(
        reads=("embed_dim", "patch_size", "window_size", "depths", "num_heads", "patch_merging", "token_projection",
               "gradient_checkpointing"),
        patch_size=lambda vision: vision.patch_size,
        stride=lambda vision: vision.patch_size * 2 ** len(vision.depths),
    ),
    "unet": EncoderRow(
        reads=("embed_dim", "norm_statistics", "gradient_checkpointing"),
        patch_size=lambda vision: 1,
        stride=lambda vision: 32,
    ),
    "nnunet": EncoderRow(
        reads=("embed_dim", "gradient_checkpointing"),
        patch_size=lambda vision: 1,
        stride=lambda vision: 32,
    ),
}  # fmt: skip
"""Kind (a name of mg3d/models/vision/registry.py) -> what it reads."""

_FOR_ALL = ("vision_encoder", "standardise_voxels")


def unread(vision: VisionSettings) -> list[str]:
    """Names of vision settings that this kind of encoder does not read."""
    read = (*_FOR_ALL, *ENCODERS[vision.vision_encoder].reads)
    return [entry.name for entry in fields(vision) if entry.name not in read]
