"""Every setting of fine-tuning, once: its type, its default, its unit and meaning."""

import ast
import dataclasses
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mg3d.settings.describe import descriptions, format_setting
from mg3d.settings.parse import convert_value, refuse_unknown
from mg3d.settings.schema import PatchMerging, settings_group

ENCODER_WORDS = ("auto", "swin_b", "swin_l", "swin_l_unprojected", "unet", "nnunet", "tiny")


@settings_group
class FinetuneSettings:
    """What a user may set behind `finetune.sh`; a folder's declaration gives the numbers of its published protocol."""

    mode: Literal["train", "evaluate", "predict", "compare"] = "train"
    """train: then evaluate. evaluate: the best checkpoint of the run again. predict: on new files. compare: two finished runs."""
    data_root: str = ""
    """The data set as its authors publish it, or a folder of Arrow files made from it; empty or `phantom` = a synthetic set."""
    pretrained: str = "none"
    """Weights to start from: a file, a folder of ours, or a run (its last checkpoint); `none` = from scratch."""
    encoder: str = "auto"
    """auto, swin_b, swin_l, swin_l_unprojected, unet, nnunet, tiny, or a file that `pretrained` takes: the very network of that
    file, without its weights. auto: the encoder of the weights; without weights swin_b, or tiny on a synthetic set."""
    load_patch_merging: Literal["", PatchMerging] = ""
    """Patch merging that the weights were trained with, where the file does not tell."""
    load_prefix: str = ""
    """What stands before the encoder's names in the file, where it is none of the usual words."""
    minimum_coverage: float = 0.9
    """Least share of the encoder's parameters that the weights must hold."""
    fold: int = 0
    """Which fold is validated on."""
    folds: Literal["one", "all"] = "one"
    """all: every fold one after another, and the pooled result."""
    split: Literal["ours", "original"] = "ours"
    """original: the division of the original's code where it differs, with a warning of what is wrong with it."""
    axes: Literal["ours", "original"] = "ours"
    """ours: z, y, x with +z superior, +y posterior, +x left, as in pre-training. original: the order of the original's code."""
    max_cases: int = 0
    """Use so many cases of each part only; 0 = all."""
    epochs: int = 100
    """Passes over the training cases."""
    batch_size: int = 2
    """Cases per step and process."""
    accumulate: int = 1
    """Steps whose gradients are added up before the weights change."""
    learning_rate: float = 1e-4
    """Peak rate of the head; the encoder's is `encoder_rate` of it."""
    encoder_rate: float = 1.0
    """Encoder's rate as share of the head's."""
    layer_decay: float = 1.0
    """Each stage further from the head learns at this share of the rate of the one after it."""
    freeze_encoder: bool = False
    """Train the head alone (linear probe)."""
    weight_decay: float = 1e-5
    """Decoupled decay; none on biases and norms."""
    schedule: Literal["cosine", "constant", "step"] = "cosine"
    """After the warm-up: to 0 along a cosine, constant, or times `step_factor` after every epoch."""
    step_factor: float = 0.8
    """See `schedule`."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up, which begins above 0."""
    grad_clip: float = 0.0
    """Largest gradient norm; 0 does not clip."""
    dropout: float = 0.0
    """Share of features hidden before the last layer of a classification, or in a report decoder."""
    balance: Literal["none", "classes"] = "none"
    """classes: every class is drawn equally often."""
    augment: bool = True
    """The folder's random changes of training volumes."""
    cache: Literal["memory", "none"] = "memory"
    """Keep each case as it is before the random changes; `none` for sets that do not fit into memory."""
    val_epochs: int = 1
    """Epochs between validations."""
    patience: int = 0
    """End after so many validations without a better one; 0 = never."""
    flips: bool = False
    """Evaluate on all mirrored copies as well and take the mean."""
    overlap: float = 0.5
    """Share by which windows of a sliding-window segmentation overlap."""
    save_masks: bool = True
    """Write predicted masks as NIfTI on the grid of the scan's own file."""
    n_bootstrap: int = 300
    """Bootstrap draws behind every interval."""
    seed: int = 0
    """Seed of initialisation, order, folds and random changes."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to train."""
    devices: int = 0
    """Processes on this node; 0 = every GPU, or one CPU process."""
    num_nodes: int = 1
    """Nodes."""
    precision: Literal["auto", "32-true", "64-true", "16-mixed", "bf16-mixed"] = "auto"
    """auto: bf16 where the GPU has it, fp16 on other GPUs, 32 bits on CPU."""
    num_workers: int = 2
    """Loader processes per rank; 0 loads in the training process."""
    max_minutes: float = 0.0
    """Stop (with a checkpoint) after this many minutes; 0 = no limit."""
    log_dir: str = "result/finetune"
    """Folder of results; a run writes into <log_dir>/<folder>/<run_name>."""
    run_name: str = ""
    """Empty = made of encoder, start and fold, such as `swin_b-scratch-fold0`."""
    resume: bool = True
    """Go on with a run that was cut off; false refuses a run that is there."""
    checkpoint: str = ""
    """evaluate, predict: weights of a fine-tuned network; empty = the best of the run."""
    input: str = ""
    """predict: a scan or a folder of scans."""
    output: str = ""
    """predict: a folder that does not exist yet; empty = beside the run's results."""
    other: str = ""
    """compare: the results' folder of the other run."""


def field_types() -> dict[str, Any]:
    """Setting -> its type."""
    return typing.get_type_hints(FinetuneSettings)


def read_words(words: Sequence[str]) -> dict[str, Any]:
    """`name=value` words as a mapping; values are Python literals where they can be, else text.

    Raises:
        ValueError: a word without `=`.
    """
    found: dict[str, Any] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign:
            raise ValueError(f"{word!r}: settings are written name=value, such as data_root=/data/set; --help lists them")
        found[name] = _literal(value)
    return found


def _literal(text: str) -> Any:
    lowered = {"true": True, "false": False, "none": "none"}
    if text.lower() in lowered:
        return lowered[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, (bool, int, float, str, list, tuple)) else text


def parse_settings(given: Mapping[str, Any], *, defaults: Mapping[str, Any], options: Mapping[str, Any]) -> FinetuneSettings:
    """Typed settings: the user's over the folder's over the general defaults; `options` are left out here.

    Raises:
        ValueError: an unknown name, a wrong type, or a value out of range.
    """
    types = field_types()
    refuse_unknown(given, [*types, *options])
    merged = {**defaults, **{name: value for name, value in given.items() if name in types}}
    texts = {name for name, kind in types.items() if kind is str}
    values = {name: str(value) if name in texts else value for name, value in merged.items()}
    settings = FinetuneSettings(**{name: convert_value(name, value, types[name]) for name, value in values.items()})
    _check(settings)
    return settings


_AT_LEAST = {
    "epochs": 1, "batch_size": 1, "accumulate": 1, "learning_rate": 0, "encoder_rate": 0, "weight_decay": 0, "warmup_epochs": 0,
    "grad_clip": 0, "val_epochs": 1, "patience": 0, "n_bootstrap": 0, "seed": 0, "devices": 0, "num_nodes": 1, "num_workers": 0,
    "max_cases": 0, "max_minutes": 0,
}  # fmt: skip
_SHARES = ("minimum_coverage", "layer_decay", "step_factor", "dropout", "overlap")


def _check(settings: FinetuneSettings) -> None:
    for name, least in _AT_LEAST.items():
        if getattr(settings, name) < least:
            raise ValueError(f"{name}={getattr(settings, name)}: must be at least {least}")
    for name in _SHARES:
        if not 0 <= getattr(settings, name) <= 1:
            raise ValueError(f"{name}={getattr(settings, name)}: expected a share from 0 to 1")
    if settings.encoder not in ENCODER_WORDS and not Path(settings.encoder).exists():
        raise ValueError(f"encoder={settings.encoder!r}: expected one of {', '.join(ENCODER_WORDS)}, or a file of weights")
    if settings.overlap == 1:
        raise ValueError("overlap=1: windows that overlap entirely never move on; use at most 0.9")
    if settings.mode == "train" and settings.warmup_epochs > settings.epochs:
        raise ValueError(f"warmup_epochs={settings.warmup_epochs} is longer than epochs={settings.epochs}; set it lower as well")
    if settings.mode == "predict" and not settings.input:
        raise ValueError("mode=predict needs input=..., a scan or a folder of scans")
    if settings.mode == "compare" and not settings.other:
        raise ValueError("mode=compare needs other=..., the results' folder of the run to compare with")


def refuse_missing(settings: FinetuneSettings, options: Mapping[str, Any]) -> None:
    """Raises FileNotFoundError for a file that is read and not there: before data are prepared, which may take hours."""
    read = {"train": ("pretrained", "folds_file"), "evaluate": ("checkpoint", "folds_file")}.get(settings.mode, ())
    for name in read:
        path = str(getattr(settings, name, options.get(name, "")))
        if path not in ("", "none") and not Path(path).exists():
            raise FileNotFoundError(f"{name}={path}: there is no file or folder of this name")


def usage(defaults: Mapping[str, Any], options: Mapping[str, Any], phantom: Mapping[str, Any]) -> str:
    """Every setting with its value in this folder, and its meaning; those of this folder alone first.

    phantom: values that are others on the synthetic set, told beside them.
    """
    plain = dict(options) | dataclasses.asdict(FinetuneSettings()) | dict(defaults)
    width, told = max(map(len, plain)), descriptions(FinetuneSettings)
    notes = {name: f"  (data_root=phantom: {phantom[name]!r})" for name in plain if phantom.get(name, plain[name]) != plain[name]}
    return "\n".join(
        format_setting(name, value, told.get(name, ""), width=width, note=notes.get(name, "")) for name, value in plain.items()
    )
