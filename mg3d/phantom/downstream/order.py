"""What a set is made from, and the work of many cases."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

Job, Result = TypeVar("Job"), TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Order:
    """One set to be written. Its content depends on all but `root` and `workers`."""

    root: Path
    """Folder that becomes the set's top folder; empty."""
    cases: int
    """Labelled cases; unlabelled ones come on top where the public set has them."""
    voxels_in_plane: int
    seed: int
    workers: int = 1

    def generator(self, *words: int) -> np.random.Generator:
        """Random numbers of one purpose; the same words give the same numbers everywhere."""
        return np.random.default_rng([self.seed, *words])


def for_all(function: Callable[[Job], Result], jobs: Iterable[Job], workers: int) -> Iterator[Result]:
    """`map` over processes, in order."""
    if workers <= 1:
        yield from map(function, jobs)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(function, jobs)
