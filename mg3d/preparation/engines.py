"""Engines run `build_shard` over tasks: processes of this machine here, a Ray cluster in `engine_ray`."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.connection import wait
from multiprocessing.sharedctypes import Synchronized

from mg3d.preparation import progress
from mg3d.preparation.shards import ShardResult, ShardTask

Engine = Callable[[Callable[[ShardTask], ShardResult], Sequence[ShardTask]], Generator[ShardResult, None, None]]
"""Maps a function over tasks and yields results in any order. Closing the generator stops the workers."""


def local_engine(workers: int, counter: Synchronized) -> Engine:
    """Worker processes of this machine; the calling process itself for one worker or one task."""

    def run(work: Callable[[ShardTask], ShardResult], tasks: Sequence[ShardTask]) -> Generator[ShardResult, None, None]:
        size = min(workers, len(tasks))
        if size <= 1:
            yield from map(work, tasks)
            return
        running = set(multiprocessing.active_children())
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(size, mp_context=context, initializer=_start_worker, initargs=(counter,)) as pool:
            futures = [pool.submit(work, task) for task in tasks]
            try:
                yield from (future.result() for future in as_completed(futures))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in set(multiprocessing.active_children()) - running:
                    process.terminate()
                    process.join()
                raise

    return run


def _start_worker(counter: Synchronized) -> None:
    follow_parent()
    progress.use_counter(counter)


def follow_parent() -> None:
    """Initializer of worker processes: ignore Ctrl-C, which the parent handles, and exit when the parent ends or is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if wait([multiprocessing.parent_process().sentinel], timeout=0):  # killed while this process was starting
        os._exit(1)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
