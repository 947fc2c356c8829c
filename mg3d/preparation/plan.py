"""The plan of a data set, written down beside its shards: runs that work side by side must have the same."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mg3d.files import write_json
from mg3d.preparation.locks import holder
from mg3d.preparation.quarantine import TRIED_AGAIN
from mg3d.preparation.recipe import digest
from mg3d.preparation.shards import PLAN, PlanChangedError, ShardTask, anew, finished, read_sidecar, sidecar_time


def settle_plan(tasks: Sequence[ShardTask]) -> tuple[list[ShardTask], str | None]:
    """Writes `plan.json` for the tasks of one data set; returns them bound to it, and a sentence when an older plan was another.

    Raises:
        PlanChangedError: another run is at work in the folder by another plan.
    """
    folder, plan = tasks[0].path.parent, _plan(tasks)
    before = _read(folder / PLAN)
    bound = [replace(task, plan=plan["hash"]) for task in tasks]
    if before and before["hash"] == plan["hash"]:
        return bound, None
    at_work = next((found for lock in sorted(folder.glob("*.lock")) if (found := holder(lock))), None)
    if before and at_work:
        changed = ", ".join(name for name in plan if plan[name] != before.get(name) and name != "hash")
        raise PlanChangedError(
            f"{at_work} prepares {folder} by another plan (different: {changed}); give the same settings and tables, wait "
            "until it has ended, or use another --out"
        )
    write_json(folder / PLAN, plan)
    if before and before.get("preproc") != plan["preproc"]:
        return bound, f"{tasks[0].dataset}: voxels are asked for otherwise than by the last run; all shards are written anew"
    if before and before["ids"] != plan["ids"]:
        return bound, (
            f"{tasks[0].dataset}: the list of volumes is not the last run's ({before['volumes']} then, {plan['volumes']} now); "
            "shards that hold others than before are written anew"
        )
    return bound, None


def pending_tasks(
    tasks: Sequence[ShardTask], sidecars: dict[str, dict[str, Any]], *, retry: bool, verify: bool
) -> tuple[list[ShardTask], set[str], int]:
    """The tasks that are to be done, the ids of all volumes that are stored, and how many have other raw files than before.

    Fills `sidecars` with those of the tasks that are done.

    Raises:
        ValueError: stored volumes would be lost, for their raw files are gone and other voxels are asked for, or the list of
            volumes has changed so that another shard should hold them.
    """
    pending, stored, stranded, others = [], set(), _moved_without_files(tasks), 0
    for task in tasks:
        old = read_sidecar(task)
        sidecar = finished(task, old)
        here = {name for name, facts in (old or {}).get("volumes", {}).items() if "row" in facts}
        absent = {record.volume_id for record in task.records if not record.files}
        if old and old["preproc_hash"] != task.preproc_hash:
            stranded |= here & absent
            here = set()
        stored |= here
        codes = {facts.get("refused") for facts in (sidecar or {}).get("volumes", {}).values()}
        again = bool(codes & TRIED_AGAIN) or (retry and bool(codes - {None, "not_downloaded"}))
        others += len(anew(task, old)) if old and sidecar is None and old["preproc_hash"] == task.preproc_hash else 0
        if sidecar is None or again or (verify and sidecar["rows"]):
            pending.append(replace(task, known=sidecar_time(task), again=again, verify=verify))
        else:
            sidecars[task.path.name] = sidecar
    if stranded:
        raise ValueError(
            f"{len(stranded)} volumes of {tasks[0].dataset} are stored, but their raw files are gone, so that they cannot be "
            "made anew as asked; keep the settings and tables of before, bring the files back, or use another --out"
        )
    return pending, stored, others


def check_limit(tasks: Sequence[ShardTask], limit: int) -> None:
    """Looks whether the tasks, made with `limit`, have all volumes that are stored.

    Raises:
        ValueError: they have not; shards would be written anew without the rest.
    """
    stored = _stored_in(tasks[0])
    left = len(stored.keys() - {record.volume_id for task in tasks for record in task.records})
    if left:
        raise ValueError(
            f"{tasks[0].path.parent} holds {len(stored)} volumes of {tasks[0].dataset}, and --limit {limit} would take {left} of "
            "them away; use another --out, or leave --limit out"
        )


def _stored_in(task: ShardTask) -> dict[str, str]:
    """Volume id -> name of the shard that holds it, by all sidecars beside the task's."""
    stored: dict[str, str] = {}
    for path in sorted(task.path.parent.glob("shard-*.json")):
        sidecar = read_sidecar(replace(task, path=path.with_suffix(task.path.suffix))) or {}
        stored |= {name: path.stem for name, facts in sidecar.get("volumes", {}).items() if "row" in facts}
    return stored


def _moved_without_files(tasks: Sequence[ShardTask]) -> set[str]:
    """Ids of volumes without raw files that are stored in another shard than the plan has them in: rows do not move."""
    stored = _stored_in(tasks[0])
    absent = ((record.volume_id, task.path.stem) for task in tasks for record in task.records if not record.files)
    return {name for name, shard in absent if stored.get(name, shard) != shard}


def _plan(tasks: Sequence[ShardTask]) -> dict[str, Any]:
    records = [record for task in tasks for record in task.records]
    plan = {
        "dataset": tasks[0].dataset,
        "volumes": len(records),
        "shards": len(tasks),
        "rows": len(tasks[0].records),
        "ids": digest([record.volume_id for record in records]),
        "splits": digest([record.split for record in records]),
        "preproc": tasks[0].preproc_hash,
        "compression": tasks[0].recipe.compression,
    }
    return {**plan, "hash": digest(plan)}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return plan if {"hash", "ids", "volumes"} <= plan.keys() else None
