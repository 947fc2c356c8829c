"""Options, rows and timers of all benchmarks."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple


class BenchmarkOptions(NamedTuple):
    """Options of a benchmark; each topic uses those that apply."""

    quick: bool = False
    """Small sizes and one round, to check that it runs; the times mean nothing."""
    size: tuple[int, int, int] = (128, 96, 128)
    """Volume size in voxels, z y x."""
    batch: int = 1
    """Volumes or reports per batch."""
    threads: int = 2
    """CPU threads per measured process."""
    device: str = "cpu"
    """`cpu` or `cuda`."""
    precision: str = "32"
    """`32`, or `bf16` for autocast to bfloat16."""
    repeats: int = 3
    """Rounds; medians are reported."""
    tokens: int = 250
    """Tokens per report."""
    sentences: int = 32
    """Sentences per report."""
    workers: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of data-loader workers to compare."""
    step_ms: float = 250.0
    """Simulated duration of a training step in ms."""
    compile: bool = False
    """Also measure the encoder with torch.compile."""


class BenchmarkRow(NamedTuple):
    """Cost of a candidate and of its baseline."""

    name: str
    candidate: str
    baseline: str
    candidate_cost: float
    """Median of the rounds."""
    baseline_cost: float
    target: float | None = None
    """Minimum ratio; None = none."""
    note: str = ""
    unit: str = "s"

    @property
    def ratio(self) -> float:
        """Baseline cost / candidate cost: how many times faster or smaller the candidate is."""
        return self.baseline_cost / self.candidate_cost if self.candidate_cost else float("inf")


def compare(
    name: str, candidate: tuple[str, Callable[[], object]], baseline: tuple[str, Callable[[], object]], *, rounds: int,
    target: float | None = None, note: str = "",
) -> BenchmarkRow:  # fmt: skip
    """Time both alternately after one warm-up round, so that a slow phase of the machine affects both."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for round_index in range(rounds + 1):
        for times, (_, work) in zip(seconds, (candidate, baseline), strict=True):
            start = time.perf_counter()
            work()
            times += [time.perf_counter() - start] if round_index else []
    return BenchmarkRow(name, candidate[0], baseline[0], *map(statistics.median, seconds), target=target, note=note)


def median_seconds(
    work: Callable[[], object], *, synchronize: Callable[[], object] = lambda: None, min_total_s: float = 1.0
) -> float:
    """Median time of `work` after one warm-up call, repeated for `min_total_s` seconds."""
    work()
    synchronize()
    times: list[float] = []
    while sum(times) < min_total_s:
        start = time.perf_counter()
        work()
        synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def best_seconds(work: Callable[[], object], *, synchronize: Callable[[], object] = lambda: None, rounds: int = 5) -> float:
    """Shortest time of `work` in some rounds after two warm-up calls: what the device reaches when nothing disturbs it."""
    times: list[float] = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        work()
        synchronize()
        times.append(time.perf_counter() - start)
    return min(times[2:])


def median_of(rounds: Sequence[NamedTuple], field: str) -> float:
    """Median of one field over rounds; infinite without rounds (the process ran out of memory)."""
    return statistics.median(getattr(cost, field) for cost in rounds) if rounds else float("inf")
