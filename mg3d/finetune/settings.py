"""Settings of fine-tuning: name, type, range, default and meaning of each. A folder of downstream/ adds its own in a subclass."""

import difflib
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from mg3d.settings.schema import PatchMerging

ENCODER_PRESETS = ("auto", "swin_b", "swin_l", "swin_l_unprojected", "vit_b", "vit_l", "unet", "nnunet", "tiny")
Fraction = Annotated[float, Field(ge=0, le=1)]
Location = Annotated[str, "path"]
"""A path; a relative one is resolved against the folder that the command was started in."""
Size = tuple[int, int, int]
"""Voxels along z, y, x."""
Spacing = tuple[float, float, float]
"""Millimetres along z, y, x."""


class FinetuneSettings(BaseModel):
    """What can be set after `finetune.sh FOLDER`. The folder replaces defaults by the values of its published protocol."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, coerce_numbers_to_str=True, allow_inf_nan=False
    )

    mode: Literal["train", "evaluate", "predict", "compare"] = "train"
    """train: fine-tune, then evaluate. evaluate: evaluate the best checkpoint again. predict: new scans. compare: two runs."""
    data_root: Location = ""
    """The data set in its published layout, or an Arrow file (or its folder) made from it. Empty or `phantom`: synthetic data."""
    pretrained: Location = "none"
    """Pre-trained weights: a checkpoint, an exported folder or a run folder (its last checkpoint). none: random weights."""
    encoder: str = "auto"
    """An architecture (auto, swin_b, swin_l, swin_l_unprojected, vit_b, vit_l, unet, nnunet, tiny), or a checkpoint whose
    architecture is used without its weights. auto: the architecture of `pretrained`; without it swin_b (tiny on synthetic
    data)."""
    load_patch_merging: Literal["", PatchMerging] = ""
    """Patch merging that the weights were trained with, if the checkpoint does not say."""
    load_prefix: str = ""
    """Prefix of the encoder's parameter names in the checkpoint, if it is not a common one."""
    minimum_coverage: Fraction = 0.9
    """Smallest fraction of the encoder's parameters that the checkpoint must provide."""
    fold: NonNegativeInt = 0
    """Cross-validation fold that is used for validation."""
    folds: Literal["one", "all"] = "one"
    """all: run every fold, and report mean and spread over folds."""
    max_cases: NonNegativeInt = 0
    """Maximum number of cases per split; 0 = no limit."""
    epochs: PositiveInt = 100
    """Training epochs."""
    batch_size: PositiveInt = 2
    """Cases per step and process."""
    accumulate_grad_batches: PositiveInt = 1
    """Batches per optimizer step."""
    learning_rate: NonNegativeFloat = 1e-4
    """Peak learning rate of the head."""
    encoder_lr_multiplier: NonNegativeFloat = 1.0
    """Learning rate of the encoder, as a multiple of `learning_rate`."""
    layer_decay: Fraction = 1.0
    """Layer-wise learning-rate decay of the encoder, per stage away from the head."""
    freeze_encoder: bool = False
    """Train the head only."""
    weight_decay: NonNegativeFloat = 1e-5
    """AdamW weight decay; biases and norms are not decayed."""
    schedule: Literal["cosine", "constant", "step"] = "cosine"
    """Learning rate after the warm-up: cosine to 0, constant, or multiplied by `gamma` after every epoch."""
    gamma: Fraction = 0.8
    """Learning-rate factor per epoch of schedule=step."""
    warmup_epochs: NonNegativeFloat = 0.0
    """Epochs of linear warm-up."""
    grad_clip: NonNegativeFloat = 0.0
    """Maximum gradient norm; 0 = no clipping."""
    dropout: Fraction = 0.0
    """Dropout before the classification layer, or in the report decoder."""
    balanced_sampling: bool = False
    """Draw every class equally often."""
    augment: bool = True
    """Apply the folder's data augmentation."""
    cache_gb: NonNegativeFloat = 8.0
    """Memory of a rank for preprocessed cases in 1e9 bytes, divided among its loader processes; 0 = off."""
    val_epochs: PositiveInt = 1
    """Epochs between validations."""
    select: Literal["best", "last"] = "best"
    """Epoch that is evaluated: the best one on the validation cases, or the last one (then no reported case selects anything)."""
    patience: NonNegativeInt = 0
    """Early stopping after this many validations without improvement; 0 = off."""
    tta: bool = False
    """Test-time augmentation: average over all mirrored copies."""
    overlap: Annotated[float, Field(ge=0, le=0.95)] = 0.5
    """Overlap of neighbouring sliding windows in segmentation, as a fraction of the window."""
    window_weighting: Literal["constant", "gaussian"] = "constant"
    """Weights of overlapping sliding windows; gaussian trusts the centre of a window more than its border."""
    largest_component: bool = False
    """Keep only the largest connected component of each predicted structure."""
    save_masks: bool = True
    """Write predicted masks as NIfTI on the grid of the scan."""
    n_bootstrap: NonNegativeInt = 300
    """Bootstrap resamples (of patients) for confidence intervals."""
    seed: NonNegativeInt = 0
    """Seed of initialization, data order, folds and augmentation."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Device to run on."""
    devices: NonNegativeInt = 0
    """Processes per node; 0 = one per GPU, or one on CPU."""
    num_nodes: PositiveInt = 1
    """Number of nodes."""
    precision: Literal["auto", "32-true", "64-true", "16-mixed", "bf16-mixed"] = "auto"
    """auto: bf16-mixed on GPUs that support it, 16-mixed on other GPUs, 32-true on CPU."""
    num_workers: NonNegativeInt = 2
    """Data-loader processes per rank; 0 loads in the training process."""
    max_minutes: NonNegativeFloat = 0.0
    """Stop with a checkpoint after this many minutes; 0 = no limit."""
    log_dir: Location = "result/finetune"
    """Results go to log_dir/<folder>/<run_name>/fold<k>."""
    run_name: str = ""
    """Name of the run. Empty: made of encoder and weights, such as swin_b-scratch."""
    resume: bool = True
    """Continue an interrupted run. false: refuse to use the folder of an existing run."""
    checkpoint: Location = ""
    """evaluate, predict: fine-tuned checkpoint. Empty: the best checkpoint of the run."""
    input: Location = ""
    """predict: a scan or a folder of scans."""
    output: Location = ""
    """predict: a new folder. Empty: `predictions` in the run's folder."""
    other: Location = ""
    """compare: results folder of the second run, such as .../fold0."""

    @model_validator(mode="after")
    def _check(self) -> "FinetuneSettings":
        if self.encoder not in ENCODER_PRESETS and not Path(self.encoder).exists():
            raise ValueError(f"encoder={self.encoder!r}: expected one of {', '.join(ENCODER_PRESETS)}, or a checkpoint")
        if self.mode == "train" and self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs={self.warmup_epochs:g} is longer than epochs={self.epochs}; lower it as well")
        if self.mode == "predict" and not self.input:
            raise ValueError("mode=predict needs input=..., a scan or a folder of scans")
        if self.mode == "compare" and not self.other:
            raise ValueError("mode=compare needs other=..., the results folder of the run to compare with")
        return self


_NAME_OR_PATH = ("encoder", "text_encoder", "labeller")

UNCOMPARED = {
    "mode", "fold", "folds", "input", "output", "other", "checkpoint", "log_dir", "run_name", "resume", "num_workers",
    "max_minutes", "accelerator", "devices", "num_nodes", "cache_gb", "save_masks", "data_root", "arrows", "table",
}  # fmt: skip
"""Settings that may change when a run is continued: they do not affect its result."""
EVALUATION = UNCOMPARED | {
    "tta", "overlap", "window_weighting", "largest_component", "n_bootstrap", "batch_size", "max_cases", "precision",
}  # fmt: skip
"""Settings that may change when a trained network is evaluated."""
INITIALIZATION = {"pretrained", "encoder", "load_patch_merging", "load_prefix", "minimum_coverage"}
"""Settings that say where the weights come from."""


def read_arguments(arguments: Sequence[str]) -> dict[str, Any]:
    """`name=value` arguments as a mapping of text; a value in brackets is a list.

    Raises:
        ValueError: an argument without `=`.
    """
    overrides: dict[str, Any] = {}
    for argument in arguments:
        name, sign, value = argument.partition("=")
        if not sign:
            raise ValueError(f"{argument!r}: expected name=value, such as data_root=/data/set; --help lists the settings")
        if value[:1] in "[(" and value[-1:] in "])" and value:
            overrides[name] = [item.strip() for item in value[1:-1].split(",") if item.strip()]
        else:
            overrides[name] = "none" if value.lower() == "none" else value
    return overrides


def parse_settings(kind: type[FinetuneSettings], overrides: Mapping[str, Any], defaults: Mapping[str, Any]) -> Any:
    """Validated settings: the user's values over `defaults` over those of the class.

    Raises:
        ValueError: an unknown name, a wrong type or a value out of range.
    """
    for name in overrides:
        if name not in kind.model_fields:
            similar = difflib.get_close_matches(name, kind.model_fields, n=3)
            hint = f"did you mean {' or '.join(similar)}?" if similar else "--help lists all settings"
            raise ValueError(f"unknown setting {name!r}; {hint}")
    try:
        return kind(**{**defaults, **{name: _absolute(kind, name, value) for name, value in overrides.items()}})
    except ValidationError as error:
        raise ValueError("; ".join(map(_message, error.errors(include_url=False)))) from None


def _message(error: Mapping[str, Any]) -> str:
    message = error["msg"].removeprefix("Value error, ").replace("Input should", "should")
    return f"{error['loc'][0]}={error['input']!r} {message}" if error["loc"] else message


def _absolute(kind: type[BaseModel], name: str, value: Any) -> Any:
    """A relative path of the user as an absolute one: the start scripts change into the repository first."""
    if isinstance(value, list | tuple):
        return [_absolute(kind, name, item) for item in value]
    caller, field = os.environ.get("MG3D_CALLER_DIR", ""), kind.model_fields[name]
    is_path = "path" in field.metadata or Location in get_args(field.annotation) or name in _NAME_OR_PATH
    if not (caller and is_path and isinstance(value, str)) or value in ("", "none", "phantom") or "://" in value:
        return value
    path = Path(caller, value)
    return value if name in _NAME_OR_PATH and not path.exists() else str(path)


def as_builtins(settings: BaseModel) -> dict[str, Any]:
    """Settings as a checkpoint and a JSON file store them."""
    return settings.model_dump(mode="json")


def changed(stored: Mapping[str, Any], current: Mapping[str, Any], *, ignore: set[str]) -> list[str]:
    """`name=new (was old)` of every setting that differs."""
    names = [name for name in current if name not in ignore and stored.get(name) != current[name]]
    return [f"{name}={current[name]!r} (was {stored.get(name)!r})" for name in names]


def require_files(settings: FinetuneSettings) -> None:
    """Raises FileNotFoundError for a missing input file before data are prepared, which may take hours."""
    needed = {"train": ("pretrained", "folds_file"), "evaluate": ("checkpoint", "folds_file")}.get(settings.mode, ())
    for name in needed:
        path = getattr(settings, name, "")
        if path not in ("", "none") and not Path(path).exists():
            raise FileNotFoundError(f"{name}={path}: no such file or folder")


def describe_settings(kind: type[FinetuneSettings], defaults: Mapping[str, Any], phantom: Mapping[str, Any]) -> str:
    """The help text: every setting with its default in this folder, and its meaning; the folder's own settings come first."""
    names = sorted(kind.model_fields, key=lambda name: name in FinetuneSettings.model_fields)
    lines = []
    for name in names:
        field = kind.model_fields[name]
        value = defaults.get(name, field.default)
        synthetic = f"  (data_root=phantom: {phantom[name]!r})" if phantom.get(name, value) != value else ""
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        allowed = f"[{' | '.join(map(str, choices))}] " if choices else ""
        text = " ".join((allowed + (field.description or "")).split())
        lines.append(f"  {name} = {value!r}{synthetic}")
        lines.append(textwrap.fill(text, 110, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return "\n".join(lines)
