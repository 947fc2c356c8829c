"""How far a run is and how fast: a bar on a terminal, else a line every minute."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.sharedctypes import SynchronizedArray
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn

EVERY_S = 60.0
_VOLUMES, _BYTES = range(2)
_shared: dict[str, SynchronizedArray] = {}
"""The tally of this process, if it has one; shared with the process that tells."""


def new_tally(context: Any) -> SynchronizedArray:
    """Volumes and raw bytes that were worked on, to be shared by the processes of a multiprocessing `context`."""
    return context.Array("q", 2)


def share(tally: SynchronizedArray) -> None:
    """From now on what this process works on is counted in `tally`."""
    _shared["tally"] = tally


def count(volumes: int, raw_bytes: int) -> None:
    """Counts volumes that were worked on, and the bytes of their raw files."""
    tally = _shared.get("tally")
    if tally is not None:
        with tally.get_lock():
            tally[_VOLUMES] += volumes
            tally[_BYTES] += raw_bytes


def rate_line(done: int, total: int, raw_bytes: int, seconds: float) -> str:
    """E.g. "1200 of 5000 volumes, 3.2 volumes/s, 1.3 GB/s, 0:19:47 left"."""
    speed = done / max(seconds, 1e-9)
    left = str(timedelta(seconds=round((total - done) / speed))) if done else "unknown"
    return f"{done} of {total} volumes, {speed:.3g} volumes/s, {raw_bytes / 1e6 / max(seconds, 1e-9):.3g} MB/s, {left} left"


@contextmanager
def telling(label: str, total: int, tally: SynchronizedArray, every_s: float = EVERY_S) -> Iterator[None]:
    """Tells how far `tally` is on the way to `total` volumes while the block runs."""
    done = threading.Event()
    terminal = sys.stdout.isatty()
    thread = threading.Thread(target=_tell, args=(label, total, tally, 0.5 if terminal else every_s, done), daemon=True)
    if total:
        thread.start()
    try:
        yield
    finally:
        done.set()
        if total:
            thread.join()


def _tell(label: str, total: int, tally: SynchronizedArray, every_s: float, done: threading.Event) -> None:
    before, began = list(tally), time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn())
    with Progress(*columns, disable=not sys.stdout.isatty(), transient=True) as bar:
        task = bar.add_task(label, total=total)
        while not done.wait(every_s):
            volumes, raw_bytes = (now - then for now, then in zip(list(tally), before))
            line = f"{label}: {rate_line(volumes, total, raw_bytes, time.monotonic() - began)}"
            if bar.disable:
                print(line, flush=True)
            else:
                bar.update(task, completed=volumes, description=line)
