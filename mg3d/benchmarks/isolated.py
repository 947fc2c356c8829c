"""Measurements in fresh processes, so that memory, caches and threads of one side do not affect the other."""

import ctypes
import gc
import multiprocessing
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from mg3d.benchmarks.timing import BenchmarkOptions


def run_isolated(
    measure: Callable[[str, BenchmarkOptions], Any], sides: Sequence[str], options: BenchmarkOptions
) -> dict[str, list[Any]]:
    """Results of `measure(side, options)`, `repeats` times for every side alternately, each time in a new process.

    A side that was killed for lack of memory is not repeated and has no results; the first side must not fail.
    """
    results: dict[str, list[Any]] = {side: [] for side in sides}
    killed = set()
    for side in list(sides) * options.repeats:
        if side in killed:
            continue
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context, initializer=_raise_oom_score) as pool:
            try:
                results[side].append(pool.submit(measure, side, options).result())
            except BrokenProcessPool:
                killed.add(side)
    if sides[0] in killed:
        raise SystemExit(f"{sides[0]}: the process was killed (out of memory). Use a smaller --batch or --size")
    return {side: [] if side in killed else rounds for side, rounds in results.items()}


def _raise_oom_score() -> None:
    """Let the Linux OOM killer choose this process instead of the user's other ones."""
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        score.write_text("1000")


def synchronizer(options: BenchmarkOptions) -> Callable[[], object]:
    """Wait for the device to finish."""
    return torch.cuda.synchronize if options.device == "cuda" else lambda: None


def autocast(options: BenchmarkOptions) -> AbstractContextManager[Any]:
    """Autocast for `precision`."""
    return torch.autocast(options.device, torch.bfloat16) if options.precision == "bf16" else nullcontext()


class PeakMemory:
    """Peak memory since `reset`, relative to the memory in use at construction; GPU memory on cuda. Linux only on cpu."""

    def __init__(self, options: BenchmarkOptions) -> None:
        self.on_gpu = options.device == "cuda"
        gc.collect()
        if not self.on_gpu:
            ctypes.CDLL(None).malloc_trim(0)  # freed but not returned memory would be reused without being counted
        self.before = torch.cuda.memory_allocated() if self.on_gpu else _resident_bytes("VmRSS")

    def reset(self) -> None:
        """Forget earlier peaks."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def bytes(self) -> int:
        """The peak."""
        peak = torch.cuda.max_memory_allocated() if self.on_gpu else _resident_bytes("VmHWM")
        return max(0, peak - self.before)


def _resident_bytes(name: str) -> int:
    """From /proc/self/status; the peak in `resource` may be the parent's."""
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
