"""Save and load a complete model: a folder with config.json, model.safetensors, tokenizer and model card; export of runs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerBase

from mg3d import __version__
from mg3d.checkpoints.card import model_card
from mg3d.checkpoints.detection import meta_device
from mg3d.checkpoints.info import image_encoder, preprocessing_of, training_recipe
from mg3d.checkpoints.key_mapping import map_keys
from mg3d.checkpoints.patch_merging import merging_of, mg3d_metadata
from mg3d.checkpoints.read import read_checkpoint, shorten
from mg3d.checkpoints.resolve import CONFIG, WEIGHTS, find_local, resolve_checkpoint
from mg3d.datasets.tokenizer import load_tokenizer
from mg3d.files import replacing_folder, write_bytes
from mg3d.models.build import build_model
from mg3d.models.mg3d import MG3D
from mg3d.models.text.encoder import TextEncoder
from mg3d.settings.parse import defaults, flatten, parse
from mg3d.settings.schema import Settings

TOKENIZER = "tokenizer"
FORMAT = 3
_LOCAL = (
    "data_root", "cache_dir", "log_dir", "run_name", "resume_from", "ground_truth_root", "load_path", "load_patch_merging",
    "load_entry", "load_prefix",
)  # fmt: skip
"""Settings of the training machine; saved with their defaults."""
_ENTRIES: dict[str, type] = {
    "package_version": str, "precision": str, "preprocessing": dict, "provenance": dict,
    "text_config": dict, "settings": dict,
}  # fmt: skip
"""Entries of config.json in addition to model_type and format."""
_WITH_WEIGHTS = ("model_type", "package_version", "preprocessing", "settings")
"""Entries that are also stored in the metadata of the weights, so that the file alone can be identified."""
_REQUIRED = ("image_size", "window_hu", "text_unit", "patch_merging", "norm_statistics", "fusion_heads", "wiring")
"""Settings that change what identical tensors compute, so that a default must not replace a missing one."""
_PRECISIONS = {str(kind).removeprefix("torch."): kind for kind in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}


class Pretrained(NamedTuple):
    """Result of `from_pretrained`."""

    model: MG3D
    """In eval mode, on the CPU."""
    settings: Settings
    tokenizer: PreTrainedTokenizerBase | None
    """None if none was saved."""
    config: dict[str, Any]
    """Content of config.json: preprocessing, provenance, patch merging ..."""


def save_pretrained(
    model: MG3D,
    folder: str | Path,
    *,
    settings: Settings,
    tokenizer: PreTrainedTokenizerBase | None = None,
    provenance: Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a model into `folder` atomically, replacing a model saved there; returns the folder.

    Args:
        settings: settings that the model was built with.
        provenance: origin of the weights (data, steps, licence ...), as builtins.
        recipe: preparation of the training volumes, the entry `preproc` of their index metadata; applied to scans at inference.

    Raises:
        ValueError: the folder contains something else; the settings build another model; weights are NaN or Inf; provenance is
            not valid JSON.
    """
    folder = Path(folder)
    _refuse_to_replace(folder)
    merging = merging_of(model)
    if merging is not None and merging != settings.vision.patch_merging:
        raise ValueError(
            f"the model computes patch merging {merging!r}, but the settings have patch_merging={settings.vision.patch_merging}; "
            "pass the settings it was built with"
        )
    state, bert = model.state_dict(), text_config(model)
    precision = _precision(state)
    _refuse_other_model(outline(settings, bert, precision), state, tokenizer, f"the model to save in {folder}")
    config = build_config(settings, bert, precision, provenance=provenance, recipe=recipe)
    try:
        text = json.dumps(config, indent=1, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"provenance must be valid JSON, builtins and finite numbers ({error})") from error
    metadata = json.dumps({name: config[name] for name in _WITH_WEIGHTS})
    parameters = sum(parameter.numel() for parameter in model.parameters())
    card = model_card(config, parameters=parameters, vocabulary=len(tokenizer) if tokenizer is not None else None)
    with replacing_folder(folder) as partial:
        write_bytes(partial / CONFIG, (text + "\n").encode())
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        write_bytes(partial / WEIGHTS, save(tensors, metadata={"format": "pt", "mg3d": metadata}))
        write_bytes(partial / "README.md", card.encode())
        if tokenizer is not None:
            tokenizer.save_pretrained(partial / TOKENIZER)
    return folder


def _refuse_to_replace(folder: Path) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        saved = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        saved = None
    if not isinstance(saved, dict) or saved.get("model_type") != "mg3d":
        raise ValueError(f"{folder} exists and is not a model saved by mg3d; choose a new or empty folder")


def build_config(
    settings: Settings,
    bert: Mapping[str, Any],
    precision: torch.dtype,
    *,
    provenance: Mapping[str, Any] | None,
    recipe: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Content of config.json."""
    flat, default = flatten(settings), defaults()
    shared = {name: default[name] if name in _LOCAL else value for name, value in flat.items()}
    if Path(shared["text_encoder"]).is_absolute():
        shared["text_encoder"] = Path(shared["text_encoder"]).name
    return {
        "model_type": "mg3d",
        "format": FORMAT,
        "package_version": __version__,
        "precision": str(precision).removeprefix("torch."),
        "preprocessing": preprocessing_of(flat, recipe),
        "provenance": dict(provenance or {}),
        "text_config": {name: value for name, value in bert.items() if name != "_name_or_path"},
        "settings": shared,
    }


def text_config(model: nn.Module) -> dict[str, Any]:
    """Configuration of the model's BERT as builtins, from which it is rebuilt without its weights."""
    config = json.loads(model.text.bert.config.to_json_string(use_diff=False))
    return {name: value for name, value in config.items() if name != "_name_or_path"}


def from_pretrained(folder_or_hub_id: str | Path, *, revision: str | None = None) -> Pretrained:
    """The model in a folder of `save_pretrained`, on the Hugging Face hub, or in a run (see `from_run`).

    The text encoder is built from its configuration, not downloaded.

    Raises:
        FileNotFoundError: the folder does not exist, and the hub does not have it or is not reachable.
        ValueError: the folder is not a model of mg3d, is damaged, or its files contradict each other.
    """
    folder = find_local(folder_or_hub_id) or _download(str(folder_or_hub_id), revision)
    if folder.is_file():
        return from_run(folder)
    file = read_checkpoint(folder)
    config = mg3d_metadata(file)
    try:
        settings = _read_config(config)
        _compare_with_weights(config, folder / WEIGHTS)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error
    tokenizer = load_tokenizer(str(folder / TOKENIZER)) if (folder / TOKENIZER).is_dir() else None
    return _load(settings, config, file.tensors, tokenizer, str(folder))


def from_run(checkpoint: str | Path, *, tokenizer: str | Path | None = None) -> Pretrained:
    """The model in a checkpoint of a pre-training run, with the tokenizer that `export_run` would use.

    Raises:
        FileNotFoundError, ValueError: see `read_checkpoint` and `load_tokenizer`; or it is not a checkpoint of a run.
    """
    file = read_checkpoint(checkpoint)
    metadata = mg3d_metadata(file)
    if "settings" not in metadata or "text_config" not in metadata:
        raise ValueError(f"{file.path} is not a checkpoint of an mg3d pre-training run: it has no entry 'mg3d' with settings")
    settings, tensors = parse(metadata["settings"]), map_keys(file.tensors).tensors
    steps = {name: file.metadata[name] for name in ("global_step", "epoch") if name in file.metadata}
    config = build_config(
        settings, metadata["text_config"], _precision(tensors),
        provenance=steps | metadata.get("provenance", {}), recipe=training_recipe(metadata),
    )  # fmt: skip
    words = load_tokenizer(str(tokenizer)) if tokenizer else _tokenizer_of(file.path, settings)
    return _load(settings, config, tensors, words, str(file.path))


def _load(
    settings: Settings, config: dict[str, Any], tensors: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase | None, path: str
) -> Pretrained:
    precision = _PRECISIONS[config["precision"]]
    try:
        model = _untrained(settings, config["text_config"], precision)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    _refuse_other_model(model, tensors, tokenizer, path)
    model.load_state_dict(tensors)
    return Pretrained(model.eval(), settings, tokenizer, config)


def export_run(
    checkpoint: str | Path,
    folder: str | Path,
    *,
    tokenizer: str | Path | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Saves the model of a pre-training run as a folder of `save_pretrained`.

    Args:
        tokenizer: folder or Hugging Face id. None: that of the run, else that of its text encoder; if neither exists, the model
            card states that none is stored.

    Raises:
        FileNotFoundError, ValueError: see `read_checkpoint`, `load_tokenizer` and `save_pretrained`; or it is not a checkpoint of
            a run, or is inside `folder`.
    """
    checkpoint, folder = resolve_checkpoint(checkpoint), Path(folder)
    if folder.resolve() in (checkpoint.resolve(), *checkpoint.resolve().parents):
        raise ValueError(f"{checkpoint} is inside {folder}, which would be replaced; choose another folder")
    model, settings, words, config = from_run(checkpoint, tokenizer=tokenizer)
    encoder = image_encoder(model.state_dict())
    origin = {"encoder": encoder.name if encoder else settings.vision.vision_encoder}
    origin = config["provenance"] | origin | dict(provenance or {})
    recipe = config["preprocessing"].get("recipe")
    return save_pretrained(model, folder, settings=settings, tokenizer=words, provenance=origin, recipe=recipe)


def _read_config(config: Mapping[str, Any]) -> Settings:
    if config.get("model_type") != "mg3d":
        raise ValueError(f"model_type is {config.get('model_type')!r} instead of 'mg3d'")
    if config.get("format") != FORMAT:
        raise ValueError(f"format is {config.get('format')!r}, this version of mg3d reads {FORMAT}; export the model again")
    for name, kind in _ENTRIES.items():
        if not isinstance(config.get(name), kind):
            raise ValueError(f"entry {name!r} is missing or not a {kind.__name__}; save the model again")
    if config["precision"] not in _PRECISIONS:
        raise ValueError(f"precision is {config['precision']!r}, must be one of {', '.join(_PRECISIONS)}")
    if missing := [name for name in _REQUIRED if name not in config["settings"]]:
        raise ValueError(f"settings {', '.join(missing)} are missing; save the model again")
    return parse(config["settings"])


def _compare_with_weights(config: Mapping[str, Any], weights: Path) -> None:
    """Raises ValueError if config.json does not belong to the weights: identical shapes may compute other features."""
    with safe_open(weights, framework="pt") as stream:
        stored = json.loads((stream.metadata() or {}).get("mg3d", "{}"))
    pairs = {name: (config[name], stored[name]) for name in _WITH_WEIGHTS if name in stored and stored[name] != config[name]}
    ours, theirs = pairs.pop("settings", ({}, {}))
    pairs |= {name: (ours.get(name), theirs.get(name)) for name in ours | theirs if ours.get(name) != theirs.get(name)}
    if pairs:
        values = "; ".join(f"{name} is {here!r} here and {there!r} in {weights.name}" for name, (here, there) in pairs.items())
        raise ValueError(f"{values}: the two files belong to different models; download both again")


def _download(name: str, revision: str | None) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG, WEIGHTS, f"{TOKENIZER}/*"]))
    except Exception as error:  # many kinds: network, missing repository, invalid name
        raise FileNotFoundError(
            f"there is no folder {name}, and downloading it from the hub failed ({type(error).__name__}); correct the name, or "
            "download the model elsewhere and name its folder"
        ) from error


def _tokenizer_of(checkpoint: Path, settings: Settings) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a saved folder or a run's folder, else that of the text encoder, else None."""
    for folder in (checkpoint / TOKENIZER, checkpoint.absolute().parent.parent / TOKENIZER):
        if folder.is_dir():
            return load_tokenizer(str(folder))
    try:
        return load_tokenizer(settings.text.text_encoder) if settings.text.text_encoder != "tiny" else None
    except FileNotFoundError:
        return None


def _precision(tensors: Mapping[str, Tensor]) -> torch.dtype:
    return next(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())


def _untrained(settings: Settings, bert_config: Mapping[str, Any], precision: torch.dtype) -> MG3D:
    try:
        bert = BertModel(BertConfig.from_dict(dict(bert_config)), add_pooling_layer=False)
    except Exception as error:  # transformers validates few entries; invalid ones raise errors of any kind
        raise ValueError(f"text_config is not a valid BERT configuration ({' '.join(str(error).split())[:120]})") from error
    return build_model(settings, TextEncoder(bert, frozen=settings.text.freeze_text)).to(precision)


def outline(settings: Settings, bert_config: Mapping[str, Any], precision: torch.dtype) -> MG3D:
    """The model of these settings on the meta device: shapes without values."""
    with meta_device():
        return _untrained(settings, bert_config, precision)


def _refuse_other_model(model: MG3D, tensors: Mapping[str, Tensor], tokenizer: PreTrainedTokenizerBase | None, path: str) -> None:
    """Raises ValueError if tensors or tokenizer are not exactly those of the model, or have NaN or Inf."""
    expected = model.state_dict()
    common = [name for name in expected if name in tensors]
    differences = {
        "missing": [name for name in expected if name not in tensors],
        "unexpected": [name for name in tensors if name not in expected],
        "of another shape": [
            f"{name} {list(tensors[name].shape)} instead of {list(expected[name].shape)}"
            for name in common if tensors[name].shape != expected[name].shape
        ],
        "of another precision": [
            f"{name} {tensors[name].dtype} instead of {expected[name].dtype}"
            for name in common if tensors[name].dtype != expected[name].dtype
        ],
    }  # fmt: skip
    if found := [f"{len(names)} {kind} ({shorten(names, 3)})" for kind, names in differences.items() if names]:
        raise ValueError(f"{path}: tensors do not match the settings: {'; '.join(found)}")
    if broken := [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]:
        raise ValueError(f"{path}: NaN or Inf in {shorten(broken, 3)}; the training diverged")
    if tokenizer is None:
        return
    try:
        model.text.check_vocabulary(len(tokenizer))
    except ValueError as error:
        raise ValueError(
            f"{path}: the tokenizer has {len(tokenizer)} entries and the model {model.text.vocabulary_size}; use the tokenizer "
            "that the model was trained with"
        ) from error
