"""Our own format: one folder with config.json, model.safetensors, the tokenizer and a model card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import save
from torch import nn
from transformers import AutoConfig, BertConfig, BertModel, PreTrainedTokenizerBase

from mg3d import __version__
from mg3d.checkpoints.card import model_card
from mg3d.checkpoints.inspect import identity_of, preprocessing_of, vision_shape
from mg3d.checkpoints.load import merging_of
from mg3d.checkpoints.read import CONFIG, WEIGHTS, read_checkpoint
from mg3d.checkpoints.styles import bring_to_our_names
from mg3d.datasets.tokenizer import load_tokenizer
from mg3d.files import replacing_folder, write_bytes, write_json
from mg3d.models.build import build_model
from mg3d.models.mg3d import MG3D
from mg3d.models.text.encoder import TextEncoder
from mg3d.settings.parse import defaults, flatten, parse
from mg3d.settings.schema import Settings

TOKENIZER = "tokenizer"
FORMAT = 1
_LOCAL = ("data_root", "cache_dir", "log_dir", "run_name", "resume_from", "load_path", "truth_root")
"""Settings that name places of the machine that trained; they stay there."""
_FILES = [CONFIG, WEIGHTS, f"{TOKENIZER}/*"]


class Pretrained(NamedTuple):
    """What `from_pretrained` gives."""

    model: MG3D
    """In eval mode, on the CPU."""
    settings: Settings
    tokenizer: PreTrainedTokenizerBase | None
    """None where none was saved."""
    config: dict[str, Any]
    """All of config.json: preprocessing, provenance, patch merging ..."""


def save_pretrained(
    model: MG3D,
    folder: str | Path,
    *,
    settings: Settings,
    tokenizer: PreTrainedTokenizerBase | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a model of `settings` into `folder`, whole or not at all, and in place of a model saved there; returns it.

    provenance: builtins that say where the weights come from (data, steps, licence ...).

    Raises:
        ValueError: the folder holds something else, or the model does not have the settings' patch merging.
    """
    folder = Path(folder)
    _refuse_to_replace(folder)
    config = _config(model, settings, dict(provenance or {}))
    with replacing_folder(folder) as beside:
        write_json(beside / CONFIG, config)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        write_bytes(beside / WEIGHTS, save(state, metadata={"format": "pt"}))
        write_bytes(beside / "README.md", model_card(config, parameters=sum(p.numel() for p in model.parameters())).encode())
        if tokenizer is not None:
            tokenizer.save_pretrained(beside / TOKENIZER)
    return folder


def _refuse_to_replace(folder: Path) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        saved = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        saved = None
    if not isinstance(saved, dict) or saved.get("model_type") != "mg3d":
        raise ValueError(f"{folder} is there and holds no model saved by mg3d; name a new or an empty folder")


def _config(model: MG3D, settings: Settings, provenance: dict[str, Any]) -> dict[str, Any]:
    merging = merging_of(model)
    if merging is not None and merging != settings.vision.patch_merging:
        raise ValueError(
            f"the model computes patch merging {merging!r} and the settings say {settings.vision.patch_merging!r}; "
            "pass the settings it was built from"
        )
    flat, plain = flatten(settings), defaults()
    kept = {name: plain[name] if name in _LOCAL else value for name, value in flat.items()}
    if Path(kept["text_encoder"]).is_absolute():
        kept["text_encoder"] = Path(kept["text_encoder"]).name
    return {
        "model_type": "mg3d",
        "format": FORMAT,
        "package_version": __version__,
        "patch_merging": merging or "none",
        "precision": str(next(model.parameters()).dtype).removeprefix("torch."),
        "preprocessing": preprocessing_of(flat),
        "provenance": provenance,
        "text_config": text_config(model),
        "settings": kept,
    }


def text_config(model: nn.Module) -> dict[str, Any]:
    """The configuration of a model's BERT as builtins, from which it is built again without its weights."""
    return json.loads(model.text.bert.config.to_json_string(use_diff=False))


def from_pretrained(folder_or_hub_id: str | Path, *, revision: str | None = None) -> Pretrained:
    """The model that `save_pretrained` wrote, from a folder or by its id on the hub; the text encoder is rebuilt, not fetched.

    Raises:
        FileNotFoundError: there is no such folder, and the hub does not have it or cannot be reached.
        ValueError: the folder holds no model of this package, or a damaged one.
    """
    folder = Path(folder_or_hub_id)
    if not folder.is_dir():
        folder = _from_hub(str(folder_or_hub_id), revision)
    file = read_checkpoint(folder)
    config = identity_of(file)
    if config.get("model_type") != "mg3d":
        raise ValueError(f"{folder / CONFIG} is of a {config.get('model_type')!r} model, not of mg3d")
    if config.get("format") != FORMAT:
        raise ValueError(f"{folder} has format {config.get('format')}, this package reads {FORMAT}; install a newer mg3d")
    settings = parse(config["settings"])
    bert = BertModel(BertConfig.from_dict(config["text_config"]), add_pooling_layer=False)
    model = build_model(settings, TextEncoder(bert, frozen=settings.text.freeze_text))
    model.to(getattr(torch, config["precision"]))
    _fill(model, file.tensors, folder)
    tokenizer = load_tokenizer(str(folder / TOKENIZER)) if (folder / TOKENIZER).is_dir() else None
    return Pretrained(model.eval(), settings, tokenizer, config)


def _from_hub(name: str, revision: str | None) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_FILES))
    except Exception as error:  # of the network, the hub, or a name that is none: the way out is the same
        raise FileNotFoundError(
            f"{name!r} is no folder here and could not be fetched from the hub ({type(error).__name__}); download it where there "
            "is a network and pass the local folder"
        ) from error


def _fill(model: nn.Module, tensors: Mapping[str, torch.Tensor], where: Path) -> None:
    try:
        model.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise ValueError(f"the tensors in {where} are not those of its settings: {' '.join(str(error).split())[:300]}") from error


def export_run(checkpoint: str | Path, folder: str | Path, *, provenance: Mapping[str, Any] | None = None) -> Path:
    """Writes a checkpoint of a pre-training run as a folder in our format; the tokenizer is taken from the run's folder.

    Raises:
        FileNotFoundError, ValueError: as `read_checkpoint`; or it is no checkpoint of a run of this package.
    """
    file = read_checkpoint(checkpoint)
    identity = identity_of(file)
    if "settings" not in identity:
        raise ValueError(f"{checkpoint} is no checkpoint of a run of this package: it has no entry 'mg3d' with the settings")
    settings = parse(identity["settings"])
    named = bring_to_our_names(file.tensors)
    bert = BertModel(_bert_config(identity, settings, named.tensors), add_pooling_layer=False)
    model = build_model(settings, TextEncoder(bert, frozen=settings.text.freeze_text))
    model.to(named.tensors["type_embedding.weight"].dtype)
    _fill(model, named.tensors, file.path)
    told = {name: file.facts[name] for name in ("global_step", "epoch") if name in file.facts}
    shape = vision_shape(named.tensors)
    told["encoder"] = shape.name if shape else settings.vision.vision_encoder
    tokenizer = _tokenizer_of_run(file.path, settings)
    return save_pretrained(model, folder, settings=settings, tokenizer=tokenizer, provenance=told | dict(provenance or {}))


def _bert_config(identity: Mapping[str, Any], settings: Settings, tensors: Mapping[str, torch.Tensor]) -> BertConfig:
    if "text_config" in identity:
        return BertConfig.from_dict(identity["text_config"])
    text = settings.text
    if text.text_encoder != "tiny":
        return AutoConfig.from_pretrained(text.text_encoder)
    words = tensors["text.bert.embeddings.word_embeddings.weight"]
    return BertConfig(
        vocab_size=len(words), hidden_size=text.tiny_text_width, num_hidden_layers=text.tiny_text_layers,
        num_attention_heads=text.tiny_text_heads, intermediate_size=4 * text.tiny_text_width, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, max_position_embeddings=settings.data.max_text_len,
    )  # fmt: skip


def _tokenizer_of_run(checkpoint: Path, settings: Settings) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside a run's checkpoints, else that of its text encoder, else None."""
    kept = checkpoint.parent.parent / TOKENIZER
    if kept.is_dir():
        return load_tokenizer(str(kept))
    try:
        return load_tokenizer(settings.text.text_encoder) if settings.text.text_encoder != "tiny" else None
    except FileNotFoundError:
        return None
