"""Detect an image encoder by the names and shapes of its tensors. All names here are without a prefix."""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode

from mg3d.settings.parse import resolve
from mg3d.settings.presets import PRESETS

Shape = tuple[int, ...]
ANCHORS: tuple[tuple[str, str, str], ...] = (
    ("swin", "patch_embed.proj.weight", "layers1.0.blocks.0.attn.qkv.weight"),
    ("vit", "patch_embed.weight", "blocks.0.attention.q_norm.weight"),
    ("unet", "down_tr64.ops.0.conv1.weight", "down_tr512.ops.1.conv1.weight"),
    ("nnunet", "input_block.conv1.conv.weight", "downsamples.0.conv1.conv.weight"),
    ("nnunet_v2_residual", "stem.convs.0.conv.weight", "stages.0.blocks.0.conv1.conv.weight"),
    ("nnunet_v2_plain", "stages.0.0.convs.0.conv.weight", "stages.1.0.convs.0.conv.weight"),
)
"""(architecture, tensor that gives the width, second tensor that must exist), tried in this order."""
_PRESETS = ("swin_b", "swin_l_unprojected", "swin_l", "vit_b", "vit_l", "vit_tiny", "unet", "nnunet")
"""Encoder presets; an encoder without projection precedes the one with it, of which it is a part."""
_BIAS_TABLE = re.compile(r"layers(\d)\.0\.blocks\.\d+\.attn\.relative_position_bias_table$")
_BUFFER = re.compile(r"_index$|(^|\.)(running_mean|running_var|num_batches_tracked)$")
_OPTIONAL = ("mask_token", "decoder.", "pyramid.")
"""Only masked pre-training has the first two, only fine-tuning the last one (decoder and pyramid: ViT)."""


def is_parameter(name: str) -> bool:
    """Whether a tensor is a parameter and not a position index or a running statistic, by its name."""
    return not _BUFFER.search(name)


def is_required(name: str) -> bool:
    """Whether a tensor of an image encoder is a parameter that pre-training and fine-tuning both have, by its name."""
    return is_parameter(name) and not name.startswith(_OPTIONAL)


class DetectedEncoder(NamedTuple):
    """An image encoder as its tensors show it."""

    architecture: str
    """First column of `ANCHORS`."""
    width: int
    """Channels of the first stage; `embed_dim`."""
    in_channels: int
    details: dict[str, Any]
    """Swin: patch_size, depths, num_heads (0: not in the file), window_size and projection (None: not in the file)."""
    preset: str | None
    """The preset of this encoder, or of the encoder of which the file contains a part."""
    coverage: float | None
    """Fraction of the parameters of the complete encoder that the file contains; None if that is unknown."""

    @property
    def name(self) -> str:
        """The preset, or the architecture if there is none."""
        return self.preset or self.architecture

    def settings(self) -> dict[str, Any]:
        """The settings that build this encoder, as far as they are known."""
        found = {"vision_encoder": self.architecture, "embed_dim": self.width} | self.details
        if self.architecture == "swin":
            found["token_projection"] = found.pop("projection") is not None
        return {name: value for name, value in found.items() if value is not None}


def detect_encoder(shapes: Mapping[str, Shape]) -> DetectedEncoder | None:
    """The encoder with these tensors (name -> shape); None if the architecture is unknown."""
    found = next(((kind, width) for kind, width, other in ANCHORS if width in shapes and other in shapes), None)
    if found is None or len(first := shapes[found[1]]) != 5:
        return None
    architecture = found[0]
    details = {"swin": _swin_details, "vit": _vit_details}.get(architecture, lambda shapes: {})(shapes)
    width = 2 * first[0] if architecture == "nnunet" else first[0]  # embed_dim is the width after the first downsampling
    held = {name: shape for name, shape in shapes.items() if is_required(name)}
    candidates = (preset for preset in _PRESETS if PRESETS[preset]["vision_encoder"] == architecture)
    preset = next((name for name in candidates if held.items() <= _preset_shapes(name).items()), None)
    complete = _preset_shapes(preset) if preset else _complete_shapes(architecture, width, first[1], details)
    return DetectedEncoder(architecture, width, first[1], details, preset, _covered(complete, held))


def is_released(encoder: DetectedEncoder | None) -> bool:
    """Whether names and shapes are exactly those of an encoder that MG-3D released."""
    return encoder is not None and encoder.preset not in (None, "nnunet") and encoder.coverage == 1.0


def _covered(complete: Mapping[str, Shape], held: Mapping[str, Shape]) -> float | None:
    size = sum(math.prod(shape) for name, shape in complete.items() if held.get(name) == shape)
    return size / sum(map(math.prod, complete.values())) if complete else None


@cache
def _preset_shapes(preset: str) -> dict[str, Shape]:
    from mg3d.models.build import build_vision  # imports MONAI

    with meta_device():
        return _parameter_shapes(build_vision(resolve([preset], {})))


def _complete_shapes(architecture: str, width: int, in_channels: int, details: Mapping[str, Any]) -> dict[str, Shape]:
    """Parameters of the complete encoder; empty if it is unknown how to build it."""
    from mg3d.models.vision.registry import VISION_ENCODERS

    arguments = {"embed_dim": width, "in_channels": in_channels}
    if architecture == "swin":
        if not details["window_size"] or 0 in (*details["depths"], *details["num_heads"]):
            return {}
        arguments |= {name: details[name] for name in ("patch_size", "window_size", "depths", "num_heads")}
        arguments["projection_width"] = details["projection"]
    if architecture == "vit":
        arguments |= details
    if architecture not in VISION_ENCODERS:
        return {}
    try:
        with meta_device():
            return _parameter_shapes(VISION_ENCODERS[architecture](**arguments))
    except ValueError:  # sizes that no encoder has
        return {}


def _parameter_shapes(encoder: torch.nn.Module) -> dict[str, Shape]:
    return {name: tuple(value.shape) for name, value in encoder.named_parameters() if is_required(name)}


class _LinspaceOnCPU(TorchFunctionMode):
    """MONAI's Swin reads values of `linspace` when it is built, which meta tensors do not have."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return func(*args, **(kwargs | {"device": "cpu"} if func is torch.linspace else kwargs))


@contextmanager
def meta_device() -> Iterator[None]:
    """Builds networks without memory: their tensors have shapes and no values."""
    with torch.device("meta"), _LinspaceOnCPU():
        yield


def _patch_size(shape: Shape) -> int | Shape:
    """One number for cubes, else (z, y, x), of the weight of a patch embedding."""
    sides = tuple(shape[2:])
    return sides[0] if len(set(sides)) == 1 else sides


def _vit_details(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    blocks = {int(found[1]) for name in shapes if (found := re.match(r"blocks\.(\d+)\.", name))}
    width = shapes["patch_embed.weight"][0]
    return {
        "patch_size": _patch_size(shapes["patch_embed.weight"]),
        "depths": [1 + max(blocks)],
        "num_heads": [width // shapes["blocks.0.attention.q_norm.weight"][0]],
    }


def _swin_details(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    blocks = [(int(found[1]), int(found[2])) for name in shapes if (found := re.match(r"layers(\d)\.0\.blocks\.(\d+)\.", name))]
    stages = range(1, 1 + max(int(found[1]) for name in shapes if (found := re.match(r"layers(\d)\.", name))))
    tables = {int(found[1]): shape for name, shape in shapes.items() if (found := _BIAS_TABLE.match(name)) and len(shape) == 2}
    lengths = {shape[0] for shape in tables.values()}
    side = round(max(lengths, default=0) ** (1 / 3))  # of the table of a cubic window: 2 * window_size - 1
    is_cubic = len(lengths) == 1 and side**3 == max(lengths) and side % 2
    projection = shapes.get("proj_head.layer1.0.weight")
    return {
        "patch_size": _patch_size(shapes["patch_embed.proj.weight"]),
        "depths": [max((1 + block for of_stage, block in blocks if of_stage == stage), default=0) for stage in stages],
        "num_heads": [tables.get(stage, (0, 0))[1] for stage in stages],
        "window_size": (side + 1) // 2 if is_cubic else None,
        "projection": projection[0] if projection else None,
    }
