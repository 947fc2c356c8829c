"""The plan of a data set: which shards to write, written to `manifest.json` so that concurrent runs agree on it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from mg3d.files import write_json
from mg3d.preparation.quarantine import RETRIED
from mg3d.preparation.recipe import digest
from mg3d.preparation.shards import (
    MANIFEST,
    PlanChangedError,
    ShardTask,
    finished,
    is_locked,
    read_sidecar,
    sidecar_time,
)  # fmt: skip


class ShardStatus(NamedTuple):
    """State of the shards of a data set on disk."""

    pending: list[ShardTask]
    done: dict[str, dict[str, Any]]
    """Shard -> sidecar."""
    stored: set[str]
    """Ids of the volumes in all shards."""


def write_plan(tasks: Sequence[ShardTask]) -> tuple[list[ShardTask], str | None]:
    """Write the plan of a data set. Returns the tasks with its hash, and a note if an earlier run had another plan.

    Raises:
        PlanChangedError: a run with another plan is at work.
    """
    path, plan = tasks[0].path.with_name(MANIFEST), _plan(tasks)
    plan_hash, before = digest(plan), _read(path)
    planned = [replace(task, plan=plan_hash) for task in tasks]
    if before.get("plan_hash") == plan_hash:
        return planned, None
    old = before.get("plan", {})
    if old and any(map(is_locked, path.parent.glob("*.lock"))):
        changed = ", ".join(name for name in plan if plan[name] != old.get(name))
        raise PlanChangedError(
            f"another run prepares {path.parent} with other settings or tables (different: {changed}); use the same, wait until "
            "it ends, or use another --out"
        )
    write_json(path, {"plan": plan, "plan_hash": plan_hash})
    if old and (old["preproc"], old["ids"]) != (plan["preproc"], plan["ids"]):
        what = "voxel settings" if old["preproc"] != plan["preproc"] else "list of volumes"
        counts = f" ({old['volumes']} -> {plan['volumes']} volumes)" if old["volumes"] != plan["volumes"] else ""
        return planned, f"{plan['dataset']}: the {what} changed since the last run{counts}; affected shards are rewritten"
    return planned, None


def check_shards(tasks: Sequence[ShardTask], *, retry: bool, verify: bool) -> ShardStatus:
    """Compare the planned shards with those on disk.

    retry: rebuild shards with quarantined volumes.
    verify: rebuild shards whose checksum is wrong (found by the worker).
    """
    status = ShardStatus([], {}, set())
    for task in tasks:
        on_disk = read_sidecar(task)
        sidecar = finished(task, on_disk)
        facts = (on_disk or {}).get("volumes", {})
        status.stored.update(name for name, known in facts.items() if "row" in known)
        codes = {known.get("refused") for known in (sidecar or {}).get("volumes", {}).values()}
        retries = bool(codes & RETRIED) or (retry and bool(codes - {None, "not_downloaded"}))
        if sidecar is None or retries or (verify and sidecar["rows"]):
            status.pending.append(replace(task, sidecar_time=sidecar_time(task), retry=retries, verify=verify))
        else:
            status.done[task.path.name] = sidecar
    return status


def check_nothing_is_lost(tasks: Sequence[ShardTask], limit: int | None) -> None:
    """Refuse a plan without volumes that are stored and could not be prepared again.

    Raises:
        ValueError: `limit` excludes stored volumes, or shards must be rewritten but raw files were deleted.
    """
    first, stored = tasks[0], {}
    for path in sorted(first.path.parent.glob("shard-*.json")):
        sidecar = read_sidecar(replace(first, path=path.with_suffix(".arrow"))) or {}
        unchanged = sidecar.get("preproc_hash") == first.preproc_hash
        stored |= {name: (path.stem, unchanged) for name, facts in sidecar.get("volumes", {}).items() if "row" in facts}
    planned = {record.volume_id: (task.path.stem, record) for task in tasks for record in task.records}
    excluded = len(stored.keys() - planned.keys())
    if limit is not None and excluded:
        raise ValueError(
            f"{first.path.parent} holds {len(stored)} volumes, and --limit {limit} would drop {excluded} of them; use another "
            "--out, or omit --limit"
        )
    lost = sum(not record.files and stored.get(name, (shard, True)) != (shard, True) for name, (shard, record) in planned.items())
    if lost:
        raise ValueError(
            f"{first.dataset}: {lost} stored volumes would have to be prepared again, but their raw files are gone; restore the "
            "files, use the settings and tables of the last run, or use another --out"
        )


def write_manifest(folder: Path, sidecars: Sequence[Mapping[str, Any]]) -> None:
    """Add all shards to `manifest.json`, with rows, sizes and checksums."""
    names = ("shard", "rows", "bytes", "sha256")
    shards = [{name: sidecar[name] for name in names} for sidecar in sidecars if "sha256" in sidecar]
    plan = {name: value for name, value in _read(folder / MANIFEST).items() if name in {"plan", "plan_hash"}}
    totals = {name: sum(shard[name] for shard in shards) for name in ("rows", "bytes")}
    write_json(folder / MANIFEST, {**plan, **totals, "shards": shards})


def _plan(tasks: Sequence[ShardTask]) -> dict[str, Any]:
    records = [record for task in tasks for record in task.records]
    return {
        "dataset": tasks[0].dataset,
        "volumes": len(records),
        "rows_per_shard": len(tasks[0].records),
        "ids": digest([record.volume_id for record in records]),
        "splits": digest([record.split for record in records]),
        "preproc": tasks[0].preproc_hash,
        "compression": tasks[0].recipe.compression,
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
