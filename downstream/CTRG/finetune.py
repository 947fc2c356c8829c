"""CTRG-Chest-548K: the findings section of a report from the scan; see README.md."""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from pydantic import NonNegativeInt, PositiveInt, model_validator

from mg3d.finetune.cases import FinetuneCase
from mg3d.finetune.distributed import info
from mg3d.finetune.images import reversed_slices, slice_files
from mg3d.finetune.run import run
from mg3d.finetune.settings import FinetuneSettings, Size
from mg3d.finetune.task import DownstreamTask, protocol
from mg3d.settings.schema import CROP

if TYPE_CHECKING:
    from mg3d.finetune.tasks.base import TaskType

NIFTI_LIST = "chest_ctrg_nitfy_ori_split.json"
FOLDS = 10
"""A tenth of the training cases is used for validation."""
GENERATION = (
    "tokenizer", "max_tokens", "decoder_width", "decoder_layers", "decoder_heads", "num_beams", "no_repeat_ngram_size",
    "labeller",
)  # fmt: skip
"""CTRGSettings that `ReportGeneration` takes."""


class CTRGSettings(FinetuneSettings):
    """Settings of CTRG."""

    tokenizer: Literal["m2kt", "lossless"] = "m2kt"
    """m2kt (published): lower case, no punctuation, words that occur 3 times. lossless: subwords with case and numbers."""
    max_tokens: NonNegativeInt = 0
    """Maximum tokens per report; longer references are truncated. 0: 150 (m2kt) or 300 (lossless)."""
    num_beams: PositiveInt = 3
    """Beams of the beam search."""
    no_repeat_ngram_size: NonNegativeInt = 3
    """No n-gram of this size occurs twice in a generated report; 0 = off."""
    decoder_width: PositiveInt = 512
    """Width of the report decoder."""
    decoder_layers: PositiveInt = 3
    """Layers of the report decoder."""
    decoder_heads: PositiveInt = 8
    """Attention heads of the report decoder; must divide decoder_width."""
    labeller: str = ""
    """Labeller for the clinical scores: folder of a CT-RATE run with task=labeller, cues, chexbert, or radbert_ct:FOLDER."""
    center_crop_fraction: tuple[float, float, float] = CROP
    """Central fraction (z, y, x) of a scan that is used; volumes of the pre-training preparation are cropped already."""
    image_size: Size = (128, 96, 128)
    """Voxels (z, y, x) of the network's input."""

    @model_validator(mode="after")
    def _check_decoder(self) -> "CTRGSettings":
        if self.decoder_width % self.decoder_heads:
            raise ValueError(f"decoder_heads={self.decoder_heads} does not divide decoder_width={self.decoder_width}")
        if 0 < self.max_tokens < 3:
            raise ValueError(f"max_tokens={self.max_tokens}: expected at least 3, or 0")
        return self


def read_cases(root: Path, settings: CTRGSettings) -> list[FinetuneCase]:
    """Cases of slices or NIfTI files with their list, or of Arrow files of the pre-training preparation."""
    from mg3d.finetune.prepared import is_prepared
    from mg3d.metrics.captions import tokenize

    cases = read_arrow_files(root) if is_prepared(root, "ctrg") else read_listed(root, seed=settings.seed)
    with_findings = [case for case in cases if tokenize(case.report)]
    if len(with_findings) < len(cases):
        info(f"excluded {len(cases) - len(with_findings)} of {len(cases)} cases, whose report has no findings")
    return with_findings


def read_arrow_files(root: Path) -> list[FinetuneCase]:
    """The split of a prepared folder: fold 0 validates on its validation split."""
    from mg3d.datasets.arrow import VolumeIndex
    from mg3d.finetune.prepared import read_prepared_cases

    cases = read_prepared_cases(root, "ctrg")
    findings = {path: VolumeIndex(path).table["findings"].to_pylist() for path in {case.image.file for case in cases}}
    return [dataclasses.replace(case, target=(), report=findings[case.image.file][case.image.row] or "") for case in cases]


def read_listed(root: Path, *, seed: int) -> list[FinetuneCase]:
    """A tenth of the training cases by seed is fold 0; every case that is not in training only is a test case.

    Cases are named by their number or their index in the list, because names of folders may be names of patients.
    """
    import numpy as np

    from mg3d.preparation.sources.ctrg import case_folder, find_case, is_nifti, read_annotation

    annotation = find_list(root)
    splits: dict[PurePosixPath, str] = {}
    items: dict[PurePosixPath, Mapping[str, Any]] = {}
    for split, listed in read_annotation(annotation).items():
        for item in listed:
            folder = case_folder(item)
            items.setdefault(folder, item)
            splits[folder] = split if splits.get(folder, split) == split == "train" else "test"
    cases = []
    for index, (folder, item) in enumerate(items.items()):
        number = str(item.get("id", "")).removesuffix(".gz").removesuffix(".nii")
        name = number if number.isdigit() else f"index{index}"
        path = find_case(root, folder)
        if path is None:
            continue
        image = path if is_nifti(path) else slice_files(path.iterdir())[::-1]
        report = item.get("report", item.get("findings")) or ""
        cases.append(FinetuneCase(case_id=name, patient_id=name, image=image, report=report, split=splits[folder]))
    if not cases:
        raise FileNotFoundError(f"none of the {len(items)} scans of {annotation} is in {root}")
    if len(cases) < len(items):
        info(f"excluded {len(items) - len(cases)} of {len(items)} scans of {annotation.name}, which are not in {root}")
    training = sorted(case.case_id for case in cases if case.split == "train")
    order = np.random.default_rng(seed).permutation(len(training))
    folds = {name: int(position) % FOLDS for name, position in zip(training, order, strict=True)}
    return [dataclasses.replace(case, fold=folds.get(case.case_id, case.fold)) for case in cases]


def find_list(root: Path) -> Path:
    """The list of the NIfTI form if its scans are there, else the one that `find_annotation` finds."""
    from mg3d.preparation.sources.ctrg import case_folder, find_annotation, find_case, read_annotation

    path = root / NIFTI_LIST
    listed = [item for items in read_annotation(path).values() for item in items[:10]] if path.is_file() else []
    return path if any(find_case(root, case_folder(item)) for item in listed) else find_annotation(root)


def build(settings: CTRGSettings) -> "TaskType":
    """Report generation."""
    from mg3d.finetune import transforms as t
    from mg3d.finetune.tasks.report import ReportGeneration

    return ReportGeneration(
        settings,
        preprocess=[
            t.window(0, 255),
            t.CenterCropRaw(settings.center_crop_fraction),
            t.resize(settings.image_size),
        ],
        superior_first=True,
        prepare_scan=reversed_slices,
        **{name: getattr(settings, name) for name in GENERATION},
    )


TASK = DownstreamTask(
    folder="CTRG",
    title="CTRG-Chest: report generation",
    settings=CTRGSettings,
    read_cases=read_cases,
    build=build,
    folds=FOLDS,
    defaults=protocol(
        {"epochs": 30, "batch_size": 2, "learning_rate": 1e-4, "encoder_lr_multiplier": 0.5, "schedule": "step",
         "weight_decay": 5e-5, "dropout": 0.1},
        {"image_size": (48, 36, 48), "epochs": 15, "batch_size": 4, "learning_rate": 1e-3, "encoder_lr_multiplier": 1.0,
         "schedule": "constant", "num_workers": 0, "decoder_width": 96, "decoder_heads": 4, "decoder_layers": 2},
    ),
    expected=lambda settings: {"train": 1444, "test": 360},
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(run(TASK, sys.argv[1:]))
