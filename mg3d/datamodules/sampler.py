"""Which study is seen at which position of the training stream: a closed formula, so that nothing needs to be remembered.

Position p of the stream gives the same study and the same draws for any number of ranks, workers and restarts.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

ORDER, BLOCK = 0, 1
"""Last seed word: order of studies within an epoch, order of data sets within a block."""


class Draw(NamedTuple):
    """One element of the stream."""

    dataset: int
    study: int
    seed: tuple[int, ...]
    """Seed words of everything random about it: (seed, epoch of its data set, position)."""


class Stream:
    """An endless mixture of data sets.

    A block is as many positions as there are studies. In it every data set has its share of positions (by size, or by `weights`),
    in random order; within a data set, every study comes once per epoch, in a new random order.

    Args:
        sizes: studies of each data set.
        weights: shares, in the order of `sizes`; empty = by size.
        seed: seed of every order.
    """

    def __init__(self, sizes: Sequence[int], *, weights: Sequence[float] = (), seed: int) -> None:
        self.sizes, self.seed = tuple(sizes), seed
        self.block = sum(self.sizes)
        shares = np.array(weights if len(weights) else sizes, dtype=float)
        if self.block == 0 or shares.sum() <= 0 or (shares < 0).any():
            raise ValueError(f"data sets of {list(sizes)} studies with weights {list(weights)} cannot be mixed")
        if any(size == 0 and share > 0 for size, share in zip(self.sizes, shares, strict=True)):
            raise ValueError(f"one of the data sets has no study (sizes {list(sizes)}); leave it out of `datasets`")
        edges = np.round(np.cumsum(shares) / shares.sum() * self.block).astype(int)
        self.quotas = np.diff(edges, prepend=0)

    def __getitem__(self, position: int) -> Draw:
        """The element at a position from 0."""
        block, place = divmod(position, self.block)
        datasets, turns = _block_order(tuple(self.quotas.tolist()), self.seed, block)
        dataset = int(datasets[place])
        epoch, turn = divmod(block * int(self.quotas[dataset]) + int(turns[place]), self.sizes[dataset])
        study = int(_epoch_order(self.sizes[dataset], (self.seed, dataset, epoch, ORDER))[turn])
        return Draw(dataset, study, (self.seed, epoch, position))


@lru_cache(maxsize=4)
def _block_order(quotas: tuple[int, ...], seed: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Data set of each position of a block, and how often it was drawn in the block before."""
    datasets = np.random.default_rng([seed, block, BLOCK]).permutation(np.repeat(np.arange(len(quotas)), quotas))
    turns = np.zeros(len(datasets), dtype=np.int64)
    for dataset in range(len(quotas)):
        turns[datasets == dataset] = np.arange((datasets == dataset).sum())
    return datasets, turns


@lru_cache(maxsize=16)
def _epoch_order(size: int, words: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(words).permutation(size)


class TrainBatchSampler(Sampler[list[Draw]]):
    """This rank's slice of every global batch of the stream, endless, from pass `start` on."""

    def __init__(self, stream: Stream, *, batch_size: int, rank: int, world_size: int, start: int = 0) -> None:
        self.stream, self.batch_size, self.rank, self.world_size, self.start = stream, batch_size, rank, world_size, start

    def __iter__(self) -> Iterator[list[Draw]]:
        step = self.start
        while True:
            first = (step * self.world_size + self.rank) * self.batch_size
            yield [self.stream[first + place] for place in range(self.batch_size)]
            step += 1


class ValBatchSampler(Sampler[list[Draw]]):
    """All studies in order, always with the same draws; equally many batches on every rank, the odd end left out."""

    def __init__(self, sizes: Sequence[int], *, batch_size: int, rank: int, world_size: int, seed: int) -> None:
        everything = [(dataset, study) for dataset, size in enumerate(sizes) for study in range(size)]
        # Mixed, so that every batch holds every data set and not only the first is seen when few batches are asked for.
        order = np.random.default_rng([seed, ORDER]).permutation(len(everything))
        self.draws = [Draw(*everything[place], (seed, 0, position)) for position, place in enumerate(order)]
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size

    def __len__(self) -> int:
        return max(1, len(self.draws) // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in range(len(self)):
            first = (step * self.world_size + self.rank) * self.batch_size
            yield [self.draws[(first + place) % len(self.draws)] for place in range(self.batch_size)]
