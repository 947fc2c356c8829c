"""Work and messages of the first rank alone, also before a process group exists."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

TIMEOUT_S = 7200.0
POLL_S = 0.5


def info(message: str) -> None:
    """Prints one line, from the first rank only."""
    from mg3d.training.run import is_first_rank  # imports torch

    if is_first_rank():
        print(f"mg3d: {message}", flush=True)


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Holds a lock on a results folder while it is written.

    Raises:
        ValueError: another process holds it.
    """
    from filelock import FileLock, Timeout

    from mg3d.training.run import is_first_rank

    if not is_first_rank():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"another process writes into {folder}; wait until it ends, or use another run_name=...") from None
    try:
        yield
    finally:
        lock.release()


def run_on_first_rank(work: Callable[[], object], *, done: Callable[[], bool], what: str) -> None:
    """Runs `work` on the first rank; the other ranks wait until `done()` is true.

    Raises:
        ValueError: `what` does not appear within `TIMEOUT_S`.
    """
    from mg3d.training.run import is_first_rank

    if is_first_rank():
        work()
        return
    end = time.monotonic() + TIMEOUT_S
    while not done():
        if time.monotonic() > end:
            raise ValueError(
                f"{what} does not exist after {TIMEOUT_S / 60:.0f} minutes; the first rank writes it, on a disk that all ranks "
                "must share: run the command once with one process, then again"
            )
        time.sleep(POLL_S)
