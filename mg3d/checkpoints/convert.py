"""The same tensors under the names of another program: METER, PTUnifier, MG-3D, ours.

The four are one family: a report encoder, an image encoder, a projection of each, two types, fusion, heads. Report side,
projections, types and word head correspond in all; image encoders of METER and PTUnifier read flat pictures, and fusion and
contrast differ.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

from torch import Tensor

from mg3d.checkpoints.inspect import merging_of_file, vision_shape
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
    merging: str
    """Patch merging of the image encoder among them; `none` where there is none."""

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


def convert(
    file: CheckpointFile, to: Program, *, keep_unused: bool = False, prefix: str = "", merging: str | None = None
) -> Conversion:
    """The tensors of a file under the names of `to`.

    Args:
        keep_unused: between MG-3D and ours, carry along what no objective reads, so that the way back gives the same file.
        prefix: what stands before the names, where it is none of the usual words; what lies elsewhere is left out.
        merging: `legacy`, `monai` or `monai_v2`, the patch merging the weights were trained with, where the file does not tell.

    Raises:
        ValueError: the names are of none of the four programs, `to` is none, nothing corresponds, no name begins with `prefix`,
            or an image encoder would go along whose patch merging is not known, or which the other program does not compute.
    """
    if to not in get_args(Program):
        raise ValueError(f"to={to!r}: expected one of {', '.join(get_args(Program))}")
    outside = prefix if not prefix or prefix.endswith(".") else prefix + "."
    mine = {name.removeprefix(outside): tensor for name, tensor in file.tensors.items() if name.startswith(outside)}
    if not mine:
        raise ValueError(f"{file.path}: no name begins with prefix={outside!r}; names are such as {sorted(file.tensors)[:5]}")
    program, place = program_of(mine)
    rows, tensors = [], {}
    for name, tensor in file.tensors.items():
        inner = name.removeprefix(outside + place)
        target = _target(inner, program, to, keep_unused) if name.startswith(outside + place) else None
        rows.append(Row(name, target, "" if target else _why(inner, program, to)))
        if target:
            tensors[target] = tensor
    if not tensors:
        raise ValueError(f"{file.path}: none of its {len(rows)} tensors, of {program} names, corresponds to one of {to}")
    known = _agree_on_merging(file._replace(tensors=mine), to, merging)
    return Conversion(program, tensors, tuple(rows), known)


def _agree_on_merging(file: CheckpointFile, to: Program, users: str | None) -> str:
    """Patch merging of the file; equal names and shapes compute other features in an encoder with another."""
    named = bring_to_our_names(file.tensors)
    files, source = merging_of_file(file, named, vision_shape(named.tensors))
    if users and files not in ("unknown", "none", users):
        raise ValueError(f"{file.path} has patch merging {files!r} ({source}), not merging {users!r}")
    if to in ("meter", "ptunifier") or files == "none":
        return "none"
    if files == "unknown" and not users:
        raise ValueError(
            f"{file.path} does not tell its patch merging, and a wrong guess gives other features without any error: ask whoever "
            "trained it and say --merging legacy (MG-3D, early MONAI), monai (present MONAI) or monai_v2 (its mergingv2)"
        )
    known = users or files
    if to == "released" and known != "legacy":
        raise ValueError(
            f"{file.path} was trained with MONAI's patch merging {known!r}, which MG-3D's code does not compute: there its "
            "features would be others, without any error; train with patch_merging=legacy for weights that go back"
        )
    return known


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
