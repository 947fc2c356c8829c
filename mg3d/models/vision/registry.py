"""Registry of the image encoders."""

from typing import Any

from mg3d.models.vision.base import VisionEncoder
from mg3d.models.vision.nnunet import NNUNetEncoder
from mg3d.models.vision.swin import SwinEncoder
from mg3d.models.vision.unet import UNetEncoder
from mg3d.models.vision.vit import ViTEncoder

VISION_ENCODERS: dict[str, type[VisionEncoder]] = {
    "swin": SwinEncoder, "vit": ViTEncoder, "unet": UNetEncoder, "nnunet": NNUNetEncoder,
}  # fmt: skip
"""Setting `vision_encoder` -> class. mg3d/settings/encoders.py lists the settings that each reads."""


def build_vision_encoder(kind: str, **arguments: Any) -> VisionEncoder:
    """An untrained image encoder; `arguments` are those of its class."""
    if kind not in VISION_ENCODERS:
        raise ValueError(f"vision encoder {kind!r} is unknown; choose one of {sorted(VISION_ENCODERS)}")
    return VISION_ENCODERS[kind](**arguments)
