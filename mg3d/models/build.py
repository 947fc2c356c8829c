"""Builds encoders and model from settings."""

import torch

from mg3d.models.mg3d import MG3D
from mg3d.models.released import ReleasedMG3D
from mg3d.models.text.encoder import TextEncoder, load_text_encoder, tiny_text_encoder
from mg3d.models.vision.registry import VisionEncoder, build_vision_encoder
from mg3d.settings.encoders import ENCODERS
from mg3d.settings.schema import Settings, objective_weights, volume_shape


def build_text_encoder(settings: Settings, vocabulary_size: int) -> TextEncoder:
    """The report encoder for a tokenizer with `vocabulary_size` entries."""
    text = settings.text
    if text.text_encoder != "tiny":
        return load_text_encoder(text.text_encoder, frozen=text.freeze_text, tokenizer_size=vocabulary_size)
    return tiny_text_encoder(
        vocab_size=vocabulary_size,
        width=text.tiny_text_width,
        layers=text.tiny_text_layers,
        heads=text.tiny_text_heads,
        max_positions=settings.data.max_text_len,
    )


def build_vision(settings: Settings, *, pyramid: bool = False) -> VisionEncoder:
    """The untrained image encoder, from the settings that its kind reads; pyramid: with the maps that fine-tuning needs."""
    kind = settings.vision.vision_encoder
    arguments = {name: getattr(settings.vision, name) for name in ENCODERS[kind].reads}
    if arguments.pop("token_projection", False):
        arguments["projection_width"] = settings.model.hidden_size
    if kind == "vit":  # its pyramid has layers, which pre-training would leave without a gradient
        arguments |= {"pyramid": pyramid, "mask_ratio": settings.model.mim_mask_ratio}
    return build_vision_encoder(kind, mask_token=settings.loss.weight_mim > 0 and settings.model.wiring == "paper", **arguments)


def build_model(settings: Settings, text: TextEncoder) -> MG3D:
    """The untrained model around a report encoder; random values come from torch's global generator."""
    model_class = MG3D if settings.model.wiring == "paper" else ReleasedMG3D
    return model_class(
        build_vision(settings),
        text,
        settings.model,
        objectives=tuple(objective_weights(settings.loss)),
        volume_shape=volume_shape(settings.data.image_size, settings.data.volume_size),
        standardise_voxels=settings.vision.standardise_voxels,
    )


def build_untrained(settings: Settings, vocabulary_size: int) -> MG3D:
    """The model at the start of a run, initialised with `settings.run.seed`, for a tokenizer with `vocabulary_size` entries."""
    torch.manual_seed(settings.run.seed)
    return build_model(settings, build_text_encoder(settings, vocabulary_size))
