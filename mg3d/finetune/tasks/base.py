"""The interface between a task type and the training loop."""

import abc
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from monai import transforms as mt
from torch import Tensor, nn
from torch.utils.data import Dataset

from mg3d.finetune.cases import FinetuneCase, Source, Split
from mg3d.finetune.data_check import InspectedFiles
from mg3d.finetune.dataset import CaseDataset, Draw, class_balanced, collate, shuffled
from mg3d.finetune.settings import FinetuneSettings
from mg3d.finetune.transforms import ReadCase, Sample, plain_tensors
from mg3d.models.vision.registry import VisionEncoder

Row = dict[str, Any]
LAST_EPOCH = "epoch"
"""Selects the checkpoint of the last epoch."""


class TaskType(abc.ABC):
    """Network, loss, predictions and scores of one type of task.

    Predictions are tables with one row per case (or candidate). Every score is computed from such a table, so runs can be scored,
    pooled over folds and compared from their CSV files alone.

    Args:
        outputs: classes, labels, or structures of the label values 1, 2, ...
        metric: score that selects the best epoch; larger is better.
        preprocess: deterministic transforms after reading and orienting (see `mg3d.finetune.transforms`).
        crop: transforms that cut training patches.
        augment: random transforms of training samples.
        channel: which channel of a multi-channel file is read.
        superior_first: slices of a NIfTI file with a blank header run from superior to inferior.
        prepare_scan: image source of a new scan -> the source that is read, for mode=predict.
    """

    reads_masks = False
    reads_pyramid = False
    """Whether the network reads all maps of the encoder, or `encode` alone."""
    uses_encoder = True
    samples_share_scans = False
    """Several samples are cut from one scan, so that they are best read by one process."""
    uses_sgd = True
    """False for tasks with a closed-form fit (`fit_closed_form`) or without parameters to train."""
    eval_batch_size: int | None = 1
    """1 because scans differ in size; None uses the training batch size."""

    def __init__(
        self,
        settings: FinetuneSettings,
        *,
        outputs: Sequence[str],
        metric: str,
        preprocess: Sequence[mt.Transform] = (),
        crop: Sequence[mt.Transform] = (),
        augment: Sequence[mt.Transform] = (),
        channel: int | None = None,
        superior_first: bool = False,
        prepare_scan: Callable[[Source], Source] | None = None,
    ) -> None:
        self.settings, self.outputs, self.metric = settings, tuple(outputs), metric
        self.selection = LAST_EPOCH if settings.select == "last" else metric
        self.preprocess, self.crop, self.augment = list(preprocess), list(crop), list(augment)
        self.channel, self.superior_first, self.prepare_scan = channel, superior_first, prepare_scan

    @abc.abstractmethod
    def network(self, encoder: VisionEncoder | None) -> nn.Module:
        """The network around an encoder, which becomes its submodule `encoder`."""

    def loss(self, network: nn.Module, batch: Sample) -> Tensor:
        """The loss of a training batch."""
        raise NotImplementedError(f"{type(self).__name__} is not trained by gradient descent")

    @abc.abstractmethod
    def rows(self, network: nn.Module, batch: Sample, *, mask_folder: Path | None = None) -> list[Row]:
        """Predictions of an evaluation batch, with the ground truth if it is known; writes predicted masks to `mask_folder`."""

    def validation_rows(self, network: nn.Module, batch: Sample) -> list[Row]:
        """As `rows`, limited to what `metric` needs."""
        return self.rows(network, batch)

    @abc.abstractmethod
    def statistics(self, table: pd.DataFrame, dev: pd.DataFrame | None = None) -> dict[str, float]:
        """All scores of a table; nan where a score is undefined.

        dev: predictions on the validation cases, which thresholds are chosen on.
        """

    def figures(self, table: pd.DataFrame) -> list[tuple[str, Figure]]:
        """(title, figure) for the results page."""
        return []

    def file_error(self, file: Mapping[str, Any]) -> str:
        """Why a case cannot be used, from what `inspect_files` found in its files; empty if it can."""
        return ""

    def setup(self, split: Split, files: InspectedFiles) -> None:  # noqa: B027
        """Checks the cases (ValueError) and reads from the training cases what the network needs, such as a vocabulary."""

    def fit_closed_form(self, network: nn.Module, split: Split, folder: Path) -> None:  # noqa: B027
        """Sets the parameters of a task without SGD; `folder` keeps expensive intermediate results."""

    def finish(self, table: pd.DataFrame) -> pd.DataFrame:
        """Completes the table of a whole split, where a row depends on others."""
        return table

    def state(self) -> dict[str, Any]:
        """What `network` depends on in addition to the settings, as builtins for the checkpoint."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """The inverse of `state`."""

    def read(self, *, with_masks: bool) -> Callable[[FinetuneCase], Sample]:
        """Case -> preprocessed sample, in training and evaluation."""
        reader = ReadCase(masks=with_masks, channel=self.channel, superior_first=self.superior_first)
        return mt.Compose([reader, *self.preprocess, plain_tensors()])

    def training_data(self, cases: Sequence[FinetuneCase]) -> tuple[Dataset, Draw]:
        """Training samples, and which of them an epoch draws."""
        data = CaseDataset(
            cases,
            self.read(with_masks=self.reads_masks),
            random=self.random_transforms(),
            seed=self.settings.seed,
            cache_bytes=self._cache_bytes(0.75),
        )
        draw = class_balanced([case.target for case in cases]) if self.settings.balanced_sampling else shuffled(len(cases))
        return data, draw

    def collate(self, samples: Sequence[Any]) -> Sample:
        """A batch of samples."""
        return collate(samples)

    def random_transforms(self) -> mt.Compose:
        """Training patches and, unless augment=false, augmentation."""
        return mt.Compose([*self.crop, *(self.augment if self.settings.augment else ()), plain_tensors()])

    def evaluation_data(self, cases: Sequence[FinetuneCase], *, collect_errors: bool = False) -> Dataset:
        """Evaluation samples in order, one per case."""
        return CaseDataset(
            cases,
            self.read(with_masks=False),
            cache_bytes=0 if collect_errors else self._cache_bytes(0.25),
            collect_errors=collect_errors,
        )

    def _cache_bytes(self, fraction: float) -> float:
        """Memory of one loader process for a fraction of the cache."""
        return fraction * 1e9 * self.settings.cache_gb / max(1, self.settings.num_workers)

    def components(self, score: str) -> list[str]:
        """Scores of single outputs whose mean a score is, by name; those that `statistics` does not have are ignored."""
        return [f"{score.removeprefix('macro_')}/{output}" for output in self.outputs]

    def support_mask(self, table: pd.DataFrame, score: str) -> np.ndarray:
        """bool [rows]: the rows that a score depends on."""
        return np.ones(len(table), dtype=bool)

    def insufficient_reason(self, table: pd.DataFrame, score: str) -> str:
        """Why a score has no interval, such as `too few positives (1)`; empty if it has one."""
        return ""

    def for_prediction(self, cases: Sequence[FinetuneCase], where: Path) -> list[FinetuneCase]:
        """New scans with everything that a prediction reads; `where` is the input path."""
        if self.prepare_scan is None:
            return list(cases)
        return [dataclasses.replace(case, image=self.prepare_scan(case.image)) for case in cases]

    def averaged(self, function: Callable[[Tensor], Tensor], volume: Tensor, *, flip_back: bool = False) -> Tensor:
        """`function(volume)`, with tta=true averaged over all mirrored copies; flip_back: for voxel-wise results."""
        if not self.settings.tta:
            return function(volume)
        results = []
        for axes in (axes for count in range(4) for axes in itertools.combinations((2, 3, 4), count)):
            result = function(volume.flip(axes))
            results.append(result.flip(axes) if flip_back else result)
        return torch.stack(results).mean(0)
