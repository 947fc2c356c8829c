"""CT-RATE: 18 abnormalities by linear probe, fine-tuning, prompts or zero-shot; retrieval; a report labeller; see README.md."""

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import NonNegativeInt, PositiveInt, model_validator

from mg3d.finetune.cases import FinetuneCase, RawScan, Source
from mg3d.finetune.data_root import NO_ROOT, is_synthetic
from mg3d.finetune.run import run
from mg3d.finetune.settings import FinetuneSettings, Location, Size
from mg3d.finetune.task import DownstreamTask
from mg3d.glossary import LABELS
from mg3d.settings.schema import volume_shape

if TYPE_CHECKING:
    from mg3d.finetune.tasks.base import TaskType

ARROWS = Path("data/finetune_arrows")
DEFAULT_SIZE, SYNTHETIC_SIZE = 128, 64
PROTOCOLS: dict[str, dict[str, Any]] = {
    "full": {
        "epochs": 10, "batch_size": 4, "learning_rate": 1e-4, "weight_decay": 0.05, "warmup_epochs": 0.5, "layer_decay": 0.75,
    },
    "prompts": {"epochs": 10, "batch_size": 4, "learning_rate": 1e-5, "weight_decay": 0.1, "warmup_epochs": 0.5},
}  # fmt: skip
"""Defaults of the tasks that are trained."""


class CTRateSettings(FinetuneSettings):
    """Settings of CT-RATE."""

    task: Literal["probe", "full", "prompts", "zero_shot", "retrieval", "labeller"] = "probe"
    """probe: linear probe on frozen features. full: the whole encoder. prompts: prompt pairs, trained. zero_shot: prompt pairs.
    retrieval: reports and volumes by embedding. labeller: findings of reports, without images."""
    reconstructions: Literal["all", "first"] = "all"
    """first: train on one reconstruction per scan. The test split always has all volumes, as published."""
    image_size: NonNegativeInt = 0
    """Voxels along z of the prepared volumes. 0: of the Arrow files, else of the weights, else 128 (synthetic: 64)."""
    val_patients: PositiveInt = 500
    """Patients of the validation split, at most a tenth of the training patients."""
    arrows: Location = ""
    """Folder for the prepared Arrow files. Empty: data/finetune_arrows."""
    train: str = "projections"
    """prompts: which parts are trained; vision, text, projections joined by +, or all."""
    loss: Literal["bce", "softmax_mse"] = "bce"
    """prompts: binary cross entropy, or the published squared error of the softmax."""
    wording: Literal["there_is", "ct_clip", "original"] = "there_is"
    """Prompts: "There is X.", "X is present." or "X." with their negations."""
    text_encoder: str = ""
    """Folder of the BERT whose tokenizer a released checkpoint needs."""
    volume_size: Size = (0, 0, 0)
    """Voxels (z, y, x) of a volume; follows from image_size, the Arrow files or the weights."""
    window_hu: tuple[float, float] = (-1000.0, 1000.0)
    """HU window that becomes 0 to 1; that of the weights."""

    @model_validator(mode="after")
    def _check_size(self) -> "CTRateSettings":
        if 0 < self.image_size < 32:
            raise ValueError(f"image_size={self.image_size}: expected at least 32, or 0 for the default")
        return self


def defaults(overrides: Mapping[str, Any], synthetic: bool) -> dict[str, Any]:
    """Protocol of the chosen task."""
    protocol = PROTOCOLS.get(str(overrides.get("task", "probe")), {})
    if not synthetic:
        return {"cache_gb": 0.0, "num_workers": 4, **protocol}
    small = {"epochs": 6, "learning_rate": 1e-3} if protocol else {}
    return {**protocol, **small, "num_workers": 0, "batch_size": 4, "warmup_epochs": 0}


def resolve(settings: CTRateSettings) -> CTRateSettings:
    """Volume size and window of the Arrow files or the weights."""
    if settings.volume_size[0]:  # stored in a checkpoint
        return settings
    size = volume_shape(SYNTHETIC_SIZE if is_synthetic(settings.data_root) and settings.mode != "predict" else DEFAULT_SIZE)
    window, checkpoint = settings.window_hu, settings.pretrained
    if checkpoint == "none" and Path(settings.encoder).exists():
        checkpoint = settings.encoder
    if checkpoint != "none":
        from mg3d.checkpoints.info import inspect_checkpoint

        if preprocessing := inspect_checkpoint(checkpoint).preprocessing:
            size, window = tuple(preprocessing["shape"]), tuple(preprocessing["window_hu"])
    wanted = volume_shape(settings.image_size) if settings.image_size else None
    if settings.data_root not in NO_ROOT and settings.task != "labeller":
        from mg3d.finetune.prepared import is_prepared, prepared_shape

        if is_prepared(Path(settings.data_root), "ct_rate"):
            size = prepared_shape(Path(settings.data_root), "ct_rate")
            if wanted not in (None, size):
                raise ValueError(
                    f"image_size={settings.image_size}: the volumes in {settings.data_root} have {size} voxels; leave it out"
                )
    return settings.model_copy(update={"volume_size": wanted or size, "window_hu": window})


def read_cases(root: Path, settings: CTRateSettings) -> list[FinetuneCase]:
    """Volumes of prepared Arrow files, or of CT-RATE's own layout, which is prepared first."""
    from mg3d.finetune.prepared import prepare_dataset, read_prepared_cases
    from mg3d.finetune.reports import read_report_cases

    if settings.task == "labeller":
        return read_report_cases(root, "ct_rate", val_patients=settings.val_patients)
    default = root / "finetune_arrows" if is_synthetic(str(root)) else ARROWS
    out = Path(settings.arrows) if settings.arrows else default
    if settings.volume_size != volume_shape(DEFAULT_SIZE):
        out = out.with_name(f"{out.name}_{settings.volume_size[0]}")
    folder = prepare_dataset(
        root, "ct_rate", out, shape=settings.volume_size, val_patients=settings.val_patients, workers=max(1, settings.num_workers)
    )  # fmt: skip
    every, reports = settings.reconstructions == "all", settings.task in ("prompts", "zero_shot", "retrieval")
    return read_prepared_cases(folder, "ct_rate", every_reconstruction=every, reports=reports)


def _as_prepared(source: Source, shape: Size) -> Source:
    return RawScan(source, shape) if isinstance(source, Path) else source


def build(settings: CTRateSettings) -> "TaskType":
    """The task type of `task`."""
    from monai import transforms as mt

    from mg3d.finetune import transforms as t
    from mg3d.finetune.tasks.classification import Classification
    from mg3d.finetune.tasks.labeller import ReportLabeller
    from mg3d.finetune.tasks.probe import LinearProbe
    from mg3d.finetune.tasks.prompts import PromptClassification
    from mg3d.finetune.tasks.retrieval import Retrieval

    shared: dict[str, Any] = {"outputs": LABELS, "metric": "auroc", "threshold_rule": "corner"}  # as CT-CLIP
    if settings.task == "labeller":
        return ReportLabeller(settings, **shared | {"threshold_rule": "f1"})
    shared |= {
        "preprocess": [t.window(*settings.window_hu), t.resize(settings.volume_size)],
        "augment": [mt.RandGaussianNoised("image", prob=0.3, std=0.02), mt.RandShiftIntensityd("image", offsets=0.05, prob=0.3)],
        "prepare_scan": partial(_as_prepared, shape=settings.volume_size),
    }
    if settings.task in ("probe", "full"):
        return (LinearProbe if settings.task == "probe" else Classification)(settings, **shared)
    shared |= {
        "volume_size": settings.volume_size,
        "zero_shot": settings.task != "prompts",
        **{name: getattr(settings, name) for name in ("train", "loss", "wording", "text_encoder")},
    }
    if settings.task == "retrieval":
        return Retrieval(settings, **shared | {"metric": "report_to_volume/median_rank"})
    return PromptClassification(settings, **shared)


TASK = DownstreamTask(
    folder="CT-RATE",
    title="CT-RATE: 18 abnormalities, retrieval, report labeller",
    settings=CTRateSettings,
    resolve=resolve,
    read_cases=read_cases,
    build=build,
    folds=1,
    defaults=defaults,
    expected=lambda settings: {} if settings.task == "labeller" else {"test": 3001},
    variant="task",
)

if __name__ == "__main__":
    sys.exit(run(TASK, sys.argv[1:]))
