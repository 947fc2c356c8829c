"""Two ways of doing one thing, measured in turn."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Options(NamedTuple):
    """What a benchmark was asked for; each topic reads what concerns it."""

    quick: bool = False
    """Small sizes and few rounds: shows that it runs, not how fast."""
    size: tuple[int, int, int] = (128, 96, 128)
    """Voxels z, y, x."""
    batch: int = 1
    """Volumes, or reports."""
    threads: int = 2
    """CPU threads of a measured process."""
    device: str = "cpu"
    """`cpu` or `cuda`."""
    precision: str = "32"
    """`32`, or `bf16` for autocast to bfloat16."""
    repeats: int = 3
    """Rounds that count; the table shows their medians."""
    tokens: int = 250
    """Of a report."""
    sentences: int = 32
    """Of a report."""
    workers: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of loader processes."""
    step_ms: float = 250.0
    """How long a step takes for which a loader has to have a batch ready."""
    compile: bool = False
    """The encoder compiled as well."""


class Comparison(NamedTuple):
    """Ours beside another way."""

    name: str
    ours: str
    """What was measured."""
    theirs: str
    our_cost: float
    """Median of the rounds."""
    their_cost: float
    goal: float | None = None
    """The ratio that ours should reach."""
    note: str = ""
    """What else was seen: the outputs' largest difference, memory."""
    unit: str = "s"
    """Of both costs."""

    @property
    def ratio(self) -> float:
        """How many times as fast (or small) ours is."""
        return self.their_cost / self.our_cost if self.our_cost else float("inf")


def compare(
    name: str, ours: tuple[str, Callable[[], object]], theirs: tuple[str, Callable[[], object]], *, rounds: int,
    goal: float | None = None, note: str = "",
) -> Comparison:  # fmt: skip
    """Times both in turn, `rounds` times each after one that does not count, so that a slow spell of the machine hits both."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for round_ in range(rounds + 1):
        for kept, (_, work) in zip(seconds, (ours, theirs), strict=True):
            began = time.perf_counter()
            work()
            kept += [time.perf_counter() - began] if round_ else []
    return Comparison(name, ours[0], theirs[0], *(statistics.median(kept) for kept in seconds), goal=goal, note=note)


def seconds_of(work: Callable[[], object], *, settle: Callable[[], object] = lambda: None, at_least: float = 1.0) -> float:
    """Median time of `work` after one that does not count, repeated for `at_least` seconds; `settle` waits for the device."""
    work()
    settle()
    found: list[float] = []
    while sum(found) < at_least:
        began = time.perf_counter()
        work()
        settle()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def median(rounds: Sequence[NamedTuple], field: str) -> float:
    """The median of one field over rounds; infinite where there are none, for the machine was too small."""
    return statistics.median(getattr(one, field) for one in rounds) if rounds else float("inf")
