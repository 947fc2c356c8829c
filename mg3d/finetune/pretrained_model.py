"""The whole pre-trained model (volume and report encoder) at the start of fine-tuning, from any kind of checkpoint."""

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer
from transformers import BertConfig, BertModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mg3d.checkpoints.info import CheckpointInfo, inspect_checkpoint
from mg3d.checkpoints.load import load_weights
from mg3d.checkpoints.pretrained import export_run, from_pretrained, text_config
from mg3d.checkpoints.released_names import part_of
from mg3d.checkpoints.resolve import resolve_checkpoint
from mg3d.datasets.tokenizer import load_tokenizer
from mg3d.finetune.encoder import architecture
from mg3d.finetune.settings import FinetuneSettings, Size
from mg3d.models.build import build_model, build_text_encoder
from mg3d.models.mg3d import MG3D
from mg3d.models.text.encoder import TextEncoder
from mg3d.settings.parse import defaults, flatten, parse
from mg3d.settings.schema import Settings, volume_shape

_CONTRAST_ONLY = {
    "weight_mlm": 0.0, "weight_sal": 0.0, "weight_mim": 0.0, "weight_dcl": 0.0, "weight_ssm": 0.0, "weight_cml": 1.0,
    "wiring": "paper",
}  # fmt: skip
"""Settings of a model that compares volumes with texts, without the parts of other objectives."""
_SPECIAL_TOKENS = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")


class LoadedModel(NamedTuple):
    """A model with its initial weights."""

    model: MG3D
    settings: Settings
    tokenizer: PreTrainedTokenizerBase
    untrained: tuple[str, ...]
    """Submodules with random weights, because the checkpoint lacks them."""
    origin: str
    """Where the model comes from, for the log."""


def load_pretrained_model(settings: FinetuneSettings, *, text_encoder: str, shape: Size) -> LoadedModel:
    """The model of `pretrained`: an exported folder, a checkpoint of a run, or a released file.

    With pretrained=none the architecture of the checkpoint `encoder`, with random weights.

    Args:
        text_encoder: folder or hub id of a BERT, for files without a tokenizer.
        shape: voxels z, y, x of the volumes.

    Raises:
        FileNotFoundError, ValueError: there is no such file, it lacks its text encoder, or was trained on volumes of another
            shape.
    """
    if settings.pretrained == "none":
        source = settings.model_copy(update={"pretrained": settings.encoder, "encoder": "auto"})
        return _reinitialized(load_pretrained_model(source, text_encoder=text_encoder, shape=shape))
    path = resolve_checkpoint(settings.pretrained)
    if path.is_dir():
        return _from_folder(path, shape)
    info = inspect_checkpoint(path, prefix=settings.load_prefix or None)
    if "settings" in info.provenance:
        with tempfile.TemporaryDirectory() as folder:
            return _from_folder(export_run(path, Path(folder) / "model"), shape, name=path)
    return _from_released(info, settings, text_encoder, shape)


def _from_folder(folder: Path, shape: Size, *, name: Path | None = None) -> LoadedModel:
    name, loaded = name or folder, from_pretrained(folder)
    if loaded.tokenizer is None:
        raise ValueError(f"{name} has no tokenizer, which prompts need; copy the folder `tokenizer` of the run next to it")
    trained_shape = tuple(loaded.config["preprocessing"]["shape"])
    if trained_shape != shape:
        raise ValueError(f"{name} expects volumes of {trained_shape} voxels (z, y, x), found {shape}; prepare them in that size")
    settings = _contrast_settings(flatten(loaded.settings), shape)
    model = build_model(settings, loaded.model.text).float()
    offered, wanted = loaded.model.float().state_dict(), model.state_dict()
    known = {key: tensor for key, tensor in offered.items() if key in wanted and tensor.shape == wanted[key].shape}
    model.load_state_dict(wanted | known)
    return LoadedModel(model.eval(), settings, loaded.tokenizer, _submodules(set(wanted) - set(known)), str(name))


def _contrast_settings(flat: Mapping[str, Any], shape: Size, **more: Any) -> Settings:
    is_standard = shape == volume_shape(shape[0])
    size = {"image_size": shape[0], "volume_size": []} if is_standard else {"volume_size": list(shape)}
    return parse({**defaults(), **flat, **_CONTRAST_ONLY, **size, **more})


def _reinitialized(start: LoadedModel) -> LoadedModel:
    """The same architecture with random weights; a text encoder that pre-training had frozen is kept."""
    model, tokenizer = rebuild(describe(start))
    if start.settings.text.freeze_text:
        model.text.load_state_dict(start.model.text.state_dict())
    return LoadedModel(model, start.settings, tokenizer, ("everything",), f"architecture of {start.origin}, random weights")


def _from_released(info: CheckpointInfo, settings: FinetuneSettings, text_encoder: str, shape: Size) -> LoadedModel:
    if not text_encoder:
        lacks = "has no text encoder" if info.text is None else "has no tokenizer for its text encoder"
        raise ValueError(f"{info.path} {lacks}, which prompts need; text_encoder=... sets the folder of that BERT")
    tokenizer = load_tokenizer(text_encoder)
    typed = _contrast_settings(architecture(info, settings), shape, text_encoder=text_encoder, freeze_text=True)
    model = build_model(typed, build_text_encoder(typed, len(tokenizer)))
    report = load_weights(
        model, info.path, minimum_coverage=settings.minimum_coverage, merging=settings.load_patch_merging or None,
        prefix=settings.load_prefix or None,
    )  # fmt: skip
    missing = [name for name in report.missing if not name.startswith("text.")]
    return LoadedModel(model.eval(), typed, tokenizer, _submodules(missing), f"released {info.path}")


def _submodules(parameters: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({part_of(name) for name in parameters}))


def can_compare(start: LoadedModel) -> bool:
    """Whether the projections that compare volumes with texts are trained."""
    return start.model.has_joint_embedding and not {"everything", "branches.contrast"} & set(start.untrained)


def describe(start: LoadedModel) -> dict[str, Any]:
    """Builtins from which `rebuild` makes the model without its weights, and its tokenizer."""
    tokenizer = start.tokenizer
    return {
        "settings": flatten(start.settings),
        "text_config": text_config(start.model),
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "special_tokens": {name: getattr(tokenizer, name) for name in _SPECIAL_TOKENS},
    }


def rebuild(state: Mapping[str, Any]) -> tuple[MG3D, PreTrainedTokenizerBase]:
    """The model of `describe` with random weights, and its tokenizer."""
    settings = parse({**defaults(), **json.loads(json.dumps(state["settings"]))})
    bert = BertModel(BertConfig.from_dict(state["text_config"]), add_pooling_layer=False)
    model = build_model(settings, TextEncoder(bert, frozen=settings.text.freeze_text))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(state["tokenizer"]), **state["special_tokens"])
    return model.eval(), tokenizer
