"""Shards: the plan, their writing, and whether one is up to date. Every shard has a sidecar that says what it holds."""

import hashlib
import json
import resource
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from mg3d.datasets.schema import shard_schema, volume_batch
from mg3d.files import is_full_disk, replacing
from mg3d.preparation import progress
from mg3d.preparation.kept import KeptRows, encode_facts
from mg3d.preparation.locks import clear, holder, holding
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.raw_files import exchanged, fingerprint
from mg3d.preparation.recipe import Recipe, digest
from mg3d.preparation.records import VolumeRecord
from mg3d.preparation.stream import Delivery, deliver
from mg3d.preparation.voxels import make_volume

SHARD_ROWS = 256
PLAN = "plan.json"
_NOT_DOWNLOADED = {"refused": "not_downloaded", "detail": ""}


class PlanChangedError(ValueError):
    """Another run works in the same folder by another plan."""


@dataclass(frozen=True)
class ShardTask:
    """Everything a worker needs to write one shard."""

    path: Path
    root: Path
    dataset: str
    recipe: Recipe
    records: tuple[VolumeRecord, ...]
    plan: str | None = None
    """Hash of the plan of the whole data set, checked before work; None: there is none."""
    delivery: Delivery | None = None
    """How raw files come; None: they lie below `root`."""
    known: int | None = None
    """The sidecar's time when this run began, ns; a later one was written beside this run."""
    again: bool = False
    """Volumes that were set aside are tried again, even if the shard is finished."""
    verify: bool = False
    """A finished shard is read and compared with its SHA-256."""

    @property
    def sidecar(self) -> Path:
        """The JSON file beside the shard."""
        return self.path.with_suffix(".json")

    @property
    def lock(self) -> Path:
        """Held while the shard is written."""
        return self.path.with_suffix(".lock")

    @property
    def ids_hash(self) -> str:
        """Changes with the list of the shard's volumes, whether their files are there or not."""
        return digest([record.volume_id for record in self.records])

    @property
    def preproc_hash(self) -> str:
        """Changes with the preprocessing."""
        return self.recipe.digest(self.dataset)


class Outcome(NamedTuple):
    """What became of a task."""

    shard: str
    sidecar: dict[str, Any] | None
    """None: another process has the shard in hand."""
    built: bool
    volumes: int = 0
    """Listed in the shard, if it was built."""
    raw_bytes: int = 0
    peak_bytes: int = 0
    """Most memory that the worker's process ever had, resident."""


def plan_shards(
    records: Sequence[VolumeRecord], *, root: Path, out: Path, recipe: Recipe, rows: int | None = None
) -> list[ShardTask]:
    """Records by id, `rows` to a shard `shards/<dataset>/shard-00000.arrow`; neither splits nor missing files decide anything.

    rows: None: SHARD_ROWS.
    """
    tasks, records, rows = [], sorted(records, key=lambda record: record.volume_id), rows or SHARD_ROWS
    for number, start in enumerate(range(0, len(records), rows)):
        part = tuple(records[start : start + rows])
        path = out / "shards" / part[0].dataset / f"shard-{number:05d}.arrow"
        tasks.append(ShardTask(path, root, part[0].dataset, recipe, part))
    return tasks


def read_sidecar(task: ShardTask) -> dict[str, Any] | None:
    """The sidecar as it is; None when there is none that can be read."""
    try:
        return json.loads(task.sidecar.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def finished(task: ShardTask, sidecar: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """The sidecar (read if it is not given) of a shard that is whole and up to date, else None.

    Up to date: no volume whose files are there is unknown to the shard, came from another row of the table or from other files,
    be it at the same paths. Raw files that were removed since take nothing away. A shard of which nothing is there yet has a
    sidecar, in memory, of nothing.
    """
    sidecar = sidecar or read_sidecar(task)
    if sidecar is None:
        nothing = not task.path.exists() and not any(record.files for record in task.records)
        volumes = {record.volume_id: _NOT_DOWNLOADED for record in task.records}
        return {"shard": task.path.name, "rows": 0, "bytes": 0, "volumes": volumes} if nothing else None
    try:
        size = task.path.stat().st_size
    except FileNotFoundError:
        return None
    expected = _identity(task) | {"bytes": size}
    if any(sidecar.get(name) != value for name, value in expected.items()):
        return None
    known = (sidecar["volumes"][record.volume_id].get("key") == record.image_key for record in task.records if record.files)
    return sidecar if all(known) and not anew(task, sidecar) else None


def anew(task: ShardTask, sidecar: dict[str, Any]) -> list[str]:
    """Ids of volumes that the sidecar knows, whose raw files were exchanged for others at the same paths since it was written."""
    found, since_ns = [], sidecar_time(task)
    for record in task.records:
        facts = sidecar["volumes"].get(record.volume_id, {})
        if facts.get("key") == record.image_key and exchanged(record, task.root, facts.get("raw"), since_ns):
            found.append(record.volume_id)
    return found


def work(task: ShardTask) -> Outcome:
    """Takes the shard, if nobody has it, and builds it, if nobody has done so since the run began.

    Raises:
        PlanChangedError: another run has another plan for the data set.
        OSError: the disk is full or cannot be written; of a full disk nothing half-written is left on it.
    """
    plan = task.path.with_name(PLAN)
    if task.plan and json.loads(plan.read_text(encoding="utf-8"))["hash"] != task.plan:
        raise PlanChangedError(
            f"another run has begun in {plan.parent} with other settings or other tables; give all runs the same, or other --out"
        )
    with holding(task.lock) as mine:
        sidecar = finished(task) if mine else None
        if not mine or (sidecar and not _due(task, sidecar)):
            progress.count(len(task.records) if mine else 0, 0)
            return Outcome(task.path.name, sidecar, built=False)
        with _one_thread():
            sidecar, raw_bytes = _build(task)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Outcome(task.path.name, sidecar, True, len(task.records), raw_bytes, peak)


def tidy(task: ShardTask, *, partial: bool) -> None:
    """Removes the lock of a worker that was stopped, and if `partial` what it had written; else a later run goes on there."""
    clear(task.lock)
    if partial and holder(task.lock) is None:
        for path in _partials(task):
            path.unlink(missing_ok=True)


def sidecar_time(task: ShardTask) -> int | None:
    """When the sidecar was written, ns; None when there is none."""
    try:
        return task.sidecar.stat().st_mtime_ns
    except FileNotFoundError:
        return None


@contextmanager
def _one_thread() -> Iterator[None]:
    """Workers share the cores among themselves; a count that is always the same keeps sums in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _identity(task: ShardTask) -> dict[str, Any]:
    return {"ids_hash": task.ids_hash, "preproc_hash": task.preproc_hash, "compression": task.recipe.compression}


def _due(task: ShardTask, sidecar: dict[str, Any]) -> bool:
    """Whether a finished shard is to be built even so; not if that was done beside this run."""
    if task.known is None or sidecar_time(task) != task.known:
        return False
    return task.again or (task.verify and _sha256(task.path) != sidecar["sha256"])


def _build(task: ShardTask) -> tuple[dict[str, Any], int]:
    """Writes a shard and then its sidecar; returns the sidecar and the bytes of raw files that were read.

    Volumes that cannot be used are noted, not written; what earlier versions of the shard hold is taken over. The old sidecar
    goes before the old shard does, and every row says itself what it is, so that no moment to be killed at loses a row.
    """
    with replacing(task.path) as stream, _left_to_the_next(task, stream):
        volumes, raw_bytes = _write(task, stream)
        stream.flush()
        sidecar = {
            "shard": task.path.name,
            "rows": sum("row" in facts for facts in volumes.values()),
            "bytes": stream.tell(),
            "sha256": _sha256(Path(stream.name)),
            **_identity(task),
            "volumes": volumes,
        }
        task.sidecar.unlink(missing_ok=True)
    with replacing(task.sidecar) as stream:
        stream.write((json.dumps(sidecar, indent=1, sort_keys=True) + "\n").encode())
    for path in _partials(task):
        path.unlink(missing_ok=True)
    return sidecar, raw_bytes


@contextmanager
def _left_to_the_next(task: ShardTask, stream: IO[bytes]) -> Iterator[None]:
    """Keeps what was written, for the next run to go on there, when anything but a full disk ends the block."""
    try:
        yield
    except BaseException as error:
        if not is_full_disk(error):
            stream.flush()
            Path(stream.name).rename(task.path.with_name(f"{task.path.name}.tmp-cut-{secrets.token_hex(4)}"))
        raise


def _write(task: ShardTask, stream: IO[bytes]) -> tuple[dict[str, dict[str, Any]], int]:
    """Writes the rows; returns what became of each volume, and the bytes of raw files that were read."""
    schema = shard_schema(task.recipe.shape, task.recipe.unit(task.dataset), {"preproc_hash": task.preproc_hash})
    options = pa.ipc.IpcWriteOptions(compression=None if task.recipe.compression == "none" else task.recipe.compression)
    volumes: dict[str, dict[str, Any]] = {}
    rows = raw_bytes = 0
    with pa.ipc.new_file(stream, schema, options=options) as writer, closing(_rows(task)) as found:
        for record, image, facts, size in found:
            volumes[record.volume_id] = facts if image is None else {"row": rows, **facts}
            if image is not None:
                writer.write_batch(volume_batch(record.volume_id, image, schema), encode_facts(facts))
                rows += 1
            raw_bytes += size
            progress.count(1, size)
    return volumes, raw_bytes


def _rows(task: ShardTask) -> Iterator[tuple[VolumeRecord, np.ndarray | None, dict[str, Any], int]]:
    """Each record with its voxels [z, y, x] or None, what is known of it, and the bytes of raw files that were read for it."""
    stored = _stored(task)
    wanted = [record for record in task.records if record.files and record.volume_id not in stored]
    with closing(deliver(wanted, task.delivery) if task.delivery else _at_hand(wanted)) as arrivals:
        for record in task.records:
            if record.volume_id in stored:
                kept = stored[record.volume_id]
                yield record, kept.voxels(record.volume_id), kept.facts[record.volume_id][1], 0
            elif not record.files:
                yield record, None, _NOT_DOWNLOADED, 0
            else:
                _, failure = next(arrivals)
                yield record, *_try_volume(record, task, failure), _raw_bytes(record, task)
        next(arrivals, None)  # lets the files of the last one go


def _stored(task: ShardTask) -> dict[str, KeptRows]:
    """Volume id -> the earlier file that has its row, for every row that is still right."""
    records = {record.volume_id: record for record in task.records}
    stored: dict[str, KeptRows] = {}
    for path in [task.path, *sorted(task.path.parent.glob(f"{task.path.name}.tmp-*"))]:
        kept = KeptRows(path, task.preproc_hash)
        for volume_id, (_, facts) in kept.facts.items():
            if volume_id not in stored and volume_id in records and _is_of(facts, records[volume_id], task):
                stored[volume_id] = kept
    return stored


def _is_of(facts: Mapping[str, Any], record: VolumeRecord, task: ShardTask) -> bool:
    if not record.files:
        return True
    return facts["key"] == record.image_key and not exchanged(record, task.root, facts.get("raw"))


def _at_hand(records: Sequence[VolumeRecord]) -> Iterator[tuple[VolumeRecord, None]]:
    yield from ((record, None) for record in records)


def _try_volume(
    record: VolumeRecord, task: ShardTask, failure: Refusal | None = None
) -> tuple[np.ndarray | None, dict[str, Any]]:
    raw = fingerprint(record, task.root)
    same = {"key": record.image_key, "source": record.source} | ({"raw": raw} if raw else {})
    try:
        if failure is not None:
            raise failure
        image, facts = make_volume(record, task.root, task.recipe)
        return image, same | facts
    except Refusal as refusal:
        return None, same | {"refused": refusal.code, "detail": refusal.detail}
    # One strange volume must not end a run of days. The message may name a file, hence a person: only its type is kept.
    except Exception as error:
        return None, same | {"refused": "unknown", "detail": type(error).__name__}


def _raw_bytes(record: VolumeRecord, task: ShardTask) -> int:
    try:
        return sum((task.root / name).stat().st_size for name in record.files)
    except OSError:
        return 0


def _partials(task: ShardTask) -> list[Path]:
    return [*task.path.parent.glob(f"{task.path.stem}.*.tmp-*")]


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
