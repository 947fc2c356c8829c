"""What works through the shards of a plan: processes of this machine, or others in their place."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.connection import wait
from multiprocessing.sharedctypes import SynchronizedArray

from mg3d.preparation import progress
from mg3d.preparation.shards import Outcome, ShardTask

Engine = Callable[[Callable[[ShardTask], Outcome], Sequence[ShardTask]], Generator[Outcome, None, None]]
"""Maps a function over tasks, yields results in any order and stops when closed."""


def local_engine(workers: int, tally: SynchronizedArray) -> Engine:
    """Processes of this machine, which count in `tally`; in this very process when there is one worker or one task."""

    def run(work: Callable[[ShardTask], Outcome], tasks: Sequence[ShardTask]) -> Generator[Outcome, None, None]:
        if min(workers, len(tasks)) <= 1:
            progress.share(tally)
            yield from map(work, tasks)
            return
        others = set(multiprocessing.active_children())
        context = multiprocessing.get_context("spawn")
        size = min(workers, len(tasks))
        with ProcessPoolExecutor(size, mp_context=context, initializer=_start_worker, initargs=(tally,)) as pool:
            futures = [pool.submit(work, task) for task in tasks]
            try:
                yield from (future.result() for future in as_completed(futures))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in set(multiprocessing.active_children()) - others:
                    process.terminate()
                    process.join()
                raise

    return run


def _start_worker(tally: SynchronizedArray) -> None:
    follow_parent()
    progress.share(tally)


def follow_parent() -> None:
    """Prepares a process of a pool: Ctrl-C is left to the one that started it, with whose end, however it comes, it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
