"""CT-RATE: 18 findings by probe, fine-tuning and prompts, zero-shot, retrieval, and a labeller of reports; see README.md."""

import dataclasses
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mg3d.checkpoints.info import inspect_checkpoint
from mg3d.finetune.cases import Case
from mg3d.finetune.language import has_language, read_language_cases, write_language
from mg3d.finetune.prepared import Order, is_prepared, prepared, prepared_shape, read_prepared_cases
from mg3d.finetune.ranks import first_does
from mg3d.finetune.run import run, say
from mg3d.finetune.settings import FinetuneSettings
from mg3d.finetune.sources import NO_ROOT, is_synthetic
from mg3d.finetune.task import Augment, Preprocess, Task
from mg3d.glossary import LABELS
from mg3d.settings.schema import volume_shape

ARROWS, LANGUAGE_ARROWS = Path("data/finetune_arrows"), Path("data/finetune_language_arrows")
USUAL_SIZE, SYNTHETIC_SIZE = 128, 64
OPTIONS = {
    "task": "probe", "reconstructions": "all", "image_size": 0, "val_patients": 500, "arrows": "", "train": "projections",
    "loss": "bce", "wording": "there_is", "text_encoder": "",
}  # fmt: skip
"""Own settings, see README.md."""


class Variant(NamedTuple):
    """What one word of `task=` means."""

    kind: str
    title: str
    metric: str
    defaults: Mapping[str, Any] = {}
    phantom: Mapping[str, Any] = {}
    reports: bool = False
    """Whether texts are read."""


VARIANTS = {
    "probe": Variant("probe", "linear probe of 18 findings", "auroc"),
    "full": Variant(
        "labels", "18 findings, the whole encoder fine-tuned", "auroc",
        {"epochs": 10, "batch_size": 4, "learning_rate": 1e-4, "weight_decay": 0.05, "warmup_epochs": 0.5, "layer_decay": 0.75},
        {"epochs": 6, "learning_rate": 1e-3},
    ),
    "prompts": Variant(
        "prompts", "18 findings by prompt pairs", "auroc",
        {"epochs": 10, "batch_size": 4, "learning_rate": 1e-5, "weight_decay": 0.1, "warmup_epochs": 0.5},
        {"epochs": 6, "learning_rate": 1e-3}, reports=True,
    ),
    "zero_shot": Variant("prompts", "18 findings, zero-shot", "auroc", reports=True),
    "retrieval": Variant("retrieval", "retrieval of reports and volumes", "report_to_volume/median_rank", reports=True),
    "labeller": Variant("labeller", "a labeller of reports", "auroc", reports=True),
}  # fmt: skip


def read_cases(
    root: Path, settings: FinetuneSettings, *, options: Mapping[str, Any] = OPTIONS, shape: tuple[int, int, int] = (128, 96, 128)
) -> list[Case]:
    """Volumes of a folder of our Arrow files, or of CT-RATE's own layout, which is prepared first."""
    if options["task"] == "labeller":
        return read_reports(root, int(options["val_patients"]))
    synthetic = is_synthetic(str(root))
    out = Path(options["arrows"]) if options["arrows"] else (root / "finetune_arrows" if synthetic else ARROWS)
    order = Order(
        dataset="ct_rate", out=out if shape == volume_shape(USUAL_SIZE) else out.with_name(f"{out.name}_{shape[0]}"), shape=shape,
        val_patients=int(options["val_patients"]), workers=max(1, settings.num_workers),
    )  # fmt: skip
    return read_prepared_cases(
        prepared(root, order, say=say),
        "ct_rate",
        every_reconstruction=options["reconstructions"] == "all",
        reports=VARIANTS[options["task"]].reports,
    )


def read_reports(root: Path, val_patients: int) -> list[Case]:
    """Reports of a folder of our Arrow files (of text or of volumes), or of CT-RATE's own tables; no volume is opened."""
    if has_language(root, "ct_rate"):
        return read_language_cases(root, "ct_rate")
    out = root / "finetune_language_arrows" if is_synthetic(str(root)) else LANGUAGE_ARROWS

    def write() -> None:
        counts = write_language(root, "ct_rate", out, val_patients=val_patients)
        say(f"{out} holds {', '.join(f'{count} rows of {name}' for name, count in counts.items())}")

    first_does(write, done=lambda: has_language(out, "ct_rate", every=True), what=str(out))
    return read_language_cases(out, "ct_rate")


def volume_of(options: Mapping[str, Any]) -> tuple[tuple[int, int, int], tuple[float, float]]:
    """Voxels z, y, x and the window in HU: what the user says, else the Arrow files, else the weights; else the paper's."""
    shape, window = volume_shape(SYNTHETIC_SIZE if options["synthetic"] else USUAL_SIZE), (-1000.0, 1000.0)
    if options["pretrained"] != "none" and (stated := inspect_checkpoint(options["pretrained"]).preprocessing):
        shape, window = tuple(stated["shape"]), tuple(stated["window_hu"])
    asked, root = int(options["image_size"]), Path(options["data_root"])
    if options["data_root"] not in NO_ROOT and is_prepared(root, "ct_rate"):
        shape = prepared_shape(root, "ct_rate")
        if asked and volume_shape(asked) != shape:
            raise ValueError(f"image_size={asked}: the volumes in {root} have {shape} voxels (z, y, x); leave it out")
    return (volume_shape(asked) if asked else shape), window


def adapt(task: Task, options: Mapping[str, Any]) -> Task:
    """The declaration of one `task=`, with volumes of the size and window that the weights were trained on."""
    if options["task"] not in VARIANTS:
        raise ValueError(f"task={options['task']!r}: expected one of {', '.join(VARIANTS)}")
    if options["reconstructions"] not in ("all", "first"):
        raise ValueError(f"reconstructions={options['reconstructions']!r}: expected all or first")
    for name, least, unless in (("image_size", 32, 0), ("val_patients", 1, 1)):
        if options[name] < least and options[name] != unless:
            raise ValueError(f"{name}={options[name]}: must be at least {least}{'' if unless else ', or 0 for the usual one'}")
    variant = VARIANTS[options["task"]]
    shape, window = volume_of(options)
    return dataclasses.replace(
        task,
        kind=variant.kind,
        title=f"CT-RATE: {variant.title}",
        variant=options["task"],
        metric=variant.metric,
        read_cases=partial(read_cases, options=options, shape=shape),
        preprocess=dataclasses.replace(task.preprocess, window=window, size=shape),
        defaults={**task.defaults, **variant.defaults},
        phantom={**task.phantom, **variant.phantom},
        options=options,
    )


TASK = Task(
    folder="CT-RATE",
    title="CT-RATE: 18 findings, zero-shot, retrieval (task=probe, full, prompts, zero_shot, retrieval, labeller)",
    kind="labels",
    read_cases=read_cases,
    outputs=LABELS,
    metric="auroc",
    preprocess=Preprocess(window=(-1000.0, 1000.0)),
    augment=Augment(noise=0.3, noise_deviation=0.02, intensity_shift=0.3, intensity_factor=0.05),
    folds=1,
    defaults={"cache": "none", "num_workers": 4},
    phantom={"num_workers": 0, "batch_size": 4, "warmup_epochs": 0, "cache": "memory"},
    expected={"test": 3001},
    options=OPTIONS,
    adapt=adapt,
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(run(TASK, sys.argv[1:]))
