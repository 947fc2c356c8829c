"""Raw files that come when they are needed and go when they are done, a shard's volumes in turn."""

import queue
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from mg3d.files import is_full_disk
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.records import VolumeRecord
from mg3d.preparation.stream_hubs import Hub, HubRefusedError

TRIES = 6
"""How often a file is asked for before it counts as failed; what has come of it is kept in between."""
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
FAILURES_IN_A_ROW = 8
"""So many files after one another that fail end the run: then it is not the files."""


PARTIAL = ".incomplete"


class UnreachableError(ConnectionError):
    """File after file failed."""


@dataclass(frozen=True)
class Delivery:
    """How a worker gets the raw files of a shard."""

    hub: Hub
    revision: str
    cache: Path
    """Folder that takes the files, at the paths that the hub has."""
    prefix: str
    """What the hub puts before the paths of records, e.g. "dataset/"."""
    sizes: Mapping[str, int]
    """Path on the hub -> bytes."""
    budget: int
    """Most bytes of volumes that this worker keeps on disk at a time, whole or in part."""

    def paths(self, record: VolumeRecord) -> list[str]:
        """The hub's paths of a record's files."""
        return [self.prefix + name for name in record.files]

    def bytes_of(self, record: VolumeRecord) -> int:
        """Bytes of a record's files."""
        return sum(self.sizes[path] for path in self.paths(record))


def deliver(records: Sequence[VolumeRecord], delivery: Delivery) -> Iterator[tuple[VolumeRecord, Refusal | None]]:
    """Each record when its files are there, or with the reason why they are not; they are deleted when the next is asked for.

    A thread fetches ahead as far as the budget goes.

    Raises:
        HubRefusedError, UnreachableError: nothing comes any more.
        OSError: the disk is full.
    """
    fetching = _Fetching(records, delivery)
    fetching.start()
    with closing(fetching):
        for record in records:
            arrived = fetching.arrived.get()
            if isinstance(arrived, BaseException):
                raise arrived
            size, failure = arrived
            yield record, failure
            for path in delivery.paths(record):
                (delivery.cache / path).unlink(missing_ok=True)
            fetching.give_back(size)


class _Fetching(threading.Thread):
    """Fetches the files of records in turn, waiting while the budget is used up."""

    def __init__(self, records: Sequence[VolumeRecord], delivery: Delivery) -> None:
        super().__init__(daemon=True)
        self.records, self.delivery = records, delivery
        self.arrived: queue.Queue[tuple[int, Refusal | None] | BaseException] = queue.Queue()
        self.changed, self.held, self.stopped = threading.Condition(), 0, threading.Event()

    def run(self) -> None:
        """Puts the bytes on disk and the failure, if any, of every record, or the error that ends all."""
        in_a_row = 0
        try:
            for record in self.records:
                size = sum(self.delivery.sizes[path] for path in self.delivery.paths(record) if not is_whole(path, self.delivery))
                if not self._reserve(size):
                    return
                failure = self._fetch_all(record)
                in_a_row = in_a_row + 1 if failure else 0
                if in_a_row == FAILURES_IN_A_ROW:
                    raise UnreachableError(
                        f"{in_a_row} files after one another could not be fetched ({failure.detail}); look at the network and "
                        "run again, finished shards are kept"
                    )
                self.arrived.put((size, failure))
        except BaseException as error:
            self.arrived.put(error)

    def give_back(self, size: int) -> None:
        """Tells that so many bytes were deleted."""
        with self.changed:
            self.held -= size
            self.changed.notify()

    def close(self) -> None:
        """Ends the thread, at the next piece of the file that it is about."""
        with self.changed:
            self.stopped.set()
            self.changed.notify()
        self.join()

    def _reserve(self, size: int) -> bool:
        with self.changed:
            self.changed.wait_for(lambda: self.stopped.is_set() or self.held + size <= self.delivery.budget)
            self.held += size
            return not self.stopped.is_set()

    def _fetch_all(self, record: VolumeRecord) -> Refusal | None:
        try:
            for path in self.delivery.paths(record):
                fetch(path, self.delivery, self.stopped)
        except Refusal as failure:
            return failure
        return None


def fetch(path: str, delivery: Delivery, stopped: threading.Event) -> None:
    """Brings a file of the hub into the cache; goes on where an earlier try or run ended, and tries again after errors.

    Raises:
        Refusal: download_failed, after `TRIES`; what had come is removed.
        HubRefusedError: the hub gives nothing.
        OSError: the disk is full.
    """
    wait, kind = FIRST_WAIT_S, ""
    for _ in range(TRIES):
        if is_whole(path, delivery) or stopped.is_set():
            return
        try:
            _go_on(path, delivery, stopped)
        except HubRefusedError:
            raise
        except OSError as error:
            if is_full_disk(error):
                raise
            kind = type(error).__name__
            stopped.wait(wait * random.uniform(0.5, 1.0))
            wait = min(2 * wait, LONGEST_WAIT_S)
    if not is_whole(path, delivery):
        remove_raw(path, delivery.cache)
        raise Refusal("download_failed", kind)


def is_whole(path: str, delivery: Delivery) -> bool:
    """Whether the cache has all of a file."""
    try:
        return (delivery.cache / path).stat().st_size == delivery.sizes[path]
    except FileNotFoundError:
        return False


def raw_files(path: str, cache: Path) -> list[Path]:
    """What the cache has of a file of the hub: all of it, or parts."""
    place = cache / path
    return [*([place] if place.exists() else []), *place.parent.glob(f"{place.name}.*{PARTIAL}")]


def remove_raw(path: str, cache: Path) -> None:
    """Removes a file of the hub from the cache, and parts of it."""
    for file in raw_files(path, cache):
        file.unlink(missing_ok=True)


def _go_on(path: str, delivery: Delivery, stopped: threading.Event) -> None:
    place, size = delivery.cache / path, delivery.sizes[path]
    partial = place.with_name(f"{place.name}.{delivery.revision[:12]}{PARTIAL}")  # another revision's part is another file
    place.parent.mkdir(parents=True, exist_ok=True)
    if not partial.exists() or partial.stat().st_size < size:  # else a run was killed just before it gave the file its name
        _append(partial, path, delivery, stopped)
    if stopped.is_set():
        return
    found = partial.stat().st_size
    if found > size:
        partial.unlink()
    if found != size:
        raise ConnectionError(f"{found} bytes came, {size} are listed")
    partial.replace(place)


def _append(partial: Path, path: str, delivery: Delivery, stopped: threading.Event) -> None:
    with partial.open("ab") as stream, closing(delivery.hub.chunks(path, stream.tell(), delivery.revision)) as chunks:
        for chunk in chunks:
            stream.write(chunk)
            if stopped.is_set() or stream.tell() > delivery.sizes[path]:
                return
