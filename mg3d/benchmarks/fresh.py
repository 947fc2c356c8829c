"""Measurements in processes of their own, where no other's memory, caches or threads are in the way."""

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

from mg3d.benchmarks.timing import Options


def alternate(job: Callable[[str, Options], Any], sides: Sequence[str], options: Options) -> dict[str, list[Any]]:
    """What `job(side, options)` gives, `repeats` times for every side in turn, each time in a fresh process.

    A side whose process the system killed, for it asked for more memory than there is, has nothing and is not tried again; that
    must not be the first side.
    """
    found: dict[str, list[Any]] = {side: [] for side in sides}
    killed = set()
    for side in list(sides) * options.repeats:
        if side in killed:
            continue
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_be_killed_first) as pool:
            try:
                found[side].append(pool.submit(job, side, options).result())
            except BrokenProcessPool:
                killed.add(side)
    if sides[0] in killed:
        raise SystemExit(f"{sides[0]}: the system killed the process, for memory ran out: say a smaller --batch or --size")
    return {side: [] if side in killed else rounds for side, rounds in found.items()}


def _be_killed_first() -> None:
    """Where memory ends, Linux then ends this process and none of the user's others."""
    adjustment = Path("/proc/self/oom_score_adj")
    if adjustment.exists():
        adjustment.write_text("1000")


def settler(options: Options) -> Callable[[], object]:
    """What waits until the device has done its work."""
    return torch.cuda.synchronize if options.device == "cuda" else lambda: None


def autocast(options: Options) -> AbstractContextManager[Any]:
    """The precision that was asked for."""
    return torch.autocast(options.device, torch.bfloat16) if options.precision == "bf16" else nullcontext()


class Memory:
    """The most memory since `restart`, over what was in use when this was made; of the GPU if that computes."""

    def __init__(self, options: Options) -> None:
        self.on_gpu = options.device == "cuda"
        gc.collect()
        if not self.on_gpu:
            ctypes.CDLL(None).malloc_trim(0)  # what is free but not given back would be used first, and not be counted
        self.before = torch.cuda.memory_allocated() if self.on_gpu else _resident("VmRSS")

    def restart(self) -> None:
        """Forgets earlier peaks."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        """Bytes."""
        most = torch.cuda.max_memory_allocated() if self.on_gpu else _resident("VmHWM")
        return max(0, most - self.before)


def _resident(name: str) -> int:
    """Bytes of this process, from Linux's /proc/self/status; the peak that `resource` tells may be the parent's."""
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
