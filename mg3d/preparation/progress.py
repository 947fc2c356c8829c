"""Progress bar over the volumes that all worker processes have done."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized

from tqdm import tqdm

_counter: list[Synchronized] = []
"""Volumes done, shared by all workers of a run; empty in a process that does not report."""


def use_counter(counter: Synchronized) -> None:
    """Make this process count its volumes in `counter`."""
    _counter[:] = [counter]


def count(volumes: int) -> None:
    """Count finished volumes."""
    for counter in _counter:
        with counter.get_lock():
            counter.value += volumes


@contextmanager
def progress_bar(label: str, total: int, counter: Synchronized) -> Iterator[None]:
    """Show `counter` out of `total` volumes; updated twice a second on a terminal, else once a minute."""
    interval_s = 0.5 if sys.stderr.isatty() else 60.0
    done, current = threading.Event(), counter.get_obj()  # read without the lock, which a killed worker may hold
    start = current.value
    with tqdm(total=total, desc=label, unit="volume", mininterval=interval_s, disable=not total) as bar:

        def poll() -> None:
            while not done.wait(interval_s):
                bar.update(current.value - start - bar.n)

        thread = threading.Thread(target=poll, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            bar.update(current.value - start - bar.n)
