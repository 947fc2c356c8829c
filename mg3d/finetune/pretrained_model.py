"""The whole pre-trained model (volume, report and what joins them) at the start of fine-tuning, whatever file it comes from."""

import dataclasses
import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer
from transformers import BertConfig, BertModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mg3d.checkpoints.export import export_run, from_pretrained, text_config
from mg3d.checkpoints.inspect import Passport, inspect_checkpoint
from mg3d.checkpoints.load import load_weights
from mg3d.checkpoints.places import weights_at
from mg3d.datasets.tokenizer import load_tokenizer, train_wordpiece
from mg3d.finetune.encoder import TINY, preset_of, settings_of
from mg3d.finetune.settings import ENCODER_WORDS, FinetuneSettings
from mg3d.models.build import build_model, build_text_encoder
from mg3d.models.contrast import ImageReportContrast
from mg3d.models.mg3d import MG3D
from mg3d.models.text.encoder import TextEncoder
from mg3d.settings.parse import defaults, flatten, parse
from mg3d.settings.presets import PRESETS
from mg3d.settings.schema import Settings, volume_shape

_ONLY_CONTRAST = {
    "weight_mlm": 0.0, "weight_sal": 0.0, "weight_mim": 0.0, "weight_dcl": 0.0, "weight_ssm": 0.0, "weight_cml": 1.0,
    "wiring": "paper", "mim_patch_size": 8,
}  # fmt: skip
"""What a model needs that compares volumes with texts; the parts of the other objectives are left out."""
_SMALL = TINY | {
    "text_encoder": "tiny", "freeze_text": False, "tiny_text_width": 48, "tiny_text_layers": 1, "tiny_text_heads": 4,
    "hidden_size": 48, "embedding_size": 48, "fusion_heads": 4, "image_pool": "positional",
}  # fmt: skip
"""A model for synthetic sets on a CPU."""
_SPECIAL = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
_NAMED = 4


class Whole(NamedTuple):
    """A model that compares volumes with texts."""

    model: MG3D
    settings: Settings
    tokenizer: PreTrainedTokenizerBase
    untrained: tuple[str, ...]
    """Parts that hold random numbers, for the file has none of them."""
    told: str
    """Where it comes from, in a sentence."""


def start_whole(
    settings: FinetuneSettings, *, text_encoder: str, shape: tuple[int, int, int], reports: Iterable[str], synthetic: bool
) -> Whole:
    """The model that `pretrained` asks for: a folder of ours, a run's checkpoint, or a released file.

    Args:
        text_encoder: a BERT (folder or id on the hub, or `tiny`) for files without one; empty = the file's own.
        shape: voxels z, y, x of the volumes.
        reports: what a `tiny` text encoder takes its words from; read in no other case.

    Raises:
        FileNotFoundError, ValueError: there is no such file, it is none of these, lacks its text encoder, or was made for volumes
            of another shape.
    """
    if settings.pretrained == "none" and settings.encoder in ENCODER_WORDS:
        return _fresh(preset_of(settings, synthetic=synthetic), text_encoder, shape, reports)
    if settings.pretrained == "none":
        of_file = dataclasses.replace(settings, pretrained=settings.encoder, encoder="auto")
        return _forgotten(start_whole(of_file, text_encoder=text_encoder, shape=shape, reports=reports, synthetic=synthetic))
    path = weights_at(settings.pretrained)
    if path.is_dir():
        return _ours(path, shape)
    passport = inspect_checkpoint(path, prefix=settings.load_prefix or None)
    if "settings" in passport.provenance:
        with tempfile.TemporaryDirectory() as folder:
            return _ours(export_run(path, Path(folder) / "model"), shape, name=path)
    return _released(passport, settings, text_encoder, shape)


def _ours(folder: Path, shape: tuple[int, int, int], *, name: Path | None = None) -> Whole:
    name, found = name or folder, from_pretrained(folder)
    if found.tokenizer is None:
        raise ValueError(f"{name} has no tokenizer beside it, so no prompt can be read; copy the run's folder tokenizer there")
    theirs = tuple(found.config["preprocessing"]["shape"])
    if theirs != shape:
        raise ValueError(f"{name} reads volumes of {theirs} voxels (z, y, x) and these have {shape}; prepare them in that size")
    settings = _with(flatten(found.settings), shape)
    model = build_model(settings, found.model.text).float()
    offered, wanted = found.model.float().state_dict(), model.state_dict()
    known = {key: tensor for key, tensor in offered.items() if key in wanted and tensor.shape == wanted[key].shape}
    model.load_state_dict(wanted | known)
    lacking = [key for key in wanted if key not in known]
    return Whole(model.eval(), settings, found.tokenizer, _parts(lacking), f"the whole model of {name}")


def _with(flat: Mapping[str, Any], shape: tuple[int, int, int], **more: Any) -> Settings:
    usual = shape == volume_shape(shape[0])
    size = {"image_size": shape[0], "volume_size": []} if usual else {"volume_size": list(shape)}
    return parse({**defaults(), **flat, **_ONLY_CONTRAST, **size, **more})


def _forgotten(whole: Whole) -> Whole:
    """The same network with random weights; a text encoder that pre-training has not touched stays."""
    model, tokenizer = rebuild(describe(whole))
    if whole.settings.text.freeze_text:
        model.text.load_state_dict(whole.model.text.state_dict())
    return Whole(model, whole.settings, tokenizer, ("everything",), f"an untrained model, built as {whole.told}")


def _fresh(word: str, text_encoder: str, shape: tuple[int, int, int], reports: Iterable[str]) -> Whole:
    flat = dict(_SMALL) if word == "tiny" else dict(PRESETS[word])
    if text_encoder:
        flat["text_encoder"] = text_encoder
    typed = _with(flat, shape)
    if typed.text.text_encoder == "tiny":
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = train_wordpiece(reports, vocab_size=typed.text.tiny_vocabulary, out_dir=Path(folder) / "tokenizer")
    else:
        tokenizer = load_tokenizer(typed.text.text_encoder)
    model = build_model(typed, build_text_encoder(typed, len(tokenizer)))
    return Whole(model.eval(), typed, tokenizer, ("everything",), f"an untrained model ({word}), for pretrained=none")


def _released(passport: Passport, settings: FinetuneSettings, text_encoder: str, shape: tuple[int, int, int]) -> Whole:
    if not text_encoder:
        lacks = "has no text encoder" if passport.text is None else "has no tokenizer for its text encoder"
        raise ValueError(f"{passport.path} {lacks}, which prompts are read with; text_encoder=... names the folder of that BERT")
    tokenizer = load_tokenizer(text_encoder)
    typed = _with(settings_of(passport, settings), shape, text_encoder=text_encoder, freeze_text=True)
    model = build_model(typed, build_text_encoder(typed, len(tokenizer)))
    report = load_weights(
        model, passport.path, minimum_coverage=settings.minimum_coverage, merging=settings.load_patch_merging or None,
        prefix=settings.load_prefix or None,
    )  # fmt: skip
    missing = [name for name in report.missing if not name.startswith("text.")]
    return Whole(model.eval(), typed, tokenizer, _parts(missing), f"the released {passport.path}")


def _parts(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.split(".")[0] for name in names))


def can_compare(whole: Whole) -> bool:
    """Whether what joins volumes and texts was trained."""
    return isinstance(whole.model.contrast, ImageReportContrast) and not {"everything", "contrast"} & set(whole.untrained)


def describe(whole: Whole) -> dict[str, Any]:
    """Builtins from which `rebuild` makes the same model without its weights, and its tokenizer."""
    tokenizer = whole.tokenizer
    return {
        "settings": flatten(whole.settings),
        "text_config": text_config(whole.model),
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "special": {name: getattr(tokenizer, name) for name in _SPECIAL},
    }


def rebuild(state: Mapping[str, Any]) -> tuple[MG3D, PreTrainedTokenizerBase]:
    """The model of `describe` with random weights, and its tokenizer."""
    settings = parse({**defaults(), **json.loads(json.dumps(state["settings"]))})
    bert = BertModel(BertConfig.from_dict(state["text_config"]), add_pooling_layer=False)
    model = build_model(settings, TextEncoder(bert, frozen=settings.text.freeze_text))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(state["tokenizer"]), **state["special"])
    return model.eval(), tokenizer
