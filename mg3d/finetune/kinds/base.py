"""What every kind of task offers to the training loop."""

import abc
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from monai import transforms as mt
from monai.utils import convert_to_tensor
from torch import Tensor, nn
from torch.utils.data import Dataset

from mg3d.finetune.cases import Case, Parts
from mg3d.finetune.pictures import upwards
from mg3d.finetune.pipeline import OURS, CaseDataset, ReadCase, Sample, balanced, fixed_steps, random_steps, shuffled
from mg3d.finetune.settings import FinetuneSettings
from mg3d.finetune.task import Task
from mg3d.metrics.bootstrap import bootstrap_intervals
from mg3d.models.vision.registry import VisionEncoder

Draw = Callable[[np.random.Generator], np.ndarray]
Row = dict[str, Any]


class Score(NamedTuple):
    """A number of a results' table."""

    name: str
    value: float
    low: float
    high: float
    """95 % bootstrap interval over patients; nan with too few positives or negatives (`insufficient_reason`)."""
    cases: int
    """Cases (candidates, scans) that it rests on: those whose truth is known, and whom it is asked of."""
    patients: int
    """Of whom they are."""


class Kind(abc.ABC):
    """One kind of task. Tables have one row per case (or candidate) with `case_id` and `patient_id`.

    Everything that a score needs is in the table, so that a run is scored, pooled over folds and compared with another from its
    CSV files alone.
    """

    reads_masks = False
    evaluation_size: int | None = 1
    """Samples of an evaluation batch: one, as scans differ in size; None = as many as of a training batch."""
    by_steps = True
    """Trained by gradient steps; else `settle` finds the weights, or there is nothing to find."""

    def __init__(self, task: Task, settings: FinetuneSettings) -> None:
        self.task, self.settings = task, settings
        self.memory = Path(settings.log_dir) / task.name / "files.json"  # what was found in files when they were first read
        self.notes: list[str] = []  # what `network` has to tell the user
        self.axes = OURS if settings.axes == "ours" else task.original_axes

    @abc.abstractmethod
    def network(self, encoder: VisionEncoder) -> nn.Module:
        """The network around an encoder; its encoder is the module `encoder`."""

    @abc.abstractmethod
    def loss(self, network: nn.Module, batch: Sample) -> Tensor:
        """What is made small, of a training batch."""

    @abc.abstractmethod
    def rows(self, network: nn.Module, batch: Sample, *, masks: Path | None = None) -> list[Row]:
        """Predictions of an evaluation batch, beside the truth where it is known; predicted masks go below `masks`."""

    def validation_rows(self, network: nn.Module, batch: Sample) -> list[Row]:
        """As `rows`, with what `task.metric` needs and perhaps nothing else: it is asked for after every few epochs."""
        return self.rows(network, batch)

    @abc.abstractmethod
    def statistics(self, table: pd.DataFrame, dev: pd.DataFrame | None = None) -> dict[str, float]:
        """Every score of a table by name, the one called `task.metric` among them; nan where it is not defined.

        dev: predictions on validation cases, from which thresholds are taken.
        """

    def figures(self, table: pd.DataFrame) -> list[tuple[str, Figure]]:
        """(What it shows, figure) of a table."""
        return []

    def check(self, cases: Sequence[Case]) -> None:  # noqa: B027
        """Refuses cases that would spoil the training, before an epoch is spent: ValueError with the case and what is wrong."""

    def fit(self, cases: Sequence[Case]) -> None:  # noqa: B027
        """Takes from the training cases what the network is built from, such as a vocabulary; most kinds need nothing."""

    def settle(self, network: nn.Module, parts: Parts, *, folder: Path, say: Callable[[str], None]) -> None:  # noqa: B027
        """Finds the weights of a kind that is not trained `by_steps`; `folder` keeps what is dear to compute."""

    def finish(self, table: pd.DataFrame) -> pd.DataFrame:
        """The table of a whole part, where a row needs the others to be told."""
        return table

    def state(self) -> dict[str, Any]:
        """What `fit` took, as builtins that a checkpoint can hold."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """The opposite of `state`."""

    def keys(self) -> list[str]:
        """What of a sample lies on the grid."""
        return ["image", "mask"] if self.reads_masks else ["image"]

    def fixed(self, *, masks: bool) -> Callable[[Case], Sample]:
        """Case -> sample, the same in training and evaluation."""
        keys = ["image", "mask"] if masks else ["image"]
        steps = fixed_steps(self.task.preprocess, keys=keys, axes=self.axes)
        return mt.Compose([ReadCase(masks=masks, channel=self.task.preprocess.channel), *steps, Plain(keys)])

    def patches(self) -> list[mt.Transform]:
        """What cuts training patches out of a volume, before the random changes; nothing where whole volumes are learned from."""
        return []

    def training_data(self, cases: Sequence[Case]) -> tuple[Dataset, Draw]:
        """Training samples, and which are drawn in an epoch."""
        changes = random_steps(self.task.augment, keys=self.keys(), axes=self.axes) if self.settings.augment else []
        data = CaseDataset(
            cases,
            self.fixed(masks=self.reads_masks),
            random=mt.Compose([*self.patches(), *changes, Plain(self.keys())]),
            seed=self.settings.seed,
            keep=self.settings.cache == "memory",
        )
        if self.settings.balance == "classes":
            return data, balanced([case.target for case in cases])
        return data, shuffled(len(cases))

    def evaluation_data(self, cases: Sequence[Case]) -> Dataset:
        """Evaluation samples, one per case, in their order."""
        return CaseDataset(cases, self.fixed(masks=False), keep=self.settings.cache == "memory")

    def scores(self, table: pd.DataFrame, dev: pd.DataFrame | None = None) -> list[Score]:
        """Every score with its interval."""
        patients, named = table["patient_id"].to_numpy(), {"n_bootstrap": self.settings.n_bootstrap, "seed": self.settings.seed}
        intervals = bootstrap_intervals(lambda rows: self.statistics(table.iloc[rows], dev), patients, **named)
        found = []
        for name, value in self.statistics(table, dev).items():
            known, interval = self.rests_on(table, name), intervals.get(name, (float("nan"), float("nan")))
            if self.lacks(table, name):
                interval = (float("nan"), float("nan"))
            found.append(Score(name, value, *interval, int(known.sum()), len(set(patients[known]))))
        return found

    def rests_on(self, table: pd.DataFrame, score: str) -> np.ndarray:
        """bool [rows]: what of a table a score rests on."""
        return np.ones(len(table), dtype=bool)

    def lacks(self, table: pd.DataFrame, score: str) -> str:
        """Why a score of a table has no interval, as `insufficient_reason`; empty where it has one."""
        return ""

    def for_prediction(self, cases: Sequence[Case], where: Path) -> list[Case]:
        """New scans with what else a prediction needs, read at the path that holds them; ValueError or FileNotFoundError."""
        return [upwards(case) if self.task.top_first else case for case in cases]

    def mirrored(self, function: Callable[[Tensor], Tensor], volume: Tensor, *, back: bool = False) -> Tensor:
        """`function` of a volume [B, C, ...], or with `flips` its mean over all mirrored copies.

        back: mirror each result back, for results on the volume's grid.
        """
        if not self.settings.flips:
            return function(volume)
        axes = [axes for count in range(4) for axes in itertools.combinations((2, 3, 4), count)]
        results = [function(volume.flip(axis) if axis else volume) for axis in axes]
        if back:
            results = [result.flip(axis) if axis else result for result, axis in zip(results, axes, strict=True)]
        return torch.stack(results).mean(0)


class Plain(mt.Transform):
    """Tensors without their history, for what never goes back to the file's grid."""

    def __init__(self, keys: Iterable[str]) -> None:
        self.names = tuple(keys)

    def __call__(self, sample: Sample) -> Sample:
        """`image` and `mask` as plain tensors."""
        return sample | {key: convert_to_tensor(sample[key]).contiguous() for key in self.names if key in sample}
