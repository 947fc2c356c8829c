"""Fine-tuning on any table of scans: the task is read from the columns of the table; see docs/finetune.md."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from mg3d.finetune.cases import FinetuneCase
from mg3d.finetune.distributed import info
from mg3d.finetune.settings import FinetuneSettings, Location, Size, Spacing
from mg3d.finetune.task import DownstreamTask, protocol

if TYPE_CHECKING:
    from monai import transforms as mt

    from mg3d.finetune.table import TargetColumn
    from mg3d.finetune.tasks.base import TaskType

TABLE = "labels.csv"
"""Table of the synthetic set."""
FOLDS = 5
WINDOW_HU = (-1000.0, 1000.0)
"""That of the released weights."""
IMAGE_SIZE: dict[str, Size] = {"segmentation": (96, 96, 96), "candidates": (48, 48, 48)}
METRICS = {"binary": "auroc", "multilabel": "auroc", "multiclass": "balanced_accuracy", "regression": "r2",
           "segmentation": "dice", "candidates": "auroc"}  # fmt: skip
"""Task -> score that selects the best epoch."""
Task = Literal["auto", "binary", "multilabel", "multiclass", "regression", "segmentation", "candidates"]


class CustomSettings(FinetuneSettings):
    """Settings of a table."""

    table: tuple[Location, ...] = ()
    """CSV or Excel file with one row per scan: path, targets, and optionally patient, split or fold, mask, x y z; or dataset.json
    of nnU-Net; or an Arrow file made from a table. Several: table=[a.csv,b.csv]. Empty: synthetic data."""
    task: Task = "auto"
    """auto: read from the columns. candidates: one row per position x, y, z (mm, LPS) in a scan."""
    targets: tuple[str, ...] = ()
    """Columns to predict. Empty: the columns that are left after those of known meaning."""
    classes: tuple[str, ...] = ()
    """Classes of a multiclass target (empty: those of the table), or structures of the mask values 1, 2, ... (empty: one)."""
    method: Literal["finetune", "probe"] = "finetune"
    """probe: logistic regression on features of the frozen encoder (binary and multilabel); fast, for few scans."""
    metric: str = ""
    """Score that selects the best epoch (larger is better). Empty: auroc, balanced_accuracy, r2 or dice."""
    intensity: Literal["auto", "window", "z_score"] = "auto"
    """window: HU of `window_hu` become 0 to 1. z_score: for MR. auto: z_score if dataset.json names another modality than CT."""
    window_hu: tuple[float, float] | None = None
    """HU window. None: that of the weights, else -1000 to 1000."""
    spacing_mm: Spacing | None = None
    """Voxel size (z, y, x) that scans are resampled to, in mm. None: scans are resized to `image_size` as in pre-training;
    segmentation 1.5, candidates the scan's own."""
    center_crop_fraction: tuple[float, float, float] | None = None
    """Central fraction (z, y, x) of a scan that is used. None: as in pre-training of the weights, else all."""
    image_size: Size | None = None
    """Voxels (z, y, x) of the network's input, or of segmentation patches and candidate cubes. None: that of the weights, else
    128 96 128; segmentation 96 96 96, candidates 48 48 48."""
    patches_per_case: PositiveInt = 2
    """Segmentation: training patches per case and step, half of them around a structure."""
    channel: NonNegativeInt = 0
    """Image of a dataset.json with several channels."""
    tolerance_mm: NonNegativeFloat = 2.0
    """Segmentation: tolerance of the normalized surface distance, in mm."""
    negatives: NonNegativeFloat = 1.0
    """Candidates: negative ones per positive one that an epoch draws."""
    class_weights: bool = False
    """Weight the loss inversely to the frequency of each class in training (pos_weight of labels)."""
    focal_gamma: NonNegativeFloat = 0.0
    """Focal loss with this gamma; 0 = cross entropy."""

    @model_validator(mode="before")
    @classmethod
    def _one_or_several(cls, values: Any) -> Any:
        names = ("table", "targets", "classes")
        return values | {name: (values[name],) for name in names if isinstance(values.get(name), str) and values[name]}

    @model_validator(mode="after")
    def _check_task(self) -> "CustomSettings":
        if self.method == "probe" and self.task not in ("auto", "binary", "multilabel"):
            raise ValueError(f"method=probe fits binary and multilabel tasks, not task={self.task}")
        if self.window_hu and self.window_hu[0] >= self.window_hu[1]:
            raise ValueError(f"window_hu={list(self.window_hu)}: expected low < high")
        return self


def resolve(settings: CustomSettings) -> CustomSettings:
    """Task, targets and classes of the table, and preprocessing of the weights; a checkpoint stores them."""
    if settings.mode in ("evaluate", "predict"):
        return settings
    if settings.table and not settings.table[0].endswith(".arrow"):
        found = _read_task(settings)
    else:
        found = {"task": "binary", "targets": ("effusion",)} if settings.task == "auto" else {}
    task = found.get("task", settings.task)
    if task in IMAGE_SIZE and settings.metric not in ("", METRICS[task]):
        raise ValueError(f"metric={settings.metric}: task={task} selects the best epoch by {METRICS[task]}")
    if settings.method == "probe" and task not in ("binary", "multilabel"):
        raise ValueError(f"method=probe fits binary and multilabel tasks; the table has task={task}")
    preprocessing = _preprocessing(settings)
    size, window = preprocessing.get("shape", (128, 96, 128)), preprocessing.get("window_hu", WINDOW_HU)
    update = found | {
        "metric": settings.metric or METRICS[task],
        "intensity": settings.intensity if settings.intensity != "auto" else found.get("intensity", "window"),
        "window_hu": settings.window_hu or tuple(window),
        "image_size": settings.image_size or IMAGE_SIZE.get(task, tuple(size)),
        "center_crop_fraction": settings.center_crop_fraction or tuple(preprocessing.get("crop_fraction", (1.0, 1.0, 1.0))),
        "spacing_mm": settings.spacing_mm or ((1.5, 1.5, 1.5) if task == "segmentation" else None),
    }
    resolved = settings.model_copy(update=update)
    values = f"{resolved.window_hu[0]:g} to {resolved.window_hu[1]:g} HU" if resolved.intensity == "window" else "z-scores"
    outputs = f" of {', '.join((*resolved.targets, *resolved.classes))}" if resolved.targets or resolved.classes else ""
    info(f"task={task}{outputs}; input: {' x '.join(map(str, resolved.image_size))} voxels (z, y, x), {values}")
    return resolved


def _read_task(settings: CustomSettings) -> dict[str, Any]:
    """Task, targets, classes and intensity, as far as the user does not set them."""
    from mg3d.finetune.dataset_json import read_dataset_json
    from mg3d.finetune.table import describe_column, read_tables, target_columns

    paths = [Path(path) for path in settings.table]
    if paths[0].suffix == ".json":
        structures, modalities, _ = read_dataset_json(paths[0], channel=settings.channel)
        is_ct = modalities[settings.channel].upper() == "CT"
        return {"task": "segmentation", "classes": settings.classes or structures, "intensity": "window" if is_ct else "z_score"}
    table = read_tables(paths)
    if missing := [name for name in settings.targets if name not in table]:
        raise ValueError(f"targets: the table has no column {', '.join(missing)}; it has {', '.join(target_columns(table))}")
    columns = {name: describe_column(table[name]) for name in settings.targets} or target_columns(table)
    is_segmentation = settings.task == "segmentation" or (settings.task == "auto" and "mask" in table and not columns)
    if is_segmentation:
        return {"task": "segmentation", "classes": settings.classes or ("structure",)}
    columns = _choose_targets(columns, settings, where=str(paths[0]), needs_choice="mask" in table and settings.task == "auto")
    kind = next(iter(columns.values())).kind
    task = settings.task if settings.task != "auto" else "candidates" if {"x", "y", "z"} <= set(table) else kind
    task = "multilabel" if task == "binary" and len(columns) > 1 else task
    classes = settings.classes or (next(iter(columns.values())).values if task == "multiclass" else ())
    if task == "multiclass" and settings.task == "auto":
        target = next(iter(columns))
        if all(name.lstrip("-").isdigit() for name in classes):
            info(f"the integers of {target} are learned as classes; task=regression learns them as numbers")
        elif {"0", "1"} & set(classes):
            info(f"{target} is learned as the classes {', '.join(classes)}; task=binary excludes all rows but 0 and 1")
    return {"task": task, "targets": tuple(columns), "classes": tuple(classes)}


def _choose_targets(
    columns: dict[str, "TargetColumn"], settings: CustomSettings, *, where: str, needs_choice: bool
) -> dict[str, "TargetColumn"]:
    """The target columns; those that have one value only are left out.

    Raises:
        ValueError: there is none, or they are of different kinds.
    """
    described = ", ".join(f"{name} ({column.kind})" for name, column in columns.items())
    if not columns:
        raise ValueError(f"{where} has no target column; add one, or a column mask for segmentation")
    kinds = {column.kind for column in columns.values()}
    if settings.task in ("multilabel", "binary", "regression") and settings.targets:
        kinds = {settings.task}
    if needs_choice:
        raise ValueError(f"{where} has masks and targets: {described}; choose task=segmentation, or another task and its targets")
    if len(kinds) > 1 or (kinds == {"multiclass"} and len(columns) > 1) or kinds == {"text"}:
        raise ValueError(f"{where} has columns that cannot be predicted together: {described}; choose targets=[...]")
    constant = [name for name, column in columns.items() if len(column.values) < 2]
    if len(constant) == len(columns):
        values = "; ".join(f"{name} is {' '.join(columns[name].values) or 'unknown'} in every row" for name in constant)
        raise ValueError(f"{where}: {values}; at least two values are needed")
    if constant:
        info(f"left out, because all known values are equal: {', '.join(constant)}")
    return {name: column for name, column in columns.items() if name not in constant}


def _preprocessing(settings: CustomSettings) -> dict[str, Any]:
    """Shape, window and crop of the weights, as far as their file states them."""
    source = settings.pretrained if settings.pretrained != "none" else settings.encoder
    if not Path(source).exists():
        return {}
    from mg3d.checkpoints.info import inspect_checkpoint

    preprocessing = dict(inspect_checkpoint(source, prefix=settings.load_prefix or None).preprocessing or {})
    crop = preprocessing.get("recipe", {}).get("crop", {})
    if crop.get("kind") == "fraction":
        preprocessing["crop_fraction"] = crop["zyx"]
    elif crop:
        info(f"the weights were pre-trained on volumes cropped by {crop['kind']}; here whole scans are used")
    return preprocessing


def read_cases(root: Path, settings: CustomSettings) -> list[FinetuneCase]:
    """Cases of the tables, or of the synthetic table in `root`."""
    from mg3d.finetune import table

    cases = table.read_cases(
        table.read_tables([Path(path) for path in settings.table] or [root / TABLE]), settings.task,
        targets=settings.targets, classes=settings.classes, folds=FOLDS,
    )  # fmt: skip
    usable = [case for case in cases if not case.error]
    folds = {case.fold for case in usable if case.split == "train"}
    if folds == {table.VAL_FOLD, 1} and (settings.fold or settings.folds == "all"):
        raise ValueError("the table has one validation split; leave out fold and folds")
    return cases


def build(settings: CustomSettings) -> "TaskType":
    """The task type of the table."""
    from monai import transforms as mt

    from mg3d.finetune import transforms as t
    from mg3d.finetune.tasks.candidates import CandidateClassification
    from mg3d.finetune.tasks.classification import Classification
    from mg3d.finetune.tasks.probe import LinearProbe
    from mg3d.finetune.tasks.regression import Regression
    from mg3d.finetune.tasks.segmentation import Segmentation

    intensity = t.window(*settings.window_hu) if settings.intensity == "window" else t.z_score()
    size = settings.image_size
    jitter = [mt.RandGaussianNoised("image", prob=0.3, std=0.02), mt.RandShiftIntensityd("image", offsets=0.05, prob=0.3)]
    augment = [t.rotate_and_scale(0.3, (0.26, 0.0, 0.0), (0.1, 0.1, 0.1)), *jitter]
    loss = {"class_weights": settings.class_weights, "focal_gamma": settings.focal_gamma}
    if settings.task == "candidates":
        return CandidateClassification(
            settings, outputs=settings.targets, cube_size=size, negatives=settings.negatives, preprocess=[intensity],
            augment=[*augment, *t.flips(0.5, 0.5, 0.5)], **loss,
        )  # fmt: skip
    if settings.task == "segmentation":
        count = len(settings.classes)
        return Segmentation(
            settings,
            outputs=settings.classes,
            loss="dice_ce",
            tolerance_mm=settings.tolerance_mm,
            patch_size=size,
            windows_per_batch=settings.batch_size * settings.patches_per_case,
            preprocess=[t.spacing(settings.spacing_mm), intensity, t.pad(size)],
            crop=[t.foreground_patches(size, settings.patches_per_case, balanced_classes=count if count > 1 else 0)],
            augment=augment,
        )
    shared = {"metric": settings.metric, "preprocess": [*_whole_scan(settings, intensity)], "augment": augment}
    if settings.task == "regression":
        return Regression(settings, outputs=settings.targets, **shared)
    if settings.task == "multiclass":
        return Classification(settings, outputs=settings.classes, exclusive=True, **shared, **loss)
    return (LinearProbe if settings.method == "probe" else Classification)(settings, outputs=settings.targets, **shared, **loss)


def _whole_scan(settings: CustomSettings, intensity: "mt.Transform") -> Sequence["mt.Transform"]:
    """Without a spacing as in pre-training: a central crop, resized."""
    from mg3d.finetune import transforms as t

    crop = t.CenterCropRaw(settings.center_crop_fraction)
    if settings.spacing_mm:
        return [t.spacing(settings.spacing_mm), intensity, crop, t.crop_or_pad(settings.image_size)]
    return [intensity, crop, t.resize(settings.image_size)]


TASK = DownstreamTask(
    folder="custom",
    title="Table of scans",
    settings=CustomSettings,
    data_setting="table",
    resolve=resolve,
    read_cases=read_cases,
    build=build,
    folds=FOLDS,
    defaults=protocol(
        {"epochs": 50, "batch_size": 2, "learning_rate": 1e-4, "warmup_epochs": 2, "weight_decay": 0.01, "layer_decay": 0.75},
        {"image_size": (48, 36, 48), "epochs": 12, "batch_size": 4, "learning_rate": 1e-3, "warmup_epochs": 1, "num_workers": 0},
    ),
    run_prefix=lambda settings: "-".join(
        filter(None, (Path(settings.table[0]).stem if settings.table else "", *settings.targets[:2], settings.task,
                      "probe" if settings.method == "probe" else ""))
    ),
    stored=("task", "targets", "classes", "intensity"),
)
