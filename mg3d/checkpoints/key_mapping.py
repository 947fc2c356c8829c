"""Recognise whose parameter names a file uses and map them to mg3d's: prefixes, wrappers, BERT, released MG-3D names."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from mg3d.checkpoints.detection import ANCHORS, Shape
from mg3d.checkpoints.read import shorten
from mg3d.checkpoints.released_names import UNUSED, to_ours

WRAPPERS = ("module", "model", "_orig_mod", "student", "teacher", "net", "network", "backbone", "state_dict")
"""Prefixes that wrappers and trainers add, in any nesting."""
ENCODER_PREFIXES = (
    "vision_encoder", "vision", "swinViT", "swin_vit", "swin", "encoder", "image_encoder", "visual_encoder",
    "img_encoder", "unet",
)  # fmt: skip
VISION = "vision."
OUTSIDE = "outside."
"""Prefix of tensors that belong to neither image nor text encoder, such as a segmentation decoder."""
_RENAMED = ((".mlp.fc1.", ".mlp.linear1."), (".mlp.fc2.", ".mlp.linear2."))
_DECODERS = ("up_tr", "out_tr", "upsamples.", "output_block.", "deep_supervision_heads.", "skip_layers.")
"""Decoder parts of Models Genesis and MONAI's DynUNet, which have no prefix."""
_HEADS = ("rotation_head.", "contrastive_head.", "convTrans3d.", "norm.")
"""Pre-training heads of MONAI, which have no prefix; `norm.` is not read by any Swin."""


class MappedKeys(NamedTuple):
    """Tensors under mg3d's names, and the names they had."""

    tensors: dict[str, Tensor]
    """Under `vision.`, `text.bert.` ... as in MG3D; other tensors under `unused.` and `outside.`."""
    style: str
    """Whose names the file uses: `mg3d`, `released`, `encoder`, `bert` or `unknown`."""
    description: str
    prefix: str
    """Prefix of the names in the file."""


def map_keys(tensors: Mapping[str, Tensor], *, prefix: str | None = None) -> MappedKeys:
    """Detects the naming style and renames the tensors to mg3d's names.

    Args:
        prefix: prefix of the image encoder's names; detected if None.

    Raises:
        ValueError: an image encoder has an unknown prefix, or there is none with the given prefix.
    """
    outer = _outer_prefix(tensors, ("project_image.weight", "type_embedding.weight"))
    if outer is not None and _accepts(prefix, outer, "vision."):
        inside = {name[len(outer) :]: tensor for name, tensor in tensors.items() if name.startswith(outer)}
        return MappedKeys(inside, "mg3d", "mg3d model", outer)
    outer = _outer_prefix(tensors, ("multi_modal_vision_proj.weight", "modality_type_embeddings.weight"))
    if outer is not None and _accepts(prefix, outer, "vision_encoder."):
        return MappedKeys(_from_released(tensors, outer), "released", "MG-3D pre-training", outer)
    found = _encoder_prefix(tensors, prefix)
    if found is None:
        return _without_image_encoder(tensors)
    if _parts(found)[-1:] == ["vision_encoder"]:
        outer = found.removesuffix("vision_encoder.")
        return MappedKeys(_from_released(tensors, outer), "released", "MG-3D image encoder", found)
    renamed = {_encoder_name(name, found): tensor for name, tensor in tensors.items()}
    return MappedKeys(renamed, "encoder", "image encoder", found)


def encoder_shapes(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Name -> shape of the image encoder's tensors, without `vision.`."""
    return {name[len(VISION) :]: tuple(tensor.shape) for name, tensor in tensors.items() if name.startswith(VISION)}


def _from_released(tensors: Mapping[str, Tensor], outer: str) -> dict[str, Tensor]:
    return {to_ours(name[len(outer) :]): tensor for name, tensor in tensors.items() if name.startswith(outer)}


def _accepts(prefix: str | None, outer: str, encoder: str) -> bool:
    return prefix is None or with_dot(prefix) in (outer, outer + encoder)


def with_dot(prefix: str) -> str:
    """The prefix with its final dot."""
    return prefix if not prefix or prefix.endswith(".") else prefix + "."


def prefixes_of(names: Iterable[str], anchor: str) -> list[str]:
    """The prefixes with which `anchor` occurs."""
    return [name.removesuffix(anchor) for name in names if name == anchor or name.endswith("." + anchor)]


def _outer_prefix(tensors: Mapping[str, Tensor], anchors: tuple[str, str]) -> str | None:
    """The prefix of known wrappers before all of `anchors`."""
    found = prefixes_of(tensors, anchors[0])
    return _nearest([prefix for prefix in found if _is_known(prefix, WRAPPERS) and prefix + anchors[1] in tensors])


def _encoder_prefix(tensors: Mapping[str, Tensor], prefix: str | None) -> str | None:
    """The prefix of the image encoder; None without an image encoder."""
    found = [
        start
        for _, anchor, other in ANCHORS
        for start in prefixes_of(tensors, anchor)
        if start + other in tensors and tensors[start + anchor].ndim == 5
    ]
    if prefix is not None:
        if with_dot(prefix) not in found:
            raise ValueError(
                f"there is no image encoder with prefix={with_dot(prefix)!r}; prefixes of image encoders: "
                f"{shorten(dict.fromkeys(found)) or 'none'}; names: {shorten(sorted(tensors))}"
            )
        return with_dot(prefix)
    known = [start for start in dict.fromkeys(found) if _is_known(start, WRAPPERS + ENCODER_PREFIXES)]
    if found and not known:
        names = shorten(sorted(name for name in tensors if name.startswith(found[0])))
        raise ValueError(f"the image encoder has the unknown prefix {found[0]!r} ({names}); pass prefix={found[0]!r}")
    return _nearest(known)


def _nearest(prefixes: list[str]) -> str | None:
    """The shortest prefix, not of a teacher if there is another; ValueError for two equally good ones."""
    ranks = [("teacher" in _parts(prefix), len(_parts(prefix))) for prefix in prefixes]
    best = [prefix for prefix, rank in zip(prefixes, ranks) if rank == min(ranks)]
    if len(best) > 1:
        raise ValueError(f"there are several image encoders, {shorten(map(repr, best))}; pass prefix=... to choose one")
    return next(iter(best), None)


def _without_image_encoder(tensors: Mapping[str, Tensor]) -> MappedKeys:
    anchor = "embeddings.word_embeddings.weight"
    prefix = next((name.removesuffix(anchor) for name in tensors if name.endswith(anchor)), None)
    if prefix is None:
        return MappedKeys({OUTSIDE + name: tensor for name, tensor in tensors.items()}, "unknown", "unknown", "")
    renamed = {_bert_name(name, prefix): tensor for name, tensor in tensors.items()}
    return MappedKeys(renamed, "bert", "BERT without an image encoder", prefix)


def _bert_name(name: str, prefix: str) -> str:
    rest = name.removeprefix(prefix)
    if name.startswith((prefix + "pooler.", prefix + "embeddings.position_ids")):
        return UNUSED + name
    if not name.startswith(prefix) or not rest.startswith(("embeddings.", "encoder.")):
        return OUTSIDE + name
    return "text.bert." + re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", rest))


def _encoder_name(name: str, prefix: str) -> str:
    rest = name.removeprefix(prefix)
    if not name.startswith(prefix) or rest.startswith(_DECODERS + _HEADS):
        return OUTSIDE + name
    for theirs, ours in _RENAMED:
        rest = rest.replace(theirs, ours)
    return VISION + rest


def _parts(prefix: str) -> list[str]:
    return [part for part in prefix.split(".") if part]


def _is_known(prefix: str, known: Iterable[str]) -> bool:
    return all(part in known for part in _parts(prefix))
