"""Which study is drawn at which step, as a closed-form function of the position: there is no state to save or restore.

A position gives the same study and the same random draws for any number of ranks, workers and restarts.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

EPOCH, BLOCK = 0, 1
"""Last element of the seed: order of the studies in an epoch, order of the data sets in a block."""


class DrawIndex(NamedTuple):
    """A study at a position of the training sequence; the index type of `MixtureDataset`."""

    dataset: int
    study: int
    seed: tuple[int, ...]
    """Seed of every random draw for this sample: (run seed, epoch of its data set, position)."""


class MixtureSequence:
    """Endless random sequence of the studies of several data sets.

    A block has as many positions as there are studies. Each data set gets a fixed number of them (by size or by `weights`), in
    random order; within a data set, every study occurs once per epoch, in a new random order each epoch.

    Args:
        sizes: number of studies of each data set.
        weights: sampling weight of each data set; empty = by size.
        seed: seed of all orders.
    """

    def __init__(self, sizes: Sequence[int], *, weights: Sequence[float] = (), seed: int) -> None:
        self.sizes, self.seed = tuple(sizes), seed
        self.block = sum(self.sizes)
        fractions = np.array(weights if len(weights) else sizes, dtype=float)
        if self.block == 0 or fractions.sum() <= 0 or (fractions < 0).any():
            raise ValueError(f"data sets of {list(sizes)} studies cannot be mixed with weights {list(weights)}")
        if any(size == 0 and fraction > 0 for size, fraction in zip(self.sizes, fractions, strict=True)):
            raise ValueError(f"a data set has no studies (sizes {list(sizes)}). Remove it from `datasets`")
        edges = np.round(np.cumsum(fractions) / fractions.sum() * self.block).astype(int)
        self.quotas = tuple(np.diff(edges, prepend=0).tolist())

    def __getitem__(self, position: int) -> DrawIndex:
        """The draw at a position >= 0."""
        block, offset = divmod(position, self.block)
        datasets, counts = _block_order(self.quotas, self.seed, block)
        dataset = int(datasets[offset])
        epoch, index = divmod(block * self.quotas[dataset] + int(counts[offset]), self.sizes[dataset])
        study = int(_epoch_order(self.sizes[dataset], (self.seed, dataset, epoch, EPOCH))[index])
        return DrawIndex(dataset, study, (self.seed, epoch, position))


@lru_cache(maxsize=4)
def _block_order(quotas: tuple[int, ...], seed: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """(data set at each position of a block, number of earlier positions of that data set in the block)."""
    datasets = np.random.default_rng([seed, block, BLOCK]).permutation(np.repeat(np.arange(len(quotas)), quotas))
    counts = np.zeros(len(datasets), dtype=np.int64)
    for dataset in range(len(quotas)):
        counts[datasets == dataset] = np.arange((datasets == dataset).sum())
    return datasets, counts


@lru_cache(maxsize=16)
def _epoch_order(size: int, seed: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).permutation(size)


class TrainBatchSampler(Sampler[list[DrawIndex]]):
    """This rank's part of every global micro-batch, endless, starting at micro-batch `start`."""

    def __init__(self, sequence: MixtureSequence, *, batch_size: int, rank: int, world_size: int, start: int = 0) -> None:
        self.sequence, self.start = sequence, start
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size

    def __iter__(self) -> Iterator[list[DrawIndex]]:
        step = self.start
        while True:
            first = (step * self.world_size + self.rank) * self.batch_size
            yield [self.sequence[position] for position in range(first, first + self.batch_size)]
            step += 1


class ValBatchSampler(Sampler[list[DrawIndex]]):
    """All studies with fixed seeds; every rank gets the same number of batches and an incomplete last batch is dropped."""

    def __init__(self, sizes: Sequence[int], *, batch_size: int, rank: int, world_size: int, seed: int) -> None:
        studies = [(dataset, study) for dataset, size in enumerate(sizes) for study in range(size)]
        # shuffled once, so that the first few batches already contain every data set
        order = np.random.default_rng([seed, EPOCH]).permutation(len(studies))
        self.draws = [DrawIndex(*studies[index], (seed, 0, position)) for position, index in enumerate(order)]
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size

    def __len__(self) -> int:
        return max(1, len(self.draws) // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[DrawIndex]]:
        for step in range(len(self)):
            first = (step * self.world_size + self.rank) * self.batch_size
            yield [self.draws[position % len(self.draws)] for position in range(first, first + self.batch_size)]
