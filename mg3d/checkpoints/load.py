"""Load weights of a file into a model, with a report of every tensor. A mismatch is refused before the model changes."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mg3d.checkpoints.detection import DetectedEncoder, is_required
from mg3d.checkpoints.info import CheckpointInfo, checkpoint_info, image_encoder, text_encoder_sizes
from mg3d.checkpoints.key_mapping import OUTSIDE, VISION, map_keys
from mg3d.checkpoints.patch_merging import agree_on_merging, compare_norms, merging_of, mg3d_metadata
from mg3d.checkpoints.read import read_checkpoint, shorten
from mg3d.checkpoints.released_names import UNUSED
from mg3d.models.mg3d import MG3D

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_TEXT, _TARGET_TEXT = "text.", "branches.report.target_text."
_VOCABULARY = (
    _TEXT, _TARGET_TEXT, "branches.disentangled.sentence_space.", "branches.report.mlm_head.decoder.",
    "branches.report.mlm_head.bias", "branches.captioning.decoder.words.",
)  # fmt: skip
"""Tensors that depend on the text encoder or its vocabulary."""
_WORDS = "text.bert.embeddings.word_embeddings.weight"
_WORD_VECTORS = "branches.disentangled.sentence_space.word_vectors"
Tensors = Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What was loaded of a file, in mg3d's names; those of an image encoder alone also start with `vision.`."""

    info: CheckpointInfo
    merging: str
    """Patch merging of the weights; `none` for encoders without."""
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    """In the model, not in the file; unchanged."""
    unexpected: tuple[str, ...]
    """In the file, not in the model."""
    wrong_shape: tuple[str, ...]
    """Name, shape in the file, shape in the model; unchanged."""
    unused: tuple[str, ...]
    """In the file; built by the published code, but not read by any objective."""
    ignored: tuple[str, ...]
    """In the file; outside of the encoders, or of the model to load into."""
    encoder_coverage: float
    """Fraction of the image encoder's parameters that was loaded."""
    coverage: float
    """Fraction of all parameters that was loaded."""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        precision = ", ".join(kind for kind in self.info.precision if "int" not in kind)
        lines = [
            f"loaded {self.info.path}: {self.info.description}, {self.info.encoder}, {precision}",
            f"  encoder {self.encoder_coverage:.1%}, model {self.coverage:.1%} of parameters; patch merging {self.merging}",
            f"  {'matched':12}{len(self.matched):5}",
        ]
        for kind in ("missing", "wrong_shape", "unexpected", "unused", "ignored"):
            names = getattr(self, kind)
            lines.append(f"  {kind.replace('_', ' '):12}{len(names):5}  {shorten(names)}".rstrip())
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


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
    """Loads matching weights into the pre-training model or into an image encoder alone; on refusal the model is unchanged.

    Weights are converted to the model's precision. Position indices are compared, not copied.

    Args:
        minimum_coverage: minimum fraction of the image encoder's parameters that the file must contain.
        merging: patch merging of the weights, `legacy`, `monai` or `monai_v2`, if the file does not store it.
        prefix: prefix of the encoder's names; detected if None.
        entry: key of the state dict in the file, such as `teacher`; detected if None.
        tokenizer: origin of the model's tokenizer, as runs store it. The text encoder of a file with another one is skipped.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has no weights; tensors, shapes, window, patch merging or norms of the encoder differ; coverage is
            too low; weights are NaN or Inf, or of an unsupported type.
    """
    if not 0 <= minimum_coverage <= 1:
        raise ValueError(f"minimum_coverage={minimum_coverage}: must be a fraction between 0 and 1, such as 0.9")
    model = _unwrap(model)
    is_whole = isinstance(model, MG3D)
    file = read_checkpoint(path, entry=entry)
    mapped = map_keys(file.tensors, prefix=prefix)
    info = checkpoint_info(file, mapped)
    (offered, indices), notes = _split_indices(mapped.tensors), []
    wanted, model_indices = _split_indices(_rename(model.state_dict(), is_whole=is_whole))
    if is_whole:
        offered, notes = _skip_other_text(_add_copies(offered, wanted), wanted, mg3d_metadata(file).get("tokenizer"), tokenizer)
    parameters = _rename(dict(model.named_parameters()), is_whole=is_whole)
    report = _compare(info, offered, wanted, parameters=parameters, is_whole=is_whole)
    _refuse_mismatch(report, offered, wanted, minimum_coverage)
    _refuse_other_window(indices, model_indices, path)
    encoder = model.vision if is_whole else model
    agreed = agree_on_merging(info.path, (info.merging, info.merging_source), merging_of(encoder), merging)
    notes += compare_norms(info.path, info.norm_statistics, encoder) + _notes(report, offered, wanted)
    _copy(report.matched, offered, wanted, path)
    return dataclasses.replace(report, merging=agreed, notes=tuple(notes))


def _unwrap(model: nn.Module) -> nn.Module:
    """The model inside torch.compile and data-parallel wrappers."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def _rename(tensors: Tensors, *, is_whole: bool) -> dict[str, Tensor]:
    """Names of a model without the parts that torch.compile adds; those of an image encoder alone under `vision.`."""
    return {("" if is_whole else VISION) + name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}


def _split_indices(tensors: Tensors) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors to load, and the position indices of attention windows, which follow from the window size."""
    indices = {name: tensor for name, tensor in tensors.items() if name.endswith("_index")}
    return {name: tensor for name, tensor in tensors.items() if name not in indices}, indices


def _refuse_other_window(of_file: Tensors, of_model: Tensors, path: str | Path) -> None:
    common = [name for name in of_model if name in of_file and of_file[name].dtype in _INTEGERS]
    if other := [name for name in common if not torch.equal(of_file[name].to(of_model[name]), of_model[name])]:
        raise ValueError(
            f"{path} was trained with another attention window, or is damaged: {shorten(other)} differ. Build the encoder with "
            "the window_size (z, y, x) of the training"
        )


def _add_copies(offered: Tensors, wanted: Tensors) -> dict[str, Tensor]:
    """Adds the model's copies of text weights, initialised from the text encoder if the file does not have them."""
    offered = dict(offered)
    if _WORDS in offered and _WORD_VECTORS in wanted:
        offered.setdefault(_WORD_VECTORS, offered[_WORDS])
    if not any(name.startswith(_TARGET_TEXT) for name in offered):
        copies = {_TARGET_TEXT + name.removeprefix(_TEXT): name for name in offered if name.startswith(_TEXT)}
        offered |= {copy: offered[name] for copy, name in copies.items() if copy in wanted}
    return offered


def _skip_other_text(
    offered: dict[str, Tensor], wanted: Tensors, file_tokenizer: Any, model_tokenizer: Any
) -> tuple[dict[str, Tensor], list[str]]:
    """Skips a text encoder that fits only partly, or whose vocabulary has other token ids."""
    of_file, of_model = text_encoder_sizes(offered), text_encoder_sizes(wanted)
    if of_file is None or of_model is None:
        return offered, []
    reason = ""
    if not all(name in offered and offered[name].shape == wanted[name].shape for name in wanted if name.startswith(_TEXT)):
        sizes = [f"{name} {of_file[name]} (model {of_model[name]})" for name in of_file if of_file[name] != of_model[name]]
        reason = ", ".join(sizes) or "some tensors are missing"
    elif isinstance(file_tokenizer, Mapping) and model_tokenizer is None:
        return offered, ["the file has its own tokenizer: the text encoder is only valid with the same token ids"]
    elif isinstance(file_tokenizer, Mapping) and file_tokenizer != model_tokenizer:
        reason = "its tokenizer was trained on other reports"
    if not reason:
        return offered, []
    skipped = {(OUTSIDE if name.startswith(_VOCABULARY) else "") + name: tensor for name, tensor in offered.items()}
    return skipped, [f"skipped the text encoder of the file, which differs from the model's: {reason}"]


def _compare(info: CheckpointInfo, offered: Tensors, wanted: Tensors, *, parameters: Tensors, is_whole: bool) -> LoadReport:
    common = [name for name in wanted if name in offered]
    fitting = {name for name in common if offered[name].shape == wanted[name].shape}
    ignored = [name for name in offered if name.startswith(OUTSIDE) or (not is_whole and not name.startswith((VISION, UNUSED)))]
    known = {*ignored, *wanted}

    def covered(names: Iterable[str]) -> float:
        sizes = {name: parameters[name].numel() for name in names}
        return sum(size for name, size in sizes.items() if name in fitting) / max(sum(sizes.values()), 1)

    return LoadReport(
        info=info,
        merging="",
        matched=tuple(name for name in common if name in fitting),
        missing=tuple(name for name in wanted if name not in offered),
        unexpected=tuple(name for name in offered if name not in known and not name.startswith(UNUSED)),
        wrong_shape=tuple(
            f"{name} {list(offered[name].shape)} (model {list(wanted[name].shape)})" for name in common if name not in fitting
        ),
        unused=tuple(name.removeprefix(UNUSED) for name in offered if name.startswith(UNUSED)),
        ignored=tuple(name.removeprefix(OUTSIDE) for name in ignored),
        encoder_coverage=covered(filter(_is_required, parameters)),
        coverage=covered(parameters),
    )


def _refuse_mismatch(report: LoadReport, offered: Tensors, wanted: Tensors, minimum: float) -> None:
    """Raises ValueError for another encoder, whatever part of it fits, and for too low coverage.

    A minimum of 0 also accepts a file without a complete image encoder, if anything in it fits.
    """
    of_file, of_model = image_encoder(offered), image_encoder(wanted)
    is_partial = minimum == 0 and of_file is None
    wrong_shape = [line for line in report.wrong_shape if line.startswith(VISION)]
    extra = [name for name in report.unexpected if _is_required(name)]
    kinds = {_without_numbers(name) for name in offered}
    missing = [name for name in report.missing if _is_required(name) and _without_numbers(name) not in kinds]
    other_depths = of_file and of_model and not _agrees(of_file.details.get("depths"), of_model.details.get("depths"))
    differs = bool(wrong_shape or extra or other_depths or (missing and not is_partial))
    is_empty = not any(name.startswith("" if is_partial else VISION) for name in report.matched)
    is_low = is_empty or report.encoder_coverage < minimum
    if not differs and not is_low:
        return
    if is_low:
        reason = f"contains {report.encoder_coverage:.1%} of the encoder's parameters; at least {minimum:.0%} are required"
    else:
        reason = "has encoder tensors of another shape" if wrong_shape else "has an encoder of another structure"
    lists = (
        ("missing", report.missing), ("wrong shape", report.wrong_shape), ("unexpected", report.unexpected),
        ("not in the file", missing), ("not in the model", extra),
    )  # fmt: skip
    names = "; ".join(f"{kind} {len(found)}: {shorten(found)}" for kind, found in lists if found)
    difference = _difference(of_file, of_model) if differs or is_empty else "Everything in it fits. "
    raise ValueError(f"{report.info.path} {reason}. {difference}{names}")


def _is_required(name: str) -> bool:
    return name.startswith(VISION) and is_required(name.removeprefix(VISION))


def _without_numbers(name: str) -> str:
    """The name with `#` for stage, block and layer."""
    return re.sub(r"\d+", "#", name)


def _difference(of_file: DetectedEncoder | None, of_model: DetectedEncoder | None) -> str:
    """One sentence with the settings in which file and model differ, if both encoders are known."""
    if of_file is None:
        return "The file has no image encoder that mg3d knows. "
    if of_model is None:
        return ""
    ours = of_model.settings()
    differing = [f"{name}={value}" for name, value in of_file.settings().items() if not _agrees(value, ours.get(name))]
    if of_file.in_channels != of_model.in_channels:
        differing.append(f"in_channels={of_file.in_channels}")
    if of_file.preset and of_file.preset != of_model.preset:
        differing.append(f"all set by the preset {of_file.preset}")
    return f"The file is {of_file.name}, the model {of_model.name}; the file needs {', '.join(differing)}. " if differing else ""


def _agrees(of_file: Any, of_model: Any) -> bool:
    """Whether two values of a setting agree as far as the file shows them; 0 = a stage that is not in the file."""
    if isinstance(of_file, list) and isinstance(of_model, list):
        return len(of_file) <= len(of_model) and all(value in (0, expected) for value, expected in zip(of_file, of_model))
    return of_file == of_model


def _notes(report: LoadReport, offered: Tensors, wanted: Tensors) -> list[str]:
    notes = []
    converted = [offered[name].dtype for name in report.matched if offered[name].dtype != wanted[name].dtype]
    if converted:
        loses = "; half precision has about three significant digits" if {torch.float16, torch.bfloat16} & set(converted) else ""
        kinds = ", ".join(sorted({_short(kind) for kind in converted}))
        notes.append(f"converted {len(converted)} tensors from {kinds} to the model's precision{loses}")
    if all(any("fusion" in name for name in names) for names in (report.missing, report.unexpected)):
        notes.append("the fusion of the file differs and starts untrained; the preset mg3d_released has the released fusion")
    return notes


def _copy(names: Iterable[str], offered: Tensors, wanted: Tensors, path: str | Path) -> None:
    names = list(names)
    if unsupported := [name for name in names if not _is_supported(offered[name], wanted[name])]:
        kinds = shorten(f"{name} ({_short(offered[name].dtype)}, {_short(offered[name].layout)})" for name in unsupported)
        raise ValueError(f"{path} has tensors of an unsupported type: {kinds}; save dense floating-point tensors")
    if broken := [name for name in names if not offered[name].to(wanted[name].dtype).isfinite().all()]:
        kind = _short(wanted[broken[0]].dtype)
        raise ValueError(
            f"{path} has NaN or Inf in {shorten(broken)}, as {kind}: its training diverged, or the model's precision is too low"
        )
    with torch.no_grad():
        for name in names:
            wanted[name].copy_(offered[name])


def _is_supported(theirs: Tensor, ours: Tensor) -> bool:
    return theirs.layout is torch.strided and theirs.dtype in (_FLOATS if ours.is_floating_point() else _INTEGERS)


def _short(kind: torch.dtype | torch.layout) -> str:
    return str(kind).removeprefix("torch.")
