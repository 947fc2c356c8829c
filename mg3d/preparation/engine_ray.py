"""Run shard tasks on a Ray cluster whose machines share a file system."""

import importlib
from collections.abc import Callable, Generator, Sequence
from itertools import islice
from typing import Any

from mg3d.preparation import progress
from mg3d.preparation.engines import Engine
from mg3d.preparation.shards import ShardResult, ShardTask


def ray_engine(workers: int, address: str | None = None) -> Engine:
    """At most `workers` shards at a time, one core each, on the cluster at `address`; None starts Ray on this machine.

    Shards of a lost machine are given to another one.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ConnectionError: no cluster answers at `address`.
    """
    try:
        ray = importlib.import_module("ray")
    except ImportError:
        raise ModuleNotFoundError(
            "--engine ray needs Ray: run `pip install -e .[ray]` on every machine, or omit --engine to use local processes"
        ) from None

    def run(work: Callable[[ShardTask], ShardResult], tasks: Sequence[ShardTask]) -> Generator[ShardResult, None, None]:
        started = not ray.is_initialized()
        if started:
            _connect(ray, workers, address)
        try:
            yield from _map(ray, work, tasks, workers)
        finally:
            if started:
                ray.shutdown()

    return run


def _connect(ray: Any, workers: int, address: str | None) -> None:
    cluster = {"num_cpus": workers, "include_dashboard": False} if address is None else {"address": address}
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", **cluster)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConnectionError(
            f"no Ray cluster at {address or 'this machine'} ({type(error).__name__}); start one with `ray start --head`, join "
            "machines with `ray start --address=HEAD:6379`, and use --ray-address auto on the head"
        ) from None


def _map(
    ray: Any, work: Callable[[ShardTask], ShardResult], tasks: Sequence[ShardTask], workers: int
) -> Generator[ShardResult, None, None]:
    """Yield results as they finish, with at most `workers` tasks in flight."""
    remote = ray.remote(num_cpus=1, max_retries=3)(lambda task: work(task))
    upcoming = iter(tasks)
    running = [remote.remote(task) for task in islice(upcoming, workers)]
    try:
        while running:
            done, running = ray.wait(running, num_returns=1)
            running += [remote.remote(task) for task in islice(upcoming, len(done))]
            yield from (_get_result(ray, reference) for reference in done)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _get_result(ray: Any, reference: Any) -> ShardResult:
    try:
        result = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    progress.count(result.volumes)
    return result
