"""Shards: the plan, their writing, and whether one is up to date. Every shard has a sidecar that says what it holds."""

import errno
import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mg3d.datasets.schema import shard_schema, volume_batch
from mg3d.files import replacing
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.recipe import Recipe, digest
from mg3d.preparation.records import VolumeRecord
from mg3d.preparation.voxels import make_volume

SHARD_ROWS = 256
FULL_DISK = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True)
class ShardTask:
    """Everything a worker needs to write one shard."""

    path: Path
    root: Path
    dataset: str
    recipe: Recipe
    records: tuple[VolumeRecord, ...]

    @property
    def sidecar(self) -> Path:
        """The JSON file beside the shard."""
        return self.path.with_suffix(".json")

    @property
    def plan_hash(self) -> str:
        """Changes with the volumes of the shard, their files and their metadata."""
        return digest([record.image_key for record in self.records])

    @property
    def preproc_hash(self) -> str:
        """Changes with the preprocessing."""
        return self.recipe.digest(self.dataset)


def plan_shards(records: Sequence[VolumeRecord], *, root: Path, out: Path, recipe: Recipe) -> list[ShardTask]:
    """Records in their order, 256 to a shard `shards/<dataset>/shard-00000.arrow`; which split they are in decides nothing."""
    tasks = []
    for number, start in enumerate(range(0, len(records), SHARD_ROWS)):
        part = tuple(records[start : start + SHARD_ROWS])
        path = out / "shards" / part[0].dataset / f"shard-{number:05d}.arrow"
        tasks.append(ShardTask(path, root, part[0].dataset, recipe, part))
    return tasks


def finished(task: ShardTask) -> dict[str, Any] | None:
    """The sidecar of a shard that is whole and up to date, else None."""
    try:
        sidecar = json.loads(task.sidecar.read_text(encoding="utf-8"))
        size = task.path.stat().st_size
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    expected = {"plan_hash": task.plan_hash, "preproc_hash": task.preproc_hash, "bytes": size}
    return sidecar if all(sidecar.get(name) == value for name, value in expected.items()) else None


def build_shard(task: ShardTask) -> dict[str, Any]:
    """Writes a shard and then its sidecar, which it returns. Volumes that cannot be used are noted there, not written.

    Raises:
        OSError: the disk is full or cannot be written; nothing is left behind.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _build(task)
    finally:
        torch.set_num_threads(threads)


def start_worker() -> None:
    """Leaves Ctrl-C to the process that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _build(task: ShardTask) -> dict[str, Any]:
    schema = shard_schema(task.recipe.shape, task.recipe.unit(task.dataset), {"preproc_hash": task.preproc_hash})
    task.sidecar.unlink(missing_ok=True)
    volumes: dict[str, dict[str, Any]] = {}
    with replacing(task.path) as stream:
        with pa.ipc.new_file(stream, schema) as writer:
            rows = _write_volumes(task, writer, schema, volumes)
        size = stream.tell()
    sidecar = {
        "shard": task.path.name,
        "rows": rows,
        "bytes": size,
        "plan_hash": task.plan_hash,
        "preproc_hash": task.preproc_hash,
        "volumes": volumes,
    }
    with replacing(task.sidecar) as stream:
        stream.write((json.dumps(sidecar, indent=1, sort_keys=True) + "\n").encode())
    return sidecar


def _write_volumes(
    task: ShardTask, writer: pa.ipc.RecordBatchFileWriter, schema: pa.Schema, volumes: dict[str, dict[str, Any]]
) -> int:
    """Writes what can be used, fills `volumes` with what became of each, and returns how many were written."""
    rows = 0
    for record in task.records:
        image, facts = _try_volume(record, task)
        volumes[record.volume_id] = facts if image is None else {"row": rows, **facts}
        if image is not None:
            writer.write_batch(volume_batch(record.volume_id, image, schema))
            rows += 1
    return rows


def _try_volume(record: VolumeRecord, task: ShardTask) -> tuple[np.ndarray | None, dict[str, Any]]:
    try:
        return make_volume(record, task.root, task.recipe)
    except Refusal as refusal:
        return None, {"refused": refusal.code, "detail": refusal.detail}
    # One strange volume must not end a run of days. The message may name a file, hence a person: only its type is kept.
    except Exception as error:
        return None, {"refused": "unknown", "detail": type(error).__name__}
