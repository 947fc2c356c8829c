"""The image encoder of a fine-tuned network: as the weights need it, with an account of what of them was used."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from mg3d.checkpoints.info import CheckpointInfo, inspect_checkpoint
from mg3d.checkpoints.load import LoadReport, load_weights
from mg3d.checkpoints.read import read_checkpoint
from mg3d.finetune.settings import ENCODER_WORDS, FinetuneSettings
from mg3d.models.build import build_vision
from mg3d.models.vision.registry import VisionEncoder
from mg3d.settings.encoders import ENCODERS
from mg3d.settings.parse import defaults, parse
from mg3d.settings.presets import PRESETS
from mg3d.settings.schema import PatchMerging, VisionSettings

TINY = {"vision_encoder": "swin", "embed_dim": 48, "patch_size": 4, "window_size": 4, "depths": (2,), "num_heads": (3,)}
"""A Swin of one stage for synthetic sets on a CPU."""


class Started(NamedTuple):
    """An encoder at the start of fine-tuning."""

    encoder: VisionEncoder
    vision: dict[str, Any]
    """Flat vision settings that build it again."""
    report: LoadReport | None
    """None without weights."""


class ScaledInput(nn.Module):
    """An encoder that was pre-trained on standardised voxels, for volumes in [0, 1] of any size.

    Pre-training took mean and deviation of every voxel of volumes of one size; other sizes and regions have no such place, so
    the means of both over the volume stand for them.
    """

    def __init__(self, encoder: VisionEncoder, mean: float = 0.0, deviation: float = 1.0) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("deviation", torch.tensor(deviation))
        self.patch_size, self.mask_token = encoder.patch_size, None

    def forward(self, volume: Tensor, hidden: Tensor | None = None) -> list[Tensor]:
        """The encoder's maps of a volume [B, 1, D, H, W] in [0, 1]."""
        return self.encoder((volume - self.mean) / self.deviation, hidden)

    def encode(self, volume: Tensor, hidden: Tensor | None = None) -> Tensor:
        """The encoder's last map."""
        return self.encoder.encode((volume - self.mean) / self.deviation, hidden)

    def forget(self) -> None:
        """Passes volumes on as they are: for those that have mean 0 and deviation 1 already."""
        self.mean.zero_()
        self.deviation.fill_(1.0)

    @property
    def pyramid_channels(self) -> Sequence[int]:
        """Channels of each map."""
        return self.encoder.pyramid_channels

    @property
    def pyramid_strides(self) -> Sequence[tuple[int, int, int]]:
        """Voxels (z, y, x) of one cell of each map."""
        return self.encoder.pyramid_strides

    @property
    def channels(self) -> int:
        """Channels of what `encode` gives."""
        return self.encoder.channels

    @property
    def stride(self) -> tuple[int, int, int]:
        """Voxels (z, y, x) of one cell of the last map."""
        return self.encoder.stride

    def grid(self, volume_shape: Sequence[int]) -> tuple[int, ...]:
        """Cells (z, y, x) of the last map of a volume of this shape."""
        return self.encoder.grid(volume_shape)


def start_encoder(settings: FinetuneSettings, *, synthetic: bool = False) -> Started:
    """The encoder that `encoder` and `pretrained` ask for.

    Raises:
        FileNotFoundError, ValueError: as `load_weights`; or the weights are of another encoder than the one asked for.
    """
    file = network_file(settings.encoder, settings.pretrained)
    if file == "none":
        word = preset_of(settings, synthetic=synthetic)
        flat = defaults() | (TINY if word == "tiny" else PRESETS[word])
    else:
        flat = settings_of(inspect_checkpoint(file, prefix=settings.load_prefix or None), settings)
    encoder, report = build_encoder(flat), None
    if settings.pretrained != "none":
        report = load_weights(
            encoder.encoder if isinstance(encoder, ScaledInput) else encoder,
            settings.pretrained,
            minimum_coverage=settings.minimum_coverage,
            merging=settings.load_patch_merging or None,
            prefix=settings.load_prefix or None,
        )
    if isinstance(encoder, ScaledInput) and file != "none":
        tensors = read_checkpoint(settings.pretrained if report else file).tensors
        for name in ("mean", "deviation"):
            found = next((tensor for key, tensor in tensors.items() if key.endswith(f"voxels.{name}")), None)
            if found is not None:
                getattr(encoder, name).fill_(float(found.float().mean()))
    return Started(encoder, _vision_of(flat), report)


def network_file(encoder: str, pretrained: str) -> str:
    """The file whose network is built: `encoder` where it is one, else `pretrained`; `none` where a preset decides."""
    return pretrained if encoder in ENCODER_WORDS else encoder


def preset_of(settings: FinetuneSettings, *, synthetic: bool) -> str:
    """The word that builds the network of a run without a file."""
    return settings.encoder if settings.encoder != "auto" else ("tiny" if synthetic else "swin_b")


def told_from_scratch(settings: FinetuneSettings, *, synthetic: bool) -> str:
    """Which network starts without weights, and how it becomes that of a file."""
    if settings.encoder not in ENCODER_WORDS:
        return f"pretrained=none: the network of {settings.encoder} from scratch, none of its weights"
    return (
        f"pretrained=none: {preset_of(settings, synthetic=synthetic)} from scratch; to compare with pretrained=FILE, "
        "encoder=FILE builds the very network of that file"
    )


def build_encoder(flat: Mapping[str, Any]) -> VisionEncoder:
    """The untrained encoder of flat vision settings; what is random comes from torch's global generator."""
    known = defaults()
    settings = parse(known | {name: value for name, value in flat.items() if name in known} | {"weight_mim": 0.0})
    encoder = build_vision(settings)
    return ScaledInput(encoder) if settings.vision.standardise_voxels else encoder


def _vision_of(flat: Mapping[str, Any]) -> dict[str, Any]:
    names = (*VisionSettings.__dataclass_fields__, "hidden_size", "fusion_heads")
    return {name: list(flat[name]) if isinstance(flat[name], tuple) else flat[name] for name in names}


def settings_of(passport: CheckpointInfo, settings: FinetuneSettings) -> dict[str, Any]:
    """Flat settings of the encoder in a file: what it stores, else what its tensors tell, else the word of the user."""
    stored = passport.provenance.get("settings")
    if settings.encoder in PRESETS and settings.encoder != "tiny":
        flat = defaults() | PRESETS[settings.encoder]
    elif isinstance(stored, Mapping):
        flat = defaults() | {name: value for name, value in stored.items() if name in defaults()}
    elif passport.encoder in PRESETS:
        projected = "_unprojected" if passport.encoder == "swin_l" and not passport.details.get("projection") else ""
        flat = defaults() | PRESETS[passport.encoder + projected]
    else:
        raise ValueError(
            f"{passport.path} holds {passport.encoder!r} ({passport.description}), not one of the encoders here "
            f"({', '.join(ENCODERS)} by preset); tools/inspect_checkpoint.py shows what it is, encoder=... names one to try"
        )
    merging = settings.load_patch_merging or passport.merging
    return flat | ({"patch_merging": merging} if merging in get_args(PatchMerging) else {})
