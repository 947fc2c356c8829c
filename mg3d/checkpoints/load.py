"""Weights of a file into a model, with an account of every tensor; a poor or a wrong match is refused before anything changes."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from monai.networks.nets.swin_unetr import PatchMerging
from torch import Tensor, nn

from mg3d.checkpoints.inspect import Passport, passport, text_shape, vision_shape
from mg3d.checkpoints.layout import UNUSED
from mg3d.checkpoints.read import read_checkpoint
from mg3d.checkpoints.styles import ELSEWHERE, VISION, bring_to_our_names
from mg3d.models.mg3d import MG3D
from mg3d.models.vision.swin import LegacyPatchMerging

_NAMED = 5
_TEXT = "text."
_WORDS = "text.bert.embeddings.word_embeddings.weight"
_WORDS_OF_SPACE = "sentence_space.word_vectors"


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
        lines += [f"  {kind:14}{len(names):5}  {_few(names) if kind != 'matched' else ''}".rstrip() for kind, names in kinds]
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
) -> LoadReport:
    """Loads what fits of a file into the pre-training model or into an image encoder alone; on refusal nothing has changed.

    Numbers of another precision are converted to the model's.

    Args:
        minimum_coverage: least share of the image encoder's parameters that the file must hold.
        merging: `legacy` or `monai`, the patch merging the weights were trained with, where the file does not tell.
        prefix: what stands before the encoder's names, where it is none of the usual words.
        entry: where in the file the tensors lie, such as `teacher`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no file of weights, of another encoder or another patch merging, holds too little of the encoder, a
            tensor of another shape in it, or numbers that are not finite.
    """
    file = read_checkpoint(path, entry=entry)
    named = bring_to_our_names(file.tensors, prefix=prefix)
    pass_ = passport(file, named)
    wanted = _tensors_of(model)
    offered, notes = named.tensors, ()
    if isinstance(model, MG3D):
        offered, notes = _text_whole_or_not(_derived(named.tensors, wanted), wanted)
    agreed = _agree_on_merging(pass_, merging_of(model), merging)
    report = _compare(pass_, agreed, offered, wanted, parameters=_parameters_of(model), whole=isinstance(model, MG3D))
    report = dataclasses.replace(report, notes=notes)
    _refuse_poor(report, offered, wanted, minimum_coverage)
    _copy(report.matched, offered, wanted, path)
    return report


def merging_of(model: nn.Module) -> str | None:
    """Patch merging that a model or encoder computes, `legacy` or `monai`; None without a Swin.

    Raises:
        ValueError: it mixes both.
    """
    kinds = {
        "legacy" if isinstance(module, LegacyPatchMerging) else "monai"
        for module in model.modules()
        if isinstance(module, (LegacyPatchMerging, PatchMerging))
    }
    if len(kinds) > 1:
        raise ValueError("this model mixes legacy and present patch merging; build it with one of them")
    return next(iter(kinds), None)


def _inside(model: nn.Module) -> str:
    return "" if isinstance(model, MG3D) else VISION


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {_inside(model) + name: tensor for name, tensor in model.state_dict().items()}


def _parameters_of(model: nn.Module) -> frozenset[str]:
    return frozenset(_inside(model) + name for name, _ in model.named_parameters())


def _derived(offered: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adds the model's own copies of text weights, which other programs do not hold: they start as the text encoder's."""
    offered = dict(offered)
    if _WORDS in offered and _WORDS_OF_SPACE in wanted:
        offered.setdefault(_WORDS_OF_SPACE, offered[_WORDS])
    if not any(name.startswith("target_text.") for name in offered):
        copies = {"target_text." + name.removeprefix("text."): name for name in offered if name.startswith("text.")}
        offered |= {copy: offered[name] for copy, name in copies.items() if copy in wanted}
    return offered


def _text_whole_or_not(offered: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Takes the text encoder out where not all of it fits: half of one BERT in another would read nothing."""
    mine = [name for name in wanted if name.startswith(_TEXT)]
    if all(name in offered and offered[name].shape == wanted[name].shape for name in mine):
        return offered, ()
    files, models = text_shape(offered), text_shape(wanted)
    if files is None:
        return offered, ()
    told = ", ".join(f"{name} {files[name]} (model {models[name]})" for name in files if files[name] != models[name])
    kept = {name: tensor for name, tensor in offered.items() if not name.startswith((_TEXT, "target_text.", "sentence_space."))}
    return kept, (f"the text encoder of the file is another and was left out: {told or 'some of its tensors are not there'}",)


def _agree_on_merging(pass_: Passport, models: str | None, users: str | None) -> str:
    if users not in (None, "", "legacy", "monai"):
        raise ValueError(f"merging={users!r}: expected legacy or monai")
    if pass_.merging == "none" or models is None:
        return "none"
    if pass_.merging == "unknown" and not users:
        raise ValueError(
            f"{pass_.path} ({pass_.family}) does not tell its patch merging, and a wrong guess gives other features without any "
            "error: ask whoever trained it and say merging='legacy' (MG-3D, early MONAI) or merging='monai' (present MONAI) "
            "(load_merging=... on the command line)"
        )
    if users and pass_.merging not in ("unknown", users):
        raise ValueError(f"{pass_.path} has patch merging {pass_.merging!r} ({pass_.merging_source}), not merging={users!r}")
    files = users or pass_.merging
    if files != models:
        raise ValueError(
            f"{pass_.path} was trained with patch merging {files!r} and the model computes {models!r}: equal names and shapes, "
            f"other features; build the model with patch_merging={files}"
        )
    return files


def _compare(
    pass_: Passport,
    merging: str,
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
        passport=pass_,
        merging=merging,
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
    misshapen = [line for line in report.wrong_shape if line.startswith(VISION)]
    if report.encoder_coverage >= minimum and not misshapen:
        return
    kinds = (("missing", report.missing), ("wrong shape", report.wrong_shape), ("unexpected", report.unexpected))
    first = "; ".join(f"{kind} {len(names)}: {_few(names)}" for kind, names in kinds if names)
    short = f"covers {report.encoder_coverage:.1%} of the encoder's parameters, at least {minimum:.0%} are asked for"
    if report.encoder_coverage >= minimum:
        short = "has tensors of another shape in the encoder"
    raise ValueError(f"{report.passport.path} {short}. {_difference(offered, wanted)}{first}")


def _difference(offered: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """One sentence that names the settings in which file and model differ, where both are known."""
    files, models = vision_shape(offered), vision_shape(wanted)
    if files is None:
        return "The file holds no image encoder that is known here. "
    if models is None:
        return ""
    ours, theirs = models.settings(), files.settings()
    names = [name for name in theirs if theirs[name] != ours.get(name)]
    if not names:
        return ""
    told = ", ".join(f"{name}={theirs[name]}" for name in names)
    return f"The file is {files.name}, the model {models.name}; the file asks for {told}. "


def _copy(names: Iterable[str], offered: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: str | Path) -> None:
    broken = [name for name in names if offered[name].is_floating_point() and not offered[name].isfinite().all()]
    if broken:
        raise ValueError(f"{path} holds numbers that are not finite in {_few(broken)}; the training that wrote it had diverged")
    with torch.no_grad():
        for name in names:
            wanted[name].copy_(offered[name])
    wrong = [name for name in names if not torch.equal(wanted[name], offered[name].to(wanted[name]))]
    assert not wrong, f"copied and yet different: {wrong[:_NAMED]}"


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
