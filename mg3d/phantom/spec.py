"""What a synthetic set consists of, and the process pool that writes its cases."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

Case, Result = TypeVar("Case"), TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class PhantomSettings:
    """Settings of the pre-training set (CT-RATE and CTRG-Chest). Equal settings give equal content."""

    train_patients: int = 1500
    valid_patients: int = 320
    ctrg_cases: int = 100
    grid: int = 72
    """Voxels along x and y; 360 mm."""
    seed: int = 0
    second_scans: float = 0.05
    """Fraction of patients with a second, independent scan. CT-RATE: 0.14; fewer here, for speed."""
    second_reconstructions: float = 0.15
    """Fraction of scans with a second, sharp reconstruction. CT-RATE: 0.90; fewer here, for speed."""
    tempered: bool = True
    """Raise the prevalence of rare findings (prevalence ** 0.7)."""
    raw_tree: bool = False
    """Also write the layout of the first release: raw values, blank headers."""


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """One downstream set. Its content depends on everything but `root` and `workers`."""

    root: Path
    """Top folder of the set; empty."""
    cases: int
    """Labelled cases; unlabelled ones are added where the public set has them."""
    voxels_in_plane: int
    seed: int
    workers: int = 1

    def generator(self, *keys: int) -> np.random.Generator:
        """Random generator for one purpose, seeded by the set's seed and the keys."""
        return np.random.default_rng([self.seed, *keys])

    def map(self, function: Callable[[Case], Result], cases: Iterable[Case]) -> list[Result]:
        """Apply a function to cases in the set's processes; results in order."""
        return list(map_cases(function, cases, self.workers))


def map_cases(function: Callable[[Case], Result], cases: Iterable[Case], workers: int) -> Iterator[Result]:
    """`map` over a process pool, in order."""
    if workers <= 1:
        yield from map(function, cases)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(function, cases, chunksize=4)
