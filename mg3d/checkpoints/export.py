"""Our own format: one folder with config.json, model.safetensors, the tokenizer and a model card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from mg3d import __version__
from mg3d.checkpoints.card import model_card
from mg3d.checkpoints.inspect import identity_of, preprocessing_of, training_recipe, vision_shape
from mg3d.checkpoints.load import merging_of
from mg3d.checkpoints.places import CONFIG, WEIGHTS, find_weights, weights_at
from mg3d.checkpoints.read import CheckpointFile, read_checkpoint
from mg3d.checkpoints.rebuild import outline, rebuild, require_fit
from mg3d.checkpoints.styles import bring_to_our_names
from mg3d.datasets.tokenizer import load_tokenizer
from mg3d.files import replacing_folder, write_bytes
from mg3d.models.mg3d import MG3D
from mg3d.settings.parse import defaults, flatten, parse
from mg3d.settings.schema import Settings

TOKENIZER = "tokenizer"
FORMAT = 1
_LOCAL = (
    "data_root", "cache_dir", "log_dir", "run_name", "resume_from", "ground_truth_root", "load_path",
    "load_patch_merging", "load_entry",
    "load_prefix",
)  # fmt: skip
"""Settings that name places of the machine that trained, or what lay there; they stay there."""
_FILES = [CONFIG, WEIGHTS, f"{TOKENIZER}/*"]
_ENTRIES: dict[str, type] = {
    "package_version": str, "patch_merging": str, "precision": str, "preprocessing": dict, "provenance": dict,
    "text_config": dict, "settings": dict,
}  # fmt: skip
"""What config.json holds besides kind and format."""
_WITH_WEIGHTS = ("model_type", "package_version", "patch_merging", "preprocessing")
"""What of it is also in the metadata of the weights, so that the bare file tells what it is."""
_NEEDED = (
    "image_size", "window_hu", "text_unit", "patch_merging", "norm_statistics", "fusion_heads", "wiring",
)  # fmt: skip
"""Settings that change what equal tensors compute: a default must not stand in for one that is not there."""
_PRECISIONS = {str(kind).removeprefix("torch."): kind for kind in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}


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
    recipe: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a model of `settings` into `folder`, whole or not at all, and in place of a model saved there; returns it.

    Args:
        provenance: builtins that say where the weights come from (data, steps, licence ...).
        recipe: how its training volumes were prepared, the entry `preproc` of their index files' metadata; scans are read so.

    Raises:
        ValueError: the folder holds something else; the model is not the one that its settings would build again, or holds
            numbers that are not finite; provenance is not what JSON can hold.
    """
    merging = merging_of(model)
    if merging is not None and merging != settings.vision.patch_merging:
        raise ValueError(
            f"the model computes patch merging {merging!r} and the settings say {settings.vision.patch_merging!r}; "
            "pass the settings it was built from"
        )
    origin = {"provenance": provenance, "recipe": recipe}
    return _write(Path(folder), model.state_dict(), settings, text_config(model), tokenizer=tokenizer, **origin)


def _write(
    folder: Path,
    state: Mapping[str, Tensor],
    settings: Settings,
    bert: Mapping[str, Any],
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    provenance: Mapping[str, Any] | None,
    recipe: Mapping[str, Any] | None,
) -> Path:
    _refuse_to_replace(folder)
    precision = next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
    model = outline(settings, bert, precision)
    require_fit(state, model, "the tensors of this model")
    _refuse_other_words(model, tokenizer)
    origin = {"provenance": dict(provenance or {}), "recipe": recipe}
    config = _config(settings, bert, precision, merging=merging_of(model) or "none", **origin)
    try:
        text = json.dumps(config, indent=1, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"provenance and settings must be what JSON can hold, builtins and finite numbers: {error}") from error
    identity = json.dumps({name: config[name] for name in _WITH_WEIGHTS})
    parameters = sum(parameter.numel() for parameter in model.parameters())
    card = model_card(config, parameters=parameters, words=len(tokenizer) if tokenizer is not None else None)
    with replacing_folder(folder) as beside:
        write_bytes(beside / CONFIG, (text + "\n").encode())
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        write_bytes(beside / WEIGHTS, save(state, metadata={"format": "pt", "mg3d": identity}))
        write_bytes(beside / "README.md", card.encode())
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


def _config(
    settings: Settings,
    bert: Mapping[str, Any],
    precision: torch.dtype,
    *,
    merging: str,
    provenance: dict[str, Any],
    recipe: Mapping[str, Any] | None,
) -> dict[str, Any]:
    flat, plain = flatten(settings), defaults()
    kept = {name: plain[name] if name in _LOCAL else value for name, value in flat.items()}
    if Path(kept["text_encoder"]).is_absolute():
        kept["text_encoder"] = Path(kept["text_encoder"]).name
    return {
        "model_type": "mg3d",
        "format": FORMAT,
        "package_version": __version__,
        "patch_merging": merging,
        "precision": str(precision).removeprefix("torch."),
        "preprocessing": preprocessing_of(flat, recipe),
        "provenance": provenance,
        "text_config": _without_places(bert),
        "settings": kept,
    }


def text_config(model: nn.Module) -> dict[str, Any]:
    """The configuration of a model's BERT as builtins, from which it is built again without its weights."""
    return _without_places(json.loads(model.text.bert.config.to_json_string(use_diff=False)))


def _without_places(bert: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in bert.items() if name != "_name_or_path"}


def from_pretrained(folder_or_hub_id: str | Path, *, revision: str | None = None) -> Pretrained:
    """The model that `save_pretrained` wrote, from a folder or by its id on the hub; the text encoder is rebuilt, not fetched.

    Of a run, or a checkpoint of one, as `from_run`.

    Raises:
        FileNotFoundError: there is no such folder, and the hub does not have it or cannot be reached.
        ValueError: the folder holds no model of this package, or a damaged one, or one whose parts contradict one another.
    """
    folder = find_weights(folder_or_hub_id) or _from_hub(str(folder_or_hub_id), revision)
    if folder.is_file():
        return from_run(folder)
    file = read_checkpoint(folder)
    config = identity_of(file)
    try:
        settings, precision = _read_config(config)
        model = outline(settings, config["text_config"], precision)
        _compare_identities(config, merging_of(model) or "none", folder / WEIGHTS)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error
    require_fit(file.tensors, model, f"the tensors in {folder}")
    model = rebuild(settings, config["text_config"], precision)
    model.load_state_dict(file.tensors)
    tokenizer = load_tokenizer(str(folder / TOKENIZER)) if (folder / TOKENIZER).is_dir() else None
    _refuse_other_words(model, tokenizer)
    return Pretrained(model.eval(), settings, tokenizer, config)


def _refuse_other_words(model: MG3D, tokenizer: PreTrainedTokenizerBase | None) -> None:
    try:
        model.text.check_vocabulary(len(tokenizer) if tokenizer is not None else model.text.vocabulary_size)
    except ValueError as error:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} entries and the model knows {model.text.vocabulary_size} words: it is that of "
            "another model; name the one that reports were read with"
        ) from error


def _read_config(config: Mapping[str, Any]) -> tuple[Settings, torch.dtype]:
    if config.get("model_type") != "mg3d":
        raise ValueError(f"model_type is {config.get('model_type')!r}, expected 'mg3d'")
    if config.get("format") != FORMAT:
        raise ValueError(f"format is {config.get('format')!r}, this package reads {FORMAT}; install a newer mg3d")
    for name, kind in _ENTRIES.items():
        if not isinstance(config.get(name), kind):
            found = type(config[name]).__name__ if name in config else "nothing"
            raise ValueError(f"entry {name!r} must be a {kind.__name__}, found {found}; save the model again")
    if config["precision"] not in _PRECISIONS:
        raise ValueError(f"precision is {config['precision']!r}, expected one of {', '.join(_PRECISIONS)}")
    absent = [name for name in _NEEDED if name not in config["settings"]]
    if absent:
        raise ValueError(f"settings lack {', '.join(absent)}; save the model again")
    return parse(config["settings"]), _PRECISIONS[config["precision"]]


def _compare_identities(config: Mapping[str, Any], merging: str, weights: Path) -> None:
    """Refuses a config.json beside weights that it was not written with: equal shapes may compute other features."""
    if config["patch_merging"] != merging:
        raise ValueError(f"patch_merging is {config['patch_merging']!r} and the model of its settings computes {merging!r}")
    with safe_open(weights, framework="pt") as stream:
        stored = json.loads((stream.metadata() or {}).get("mg3d", "{}"))
    other = [name for name in _WITH_WEIGHTS if name in stored and stored[name] != config[name]]
    if other:
        told = "; ".join(f"{name} is {config[name]!r} here and {stored[name]!r} in {weights.name}" for name in other)
        raise ValueError(f"{told}: the two files are not of one model; get both again")


def _from_hub(name: str, revision: str | None) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_FILES))
    except Exception as error:  # of the network, the hub, or a name that is none: the way out is the same
        raise FileNotFoundError(
            f"there is no folder {name} here, and no model of that name came from the hub ({type(error).__name__}); correct the "
            "path, or download the model where there is a network and name its folder"
        ) from error


def export_run(
    checkpoint: str | Path,
    folder: str | Path,
    *,
    tokenizer: str | Path | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a checkpoint of a pre-training run as a folder in our format.

    tokenizer: folder or name on the hub of the one that the run read reports with; when left out it is taken from the run's
        folder or is that of its text encoder, and where neither is there the model card tells that none is stored.

    Raises:
        FileNotFoundError, ValueError: as `read_checkpoint`, `load_tokenizer` and `save_pretrained`; or it is no checkpoint of a
            run of this package, or lies in `folder`.
    """
    checkpoint, folder = weights_at(checkpoint), Path(folder)
    if folder.resolve() in (checkpoint.resolve(), *checkpoint.resolve().parents):
        raise ValueError(f"{checkpoint} lies in {folder}, which would be replaced; name another folder")
    file, identity = _read_run(checkpoint)
    settings = parse(identity["settings"])
    tensors = bring_to_our_names(file.tensors).tensors
    told = _steps(file)
    shape = vision_shape(tensors)
    told["encoder"] = shape.name if shape else settings.vision.vision_encoder
    told |= identity.get("provenance", {}) | dict(provenance or {})
    words = load_tokenizer(str(tokenizer)) if tokenizer else _tokenizer_of(checkpoint, settings)
    origin = {"provenance": told, "recipe": training_recipe(identity)}
    return _write(folder, tensors, settings, identity["text_config"], tokenizer=words, **origin)


def from_run(checkpoint: str | Path, *, tokenizer: str | Path | None = None) -> Pretrained:
    """The model in a checkpoint of a pre-training run, with the tokenizer as `export_run` finds it; nothing is written.

    Raises:
        FileNotFoundError, ValueError: as `read_checkpoint` and `load_tokenizer`; or it is no checkpoint of a run of this package.
    """
    checkpoint = weights_at(checkpoint)
    file, identity = _read_run(checkpoint)
    settings, bert = parse(identity["settings"]), identity["text_config"]
    tensors = bring_to_our_names(file.tensors).tensors
    precision = next(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())
    model = rebuild(settings, bert, precision)
    require_fit(tensors, model, f"the tensors in {checkpoint}")
    model.load_state_dict(tensors)
    words = load_tokenizer(str(tokenizer)) if tokenizer else _tokenizer_of(checkpoint, settings)
    _refuse_other_words(model, words)
    origin = {"provenance": _steps(file) | identity.get("provenance", {}), "recipe": training_recipe(identity)}
    config = _config(settings, bert, precision, merging=merging_of(model) or "none", **origin)
    return Pretrained(model.eval(), settings, words, config)


def _read_run(checkpoint: Path) -> tuple[CheckpointFile, dict[str, Any]]:
    file = read_checkpoint(checkpoint)
    identity = identity_of(file)
    if "settings" not in identity or "text_config" not in identity:
        raise ValueError(f"{checkpoint} is no checkpoint of a run of this package: it has no entry 'mg3d' with the settings")
    return file, identity


def _steps(file: CheckpointFile) -> dict[str, Any]:
    return {name: file.facts[name] for name in ("global_step", "epoch") if name in file.facts}


def _tokenizer_of(checkpoint: Path, settings: Settings) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a saved folder or beside a run's checkpoints, else that of its text encoder, else None."""
    for kept in (checkpoint / TOKENIZER, checkpoint.absolute().parent.parent / TOKENIZER):
        if kept.is_dir():
            return load_tokenizer(str(kept))
    try:
        return load_tokenizer(settings.text.text_encoder) if settings.text.text_encoder != "tiny" else None
    except FileNotFoundError:
        return None
