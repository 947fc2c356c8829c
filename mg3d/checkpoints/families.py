"""Image encoders as their tensors show them: which kind, how wide, how deep; nothing is built.

All names here are those of an encoder alone, without any prefix.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

Shape = tuple[int, ...]
ANCHORS: tuple[tuple[str, str, str], ...] = (
    ("swin", "patch_embed.proj.weight", "layers1.0.blocks.0.attn.qkv.weight"),
    ("unet", "down_tr64.ops.0.conv1.weight", "down_tr512.ops.1.conv1.weight"),
    ("nnunet", "input_block.conv1.conv.weight", "downsamples.0.conv1.conv.weight"),
    ("nnunet_v2_residual", "stem.convs.0.conv.weight", "stages.0.blocks.0.conv1.conv.weight"),
    ("nnunet_v2_plain", "stages.0.0.convs.0.conv.weight", "stages.1.0.convs.0.conv.weight"),
)
"""(kind, name that gives the width, another that must be there): the kinds that are recognised, in this order."""
OURS = ("swin", "unet", "nnunet")
"""Kinds that this project has; of the others only the name is told."""
_UNET_STAGES = ("down_tr64", "down_tr128", "down_tr256", "down_tr512")


class EncoderShape(NamedTuple):
    """What the tensors of an image encoder tell about it."""

    kind: str
    """First column of `ANCHORS`."""
    width: int
    """Channels after the first layer; `embed_dim` of a Swin."""
    in_channels: int
    details: dict[str, Any]
    """Swin: patch_size, depths, num_heads, window_size (None: windows are no cubes), projection. U-Net: decoder."""

    @property
    def name(self) -> str:
        """The preset that builds it, or the kind where none does."""
        if self.kind == "swin" and self.details["depths"] == [2, 2, 2, 2]:
            return {48: "swin_b", 96: "swin_l"}.get(self.width, "swin")
        return self.kind

    def settings(self) -> dict[str, Any]:
        """The settings that build it."""
        told = {"vision_encoder": self.kind, "embed_dim": self.width}
        return told | {name: value for name, value in self.details.items() if name not in ("projection", "decoder")}


def find_kind(names: Mapping[str, Any]) -> str | None:
    """The kind of encoder that has these names, or None."""
    return next((kind for kind, *anchors in ANCHORS if all(anchor in names for anchor in anchors)), None)


def encoder_shape(shapes: Mapping[str, Shape]) -> EncoderShape | None:
    """What an encoder's tensors, name -> shape, tell about it; None when the kind is not known."""
    kind = find_kind(shapes)
    if kind is None:
        return None
    first = shapes[next(anchor for known, anchor, _ in ANCHORS if known == kind)]
    details: dict[str, Any] = {}
    if kind == "swin":
        details = _swin_details(shapes)
    elif kind == "unet":
        details = {"decoder": any(name.startswith("up_tr") for name in shapes)}
    width = 2 * first[0] if kind == "nnunet" else first[0]  # our width is that of the first halved map
    return EncoderShape(kind, width, first[1], details)


def _swin_details(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    depths, heads = [], []
    while (table := f"layers{len(depths) + 1}.0.blocks.0.attn.relative_position_bias_table") in shapes:
        heads.append(shapes[table][1])
        block = re.compile(rf"layers{len(depths) + 1}\.0\.blocks\.(\d+)\.")
        depths.append(1 + max(int(found[1]) for name in shapes if (found := block.match(name))))
    first_table = shapes.get("layers1.0.blocks.0.attn.relative_position_bias_table", (0,))[0]
    side = round(first_table ** (1 / 3))
    return {
        "patch_size": shapes["patch_embed.proj.weight"][-1],
        "depths": depths,
        "num_heads": heads,
        "window_size": (side + 1) // 2 if side**3 == first_table and side % 2 else None,
        "projection": "proj_head.layer1.0.weight" in shapes,
    }


def expected_parameters(shape: EncoderShape) -> dict[str, Shape]:
    """Name -> shape of every parameter of such an encoder of ours; empty where that is not known here."""
    if shape.kind == "swin":
        return _swin_parameters(shape)
    return _unet_parameters(shape) if shape.kind == "unet" else {}


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
    return wanted


def _unet_parameters(shape: EncoderShape) -> dict[str, Shape]:
    wanted, before = {}, shape.in_channels
    for stage, name in enumerate(_UNET_STAGES):
        first = shape.width * 2**stage
        for unit, after in enumerate((first, 2 * first)):
            wanted |= _affine(f"{name}.ops.{unit}.conv1", (after, before, 3, 3, 3)) | _affine(f"{name}.ops.{unit}.bn1", (after,))
            before = after
    return wanted


def _affine(name: str, weight: Shape) -> dict[str, Shape]:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def covered(shape: EncoderShape, shapes: Mapping[str, Shape]) -> float | None:
    """Share of the parameters of such an encoder that a file holds; None where it is not known what they are."""
    wanted = expected_parameters(shape)
    if not wanted:
        return None
    held = sum(math.prod(size) for name, size in wanted.items() if shapes.get(name) == size)
    return held / sum(math.prod(size) for size in wanted.values())
