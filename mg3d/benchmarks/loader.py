"""Fraction of the training time spent waiting for batches, by number of data-loader workers."""

import tempfile
import time
from pathlib import Path

import numpy as np

from mg3d.benchmarks.reading import make_collator, make_loader, random_volumes, write_studies
from mg3d.benchmarks.timing import BenchmarkOptions, BenchmarkRow
from mg3d.datamodules.base import MixtureDataset
from mg3d.datasets.collate import Collator

VOLUMES, BATCHES = 64, 60
"""Stored volumes, and batches per measurement; the first sixth, while workers start, is not counted."""
QUICK = {"size": (32, 24, 32), "workers": (1,), "step_ms": 2.0, "batch": 2}
MAX_WAITING = 0.05


def run(options: BenchmarkOptions) -> list[BenchmarkRow]:
    """Waiting time in percent. A step is simulated by sleeping for `step_ms`, as the host does while a GPU computes."""
    options = options._replace(**QUICK) if options.quick else options
    volumes, batches = (8, 6) if options.quick else (VOLUMES, BATCHES)
    with tempfile.TemporaryDirectory() as folder:
        studies = write_studies(Path(folder) / "volumes", random_volumes(options.size, volumes))
        order = np.random.default_rng(0).integers(0, volumes, (batches, options.batch))
        collator, data = make_collator(Path(folder), studies), MixtureDataset([studies])
        waiting = {workers: _waiting(data, order, collator, workers, options.step_ms) for workers in (0, *options.workers)}
    sizes = f"batch {options.batch} of {'x'.join(map(str, options.size))}, step of {options.step_ms:g} ms"
    return [
        BenchmarkRow(
            f"waiting, {workers} workers", f"{workers} workers", "no workers", 100 * waiting[workers], 100 * waiting[0], unit="%",
            note=f"{sizes}; {'below' if waiting[workers] < MAX_WAITING else 'above'} the limit of {MAX_WAITING:.0%}",
        )
        for workers in options.workers
    ]  # fmt: skip


def _waiting(data: MixtureDataset, order: np.ndarray, collator: Collator, workers: int, step_ms: float) -> float:
    waited, start, iterator, warm_up = 0.0, 0.0, iter(make_loader(data, order, collator, workers)), len(order) // 6
    for number in range(len(order)):
        requested = time.perf_counter()
        start = requested if number == warm_up else start
        next(iterator)
        waited += time.perf_counter() - requested if number >= warm_up else 0.0
        time.sleep(step_ms / 1000)
    return waited / (time.perf_counter() - start)
