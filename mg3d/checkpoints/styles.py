"""The ways in which programs name the same tensors, all brought to our names."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from mg3d.checkpoints.families import ANCHORS, Shape
from mg3d.checkpoints.layout import UNUSED, to_ours
from mg3d.checkpoints.read import few

OUTER = ("module", "model", "_orig_mod", "student", "teacher", "net", "network", "backbone", "state_dict")
"""Words that programs wrap around a model's names, in any nesting."""
ENCODER = (
    "vision_encoder", "vision", "swinViT", "swin_vit", "swin", "encoder", "image_encoder", "visual_encoder",
    "img_encoder", "unet",
)  # fmt: skip
"""Words that stand before an image encoder's names."""
VISION = "vision."
ELSEWHERE = "elsewhere."
"""Before the names of tensors that belong to a network around the image encoder, such as a decoder for segmentation."""
_ALIASES = ((".mlp.fc1.", ".mlp.linear1."), (".mlp.fc2.", ".mlp.linear2."))
_AROUND = (
    ("SwinUNETR (MONAI)", ("encoder10.", "decoder5.")),
    ("SSLHead (MONAI)", ("rotation_head.", "contrastive_head.")),
    ("Models Genesis U-Net with decoder", ("up_tr256.",)),
)
_DECODERS = ("up_tr", "out_tr", "upsamples.", "output_block.", "deep_supervision_heads.", "skip_layers.")
"""Of networks that keep encoder and decoder side by side without a prefix: Models Genesis, MONAI's DynUNet."""
_HEADS = ("rotation_head.", "contrastive_head.", "convTrans3d.", "norm.")
"""Of MONAI's pre-training, beside an encoder without a prefix; the last is a norm that no Swin reads."""


class Named(NamedTuple):
    """Tensors under our names, and how they were called."""

    tensors: dict[str, Tensor]
    """Under `vision.`, `text.bert.` ... as in MG3D; `unused.` and `elsewhere.` before what no encoder or model of ours reads."""
    style: str
    """`mg3d`, `released`, `encoder`, `bert` or `unknown`."""
    family: str
    """The style in words for people."""
    prefix: str
    """What stood before the names."""


def bring_to_our_names(tensors: Mapping[str, Tensor], *, prefix: str | None = None) -> Named:
    """Finds out how the tensors are called and renames them.

    prefix: what stands before the image encoder's names, where it is none of the words known here.

    Raises:
        ValueError: there is an image encoder behind a prefix that is not known, or none behind the one that was passed.
    """
    outer = _outer(tensors, ("project_image.weight", "type_embedding.weight"))
    if outer is not None and _is_asked(prefix, outer, "vision."):
        mine = {name[len(outer) :]: tensor for name, tensor in tensors.items() if name.startswith(outer)}
        return Named(mine, "mg3d", "MG3D of this package", outer)
    outer = _outer(tensors, ("multi_modal_vision_proj.weight", "modality_type_embeddings.weight"))
    if outer is not None and _is_asked(prefix, outer, "vision_encoder."):
        return Named(_released(tensors, outer), "released", "MG-3D pre-training", outer)
    place = _encoder_place(tensors, prefix)
    if place is None:
        return _without_encoder(tensors)
    if _words(place)[-1:] == ["vision_encoder"]:
        outer = place.removesuffix("vision_encoder.")
        return Named(_released(tensors, outer), "released", "MG-3D image encoder", place)
    ours = {_our_name(name, place): tensor for name, tensor in tensors.items()}
    return Named(ours, "encoder", _family(tensors, place), place)


def _released(tensors: Mapping[str, Tensor], outer: str) -> dict[str, Tensor]:
    return {to_ours(name[len(outer) :]): tensor for name, tensor in tensors.items() if name.startswith(outer)}


def vision_shapes(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Name -> shape of the image encoder among tensors under our names, without `vision.`."""
    return {name[len(VISION) :]: tuple(tensor.shape) for name, tensor in tensors.items() if name.startswith(VISION)}


def _is_asked(prefix: str | None, outer: str, encoder: str) -> bool:
    """Whether the user's prefix, if any, is what a whole model's names begin with, or those of its image encoder."""
    return prefix is None or _dotted(prefix) in (outer, outer + encoder)


def _dotted(prefix: str) -> str:
    return prefix if not prefix or prefix.endswith(".") else prefix + "."


def _outer(tensors: Mapping[str, Tensor], signs: tuple[str, ...]) -> str | None:
    """What stands before all of `signs`, when it is known words only."""
    found = [name.removesuffix(signs[0]) for name in tensors if name == signs[0] or name.endswith("." + signs[0])]
    return _nearest([place for place in found if _is_known(place, OUTER) and all(place + sign in tensors for sign in signs)])


def _encoder_place(tensors: Mapping[str, Tensor], prefix: str | None) -> str | None:
    """What stands before the names of the image encoder; None when there is none."""
    places = _places(tensors)
    if prefix is not None:
        if _dotted(prefix) not in places:
            raise ValueError(
                f"no image encoder stands behind prefix={_dotted(prefix)!r}; found before one: {few(places) or 'nothing'}, "
                f"first names {few(sorted(tensors))}"
            )
        return _dotted(prefix)
    known = [place for place in places if _is_known(place, OUTER + ENCODER)]
    if places and not known:
        raise ValueError(
            f"an image encoder stands behind {places[0]!r}, a prefix that is not known; its first names are "
            f"{few(sorted(name for name in tensors if name.startswith(places[0])))}; pass prefix={places[0]!r} to take it"
        )
    return _nearest(known)


def _nearest(places: list[str]) -> str | None:
    """The place that is no teacher's and least deep; None without any.

    Raises:
        ValueError: two are.
    """
    ranks = [("teacher" in _words(place), len(_words(place))) for place in places]
    best = [place for place, rank in zip(places, ranks) if rank == min(ranks)]
    if len(best) > 1:
        raise ValueError(f"equally good encoders stand behind {few(map(repr, best))}; pass prefix=... to choose")
    return next(iter(best), None)


def _places(tensors: Mapping[str, Tensor]) -> list[str]:
    places = []
    for _, anchor, other in ANCHORS:
        ends = [name.removesuffix(anchor) for name in tensors if name == anchor or name.endswith("." + anchor)]
        places += [place for place in ends if place + other in tensors and tensors[place + anchor].ndim == 5]
    return list(dict.fromkeys(places))


def _without_encoder(tensors: Mapping[str, Tensor]) -> Named:
    anchor = "embeddings.word_embeddings.weight"
    place = next((name.removesuffix(anchor) for name in tensors if name.endswith(anchor)), None)
    if place is not None:
        renamed = {_bert_name(name, place): tensor for name, tensor in tensors.items()}
        return Named(renamed, "bert", "BERT without an image encoder", place)
    return Named({ELSEWHERE + name: tensor for name, tensor in tensors.items()}, "unknown", "not known", "")


def _bert_name(name: str, place: str) -> str:
    if name.startswith(place + "pooler.") or name == place + "embeddings.position_ids":
        return UNUSED + name
    rest = name[len(place) :]
    if not name.startswith(place) or not rest.startswith(("embeddings.", "encoder.")):
        return ELSEWHERE + name
    return "text.bert." + re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", rest))


def _our_name(name: str, place: str) -> str:
    if not name.startswith(place):
        return ELSEWHERE + name
    rest = name[len(place) :]
    if rest.startswith(_DECODERS + _HEADS):
        return ELSEWHERE + name
    for theirs, ours in _ALIASES:
        rest = rest.replace(theirs, ours)
    return VISION + rest


def _family(tensors: Mapping[str, Tensor], place: str) -> str:
    words = _words(place)
    around = [label for label, signs in _AROUND if all(any("." + sign in "." + name for name in tensors) for sign in signs)]
    within = f" inside {around[0]}" if around else ""
    manner = ""
    if words[:1] in (["student"], ["teacher"]) or "student" in words:
        manner = ", student and teacher as in VoCo"
    elif "backbone" in words:
        manner = ", `backbone.` as in SuPreM"
    return f"image encoder{within}{manner}"


def _words(place: str) -> list[str]:
    return [word for word in place.split(".") if word]


def _is_known(place: str, known: Iterable[str]) -> bool:
    return all(word in known for word in _words(place))
