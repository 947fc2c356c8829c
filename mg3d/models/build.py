"""From typed settings to networks: the only place in `models` that reads settings."""

import torch

from mg3d.models.mg3d import MG3D
from mg3d.models.text.encoder import TextEncoder, load_text_encoder, tiny_text_encoder
from mg3d.models.vision.registry import VisionEncoder, build_vision_encoder
from mg3d.settings.encoders import ENCODERS
from mg3d.settings.schema import Settings, objective_weights, volume_shape

_INTENDED = {
    "fusion": "gate", "image_position": False, "cml_pair": "multimodal_unimodal", "mim_text": "sentences_image_layers",
    "mim_fill": "zero", "aggregation_values": "sentence", "sal_target": "word_embedding", "ssm_text": "plain",
}  # fmt: skip
WIRINGS: dict[str, dict[str, object]] = {
    "paper": {},
    "intended": _INTENDED,
    "released": _INTENDED | {"mim_text": "tokens_text_layers", "project_twice": True},
}


def build_text_encoder(settings: Settings, vocabulary_size: int) -> TextEncoder:
    """The report encoder for a tokenizer of `vocabulary_size` words."""
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


def build_vision(settings: Settings) -> VisionEncoder:
    """The untrained volume encoder, from those settings that its kind reads."""
    vision = settings.vision
    arguments = {  # setting -> the encoder's argument and its value
        "embed_dim": ("embed_width", vision.embed_dim),
        "patch_size": ("patch_size", vision.patch_size),
        "window_size": ("window_size", vision.window_size),
        "depths": ("depths", vision.depths),
        "num_heads": ("heads", vision.num_heads),
        "patch_merging": ("patch_merging", vision.patch_merging),
        "token_projection": ("projection_width", settings.model.hidden_size if vision.token_projection else None),
        "norm_statistics": ("norm_statistics", vision.norm_statistics),
        "gradient_checkpointing": ("gradient_checkpointing", vision.gradient_checkpointing),
    }
    return build_vision_encoder(
        vision.vision_encoder,
        mask_token=settings.loss.weight_mim > 0 and settings.model.wiring == "paper",
        **dict(arguments[name] for name in ENCODERS[vision.vision_encoder].reads),
    )


def build_model(settings: Settings, text: TextEncoder) -> MG3D:
    """The untrained model around a report encoder; what is random comes from torch's global generator."""
    model = settings.model
    return MG3D(
        vision=build_vision(settings),
        text=text,
        objectives=tuple(objective_weights(settings.loss)),
        volume_shape=volume_shape(settings.data.image_size, settings.data.volume_size),
        width=model.hidden_size,
        embedding_width=model.embedding_size,
        fusion_layers=model.fusion_layers,
        fusion_heads=model.fusion_heads,
        pool_queries=model.pool_queries,
        image_pool=model.image_pool,
        standardise_voxels=settings.vision.standardise_voxels,
        mim_decoder=model.mim_decoder,
        contrast=model.contrast,
        caption_layers=model.caption_layers,
        **WIRINGS[model.wiring],
    )


def build_untrained(settings: Settings, vocabulary_size: int) -> MG3D:
    """The model at the start of a run, initialised from `settings.run.seed`, for a tokenizer of `vocabulary_size` words."""
    torch.manual_seed(settings.run.seed)
    return build_model(settings, build_text_encoder(settings, vocabulary_size))
