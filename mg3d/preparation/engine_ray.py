"""The shards of a plan as tasks of a Ray cluster whose machines share the disk; see docs/prepare.md."""

import importlib
from collections.abc import Callable, Generator, Iterable, Sequence
from itertools import islice
from typing import Any

from mg3d.preparation import progress
from mg3d.preparation.engines import Engine
from mg3d.preparation.shards import Outcome, ShardTask


def ray_engine(workers: int, address: str | None = None) -> Engine:
    """At most `workers` shards at a time, each on one core of the cluster at `address`; None: a small cluster on this machine.

    A shard whose machine is lost is given to another, which takes its lock over as it does after any death of a worker.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ConnectionError: no cluster answers at `address`.
    """
    ray = _import_ray()

    def run(work: Callable[[ShardTask], Outcome], tasks: Sequence[ShardTask]) -> Generator[Outcome, None, None]:
        started = not ray.is_initialized()
        if started:
            _connect(ray, workers, address)
        try:
            yield from _map(ray, work, tasks, workers)
        finally:
            if started:
                ray.shutdown()

    return run


def _import_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise ModuleNotFoundError(
            "--engine ray needs Ray, which is not installed; install it with `pip install -e .[ray]` on every machine, or leave "
            "--engine out to use the processes of this machine"
        ) from None


def _connect(ray: Any, workers: int, address: str | None) -> None:
    size = {"num_cpus": workers, "include_dashboard": False} if address is None else {"address": address}
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", **size)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConnectionError(
            f"no Ray cluster answers at {address or 'this machine'} ({type(error).__name__}); start one with `ray start --head` "
            "and join machines with `ray start --address=HEAD:6379`, then give --ray-address auto on the head"
        ) from None


def _map(
    ray: Any, work: Callable[[ShardTask], Outcome], tasks: Iterable[ShardTask], workers: int
) -> Generator[Outcome, None, None]:
    """Results as they come; never more than `workers` tasks are with the cluster, so that memory does not grow with the plan."""
    remote = ray.remote(num_cpus=1, max_retries=3)(lambda task: work(task))
    tasks = iter(tasks)
    waiting = [remote.remote(task) for task in islice(tasks, workers)]
    try:
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1)
            waiting += [remote.remote(task) for task in islice(tasks, len(done))]
            yield from (_result(ray, one) for one in done)
    finally:
        for one in waiting:
            ray.cancel(one, force=True)


def _result(ray: Any, one: Any) -> Outcome:
    """The outcome of a task, or the error that it met, as it would have been met here."""
    try:
        outcome = ray.get(one)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    progress.count(outcome.volumes, outcome.raw_bytes)
    return outcome
