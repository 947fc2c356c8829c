"""The same tensors under the names of another program: METER, PTUnifier, MG-3D, ours.

The four are one family: a report encoder, an image encoder, a projection of each, two types, fusion, heads. Report side,
projections, types and word head correspond in all; image encoders of METER and PTUnifier read flat pictures, and fusion and
contrast differ.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

from torch import Tensor

from mg3d.checkpoints.layout import UNUSED, to_ours, to_released
from mg3d.checkpoints.read import CheckpointFile
from mg3d.checkpoints.styles import OUTER, bring_to_our_names

Program = Literal["ours", "released", "ptunifier", "meter"]
_FAMILY: tuple[tuple[str, str], ...] = (
    ("language_encoder.", "text_transformer."),
    ("multi_modal_language_proj.", "cross_modal_text_transform."),
    ("multi_modal_vision_proj.", "cross_modal_image_transform."),
    ("modality_type_embeddings.", "token_type_embeddings."),
    ("multi_modal_vision_layers.", "cross_modal_image_layers."),
    ("multi_modal_language_layers.", "cross_modal_text_layers."),
    ("multi_modal_language_pooler.", "cross_modal_text_pooler."),
    ("mlm_head.bias", "mlm_score.bias"),
    ("mlm_head.transform.", "mlm_score.transform."),
    ("mlm_head.decoder.", "mlm_score.decoder."),
)
"""(MG-3D and PTUnifier, METER): what corresponds between programs that read flat pictures and MG-3D."""
_SIGNS: tuple[tuple[Program, tuple[str, str]], ...] = (
    ("ours", ("project_image.weight", "type_embedding.weight")),
    ("meter", ("cross_modal_image_transform.weight", "token_type_embeddings.weight")),
    ("released", ("multi_modal_vision_proj.weight", "modality_type_embeddings.weight")),
)
_WHY: tuple[tuple[str, str], ...] = (
    ("vit_model.", "reads flat pictures"),
    ("vision_encoder.", "image encoders differ"),
    ("vision.", "image encoders differ"),
    ("cross_modal_image_pooler.", "pools the class token, MG-3D all tokens"),
    ("multi_modal_vision_pooler.", "pools the class token, MG-3D all tokens"),
    ("mlm_head.", "MG-3D's sentence predictor"),
    ("itm_", "no matching head there"),
    ("pseudo_", "no pseudo tokens there"),
)


class Row(NamedTuple):
    """Where one tensor went."""

    source: str
    target: str | None
    """None = nowhere."""
    why: str
    """Empty where it went somewhere."""


class Conversion(NamedTuple):
    """Tensors under other names, and what became of each."""

    program: Program
    """Whose names the file had."""
    tensors: dict[str, Tensor]
    rows: tuple[Row, ...]

    def table(self) -> str:
        """One line per tensor, then the counts."""
        lines = [f"{row.source} -> {row.target or '(left out: ' + row.why + ')'}" for row in self.rows]
        return "\n".join([*lines, f"{len(self.tensors)} of {len(self.rows)} tensors converted from {self.program} names"])


def program_of(tensors: Mapping[str, Tensor]) -> tuple[Program, str]:
    """Whose names these are, and what stands before them; an MG-3D file of an image encoder alone counts as released.

    Raises:
        ValueError: none of the four programs.
    """
    for program, (first, second) in _SIGNS:
        places = [name.removesuffix(first) for name in tensors if name == first or name.endswith("." + first)]
        known = [place for place in places if all(word in OUTER for word in place.split(".") if word)]
        if known and known[0] + second in tensors:
            flat = program == "released" and not _has_volume_encoder(tensors)
            return ("ptunifier" if flat else program), known[0]
    named = bring_to_our_names(tensors)
    if named.style == "released":
        return "released", named.prefix.removesuffix("vision_encoder.")
    raise ValueError(
        f"names of METER, PTUnifier, MG-3D or ours are expected; found {named.family}, names such as {sorted(tensors)[:5]}"
    )


def _has_volume_encoder(tensors: Mapping[str, Tensor]) -> bool:
    return any("vision_encoder." in name and tensor.ndim == 5 for name, tensor in tensors.items())


def convert(file: CheckpointFile, to: Program, *, keep_unused: bool = False) -> Conversion:
    """The tensors of a file under the names of `to`.

    keep_unused: between MG-3D and ours, carry along what no objective reads, so that the way back gives the same file.

    Raises:
        ValueError: the names are of none of the four programs, or `to` is none.
    """
    if to not in get_args(Program):
        raise ValueError(f"to={to!r}: expected one of {', '.join(get_args(Program))}")
    program, prefix = program_of(file.tensors)
    rows, tensors = [], {}
    for name, tensor in file.tensors.items():
        target = _target(name[len(prefix) :], program, to, keep_unused) if name.startswith(prefix) else None
        why = "" if target else _why(name.removeprefix(prefix), program, to)
        rows.append(Row(name, target, why))
        if target:
            tensors[target] = tensor
    return Conversion(program, tensors, tuple(rows))


def _target(name: str, program: Program, to: Program, keep_unused: bool) -> str | None:
    if program == to:
        return name
    released = _as_released(name, program)
    volumes = {program, to} <= {"ours", "released"}
    if released is None or (not volumes and not any(released.startswith(ours) for ours, _ in _FAMILY)):
        return None
    if to == "meter":
        return next(theirs + released[len(ours) :] for ours, theirs in _FAMILY if released.startswith(ours))
    if to != "ours":
        return released
    ours = to_ours(released)
    return ours if keep_unused or not ours.startswith(UNUSED) else None


def _as_released(name: str, program: Program) -> str | None:
    if program == "ours":
        try:
            return to_released(name)
        except ValueError:
            return None
    if program == "meter":
        return next((ours + name[len(theirs) :] for ours, theirs in _FAMILY if name.startswith(theirs)), None)
    return name


def _why(name: str, program: Program, to: Program) -> str:
    if {program, to} <= {"ours", "released"}:
        return "nothing reads it" if to == "ours" else "the released code has no such tensor"
    if to == "ours" and any(name.startswith(part) for pair in _FAMILY for part in pair):
        return "nothing reads it"
    return next((why for start, why in _WHY if name.startswith(start)), "nothing corresponds")
