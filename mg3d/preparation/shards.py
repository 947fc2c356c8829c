"""Shards: Arrow files of up to 256 volumes, each with a JSON sidecar that records the outcome of every volume."""

import hashlib
import json
import resource
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock, Timeout

from mg3d.datasets.schema import decode_metadata, shard_schema, volume_batch
from mg3d.files import remove_partial, replacing, write_bytes
from mg3d.preparation import progress
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.readers.dicom_series import series_state
from mg3d.preparation.readers.registry import files_of
from mg3d.preparation.recipe import Recipe, digest
from mg3d.preparation.records import VolumeRecord
from mg3d.preparation.streaming import HubSource, stream_volumes
from mg3d.preparation.voxels import make_volume

SHARD_ROWS = 256
MANIFEST = "manifest.json"
_STAT_THREADS = 32
_FACTS = b"mg3d.facts"
_NOT_DOWNLOADED = {"refused": "not_downloaded", "detail": ""}
_DAMAGED_AND_DELETED = {"refused": "missing_file", "detail": "the stored row is damaged and the raw file is gone"}


class PlanChangedError(ValueError):
    """Another run prepares the same folder with other settings or tables."""


@dataclass(frozen=True)
class ShardTask:
    """Everything a worker needs to write one shard."""

    path: Path
    root: Path
    """Folder that record files are relative to."""
    dataset: str
    recipe: Recipe
    records: tuple[VolumeRecord, ...]
    plan: str | None = None
    """Hash of the data set's plan; the worker stops if the manifest has another one."""
    source: HubSource | None = None
    """Where raw files are downloaded from; None: they are in `root`."""
    retry: bool = False
    """Rebuild a finished shard because of its quarantined volumes."""
    verify: bool = False
    """Rebuild a finished shard if its SHA-256 is wrong."""
    sidecar_time: int | None = None
    """Modification time of the sidecar in ns when the run began; if it changed, another run has already rebuilt the shard."""

    @property
    def sidecar(self) -> Path:
        """JSON file next to the shard."""
        return self.path.with_suffix(".json")

    @property
    def lock(self) -> Path:
        """Lock file, held while the shard is written."""
        return self.path.with_suffix(".lock")

    @property
    def preproc_hash(self) -> str:
        """Identify the preprocessing."""
        return self.recipe.digest(self.dataset)

    @property
    def identity(self) -> dict[str, Any]:
        """What must match between a sidecar and this task."""
        ids = digest([record.volume_id for record in self.records])
        return {"ids_hash": ids, "preproc_hash": self.preproc_hash, "compression": self.recipe.compression}


class ShardResult(NamedTuple):
    """Outcome of a task."""

    shard: str
    sidecar: dict[str, Any] | None
    """None: another process holds the shard."""
    built: bool
    volumes: int = 0
    """Volumes of the shard, if it was built."""
    peak_bytes: int = 0
    """Peak resident memory of the worker process."""


def plan_shards(
    records: Sequence[VolumeRecord], *, root: Path, out: Path, recipe: Recipe, rows: int | None = None
) -> list[ShardTask]:
    """Sort records by id and cut them into shards of `rows` (None: `SHARD_ROWS`), whether their files exist or not."""
    tasks, records, rows = [], sorted(records, key=lambda record: record.volume_id), rows or SHARD_ROWS
    for index, start in enumerate(range(0, len(records), rows)):
        part = tuple(records[start : start + rows])
        path = out / "shards" / part[0].dataset / f"shard-{index:05d}.arrow"
        tasks.append(ShardTask(path, root, part[0].dataset, recipe, part))
    return tasks


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Yield whether the lock `path` was free; if so, hold it until the block or the process ends.

    The lock avoids duplicate work. It does not protect the result: every process writes the same shard, atomically.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether another process holds a lock."""
    with try_lock(path) as free:
        return not free


def read_sidecar(task: ShardTask) -> dict[str, Any] | None:
    """The sidecar of a shard; None if it is missing or unreadable."""
    try:
        return json.loads(task.sidecar.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def finished(task: ShardTask, sidecar: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """The sidecar (read if not given) of a shard that is complete and up to date, else None.

    Up to date: every volume with raw files was made from the same table row and the same files. Raw files may be deleted
    afterwards. A shard with no downloads yet gets an empty sidecar.
    """
    sidecar = sidecar or read_sidecar(task)
    if sidecar is None:
        if task.path.exists() or any(record.files for record in task.records):
            return None
        volumes = {record.volume_id: _NOT_DOWNLOADED for record in task.records}
        return {"shard": task.path.name, "rows": 0, "bytes": 0, "volumes": volumes}
    if not task.path.is_file():
        return None
    expected = task.identity | {"bytes": task.path.stat().st_size}
    if any(sidecar.get(name) != value for name, value in expected.items()):
        return None
    volumes = sidecar["volumes"]
    with ThreadPoolExecutor(_STAT_THREADS) as pool:  # a network file system answers many requests at once
        current = pool.map(lambda record: _is_current(record, volumes.get(record.volume_id), task), task.records)
        return sidecar if all(current) else None


def build_shard(task: ShardTask) -> ShardResult:
    """Write the shard, unless another process holds it or has finished it since the run began.

    Raises:
        PlanChangedError: another run has replaced the plan.
        OSError: the disk is full or not writable.
    """
    manifest = task.path.with_name(MANIFEST)
    if task.plan and json.loads(manifest.read_text(encoding="utf-8"))["plan_hash"] != task.plan:
        raise PlanChangedError(
            f"another run prepares {manifest.parent} with other settings or tables; use the same for all runs, or another --out"
        )
    with try_lock(task.lock) as locked:
        sidecar = finished(task) if locked else None
        if not locked or (sidecar and not _needs_rebuild(task, sidecar)):
            progress.count(len(task.records) if locked else 0)
            return ShardResult(task.path.name, sidecar, built=False)
        with _single_thread():
            sidecar = _build(task)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return ShardResult(task.path.name, sidecar, True, len(task.records), peak)


def remove_partial_shard(task: ShardTask) -> None:
    """Remove partial files of a shard that a killed or stopped worker left, unless another process is writing it."""
    with try_lock(task.lock) as locked:
        if not locked:
            return
        remove_partial(task.path.parent, f"{task.path.stem}.*")
        if task.source is not None:
            shutil.rmtree(task.source.folder(task.path.stem), ignore_errors=True)


def sidecar_time(task: ShardTask) -> int | None:
    """Modification time of the sidecar in ns; None if there is none."""
    return task.sidecar.stat().st_mtime_ns if task.sidecar.exists() else None


@contextmanager
def _single_thread() -> Iterator[None]:
    """Workers share the cores; one thread also fixes the order of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _needs_rebuild(task: ShardTask, sidecar: Mapping[str, Any]) -> bool:
    if sidecar_time(task) != task.sidecar_time:
        return False
    return task.retry or (task.verify and _sha256(task.path) != sidecar["sha256"])


def _file_state(record: VolumeRecord, task: ShardTask) -> dict[str, int] | None:
    """Number, total size and sum of the modification times of a volume's raw files; None if they cannot be found."""
    if task.source is not None:
        return {"files": len(record.files), "bytes": task.source.bytes_of(record)}
    paths = [task.root / name for name in record.files]
    try:
        if record.reader == "dicom":
            state = series_state(paths[0])
        else:
            stats = [file.stat() for path in paths for file in files_of(path)]
            state = len(stats), sum(stat.st_size for stat in stats), sum(stat.st_mtime_ns for stat in stats)
    except OSError:
        return None
    return dict(zip(("files", "bytes", "mtime_ns"), state)) if state[0] else None


def _same_files(record: VolumeRecord, known: Mapping[str, int] | None, task: ShardTask) -> bool:
    """Whether raw files are those of the state `known`; deleted files count as the same."""
    state = _file_state(record, task)
    if state is None:
        return True
    return known is not None and all(known[name] == state[name] for name in known.keys() & state.keys())


def _is_current(record: VolumeRecord, facts: Mapping[str, Any] | None, task: ShardTask) -> bool:
    if facts is None:
        return False
    return not record.files or (facts.get("image_key") == record.image_key and _same_files(record, facts.get("raw_files"), task))


def _build(task: ShardTask) -> dict[str, Any]:
    """Write a shard, then its sidecar; returns the sidecar.

    The old sidecar is deleted before the shard is replaced, so that a kill in between leaves a shard that counts as unfinished.
    """
    with replacing(task.path) as stream:
        volumes = _write(task, stream)
        stream.flush()
        sidecar = {
            "shard": task.path.name,
            "rows": sum("row" in facts for facts in volumes.values()),
            "bytes": stream.tell(),
            "sha256": _sha256(Path(stream.name)),
            **task.identity,
            "volumes": volumes,
        }
        task.sidecar.unlink(missing_ok=True)
    write_bytes(task.sidecar, (json.dumps(sidecar, indent=1, sort_keys=True) + "\n").encode())
    return sidecar


def _write(task: ShardTask, stream: IO[bytes]) -> dict[str, dict[str, Any]]:
    """Write all rows; returns volume id -> row and facts, or the reason why it was quarantined."""
    schema = shard_schema(task.recipe.shape, task.recipe.unit(task.dataset), {"preproc_hash": task.preproc_hash})
    options = pa.ipc.IpcWriteOptions(compression=None if task.recipe.compression == "none" else task.recipe.compression)
    volumes: dict[str, dict[str, Any]] = {}
    rows = 0
    with pa.ipc.new_file(stream, schema, options=options) as writer, closing(_rows(task)) as results:
        for record, image, facts, state in results:
            volumes[record.volume_id] = {**facts, **({"raw_files": state} if state else {})}
            if image is not None:
                metadata = {_FACTS: json.dumps(facts, sort_keys=True).encode()}
                writer.write_batch(volume_batch(record.volume_id, image, schema), metadata)
                volumes[record.volume_id]["row"] = rows
                rows += 1
            progress.count(1)
    return volumes


_Row = tuple[VolumeRecord, np.ndarray | None, dict[str, Any], dict[str, int] | None]
"""Record, voxels [z, y, x] (None: not stored), facts, state of the raw files."""


def _rows(task: ShardTask) -> Iterator[_Row]:
    """One row per record of the shard. Valid rows of the present shard are copied, so that only new volumes are read."""
    previous = _PreviousShard(task)
    missing = [record for record in task.records if record.files and record.volume_id not in previous.rows]
    folder = task.source.folder(task.path.stem) if task.source else task.root
    arrivals = stream_volumes(missing, task.source, folder) if task.source else ((record, None) for record in missing)
    local = replace(task, root=folder / task.source.prefix) if task.source else task
    with closing(arrivals):
        for record in task.records:
            state = _file_state(record, task) if record.files else None
            if record.volume_id in previous.rows:
                facts, image = previous.read(record.volume_id)
                yield record, image, facts, state or previous.file_state(record.volume_id)
            elif not record.files:
                yield record, None, _DAMAGED_AND_DELETED if previous.was_stored(record.volume_id) else _NOT_DOWNLOADED, None
            else:
                _, failure = next(arrivals)
                yield record, *_try_volume(record, local, failure), state
        next(arrivals, None)  # deletes the files of the last volume


class _PreviousShard:
    """Rows of the shard file on disk that are still valid: same preprocessing, table row, raw files and checksum."""

    def __init__(self, task: ShardTask) -> None:
        self.rows: dict[str, int] = {}
        """Volume id -> record batch."""
        self._volumes = (read_sidecar(task) or {}).get("volumes", {})
        records = {record.volume_id: record for record in task.records}
        try:
            self._reader = pa.ipc.open_file(pa.memory_map(str(task.path)))
            if decode_metadata(self._reader.schema).get("preproc_hash") != task.preproc_hash:
                return
            for index in range(self._reader.num_record_batches):
                batch, metadata = self._reader.get_batch_with_custom_metadata(index)
                facts, record = json.loads(metadata[_FACTS]), records.get(batch["volume_id"][0].as_py())
                if record is None or hashlib.sha256(_voxels(batch)).hexdigest() != facts["image_sha256"]:
                    continue
                if _is_current(record, facts | {"raw_files": self.file_state(record.volume_id)}, task):
                    self.rows[record.volume_id] = index
        except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):
            return  # missing, damaged, or written by another program: rows that were not read are prepared again

    def read(self, volume_id: str) -> tuple[dict[str, Any], np.ndarray]:
        """Facts and voxels [z, y, x] of a row."""
        batch, metadata = self._reader.get_batch_with_custom_metadata(self.rows[volume_id])
        return json.loads(metadata[_FACTS]), _voxels(batch)

    def was_stored(self, volume_id: str) -> bool:
        """Whether the volume was stored, readable or not."""
        return "row" in self._volumes.get(volume_id, {})

    def file_state(self, volume_id: str) -> dict[str, int] | None:
        """State of the raw files that a row was made from; None: unknown."""
        return self._volumes.get(volume_id, {}).get("raw_files")


def _voxels(batch: pa.RecordBatch) -> np.ndarray:
    return batch["image"].to_numpy_ndarray()[0]


def _try_volume(record: VolumeRecord, task: ShardTask, failure: Refusal | None) -> tuple[np.ndarray | None, dict[str, Any]]:
    facts = {"image_key": record.image_key, "source": record.source}
    try:
        if failure is not None:
            raise failure
        image, measured = make_volume(record, task.root, task.recipe)
        return image, facts | measured
    except Refusal as refusal:
        return None, facts | {"refused": refusal.code, "detail": refusal.detail}
    except Exception as error:  # one bad volume must not end a long run; the message may contain a patient's name
        return None, facts | {"refused": "unknown", "detail": type(error).__name__}


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
