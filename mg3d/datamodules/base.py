"""The data module of one data set, and its loaders."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from mg3d.datamodules.sampler import DrawIndex, MixtureSequence, TrainBatchSampler, ValBatchSampler
from mg3d.datasets.arrow import VolumeIndex, open_index
from mg3d.datasets.collate import Collator
from mg3d.datasets.negatives import TextNegatives
from mg3d.datasets.storage import Storage
from mg3d.datasets.studies import ReportText, Studies
from mg3d.datasets.windowing import sample_intensities
from mg3d.distributed import rank, world_size
from mg3d.sentence_spans import SpanKind
from mg3d.settings.schema import AugmentSettings, volume_shape
from mg3d.types import Batch, Sample


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """How studies are read."""

    shape: tuple[int, int, int]
    """Voxels (z, y, x) that the model expects."""
    window_hu: tuple[float, float]
    """HU mapped to 0 and 1."""
    text_unit: SpanKind
    needs_reports: bool = True
    """Exclude studies without a report."""
    shuffle_seed: int | None = None
    """Pair every training volume with another patient's report; None = its own."""


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """How batches are loaded."""

    batch_size: int
    """Volumes per rank and micro-batch."""
    num_workers: int
    """Loader processes per rank."""
    seed: int
    """Seed of every random draw."""
    collator: Mapping[str, Any]
    """Arguments of `Collator`, except the tokenizer, augmentation and negatives."""
    augmentation: AugmentSettings | None = None
    """Random transforms of training volumes; None = none."""
    text_negatives: int = 0
    """Extra report negatives per training volume; needs `text_features` in `collator`."""


class MixtureDataset(Dataset[Sample]):
    """Samples of several data sets, indexed by `DrawIndex`."""

    def __init__(self, parts: Sequence[Studies]) -> None:
        self.parts = tuple(parts)

    def __getitem__(self, index: DrawIndex) -> Sample:
        return self.parts[index.dataset].sample(index.study, index.seed)


class StudyDataModule(pl.LightningDataModule):
    """Training and validation batches of one data set; a subclass sets `dataset`.

    `tokenizer` must be set before the first batch; it may be trained on `training_reports` first.

    Raises:
        FileNotFoundError, ValueError: files are missing, empty or of another volume size.
    """

    dataset: ClassVar[str]

    def __init__(
        self, storage: Storage, studies: StudyOptions, loader: LoaderOptions, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        super().__init__()
        reading = {"text_unit": studies.text_unit, "window_hu": studies.window_hu, "with_report": studies.needs_reports}
        train, val = (_open(storage, self.dataset, split, studies.shape) for split in ("train", "val"))
        self.names = (self.dataset,)
        self.train_parts = [Studies(train, shuffle_seed=studies.shuffle_seed, **reading)]
        self.val_parts = [Studies(val, **reading)]
        if not len(self.train_parts[0]):
            raise ValueError(
                f"{train.path} has volumes but no reports, which all objectives except mim need. Set the weights of the other "
                f"objectives to 0 to train on volumes alone, or remove {self.dataset} from `datasets`"
            )
        self._configure(loader, tokenizer)

    def _configure(self, loader: LoaderOptions, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self.options, self.tokenizer = loader, tokenizer
        self.weights: tuple[float, ...] = ()
        self.start_step = 0
        """Micro-batches already consumed by the run that is resumed."""

    @property
    def validates(self) -> bool:
        """Whether there are validation studies; the published split of CT-RATE has none."""
        return any(len(part) for part in self.val_parts)

    @property
    def recipes(self) -> dict[str, dict[str, Any] | None]:
        """Preprocessing of the training volumes of each data set, see `VolumeIndex.recipe`."""
        return {name: part.index.recipe for name, part in zip(self.names, self.train_parts, strict=True)}

    def summary(self) -> str:
        """Numbers of studies, as one line."""
        return ", ".join(
            f"{name}: {len(train):,} training and {len(val):,} validation studies"
            + (f" ({train.excluded_volumes:,} training volumes without a report excluded)" if train.excluded_volumes else "")
            for name, train, val in zip(self.names, self.train_parts, self.val_parts, strict=True)
        )

    def training_reports(self, most: int | None = None) -> list[ReportText]:
        """Reports of the training split; with `most`, of the first `most` studies of each data set."""
        return [part.report(study) for part in self.train_parts for study in range(min(len(part), most or len(part)))]

    def training_volumes(self, most: int) -> Iterator[np.ndarray]:
        """About `most` training volumes, float32 [1, D, H, W] in [0, 1], the first ones of each data set in proportion."""
        total = sum(len(part) for part in self.train_parts)
        for part in self.train_parts:
            for study in range(min(len(part), -(-most * len(part) // total))):
                yield sample_intensities(part.sample(study))

    def train_dataloader(self) -> DataLoader[Batch]:
        """Endless loader of this rank's micro-batches, starting at `start_step`."""
        options = self.options
        sequence = MixtureSequence([len(part) for part in self.train_parts], weights=self.weights, seed=options.seed)
        ranks = {"batch_size": options.batch_size, "rank": rank(), "world_size": world_size()}
        sampler = TrainBatchSampler(sequence, start=self.start_step, **ranks)
        return self._loader(self.train_parts, sampler, self.collator(options.augmentation, negatives=self._negatives()))

    def val_dataloader(self) -> DataLoader[Batch]:
        """Loader of this rank's validation batches; no augmentation, no extra negatives."""
        ranks = {"batch_size": self.options.batch_size, "rank": rank(), "world_size": world_size()}
        sampler = ValBatchSampler([len(part) for part in self.val_parts], seed=self.options.seed, **ranks)
        return self._loader(self.val_parts, sampler, self.collator())

    def collator(self, augmentation: AugmentSettings | None = None, *, negatives: TextNegatives | None = None) -> Collator:
        """The collator of these options."""
        if self.tokenizer is None:
            raise ValueError("the data module has no tokenizer. Set its attribute `tokenizer` before loading batches")
        # Losses gather sentences from all ranks in tensors of one shape.
        sentences = max(part.max_sentences for part in (*self.train_parts, *self.val_parts)) if world_size() > 1 else 1
        drawn = {"augmentation": augmentation, "negatives": negatives, "min_sentences": max(sentences, 1)}
        return Collator(self.tokenizer, **drawn, **self.options.collator)

    def _negatives(self) -> TextNegatives | None:
        count, collator = self.options.text_negatives, self.options.collator
        if count == 0:
            return None
        text = {"features": collator["text_features"], "max_text_len": collator["max_text_len"], "tokenizer": self.tokenizer}
        return TextNegatives(self.train_parts, count=count, **text)

    def _loader(
        self, parts: Sequence[Studies], sampler: TrainBatchSampler | ValBatchSampler, collator: Collator
    ) -> DataLoader[Batch]:
        workers = self.options.num_workers
        return DataLoader(
            MixtureDataset(parts),
            batch_sampler=sampler,
            collate_fn=collator,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


def _open(storage: Storage, dataset: str, split: str, shape: tuple[int, int, int]) -> VolumeIndex:
    index = open_index(storage, dataset, split)
    index.open_shards()
    if len(index) == 0 and split == "train":
        raise ValueError(f"{index.path} has no volumes. Rerun prepro/prepro_pretraining_data.py")
    if len(index) and index.shape != shape:
        depth, sides = index.shape[0], ",".join(map(str, index.shape))
        setting = f"image_size={depth}" if index.shape == volume_shape(depth) else f"volume_size='[{sides}]'"
        raise ValueError(
            f"{index.path} contains volumes of {index.shape} voxels (z, y, x), but the settings require {shape}. Set {setting} "
            f"or rerun the preparation with --image-size {shape[0]}"
        )
    return index
