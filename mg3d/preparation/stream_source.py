"""A data set that is streamed, before its first volume: its files' list, its tables, each worker's share of disk."""

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from mg3d.files import write_bytes, write_json
from mg3d.preparation.locks import holder, holding, waiting_for
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.shards import ShardTask
from mg3d.preparation.sources.registry import STREAMED_TABLES
from mg3d.preparation.stream import Delivery, fetch, raw_files, remove_raw
from mg3d.preparation.stream_hubs import FolderHub, Hub, open_hub

MARK = ".raw-files-here-are-deleted"
LISTING = "listing.json"


@dataclass(frozen=True)
class Stream:
    """An opened source, its tables in the cache."""

    delivery: Delivery
    """With the sizes of all files and without a budget."""

    @property
    def listing(self) -> list[str]:
        """Every path on the hub."""
        return list(self.delivery.sizes)


def open_stream(source: str | Hub, cache: Path, dataset: str) -> Stream:
    """Opens `source` (see `open_hub`) for a data set, fetches its tables into the folder `cache`, which it makes its own.

    Raises:
        ValueError: the source or the cache cannot be what was given, or the data set cannot be streamed.
        HubRefusedError, OSError: the hub gives nothing.
    """
    if dataset not in STREAMED_TABLES:
        raise ValueError(f"{dataset} cannot be streamed, only {', '.join(STREAMED_TABLES)} can; download it and give its folder")
    hub = open_hub(source) if isinstance(source, str) else source
    _make_own(cache, hub)
    with waiting_for(cache / "tables.lock"):
        revision = hub.revision()
        sizes, changed = _listing(hub, revision, cache / LISTING)
        prefix = "dataset/" if any(path.startswith("dataset/") for path in sizes) else ""
        delivery = Delivery(hub, revision, cache, prefix, sizes, budget=0)
        for path in sizes:
            if any(fnmatch(path, prefix + pattern) for pattern in STREAMED_TABLES[dataset]):
                _fetch_table(path, delivery, anew=changed)
    return Stream(delivery)


def hand_out(stream: Stream, tasks: Sequence[ShardTask], budget: int, workers: int) -> list[ShardTask]:
    """The tasks, each with a delivery whose budget is an equal share of `budget` bytes.

    What a killed run left in the cache is taken from the budget first; where too little remains, it is removed.

    Raises:
        ValueError: a share is smaller than the largest volume.
    """
    delivery = stream.delivery
    records = [record for task in tasks for record in task.records if record.files]
    if not records:
        return list(tasks)
    largest = max(map(delivery.bytes_of, records))
    share = (budget - sum(map(_left_bytes, _with_delivery(stream, tasks, 0)))) // workers
    if share < largest:
        for task in _with_delivery(stream, tasks, 0):
            with holding(task.lock) as mine:
                remove_left(task, really=mine)
        share = budget // workers
    if share < largest:
        raise ValueError(
            f"--stream-budget leaves {share / 1e9:.3g} GB to each of {workers} workers, the largest volume has "
            f"{largest / 1e9:.3g} GB; give at least {workers * largest / 1e9:.3g} GB, or fewer --workers"
        )
    return _with_delivery(stream, tasks, share)


def remove_left(task: ShardTask, *, really: bool = True) -> None:
    """Removes raw files of a shard that are still in the cache."""
    if not really or task.delivery is None:
        return
    for path in task.delivery.sizes:
        remove_raw(path, task.delivery.cache)


def _with_delivery(stream: Stream, tasks: Sequence[ShardTask], share: int) -> list[ShardTask]:
    delivery, handed = stream.delivery, []
    for task in tasks:
        paths = [path for record in task.records for path in delivery.paths(record)]
        own = replace(delivery, sizes={path: delivery.sizes[path] for path in paths}, budget=share)
        handed.append(replace(task, delivery=own))
    return handed


def _left_bytes(task: ShardTask) -> int:
    """Bytes of a shard in the cache, unless another process is at it: then they are of that one's budget."""
    if holder(task.lock) is not None:
        return 0
    cache = task.delivery.cache
    return sum(file.stat().st_size for path in task.delivery.sizes for file in raw_files(path, cache))


def _make_own(cache: Path, hub: Hub) -> None:
    """Marks a folder as one whose files are deleted, if there is nothing in it that could be missed."""
    place = cache.absolute()
    if isinstance(hub, FolderHub) and (place.is_relative_to(hub.root) or hub.root.is_relative_to(place)):
        raise ValueError(f"--stream-cache {cache} and the folder {hub.root} lie in one another; its files would be deleted")
    if (cache / MARK).exists():
        return
    if cache.exists() and any(cache.iterdir()):
        raise ValueError(f"--stream-cache {cache} holds files, and what lies there is deleted; give a new or empty folder")
    write_bytes(cache / MARK, b"The preparation puts raw files here and deletes them.\n")


def _listing(hub: Hub, revision: str, known: Path) -> tuple[dict[str, int], bool]:
    """The hub's files, asked for once per revision, for a large list takes many requests; and whether an older one was known."""
    try:
        stored = json.loads(known.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        stored = {"revision": revision, "files": None}
    if revision and stored["revision"] == revision and stored["files"]:
        return stored["files"], False
    files = dict(sorted(hub.files(revision).items()))
    write_json(known, {"revision": revision, "files": files})
    return files, stored["revision"] != revision


def _fetch_table(path: str, delivery: Delivery, *, anew: bool) -> None:
    if anew:
        remove_raw(path, delivery.cache)
    try:
        fetch(path, delivery, threading.Event())
    except Refusal as failure:
        raise ConnectionError(f"the table {path} could not be fetched ({failure.detail}); run again") from None
