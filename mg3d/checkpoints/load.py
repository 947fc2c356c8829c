"""Weights of a file into a model, with an account of every tensor; a poor or a wrong match is refused before anything changes."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mg3d.checkpoints.families import is_parameter
from mg3d.checkpoints.inspect import Passport, passport, text_shape, vision_shape
from mg3d.checkpoints.layout import UNUSED
from mg3d.checkpoints.merging import agree_on_merging, agree_on_norms, identity_of, merging_of
from mg3d.checkpoints.read import few, read_checkpoint
from mg3d.checkpoints.styles import ELSEWHERE, VISION, bring_to_our_names
from mg3d.models.mg3d import MG3D

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_TEXT, _TARGET_TEXT = "text.", "branches.report.target_text."
_OF_WORDS = (
    _TEXT, _TARGET_TEXT, "branches.disentangled.sentence_space.", "branches.report.mlm_head.decoder.",
    "branches.report.mlm_head.bias", "branches.captioning.decoder.words.",
)  # fmt: skip
"""Tensors that mean nothing with another text encoder or other numbers of words."""
_WORDS = "text.bert.embeddings.word_embeddings.weight"
_WORDS_OF_SPACE = "branches.disentangled.sentence_space.word_vectors"


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What was loaded of a file, in our names; those of an encoder alone begin with `vision.` too."""

    passport: Passport
    merging: str
    """Patch merging of the file, as it says or as the user said; `none` for encoders without."""
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    """Of the model, not in the file: left as they were."""
    unexpected: tuple[str, ...]
    """Of the file, not in the model."""
    wrong_shape: tuple[str, ...]
    """Name, shape in the file, shape in the model: left as they were."""
    unused: tuple[str, ...]
    """Of the file; the released code builds them and no objective reads them."""
    not_asked: tuple[str, ...]
    """Of the file; for the network around an encoder, or what lies outside the encoder that was asked for."""
    encoder_coverage: float
    """Share of the image encoder's parameters that were loaded."""
    coverage: float
    """Share of all parameters that were loaded."""
    notes: tuple[str, ...] = ()
    """What else to know, in sentences."""

    def __str__(self) -> str:
        precision = ", ".join(kind for kind in self.passport.precision if "int" not in kind)
        kinds = [
            ("matched", self.matched), ("missing", self.missing), ("wrong shape", self.wrong_shape),
            ("unexpected", self.unexpected), ("never used", self.unused), ("not asked for", self.not_asked),
        ]  # fmt: skip
        lines = [
            f"loaded {self.passport.path}: {self.passport.family}, {self.passport.encoder}, {precision}",
            f"  encoder {self.encoder_coverage:.1%}, model {self.coverage:.1%} of parameters; patch merging {self.merging}",
        ]
        lines += [f"  {kind:14}{len(names):5}  {few(names) if kind != 'matched' else ''}".rstrip() for kind, names in kinds]
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(lines)


def load_weights(
    model: nn.Module,
    path: str | Path,
    *,
    minimum_coverage: float = 0.9,
    merging: str | None = None,
    prefix: str | None = None,
    entry: str | None = None,
    tokenizer: Mapping[str, Any] | None = None,
) -> LoadReport:
    """Loads what fits of a file into the pre-training model or into an image encoder alone; on refusal nothing has changed.

    Numbers of another precision are converted to the model's. Tables of positions are compared, never copied.

    Args:
        minimum_coverage: least share, 0 to 1, of the image encoder's parameters that the file must hold.
        merging: `legacy`, `monai` or `monai_v2`, the patch merging the weights were trained with, where the file does not tell.
        prefix: what stands before the encoder's names, where it is none of the usual words.
        entry: where in the file the tensors lie, such as `teacher`.
        tokenizer: what the model's tokenizer was made from, as runs store it; where a file's is another, its text encoder is left
            out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no file of weights; its encoder has other tensors, shapes, windows, patch merging or norms, or too
            little of it is there; numbers are not finite, or of a type that is not loaded.
    """
    if not 0 <= minimum_coverage <= 1:
        raise ValueError(f"minimum_coverage={minimum_coverage}: expected a share from 0 to 1, such as 0.9")
    model = _unwrapped(model)
    file = read_checkpoint(path, entry=entry)
    named = bring_to_our_names(file.tensors, prefix=prefix)
    found = passport(file, named)
    (offered, tables), (wanted, models_tables), notes = _apart(named.tensors), _apart(_tensors_of(model)), []
    if isinstance(model, MG3D):
        words = identity_of(file).get("tokenizer"), tokenizer
        offered, notes = _text_whole_or_not(_derived(offered, wanted), wanted, *words)
    report = _compare(found, offered, wanted, parameters=_parameters_of(model), whole=isinstance(model, MG3D))
    _refuse_poor(report, offered, wanted, minimum_coverage)
    _refuse_other_windows(tables, models_tables, path)
    encoder = model.vision if isinstance(model, MG3D) else model
    agreed = agree_on_merging(found.path, (found.merging, found.merging_source), merging_of(encoder), merging)
    notes += agree_on_norms(found.path, found.norm_statistics, encoder) + _notes(report, offered, wanted)
    _copy(report.matched, offered, wanted, path)
    return dataclasses.replace(report, merging=agreed, notes=tuple(notes))


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside torch.compile and wrappers for several devices, which put a word before its names."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def _apart(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What is loaded, and the tables of positions within a window, which follow from its size."""
    tables = {name: tensor for name, tensor in tensors.items() if name.endswith("_index")}
    return {name: tensor for name, tensor in tensors.items() if name not in tables}, tables


def _refuse_other_windows(files: Mapping[str, Tensor], models: Mapping[str, Tensor], path: str | Path) -> None:
    """Raises ValueError where the tables that say which places of a window belong together differ."""
    both = [name for name in models if name in files and files[name].dtype in _INTEGERS]
    other = [name for name in both if not torch.equal(files[name].to(models[name]), models[name])]
    if other:
        raise ValueError(
            f"{path} was trained with another window than the model's, or its tables are damaged: {few(other)} differ; build the "
            "encoder with the window_size (z, y, x) of the training"
        )


def _inside(model: nn.Module) -> str:
    return "" if isinstance(model, MG3D) else VISION


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {_inside(model) + _plain(name): tensor for name, tensor in model.state_dict().items()}


def _parameters_of(model: nn.Module) -> frozenset[str]:
    return frozenset(_inside(model) + _plain(name) for name, _ in model.named_parameters())


def _plain(name: str) -> str:
    return name.replace("_orig_mod.", "")  # what torch.compile puts before a part that it compiled


def _derived(offered: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adds the model's own copies of text weights, which other programs do not hold: they start as the text encoder's."""
    offered = dict(offered)
    if _WORDS in offered and _WORDS_OF_SPACE in wanted:
        offered.setdefault(_WORDS_OF_SPACE, offered[_WORDS])
    if not any(name.startswith(_TARGET_TEXT) for name in offered):
        copies = {_TARGET_TEXT + name.removeprefix("text."): name for name in offered if name.startswith("text.")}
        offered |= {copy: offered[name] for copy, name in copies.items() if copy in wanted}
    return offered


def _text_whole_or_not(
    offered: dict[str, Tensor], wanted: Mapping[str, Tensor], files_words: Any, models_words: Any
) -> tuple[dict[str, Tensor], list[str]]:
    """Sets the text encoder aside where not all of it fits, or words have other numbers: it would read nothing."""
    files, models = text_shape(offered), text_shape(wanted)
    if files is None or models is None:
        return offered, []
    told = ""
    if not all(name in offered and offered[name].shape == wanted[name].shape for name in wanted if name.startswith(_TEXT)):
        differing = [f"{name} {files[name]} (model {models[name]})" for name in files if files[name] != models[name]]
        told = ", ".join(differing) or "some of its tensors are not there"
    elif isinstance(files_words, Mapping) and models_words is None:
        return offered, ["the file has a tokenizer of its own: the text encoder is right only if the model's numbers words alike"]
    elif isinstance(files_words, Mapping) and files_words != models_words:
        told = "its words come from other reports and have other numbers"
    if not told:
        return offered, []
    kept = {(ELSEWHERE if name.startswith(_OF_WORDS) else "") + name: tensor for name, tensor in offered.items()}
    return kept, [f"the text encoder of the file is another and was left out: {told}"]


def _compare(
    found: Passport,
    offered: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    *,
    parameters: frozenset[str],
    whole: bool,
) -> LoadReport:
    shared = [name for name in wanted if name in offered]
    fits = {name for name in shared if offered[name].shape == wanted[name].shape}
    outside = [name for name in offered if name.startswith(ELSEWHERE) or (not whole and not name.startswith((VISION, UNUSED)))]
    skip = set(outside) | set(wanted)
    sizes = {name: wanted[name].numel() for name in parameters}
    vision = {name: size for name, size in sizes.items() if name.startswith(VISION)}

    def share(of: Mapping[str, int]) -> float:
        return sum(size for name, size in of.items() if name in fits) / max(sum(of.values()), 1)

    return LoadReport(
        passport=found,
        merging="",
        matched=tuple(name for name in shared if name in fits),
        missing=tuple(name for name in wanted if name not in offered),
        unexpected=tuple(name for name in offered if name not in skip and not name.startswith(UNUSED)),
        wrong_shape=tuple(
            f"{name} {list(offered[name].shape)} against {list(wanted[name].shape)}" for name in shared if name not in fits
        ),
        unused=tuple(name.removeprefix(UNUSED) for name in offered if name.startswith(UNUSED)),
        not_asked=tuple(name.removeprefix(ELSEWHERE) for name in outside),
        encoder_coverage=share(vision),
        coverage=share(sizes),
    )


def _refuse_poor(report: LoadReport, offered: Mapping[str, Tensor], wanted: Mapping[str, Tensor], minimum: float) -> None:
    """Raises ValueError for an encoder that is another, whatever share of it would fit, or of which too little is there.

    With a minimum of 0 a file without a whole image encoder is taken too, of which something must fit.
    """
    in_part = minimum == 0 and vision_shape(offered) is None
    misshapen = [line for line in report.wrong_shape if line.startswith(VISION)]
    strange = [name for name in report.unexpected if _makes_encoder(name)]
    kinds = {_kind(name) for name in offered}
    lacking = [name for name in report.missing if not in_part and _makes_encoder(name) and _kind(name) not in kinds]
    is_other = bool(misshapen or strange or lacking or _other_depths(offered, wanted))
    has_none = not any(name.startswith(VISION) for name in report.matched) if not in_part else not report.matched
    is_poor = report.encoder_coverage < minimum or has_none
    if not is_other and not is_poor:
        return
    short = f"covers {report.encoder_coverage:.1%} of the encoder's parameters, at least {minimum:.0%} are asked for"
    if not is_poor:
        short = "has tensors of another shape in the encoder" if misshapen else "is of an encoder that is built in another way"
    found = (
        ("missing", report.missing), ("wrong shape", report.wrong_shape), ("unexpected", report.unexpected),
        ("nowhere in the file", lacking), ("not in the model", strange),
    )  # fmt: skip
    first = "; ".join(f"{kind} {len(names)}: {few(names)}" for kind, names in found if names)
    difference = _difference(offered, wanted) if is_other or has_none else "What it holds fits, the rest is not in it. "
    raise ValueError(f"{report.passport.path} {short}. {difference}{first}")


def _makes_encoder(name: str) -> bool:
    return name.startswith(VISION) and is_parameter(name) and name != VISION + "mask_token"


def _kind(name: str) -> str:
    """The name without the numbers that count stages, blocks and layers."""
    return re.sub(r"\d+", "#", name)


def _other_depths(offered: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    """Whether a stage that both have has another number of blocks."""
    files, models = vision_shape(offered), vision_shape(wanted)
    if files is None or models is None:
        return False
    pairs = zip(files.details.get("depths", ()), models.details.get("depths", ()))
    return any(theirs not in (0, ours) for theirs, ours in pairs)


def _difference(offered: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """One sentence that names the settings in which file and model differ, where both are known."""
    files, models = vision_shape(offered), vision_shape(wanted)
    if files is None:
        return "The file holds no image encoder that is known here. "
    if models is None:
        return ""
    ours, theirs = models.settings(), files.settings()
    told = [f"{name}={value}" for name, value in theirs.items() if not _is_part(value, ours.get(name))]
    if files.in_channels != models.in_channels:
        told.append(f"in_channels={files.in_channels} (pre-training reads 1, encoders alone take others)")
    if files.preset and files.preset != models.preset:
        told.append(f"all of which the preset word {files.preset} sets")
    return f"The file is {files.name}, the model {models.name}; the file asks for {', '.join(told)}. " if told else ""


def _is_part(theirs: Any, ours: Any) -> bool:
    """Whether two values of a setting are equal, as far as the file tells: of a stage that it lacks it tells 0, or nothing."""
    if isinstance(theirs, list) and isinstance(ours, list):
        return len(theirs) <= len(ours) and all(one in (0, other) for one, other in zip(theirs, ours))
    return theirs == ours


def _notes(report: LoadReport, offered: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    others = [name for name in report.matched if offered[name].dtype != wanted[name].dtype]
    kinds = sorted({_word(offered[name].dtype) for name in others})
    notes = [f"{len(others)} tensors were converted to the model's precision from {', '.join(kinds)}"] if kinds else []
    if {"float16", "bfloat16"}.intersection(kinds):
        notes[0] += "; half precision keeps about three digits of each number"
    left = [any("fusion" in name for name in names) for names in (report.missing, report.unexpected)]
    if all(left):
        notes.append("fusion is another in the file and starts untrained; the preset mg3d_released has that of released files")
    return notes


def _copy(names: Iterable[str], offered: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: str | Path) -> None:
    names = list(names)
    strange = [name for name in names if not _is_loadable(offered[name], wanted[name])]
    if strange:
        kinds = ((name, offered[name].dtype, offered[name].layout) for name in strange)
        told = few(f"{name} ({_word(kind)}, {_word(layout)})" for name, kind, layout in kinds)
        raise ValueError(
            f"{path} holds numbers of a type that is not loaded: {told}; save it dense, in float16, bfloat16, float32, float64"
        )
    broken = [name for name in names if not offered[name].to(wanted[name].dtype).isfinite().all()]
    if broken:
        kind = _word(wanted[broken[0]].dtype)
        raise ValueError(
            f"{path} holds numbers that are not finite in {few(broken)}, as {kind}; the training that wrote it had diverged, or "
            "the model's precision is too small for them"
        )
    with torch.no_grad():
        for name in names:
            wanted[name].copy_(offered[name])


def _is_loadable(theirs: Tensor, mine: Tensor) -> bool:
    return theirs.layout is torch.strided and theirs.dtype in (_FLOATS if mine.is_floating_point() else _INTEGERS)


def _word(kind: torch.dtype | torch.layout) -> str:
    return str(kind).removeprefix("torch.")
