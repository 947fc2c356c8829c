"""The whole preparation: scan, shards, quarantine, leak check, index. What is done already is not done again."""

import multiprocessing
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from mg3d.datasets.integrity import LEAK_CHECKS, LeakError, find_leaks
from mg3d.datasets.schema import DATASETS, SPLITS
from mg3d.files import is_full_disk, remove_partial
from mg3d.preparation import progress
from mg3d.preparation.engine_ray import ray_engine
from mg3d.preparation.engines import Engine, local_engine
from mg3d.preparation.index import join, remove_index, write_index, write_manifest
from mg3d.preparation.locks import POLL_S, clear, holder, waiting_for
from mg3d.preparation.plan import check_limit, pending_tasks, settle_plan
from mg3d.preparation.quarantine import counts, write_quarantine
from mg3d.preparation.recipe import Recipe
from mg3d.preparation.records import Inventory
from mg3d.preparation.shards import ShardTask, plan_shards, tidy, work
from mg3d.preparation.sources.options import CtrgSplit, SourceOptions
from mg3d.preparation.sources.registry import SOURCES
from mg3d.preparation.stream_hubs import Hub
from mg3d.preparation.stream_source import Stream, hand_out, open_stream, remove_left
from mg3d.preparation.summary import Summary
from mg3d.settings.schema import volume_shape


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    out: Path
    roots: Mapping[str, Path]
    """Data set -> folder of its raw files; of a streamed one, the folder that its files pass through."""
    image_size: int = 128
    recipe: Recipe | None = None
    """How voxels are made; None: the paper's way at `image_size`, which decides nothing otherwise."""
    workers: int = 1
    val_patients: int = 500
    seed: int = 0
    ctrg_split: CtrgSplit = "resplit"
    limit: int | None = None
    table: Path | None = None
    keep_ids: bool = False
    retry_quarantine: bool = False
    verify: bool = False
    """Finished shards are compared with their SHA-256."""
    compression: Literal["none", "zstd"] = "none"
    worker: tuple[int, int] | None = None
    """(i, n): this is one of n runs side by side; it begins with its part and ends when nothing is left to take."""
    engine: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    stream: Mapping[str, str | Hub] = field(default_factory=dict)
    """Data set -> where its raw files come from while they are needed."""
    stream_budget: int = 50 * 10**9
    """Most bytes of streamed volumes on disk, over all workers of this run."""
    shard_rows: int | None = None
    """Volumes listed to a shard; None: `shards.SHARD_ROWS`."""

    @property
    def resolved(self) -> Recipe:
        """The preprocessing that is asked for."""
        recipe = self.recipe or Recipe(shape=volume_shape(self.image_size))
        return replace(recipe, compression=self.compression)


@dataclass
class _Job:
    """One data set under way."""

    scan: Inventory
    tasks: list[ShardTask]
    pending: list[ShardTask]
    sidecars: dict[str, dict[str, Any]]
    """Shard -> sidecar of those that are done."""


def prepare(options: Options, engine: Engine | None = None) -> Summary:
    """Makes index files, shards and quarantine.jsonl in `options.out`; finished shards of an earlier run stay.

    Runs side by side in one folder share the shards among them. One with `options.worker` ends when others have the rest in hand,
    one without waits for them. Whoever finds all done writes the index.

    Raises:
        FileNotFoundError, ValueError: a raw data set is not what was expected, a split is empty, or another run has another plan.
        LeakError: a patient, scan or image lies in two splits; no index file is written.
        OSError: the disk is full, or a hub gives nothing.
    """
    began = time.monotonic()
    if options.image_size < 32 or options.image_size % 32:
        raise ValueError(f"image size {options.image_size} is no positive multiple of 32; use 64, 96 or 128")
    for dataset in options.roots:
        options.resolved.provenance(dataset)
    tally = progress.new_tally(multiprocessing.get_context("spawn"))
    progress.share(tally)
    if engine is None and options.engine == "ray":
        engine = ray_engine(options.workers, options.ray_address)
    engine = engine or local_engine(options.workers, tally)
    summary = Summary()
    jobs = _jobs(options, summary)
    for dataset, job in jobs.items():
        if job.pending:
            remove_index(options.out, dataset)
        for part in _parts(job, options.worker):
            with progress.telling(dataset, sum(len(task.records) for task in part), tally):
                _work_through(part, job, engine, summary)
    summary.waiting = _wait(jobs, engine, summary, patient=options.worker is None)
    if not summary.waiting:
        _finish(options, jobs, summary)
    summary.seconds = time.monotonic() - began
    return summary


def _jobs(options: Options, summary: Summary) -> dict[str, _Job]:
    """Scans, plans and looks at what is there; touches no shard."""
    streams = {name: open_stream(source, options.roots[name], name) for name, source in options.stream.items()}
    scans, jobs = _scan(options, streams), {}
    for dataset, scan in scans.items():
        if not scan.records:
            _check_splits(dataset, scan, set(), options.out / "quarantine.jsonl")
        tasks = plan_shards(scan.records, root=scan.root, out=options.out, recipe=options.resolved, rows=options.shard_rows)
        if options.limit is not None:
            check_limit(tasks, options.limit)
        tasks, note = settle_plan(tasks)
        sidecars: dict[str, dict[str, Any]] = {}
        pending, stored, others = pending_tasks(tasks, sidecars, retry=options.retry_quarantine, verify=options.verify)
        _check_splits(dataset, scan, stored, options.out / "quarantine.jsonl")
        if dataset in streams:
            pending = hand_out(streams[dataset], pending, options.stream_budget, options.workers)
        summary.notes += [*scan.notes, *([note] if note else [])]
        if others:
            told = f"{dataset}: the raw files of {others} volumes are not those of the last run; these volumes are prepared anew"
            summary.notes.append(told)
        summary.skipped += len(tasks) - len(pending)
        jobs[dataset] = _Job(scan, tasks, pending, sidecars)
    return jobs


def _scan(options: Options, streams: Mapping[str, Stream]) -> dict[str, Inventory]:
    for name, root in options.roots.items():
        if not root.is_dir():
            raise FileNotFoundError(f"the {DATASETS[name].title} folder {root} does not exist")
    choice = SourceOptions(
        out=options.out, val_patients=options.val_patients, seed=options.seed, ctrg_split=options.ctrg_split, limit=options.limit,
        table=options.table, keep_ids=options.keep_ids,
    )  # fmt: skip
    listings = {name: stream.listing for name, stream in streams.items()}
    return {name: SOURCES[name](root, replace(choice, listing=listings.get(name))) for name, root in options.roots.items()}


def _check_splits(dataset: str, scan: Inventory, stored: set[str], listed: Path) -> None:
    """Refuses a scan without a volume for a split that must have one, after it has written to `listed` what was set aside.

    stored: ids of volumes that shards hold, whether their raw files are there or not.
    """
    found = Counter(record.split for record in scan.records if record.files or record.volume_id in stored)
    empty = [split for split in DATASETS[dataset].required_splits if not found[split]]
    if found and not empty:
        return
    write_quarantine(listed, scan.refused, {dataset})
    codes = ", ".join(f"{code} {number}" for code, number in counts(scan.refused).items())
    usable = ", ".join(f"{split} {number}" for split, number in found.items())
    where = " and ".join(empty) or "any split"
    told = f"set aside were {codes}, see {listed}" if codes else "nothing was set aside, so the download is not complete"
    told += f"; add a volume for {where}, one is enough (docs/data.md says which become which split), or raise --limit if given"
    raise ValueError(f"{dataset} has no usable volume for {where} (usable: {usable or 'none'}); {told}")


def _parts(job: _Job, worker: tuple[int, int] | None) -> list[list[ShardTask]]:
    """What a run begins with, and what it then helps with, beginning behind its own."""
    if worker is None:
        return [job.pending]
    place, count = worker
    own = {task.path.name for task in job.tasks[place::count]}
    rest = [task for task in job.pending if task.path.name not in own]
    start = len(rest) * place // count
    return [[task for task in job.pending if task.path.name in own], rest[start:] + rest[:start]]


def _work_through(part: Sequence[ShardTask], job: _Job, engine: Engine, summary: Summary) -> None:
    try:
        with closing(engine(work, part)) as outcomes:
            for outcome in (found for found in outcomes if found.sidecar is not None):
                job.sidecars[outcome.shard] = outcome.sidecar
                summary.add(outcome)
    except BaseException as error:
        for task in part:
            tidy(task, partial=is_full_disk(error))
        raise


def _wait(jobs: Mapping[str, _Job], engine: Engine, summary: Summary, *, patient: bool) -> list[str]:
    """Shards that other processes have in hand; when `patient`, waits until there is none.

    What nobody holds is taken up: it was left undone, or somebody finished it after this run passed by. A run looks only when it
    holds nothing itself, so of several that end together the last finds everything done.
    """
    while busy := [(job, task) for job in jobs.values() for task in _undone(job)]:
        free = [(job, task) for job, task in busy if holder(task.lock) is None]
        for job, task in free:
            _work_through([task], job, engine, summary)
        if not free and not patient:
            return [f"{task.path.name}: {holder(task.lock) or 'just let go'}" for _, task in busy]
        if not free:
            time.sleep(POLL_S)
    return []


def _undone(job: _Job) -> list[ShardTask]:
    return [task for task in job.pending if task.path.name not in job.sidecars]


def _finish(options: Options, jobs: Mapping[str, _Job], summary: Summary) -> None:
    """Writes quarantine, manifests and index, one process at a time; a second one writes the same once more."""
    with waiting_for(options.out / "finish.lock"):
        rows = {}
        for dataset, job in jobs.items():
            sidecars = [job.sidecars[task.path.name] for task in job.tasks]
            rows[dataset], refused, absent = join(job.tasks, sidecars, options.out)
            stored = set(rows[dataset]["volume_id"].to_pylist())
            missing = [entry for entry in job.scan.refused if entry.volume_id not in stored]
            summary.quarantined += [*missing, *refused]
            summary.absent += len(set(absent) - {entry.volume_id for entry in missing})
            found = Counter(rows[dataset]["split"].to_pylist())
            summary.rows[dataset] = {split: found[split] for split in SPLITS}
            told = Counter(facts["note"] for sidecar in sidecars for facts in sidecar["volumes"].values() if facts.get("note"))
            summary.notes += [f"{dataset}: {number} volumes read with {note}" for note, number in sorted(told.items())]
            summary.notes += _empty_val(dataset, job.scan, summary.rows[dataset])
            write_manifest(options.out / "shards" / dataset, sidecars)
            remove_partial(options.out / "shards" / dataset)
            for task in job.pending:
                remove_left(task)
            for lock in (options.out / "shards" / dataset).glob("*.lock"):
                clear(lock)
        write_quarantine(options.out / "quarantine.jsonl", summary.quarantined, jobs.keys())
        _check_leaks(rows, options.out, summary)
        for dataset, part in rows.items():
            write_index(options.out, dataset, options.resolved, part)
        for names in ("*.arrow", "quarantine.jsonl", "finish.lock"):
            remove_partial(options.out, names)


def _empty_val(dataset: str, scan: Inventory, stored: Mapping[str, int]) -> list[str]:
    waiting = len({record.patient_id for record in scan.records if record.split == "val"})
    if stored["val"] or not waiting:
        return []
    return [f"{dataset}: val is empty, for none of its {waiting} patients, drawn from all that are listed, is downloaded yet"]


def _check_leaks(rows: Mapping[str, pa.Table], out: Path, summary: Summary) -> None:
    columns = ["split", "volume_id", *LEAK_CHECKS]
    leaks = find_leaks(pa.concat_tables(table.select(columns) for table in rows.values()))
    summary.notes += [leak.message for leak in leaks] or ["no leak between splits"]
    if any(leak.is_error for leak in leaks):
        for dataset in rows:
            remove_index(out, dataset)
        raise LeakError("; ".join(f"{leak.message}. {leak.fix}" for leak in leaks if leak.is_error))
