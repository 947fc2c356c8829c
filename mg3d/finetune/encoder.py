"""The image encoder of a fine-tuned network, with the architecture of its weights and a report of what was loaded."""

from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from mg3d.checkpoints.info import CheckpointInfo, inspect_checkpoint
from mg3d.checkpoints.load import load_weights
from mg3d.checkpoints.read import read_checkpoint
from mg3d.finetune.settings import ENCODER_PRESETS, FinetuneSettings
from mg3d.models.build import build_vision
from mg3d.models.vision.registry import VisionEncoder
from mg3d.settings.encoders import ENCODERS
from mg3d.settings.parse import defaults, parse
from mg3d.settings.presets import PRESETS
from mg3d.settings.schema import PatchMerging, VisionSettings

TINY = {"vision_encoder": "swin", "embed_dim": 48, "patch_size": 4, "window_size": 4, "depths": (2,), "num_heads": (3,)}
"""A Swin of one stage for synthetic data on a CPU."""


class LoadedEncoder(NamedTuple):
    """An encoder with its initial weights."""

    encoder: VisionEncoder
    vision: dict[str, Any]
    """Flat vision settings from which `build_encoder` builds it again."""
    origin: str
    """Where the weights come from, for the log."""
    coverage: float | None = None
    """Fraction of the parameters that the checkpoint provided; None for random weights."""


class StandardizedInput(nn.Module):
    """An encoder that was pre-trained on standardized voxels, for volumes in [0, 1] of any size.

    Pre-training standardizes each voxel of volumes of one size by its own mean and standard deviation; here their means over the
    volume are used, which fit other sizes as well.
    """

    def __init__(self, encoder: VisionEncoder, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))
        self.patch_size, self.mask_token = encoder.patch_size, None

    def __getattr__(self, name: str) -> Any:
        if name in ("pyramid_channels", "pyramid_strides", "channels", "stride", "grid"):
            return getattr(self.encoder, name)
        return super().__getattr__(name)

    def forward(self, volume: Tensor, hidden: Tensor | None = None) -> list[Tensor]:
        """The encoder's feature maps of a volume [B, 1, D, H, W] in [0, 1]."""
        return self.encoder((volume - self.mean) / self.std, hidden)

    def encode(self, volume: Tensor, hidden: Tensor | None = None) -> Tensor:
        """The encoder's last feature map."""
        return self.encoder.encode((volume - self.mean) / self.std, hidden)


def load_encoder(settings: FinetuneSettings, *, synthetic: bool = False) -> LoadedEncoder:
    """The encoder that `encoder` and `pretrained` select.

    Raises:
        FileNotFoundError, ValueError: as `load_weights`; or the weights have another architecture than `encoder`.
    """
    file = settings.pretrained if settings.encoder in ENCODER_PRESETS else settings.encoder
    if file == "none":
        preset = settings.encoder if settings.encoder != "auto" else ("tiny" if synthetic else "swin_b")
        flat = defaults() | (TINY if preset == "tiny" else PRESETS[preset])
        origin = f"pretrained=none: {preset}, random weights (encoder=CHECKPOINT uses the architecture of a checkpoint)"
    else:
        origin = f"pretrained=none: architecture of {file}, random weights"
        flat = architecture(inspect_checkpoint(file, prefix=settings.load_prefix or None), settings)
    encoder, coverage = build_encoder(flat), None
    is_standardized = isinstance(encoder, StandardizedInput)
    if settings.pretrained != "none":
        report = load_weights(
            encoder.encoder if is_standardized else encoder,
            settings.pretrained,
            minimum_coverage=settings.minimum_coverage,
            merging=settings.load_patch_merging or None,
            prefix=settings.load_prefix or None,
        )
        origin, coverage = str(report), report.encoder_coverage
    if is_standardized and file != "none":
        tensors = read_checkpoint(settings.pretrained if settings.pretrained != "none" else file).tensors
        for key, tensor in tensors.items():
            if key.endswith("voxels.mean"):
                encoder.mean.fill_(float(tensor.float().mean()))
            elif key.endswith(("voxels.std", "voxels.deviation")):
                encoder.std.fill_(float(tensor.float().mean()))
    names = (*VisionSettings.__dataclass_fields__, "hidden_size", "fusion_heads")
    vision = {name: list(flat[name]) if isinstance(flat[name], tuple) else flat[name] for name in names}
    return LoadedEncoder(encoder, vision, origin, coverage)


def build_encoder(flat: Mapping[str, Any]) -> VisionEncoder:
    """The randomly initialized encoder of flat vision settings."""
    known = defaults()
    settings = parse(known | {name: value for name, value in flat.items() if name in known} | {"weight_mim": 0.0})
    encoder = build_vision(settings, pyramid=True)
    return StandardizedInput(encoder) if settings.vision.standardise_voxels else encoder


def freeze_unread(encoder: VisionEncoder, *, reads_pyramid: bool) -> None:
    """Freezes the layers that are without a gradient if a task reads all maps of an encoder, or the last one alone."""
    layers = getattr(getattr(encoder, "encoder", encoder), "proj_head" if reads_pyramid else "pyramid", None)
    if layers is not None:
        layers.requires_grad_(False)


def architecture(info: CheckpointInfo, settings: FinetuneSettings) -> dict[str, Any]:
    """Flat settings of the encoder in a checkpoint: stored settings, else a preset that fits its tensors.

    Raises:
        ValueError: the checkpoint is fine-tuned, or its architecture is unknown.
    """
    stored = info.provenance.get("settings")
    if settings.encoder in PRESETS and settings.encoder != "tiny":
        flat = defaults() | PRESETS[settings.encoder]
    elif isinstance(stored, Mapping):
        flat = defaults() | {name: value for name, value in stored.items() if name in defaults()}
    elif info.encoder in PRESETS:
        projected = "_unprojected" if info.encoder == "swin_l" and not info.details.get("projection") else ""
        flat = defaults() | PRESETS[info.encoder + projected]
    elif "mg3d_finetune" in read_checkpoint(info.path).metadata:
        raise ValueError(f"{info.path} is a fine-tuned checkpoint: use checkpoint=... with mode=predict or mode=evaluate")
    else:
        raise ValueError(
            f"{info.path} holds {info.encoder!r} ({info.description}), not a known encoder ({', '.join(ENCODERS)}); "
            "tools/inspect_checkpoint.py shows its content, encoder=... sets an architecture"
        )
    merging = settings.load_patch_merging or info.merging
    return flat | ({"patch_merging": merging} if merging in get_args(PatchMerging) else {})
