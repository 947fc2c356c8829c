"""Data sets and samplers whose random draws depend on seed and draw index only, never on workers or ranks."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from monai import transforms as mt
from monai.data.utils import list_data_collate
from torch.utils.data import Dataset, Sampler, WeightedRandomSampler

from mg3d.distributed import rank, world_size
from mg3d.finetune.cases import FinetuneCase
from mg3d.finetune.transforms import Sample

Draw = Callable[[torch.Generator], torch.Tensor]
"""Generator of the epoch -> indices of the samples of the epoch, in order."""
ERRORS = "errors"
"""Key of a batch: (case, reason) of the cases that could not be read."""


@contextmanager
def original_error() -> Iterator[None]:
    """Re-raises a ValueError or OSError that MONAI wrapped into its "applying transform" RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        cause: BaseException = error
        while type(cause) is RuntimeError and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, (ValueError, OSError)):
            raise cause from None
        raise


def seeded(transform: mt.Compose, seed: int, draw_index: int) -> mt.Compose:
    """A random transform whose next draws depend on seed and draw index."""
    state = np.random.SeedSequence([seed, draw_index]).generate_state(1)
    return transform.set_random_state(seed=int(state[0]))


class CaseDataset(Dataset):
    """Cases through deterministic and random transforms, by draw index (epoch * number of cases + index of the case).

    Args:
        cases: in order.
        preprocess: case -> sample.
        random: training patches and augmentation.
        cache_bytes: memory for preprocessed samples in each process; samples that do not fit are read again.
        collect_errors: return {"errors": [(case, reason)]} for a case that cannot be read, instead of raising.
    """

    def __init__(
        self,
        cases: Sequence[FinetuneCase],
        preprocess: Callable[[FinetuneCase], Sample],
        *,
        random: mt.Compose | None = None,
        seed: int = 0,
        cache_bytes: float = 0,
        collect_errors: bool = False,
    ) -> None:
        self.cases, self.preprocess, self.random, self.seed = list(cases), preprocess, random, seed
        self.cache_bytes, self.cached = cache_bytes, dict[int, Sample]()
        self.collect_errors = collect_errors

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, draw_index: int) -> Sample | list[Sample]:
        index = draw_index % len(self.cases)
        try:
            sample = self._preprocessed(index)
        except (ValueError, OSError) as error:
            if not self.collect_errors:
                raise
            return {ERRORS: [(self.cases[index].case_id, str(error).split("\n")[0])]}
        return sample if self.random is None else seeded(self.random, self.seed, draw_index)(dict(sample))

    def _preprocessed(self, index: int) -> Sample:
        if index in self.cached:
            return self.cached[index]
        with original_error():
            sample = self.preprocess(self.cases[index])
        if (size := sample_bytes(sample)) <= self.cache_bytes:
            self.cache_bytes -= size
            self.cached[index] = sample
        return sample

    def describe_cache(self, processes: int) -> str:
        """What the cache of all processes will hold, from the size of the first case; empty if it holds everything."""
        available = self.cache_bytes
        size = sample_bytes(self._preprocessed(0)) if available else 0
        fitting = int(available // size) if size else len(self)
        if fitting >= len(self):
            return ""
        return (
            f"the {len(self)} preprocessed cases are about {size * len(self) / 1e9:.1f} GB in each of {processes} loader "
            f"process(es), whose cache holds {fitting / len(self):.0%} of them; cache_gb=... sets its size"
        )


def sample_bytes(sample: Sample) -> int:
    """Memory of the tensors of a sample."""
    return sum(value.nbytes for value in sample.values() if isinstance(value, torch.Tensor))


def collate(samples: Sequence[Any]) -> Sample:
    """One batch; lists of patches are joined, and cases that could not be read are listed under `errors`."""
    errors = [error for sample in samples if isinstance(sample, dict) for error in sample.get(ERRORS, ())]
    readable = [sample for sample in samples if not (isinstance(sample, dict) and ERRORS in sample)]
    batch = list_data_collate(readable) if readable else {}
    return batch | {ERRORS: errors} if errors else batch


class EpochSampler(Sampler[int]):
    """Draw indices of this rank, in an order that depends on seed and epoch.

    Args:
        draw: `in_order`, `shuffled`, `class_balanced`, ...
        count: samples of the data set.
        contiguous: each rank gets a contiguous part, so that samples of one scan are read by one rank; else every nth sample.
        reorder: number of samples of a rank -> their order, see `worker_order`.
    """

    def __init__(
        self,
        draw: Draw,
        *,
        count: int,
        seed: int = 0,
        contiguous: bool = False,
        reorder: Callable[[int], np.ndarray] | None = None,
    ) -> None:
        self.draw, self.count, self.seed, self.epoch = draw, count, seed, 0
        self.contiguous, self.reorder = contiguous, reorder
        self._resumed = (0, 0)

    def resume(self, epoch: int, samples: int) -> None:
        """Starts at this epoch, whose first samples of this rank are already used. Call before the loader starts its workers."""
        self.epoch, self._resumed = epoch, (epoch, samples)

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def _indices(self) -> np.ndarray:
        state = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)
        indices = self.draw(torch.Generator().manual_seed(int(state[0]))).numpy()
        return np.resize(indices, -(-len(indices) // world_size()) * world_size())  # repeats the first: equal length on all ranks

    def __len__(self) -> int:
        return len(self._indices()) // world_size()

    def __iter__(self) -> Iterator[int]:
        indices = self._indices()
        part = np.array_split(indices, world_size())[rank()] if self.contiguous else indices[rank() :: world_size()]
        part = part[self.reorder(len(part))] if self.reorder else part
        epoch, samples = self._resumed
        used = samples if self.epoch == epoch else 0
        return iter((self.epoch * self.count + part[used:]).tolist())


def in_order(count: int) -> Draw:
    """Every sample once, in order."""
    return lambda generator: torch.arange(count)


def worker_order(count: int, *, batch_size: int, workers: int) -> np.ndarray:
    """Order of samples by which each worker of a loader, which deals out batches round-robin, gets contiguous ones."""
    batches = -(-count // batch_size)
    per_worker = -(-batches // max(workers, 1))
    full = sorted(range(count // batch_size), key=lambda batch: (batch % per_worker, batch // per_worker))
    starts = np.array([*full, *range(len(full), batches)]) * batch_size  # an incomplete batch stays the last one
    order = (starts[:, None] + np.arange(batch_size)).ravel()
    return order[order < count]


def shuffled(count: int) -> Draw:
    """Every sample once, in random order."""
    return lambda generator: torch.randperm(count, generator=generator)


def class_balanced(targets: Sequence[Sequence[float]]) -> Draw:
    """As many draws as samples: a class at random, then one of its samples.

    The classes are the values of a single column, or the positives of each label, and the samples without a positive label.
    """
    table = np.array(targets)
    if table.shape[1] == 1:
        members = table == np.unique(table)
    else:
        members = np.column_stack([table == 1, ~(table == 1).any(1)])
    members = members[:, members.any(0)]
    weights = (members / members.sum(0)).sum(1)
    return lambda generator: torch.tensor(list(WeightedRandomSampler(weights, len(weights), generator=generator)))
