"""Rename tensors between METER, PTUnifier, MG-3D and mg3d, which share one family of architectures.

Report encoder, projections, type embeddings and MLM head correspond in all four. METER and PTUnifier read 2D images: their image
encoders have no counterpart, and fusion and contrastive heads differ.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

from torch import Tensor

from mg3d.checkpoints.info import image_encoder
from mg3d.checkpoints.key_mapping import WRAPPERS, map_keys, prefixes_of, with_dot
from mg3d.checkpoints.patch_merging import agree_on_merging, merging_of_file
from mg3d.checkpoints.read import CheckpointFile, shorten
from mg3d.checkpoints.released_names import UNUSED, to_ours, to_released

Program = Literal["mg3d", "released", "ptunifier", "meter"]
_SHARED: tuple[tuple[str, str], ...] = (
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
"""(MG-3D and PTUnifier, METER): tensors with a counterpart."""
_ANCHORS: tuple[tuple[Program, tuple[str, str]], ...] = (
    ("mg3d", ("project_image.weight", "type_embedding.weight")),
    ("meter", ("cross_modal_image_transform.weight", "token_type_embeddings.weight")),
    ("released", ("multi_modal_vision_proj.weight", "modality_type_embeddings.weight")),
)


class Row(NamedTuple):
    """Result for one tensor."""

    source: str
    target: str | None
    """None = left out."""
    reason: str
    """Why there is no target."""


class Conversion(NamedTuple):
    """Renamed tensors, and the result for each."""

    program: Program
    """Whose names the file had."""
    tensors: dict[str, Tensor]
    rows: tuple[Row, ...]
    merging: str
    """Patch merging of the image encoder; `none` without one."""

    def table(self) -> str:
        """One line per tensor and a summary."""
        lines = [f"{row.source} -> {row.target or f'({row.reason})'}" for row in self.rows]
        return "\n".join([*lines, f"converted {len(self.tensors)} of {len(self.rows)} tensors from {self.program} names"])


def program_of(tensors: Mapping[str, Tensor]) -> tuple[Program, str]:
    """Whose names these are, and their prefix; an MG-3D image encoder alone is `released`.

    Raises:
        ValueError: none of the four programs.
    """
    for program, (first, second) in _ANCHORS:
        known = [prefix for prefix in prefixes_of(tensors, first) if all(part in WRAPPERS for part in prefix.split(".") if part)]
        if known and known[0] + second in tensors:
            is_3d = any("vision_encoder." in name and tensor.ndim == 5 for name, tensor in tensors.items())
            return ("ptunifier" if program == "released" and not is_3d else program), known[0]
    mapped = map_keys(tensors)
    if mapped.style == "released":
        return "released", mapped.prefix.removesuffix("vision_encoder.")
    raise ValueError(f"not names of METER, PTUnifier, MG-3D or mg3d ({mapped.description}): {shorten(sorted(tensors))}")


def convert(
    file: CheckpointFile, to: Program, *, keep_unused: bool = False, prefix: str = "", merging: str | None = None
) -> Conversion:
    """The tensors of a file under the names of another program.

    Args:
        keep_unused: between MG-3D and mg3d, keep tensors that no objective reads, so that converting back restores the file.
        prefix: prefix of the names, if it is not a known wrapper; other tensors are left out.
        merging: patch merging of the weights, if the file does not store it.

    Raises:
        ValueError: unknown names, target or prefix; no counterpart at all; an image encoder whose patch merging is unknown, or
            not computed by the target program.
    """
    if to not in get_args(Program):
        raise ValueError(f"to={to!r}: must be one of {', '.join(get_args(Program))}")
    outer = with_dot(prefix)
    inside = {name.removeprefix(outer): tensor for name, tensor in file.tensors.items() if name.startswith(outer)}
    if not inside:
        raise ValueError(f"{file.path}: no name starts with prefix={outer!r}; names: {shorten(sorted(file.tensors))}")
    program, wrapper = program_of(inside)
    rows, tensors = [], {}
    for name, tensor in file.tensors.items():
        inner = name.removeprefix(outer + wrapper)
        target = _target(inner, program, to, keep_unused) if name.startswith(outer + wrapper) else None
        rows.append(Row(name, target, "" if target else _reason(inner, program, to)))
        if target:
            tensors[target] = tensor
    if not tensors:
        raise ValueError(f"{file.path}: none of its {len(rows)} {program} tensors has a counterpart in {to}")
    return Conversion(program, tensors, tuple(rows), _agree_on_merging(file._replace(tensors=inside), to, merging))


def _agree_on_merging(file: CheckpointFile, to: Program, given: str | None) -> str:
    mapped = map_keys(file.tensors)
    of_file = merging_of_file(file, mapped, image_encoder(mapped.tensors))
    if to in ("meter", "ptunifier"):
        return "none"
    merging = agree_on_merging(str(file.path), of_file, given or of_file[0], given)
    if to == "released" and merging not in ("legacy", "none"):
        raise ValueError(
            f"{file.path} was trained with MONAI's patch merging {merging!r}, which the published MG-3D code does not compute; "
            "train with patch_merging=legacy to convert to released names"
        )
    return merging


def _target(name: str, program: Program, to: Program, keep_unused: bool) -> str | None:
    if program == to:
        return name
    released = _as_released(name, program)
    are_3d = {program, to} <= {"mg3d", "released"}
    if released is None or (not are_3d and not any(released.startswith(shared) for shared, _ in _SHARED)):
        return None
    if to == "meter":
        return next(meter + released[len(shared) :] for shared, meter in _SHARED if released.startswith(shared))
    if to != "mg3d":
        return released
    ours = to_ours(released)
    return ours if keep_unused or not ours.startswith(UNUSED) else None


def _as_released(name: str, program: Program) -> str | None:
    if program == "mg3d":
        try:
            return to_released(name)
        except ValueError:
            return None
    if program == "meter":
        return next((shared + name[len(meter) :] for shared, meter in _SHARED if name.startswith(meter)), None)
    return name


def _reason(name: str, program: Program, to: Program) -> str:
    if to == "mg3d" and (program == "released" or any(name.startswith(part) for pair in _SHARED for part in pair)):
        return "unused"
    return "not in the published code" if {program, to} == {"mg3d", "released"} else "no counterpart"
