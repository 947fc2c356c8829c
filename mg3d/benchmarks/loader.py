"""The share of a training's time that waits for batches, with loader processes and without."""

import tempfile
import time
from pathlib import Path

import numpy as np

from mg3d.benchmarks.reading import make_collator, make_loader, noise, prepare
from mg3d.benchmarks.timing import Comparison, Options
from mg3d.datamodules.base import MixtureDataset

STORED, BATCHES = 64, 60
"""Volumes on disk, and batches that are loaded for one measurement; the first ones, while processes start, do not count."""
QUICK = {"size": (32, 24, 32), "workers": (1,), "step_ms": 2.0, "batch": 2}
WAIT_GOAL = 0.05


def run(options: Options) -> list[Comparison]:
    """Shares of time in percent; the consumer sleeps for `step_ms`, as a host does whose GPU computes."""
    options = options._replace(**QUICK) if options.quick else options
    stored, batches = (8, 6) if options.quick else (STORED, BATCHES)
    with tempfile.TemporaryDirectory() as folder:
        studies = prepare(Path(folder) / "volumes", noise(options.size, stored))
        order = np.random.default_rng(0).integers(0, stored, (batches, options.batch))
        collator = make_collator(Path(folder), studies)
        waits = {
            workers: _waiting(MixtureDataset([studies]), order, collator, workers=workers, options=options)
            for workers in (0, *options.workers)
        }
    told = f"batch {options.batch} of {'x'.join(map(str, options.size))}, step of {options.step_ms:g} ms"
    return [
        Comparison(f"waiting, {workers} processes", f"{workers} processes", "none", 100 * waits[workers], 100 * waits[0],
                   unit="%", note=f"{told}; {'reached' if waits[workers] < WAIT_GOAL else 'missed'}: under {WAIT_GOAL:.0%}")
        for workers in options.workers
    ]  # fmt: skip


def _waiting(data: MixtureDataset, order: np.ndarray, collator: object, *, workers: int, options: Options) -> float:
    waited, began, iterator = 0.0, 0.0, iter(make_loader(data, order, collator, workers))
    for number in range(len(order)):
        asked = time.perf_counter()
        began = asked if number == len(order) // 6 else began
        next(iterator)
        waited = waited + time.perf_counter() - asked if number >= len(order) // 6 else 0.0
        time.sleep(options.step_ms / 1000)
    return waited / (time.perf_counter() - began)
