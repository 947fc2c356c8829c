"""Image encoders as their tensors show them: which kind, how wide, how deep; nothing is built.

All names here are those of an encoder alone, without any prefix.
"""

import math
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from mg3d.settings.parse import defaults
from mg3d.settings.presets import PRESETS

Shape = tuple[int, ...]
ANCHORS: tuple[tuple[str, str, str], ...] = (
    ("swin", "patch_embed.proj.weight", "layers1.0.blocks.0.attn.qkv.weight"),
    ("unet", "down_tr64.ops.0.conv1.weight", "down_tr512.ops.1.conv1.weight"),
    ("nnunet", "input_block.conv1.conv.weight", "downsamples.0.conv1.conv.weight"),
    ("nnunet_v2_residual", "stem.convs.0.conv.weight", "stages.0.blocks.0.conv1.conv.weight"),
    ("nnunet_v2_plain", "stages.0.0.convs.0.conv.weight", "stages.1.0.convs.0.conv.weight"),
)
"""(kind, name that gives the width, another that must be there): the kinds that are recognised, in this order."""
_PUBLISHED = ("swin_b", "swin_l", "swin_l_unprojected", "unet", "nnunet")
"""Preset words of encoders."""
_UNET_STAGES = ("down_tr64", "down_tr128", "down_tr256", "down_tr512")
_NNUNET_BLOCKS = ("input_block", *(f"downsamples.{level}" for level in range(4)), "bottleneck")
_TABLE = re.compile(r"layers(\d)\.0\.blocks\.\d+\.attn\.relative_position_bias_table$")
_NOT_LEARNED = re.compile(r"_index$|(^|\.)(running_mean|running_var|num_batches_tracked)$")


def is_parameter(name: str) -> bool:
    """Whether a tensor is learned, by its name: no table of positions and no running statistics."""
    return not _NOT_LEARNED.search(name)


class EncoderShape(NamedTuple):
    """What the tensors of an image encoder tell about it."""

    kind: str
    """First column of `ANCHORS`."""
    width: int
    """Channels after the first layer; `embed_dim` of a Swin."""
    in_channels: int
    details: dict[str, Any]
    """Swin: patch_size, depths, num_heads (0: not in the file), window_size (None: no cube, or not in the file), projection
    (width of `proj_head`, None without)."""
    preset: str | None = None
    """The preset word that builds it, or the encoder of which the file holds a part."""

    @property
    def name(self) -> str:
        """The preset word, or the kind where no preset builds it."""
        return self.preset or self.kind

    def settings(self) -> dict[str, Any]:
        """The settings that build it, as far as they are known."""
        told = {"vision_encoder": self.kind, "embed_dim": self.width} | self.details
        if self.kind == "swin":
            told["token_projection"] = told.pop("projection") is not None
        return {name: value for name, value in told.items() if value is not None}


def find_kind(names: Mapping[str, Any]) -> str | None:
    """The kind of encoder that has these names, or None."""
    return next((kind for kind, *anchors in ANCHORS if all(anchor in names for anchor in anchors)), None)


def encoder_shape(shapes: Mapping[str, Shape]) -> EncoderShape | None:
    """What an encoder's tensors, name -> shape, tell about it; None when the kind is not known."""
    kind = find_kind(shapes)
    if kind is None:
        return None
    first = shapes[next(anchor for known, anchor, _ in ANCHORS if known == kind)]
    if len(first) != 5:
        return None
    details = _swin_details(shapes) if kind == "swin" else {}
    width = 2 * first[0] if kind == "nnunet" else first[0]  # our width is that of the first halved map
    held = {name: size for name, size in shapes.items() if is_parameter(name)}
    presets = _preset_shapes()
    holders = (word for word in _PUBLISHED if presets[word].kind == kind and _is_part(held, expected_parameters(presets[word])))
    parts = sorted(holders, key=lambda word: len(expected_parameters(presets[word])))  # without projection before with it
    return EncoderShape(kind, width, first[1], details, parts[0] if parts else None)


def _is_part(held: Mapping[str, Shape], whole: Mapping[str, Shape]) -> bool:
    return all(whole.get(name) == size for name, size in held.items() if name != "mask_token")


@cache
def _preset_shapes() -> dict[str, EncoderShape]:
    """Preset word -> the encoder that it builds, for volumes of one channel."""
    shapes = {}
    for word in _PUBLISHED:
        settings = defaults() | PRESETS[word]
        details: dict[str, Any] = {}
        if settings["vision_encoder"] == "swin":
            details = {name: settings[name] for name in ("patch_size", "depths", "num_heads", "window_size")}
            details["projection"] = settings["hidden_size"] if settings["token_projection"] else None
        shapes[word] = EncoderShape(settings["vision_encoder"], settings["embed_dim"], 1, details, word)
    return shapes


def is_released(shapes: Mapping[str, Shape]) -> bool:
    """Whether these are, by name and shape, all parameters of an encoder whose weights MG-3D released."""
    shape = encoder_shape(shapes)
    return shape is not None and shape.preset not in (None, "nnunet") and covered(shape, shapes) == 1.0


def _swin_details(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    blocks = [found for name in shapes if (found := re.match(r"layers(\d)\.0\.blocks\.(\d+)\.", name))]
    stages = range(1, 1 + max(int(found[1]) for name in shapes if (found := re.match(r"layers(\d)\.", name))))
    tables = {found[1]: size for name, size in shapes.items() if (found := _TABLE.match(name)) and len(size) == 2}
    lengths = {size[0] for size in tables.values()}
    side = round(max(lengths, default=0) ** (1 / 3))
    is_cube = len(lengths) == 1 and side**3 == max(lengths) and side % 2
    projection = shapes.get("proj_head.layer1.0.weight")
    return {
        "patch_size": shapes["patch_embed.proj.weight"][-1],
        "depths": [max((1 + int(block[2]) for block in blocks if int(block[1]) == stage), default=0) for stage in stages],
        "num_heads": [tables.get(str(stage), (0, 0))[1] for stage in stages],
        "window_size": (side + 1) // 2 if is_cube else None,
        "projection": projection[0] if projection else None,
    }


def expected_parameters(shape: EncoderShape) -> dict[str, Shape]:
    """Name -> shape of every parameter of such an encoder of ours; empty where that is not known here."""
    known = {"swin": _swin_parameters, "unet": _unet_parameters, "nnunet": _nnunet_parameters}
    return known[shape.kind](shape) if shape.kind in known else {}


def _swin_parameters(shape: EncoderShape) -> dict[str, Shape]:
    details, wanted = shape.details, {}
    side = details["patch_size"]
    wanted |= _affine("patch_embed.proj", (shape.width, shape.in_channels, side, side, side))
    span = 2 * (details["window_size"] or 0) - 1
    for stage, (depth, heads) in enumerate(zip(details["depths"], details["num_heads"], strict=True)):
        width = shape.width * 2**stage
        for block in range(depth):
            at = f"layers{stage + 1}.0.blocks.{block}"
            if details["window_size"]:
                wanted[f"{at}.attn.relative_position_bias_table"] = (span**3, heads)
            wanted |= _affine(f"{at}.norm1", (width,)) | _affine(f"{at}.norm2", (width,))
            wanted |= _affine(f"{at}.attn.qkv", (3 * width, width)) | _affine(f"{at}.attn.proj", (width, width))
            wanted |= _affine(f"{at}.mlp.linear1", (4 * width, width)) | _affine(f"{at}.mlp.linear2", (width, 4 * width))
        at = f"layers{stage + 1}.0.downsample"
        wanted |= _affine(f"{at}.norm", (8 * width,)) | {f"{at}.reduction.weight": (2 * width, 8 * width)}
    before = shape.width * 2 ** len(details["depths"])
    for layer in (1, 2, 3) if details["projection"] else ():
        wanted |= _affine(f"proj_head.layer{layer}.0", (details["projection"], before))
        before = details["projection"]
    return wanted


def _unet_parameters(shape: EncoderShape) -> dict[str, Shape]:
    wanted, before = {}, shape.in_channels
    for stage, name in enumerate(_UNET_STAGES):
        first = shape.width * 2**stage
        for unit, after in enumerate((first, 2 * first)):
            wanted |= _affine(f"{name}.ops.{unit}.conv1", (after, before, 3, 3, 3)) | _affine(f"{name}.ops.{unit}.bn1", (after,))
            before = after
    return wanted


def _nnunet_parameters(shape: EncoderShape) -> dict[str, Shape]:
    wanted, before = {}, shape.in_channels
    for level, name in enumerate(_NNUNET_BLOCKS):
        after = shape.width * 2**level // 2
        for layer, size in ((1, (after, before, 3, 3, 3)), (2, (after, after, 3, 3, 3)), (3, (after, before, 1, 1, 1))):
            wanted |= {f"{name}.conv{layer}.conv.weight": size} | _affine(f"{name}.norm{layer}", (after,))
        before = after
    return wanted


def _affine(name: str, weight: Shape) -> dict[str, Shape]:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def covered(shape: EncoderShape, shapes: Mapping[str, Shape]) -> float | None:
    """Share of the parameters of such an encoder (of its preset's where it has one) that a file holds; None if not known."""
    wanted = expected_parameters(_preset_shapes()[shape.preset] if shape.preset else shape)
    if not wanted:
        return None
    held = sum(math.prod(size) for name, size in wanted.items() if shapes.get(name) == size)
    return held / sum(math.prod(size) for size in wanted.values())
