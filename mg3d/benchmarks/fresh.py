"""Measurements in processes of their own, where no other's memory, caches or threads are in the way."""

import gc
import multiprocessing
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from mg3d.benchmarks.timing import Options


def alternate(job: Callable[[str, Options], Any], sides: Sequence[str], options: Options) -> dict[str, list[Any]]:
    """What `job(side, options)` gives, `repeats` times for every side in turn, each time in a fresh process."""
    found: dict[str, list[Any]] = {side: [] for side in sides}
    for _ in range(options.repeats):
        for side in sides:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                found[side].append(pool.submit(job, side, options).result())
    return found


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
