"""The mixture of data sets that pre-training reads."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from mg3d.datamodules.sampler import Draw, Stream, TrainBatchSampler, ValBatchSampler
from mg3d.datasets.arrow import VolumeIndex, open_index
from mg3d.datasets.collate import Collator
from mg3d.datasets.negatives import TextNegatives
from mg3d.datasets.storage import Storage
from mg3d.datasets.studies import ReportText, Studies
from mg3d.datasets.text_cache import TextCache
from mg3d.datasets.windowing import sample_intensities
from mg3d.distributed import rank, world_size
from mg3d.sentence_spans import UnitKind
from mg3d.settings.schema import AugmentSettings, volume_shape
from mg3d.types import Batch, Sample


class MixtureDataset(Dataset[Sample]):
    """Samples of several data sets, asked for by `Draw`."""

    def __init__(self, parts: Sequence[Studies]) -> None:
        self.parts = tuple(parts)

    def __getitem__(self, draw: Draw) -> Sample:
        return self.parts[draw.dataset].sample(draw.study, draw.seed)


class MultiTaskDataModule(pl.LightningDataModule):
    """Training and validation batches of one or several data sets.

    Args:
        storage: where the index files and shards lie.
        datasets: data sets to mix, names of `schema.DATASETS`.
        dataset_weights: share of each in the draws; empty = by number of studies.
        shape: voxels (z, y, x) that the model expects.
        window_hu: HU that become 0 and 1.
        text_unit: what counts as one sentence.
        shuffle_pairs: pair every training volume with another patient's report.
        needs_reports: studies without a report cannot be trained on, and are left out.
        tokenizer: may be set later, but before the first batch.
        text_negatives: reports of other training studies that are drawn for every training volume; needs `text_features`.
        changes: how training volumes are changed at random; None = not at all.
        per_gpu_batchsize: volumes per rank and pass.
        num_workers: loader processes per rank.
        seed: seed of every draw.

    The other arguments are the collator's.
    """

    def __init__(
        self,
        *,
        storage: Storage,
        datasets: Sequence[str],
        dataset_weights: Sequence[float],
        shape: tuple[int, int, int],
        window_hu: tuple[float, float],
        text_unit: UnitKind,
        shuffle_pairs: bool,
        needs_reports: bool = True,
        tokenizer: PreTrainedTokenizerBase | None,
        max_text_len: int,
        mim_patch_size: int,
        mim_mask_ratio: float,
        mlm_probability: float,
        sentence_views: int,
        negated_view_fraction: float,
        pad_to_max_length: bool = False,
        text_features: TextCache | None = None,
        text_negatives: int = 0,
        changes: AugmentSettings | None = None,
        per_gpu_batchsize: int,
        num_workers: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.start_step = 0
        """Passes already done, when a run goes on."""
        self.changes, self.text_negatives = changes, text_negatives
        self.batch_size, self.num_workers, self.seed = per_gpu_batchsize, num_workers, seed
        self.weights = tuple(dataset_weights)
        self.collator_options = {
            "max_text_len": max_text_len,
            "mim_patch_size": mim_patch_size,
            "mim_mask_ratio": mim_mask_ratio,
            "mlm_probability": mlm_probability,
            "sentence_views": sentence_views,
            "negated_view_fraction": negated_view_fraction,
            "pad_to_max_length": pad_to_max_length,
            "text_features": text_features,
        }
        reading = {"text_unit": text_unit, "window_hu": window_hu, "with_report": needs_reports}
        self.datasets = tuple(datasets)
        self.train_parts = [
            Studies(_open(storage, name, "train", shape), shuffle_seed=seed if shuffle_pairs else None, **reading)
            for name in datasets
        ]
        self.val_parts = [Studies(_open(storage, name, "val", shape), **reading) for name in datasets]
        for name, part in zip(self.datasets, self.train_parts, strict=True):
            if len(part) == 0:
                raise ValueError(
                    f"{part.index.path} has volumes but no report, which all objectives but weight_mim need: set the weights of "
                    f"mlm, sal, cml, dcl and ssm to 0 to train on its volumes alone, or leave {name} out of `datasets`"
                )

    @property
    def validates(self) -> bool:
        """Whether there is a study to validate on; the published split of CT-RATE has none."""
        return any(len(part) for part in self.val_parts)

    @property
    def recipes(self) -> dict[str, dict[str, Any] | None]:
        """How the training volumes of each data set were prepared, see `VolumeIndex.recipe`."""
        return {name: part.index.recipe for name, part in zip(self.datasets, self.train_parts, strict=True)}

    def summary(self) -> str:
        """What is trained and validated on, in one sentence."""
        parts = [
            f"{name} {len(train):,} studies to train and {len(val):,} to validate{_left_out(train)}"
            for name, train, val in zip(self.datasets, self.train_parts, self.val_parts, strict=True)
        ]
        return ", ".join(parts)

    def training_reports(self, most: int | None = None) -> list[ReportText]:
        """The reports of (the first `most` studies of each data set of) the training split."""
        return [part.report(study) for part in self.train_parts for study in range(min(len(part), most or len(part)))]

    def training_volumes(self, most: int) -> Iterator[np.ndarray]:
        """Volumes float32 [1, D, H, W] in [0, 1] of the first training studies of every set, about `most`, in proportion."""
        everything = sum(len(part) for part in self.train_parts)
        for part in self.train_parts:
            for study in range(min(len(part), -(-most * len(part) // everything))):
                yield sample_intensities(part.sample(study))

    def train_dataloader(self) -> DataLoader[Batch]:
        """An endless loader of this rank's batches, from pass `start_step` on."""
        stream = Stream([len(part) for part in self.train_parts], weights=self.weights, seed=self.seed)
        share = {"batch_size": self.batch_size, "rank": rank(), "world_size": world_size()}
        batches = TrainBatchSampler(stream, start=self.start_step, **share)
        return self._loader(self.train_parts, batches, self.collator(self.changes, negatives=self._negatives()))

    def val_dataloader(self) -> DataLoader[Batch]:
        """A loader of this rank's validation batches."""
        sizes = [len(part) for part in self.val_parts]
        batches = ValBatchSampler(sizes, batch_size=self.batch_size, rank=rank(), world_size=world_size(), seed=self.seed)
        return self._loader(self.val_parts, batches, self.collator())

    def _negatives(self) -> TextNegatives | None:
        if self.text_negatives == 0:
            return None
        of = {"features": self.collator_options["text_features"], "max_text_len": self.collator_options["max_text_len"]}
        return TextNegatives(self.train_parts, count=self.text_negatives, tokenizer=self.tokenizer, **of)

    def collator(self, changes: AugmentSettings | None = None, *, negatives: TextNegatives | None = None) -> Collator:
        """What makes a batch of samples, with volumes as they are or changed at random, and with further reports or without."""
        if self.tokenizer is None:
            raise ValueError("the data module has no tokenizer yet; set its attribute `tokenizer` before asking for batches")
        return Collator(self.tokenizer, changes=changes, negatives=negatives, **self.collator_options)

    def _loader(
        self, parts: Sequence[Studies], batches: TrainBatchSampler | ValBatchSampler, collator: Collator
    ) -> DataLoader[Batch]:
        return DataLoader(
            MixtureDataset(parts),
            batch_sampler=batches,
            collate_fn=collator,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


def _left_out(part: Studies) -> str:
    rows = len(part.index) - part.rows_read
    return f" ({rows:,} training volumes without a report left out)" if rows else ""


def _open(storage: Storage, dataset: str, split: str, shape: tuple[int, int, int]) -> VolumeIndex:
    index = open_index(storage, dataset, split)
    index.open_shards()
    if len(index) == 0 and split == "train":
        raise ValueError(f"{index.path} has no volume; make it anew with prepro/prepro_pretraining_data.py")
    if len(index) and index.shape != shape:
        depth, size = index.shape[0], ",".join(map(str, index.shape))
        raise ValueError(
            f"{index.path} holds volumes of {index.shape} voxels (z, y, x), the settings ask for {shape}; set "
            + (f"image_size={depth}" if index.shape == volume_shape(depth) else f"volume_size='[{size}]'")
            + f" or prepare the data anew with --image-size {shape[0]}"
        )
    return index
