"""Run the preparation: list the raw data, write shards, check the splits, write the index files."""

import multiprocessing
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from filelock import FileLock

from mg3d.datasets.integrity import LeakError, find_leaks
from mg3d.datasets.schema import DATASETS, SPLITS
from mg3d.files import remove_partial
from mg3d.preparation.engine_ray import ray_engine
from mg3d.preparation.engines import Engine, local_engine
from mg3d.preparation.index import join, remove_index, write_index, write_key
from mg3d.preparation.manifest import check_nothing_is_lost, check_shards, write_manifest, write_plan
from mg3d.preparation.progress import progress_bar, use_counter
from mg3d.preparation.quarantine import counts, write_quarantine
from mg3d.preparation.recipe import Recipe
from mg3d.preparation.records import CHANGES, Inventory
from mg3d.preparation.shards import MANIFEST, ShardTask, build_shard, is_locked, plan_shards, remove_partial_shard, try_lock
from mg3d.preparation.sources.options import SourceOptions
from mg3d.preparation.sources.registry import SOURCES, STREAMED_TABLES
from mg3d.preparation.streaming import HubSource, open_hub, prefetch_count
from mg3d.preparation.summary import PrepareSummary

POLL_S = 0.5
"""Pause before a run checks again whether other runs have finished their shards."""


@dataclass(frozen=True, kw_only=True)
class PrepareOptions(SourceOptions):
    """Options of a preparation, as on the command line."""

    roots: Mapping[str, Path]
    """Data set -> folder of its raw files; for a streamed one, the download cache."""
    recipe: Recipe = field(default_factory=Recipe)
    """The preprocessing; the default is the paper's."""
    workers: int = 1
    retry_quarantine: bool = False
    verify: bool = False
    """Compare finished shards with their SHA-256."""
    worker: tuple[int, int] | None = None
    """(i, n): run i of n concurrent runs, which start at different shards. It ends when no shard is left to take."""
    engine: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    stream: Mapping[str, str] = field(default_factory=dict)
    """Data set -> repository on the Hugging Face Hub from which raw files are downloaded during the preparation."""
    stream_budget: int = 50 * 10**9
    """Maximum bytes of downloaded volumes on disk, over all workers of this run."""
    shard_rows: int | None = None
    """Volumes per shard; None: `shards.SHARD_ROWS`."""


@dataclass
class _Job:
    """Preparation of one data set."""

    inventory: Inventory
    tasks: list[ShardTask]
    pending: list[ShardTask]
    done: dict[str, dict[str, Any]]
    """Shard -> sidecar."""

    @property
    def unfinished(self) -> list[ShardTask]:
        return [task for task in self.pending if task.path.name not in self.done]


def prepare(options: PrepareOptions, engine: Engine | None = None) -> PrepareSummary:
    """Write index files, shards and quarantine.jsonl into `options.out`. Finished shards of earlier runs are kept.

    Concurrent runs in one folder share the shards. A run with `options.worker` ends when other runs hold the remaining shards;
    one without waits for them. The run that finds all shards finished writes the index.

    Raises:
        FileNotFoundError, ValueError: raw data are not as expected, a split is empty, or a run with other settings is at work.
        LeakError: a patient, study or image is in two splits; no index file is written.
        OSError: the disk is full, or the Hub cannot be reached.
    """
    start = time.monotonic()
    for dataset in options.roots:
        options.recipe.provenance(dataset)  # raises for a crop that the data set does not allow
    counter = multiprocessing.get_context("spawn").Value("q", 0)
    use_counter(counter)
    if engine is None and options.engine == "ray":
        engine = ray_engine(options.workers, options.ray_address)
    engine = engine or local_engine(options.workers, counter)
    summary = PrepareSummary()
    jobs = _plan_jobs(options, summary)
    for dataset, job in jobs.items():
        if job.pending:
            remove_index(options.out, dataset)
        with progress_bar(dataset, sum(len(task.records) for task in job.pending), counter):
            _run_tasks(_rotate(job.pending, options.worker), job, engine, summary)
    summary.waiting = _wait(jobs, engine, summary, until_done=options.worker is None)
    if not summary.waiting:
        _finish(options, jobs, summary)
    summary.seconds = time.monotonic() - start
    return summary


def _plan_jobs(options: PrepareOptions, summary: PrepareSummary) -> dict[str, _Job]:
    """List the raw data, plan the shards and compare them with those on disk. Writes no shard."""
    sources = _open_sources(options)
    jobs = {}
    for dataset, inventory in _list_raw_data(options, sources).items():
        if not inventory.records:
            _check_splits(dataset, inventory, set(), options.out / "quarantine.jsonl")
        tasks = plan_shards(
            inventory.records, root=inventory.root, out=options.out, recipe=options.recipe, rows=options.shard_rows
        )
        if source := sources.get(dataset):
            prefetch = prefetch_count(source, inventory.records, options.stream_budget, options.workers)
            tasks = [replace(task, source=source.for_shard(task.records, prefetch)) for task in tasks]
        check_nothing_is_lost(tasks, options.limit)
        tasks, note = write_plan(tasks)
        status = check_shards(tasks, retry=options.retry_quarantine, verify=options.verify)
        _check_splits(dataset, inventory, status.stored, options.out / "quarantine.jsonl")
        summary.notes += [*inventory.notes, *([note] if note else [])]
        for task in status.pending:
            remove_partial_shard(task)
        summary.skipped += len(status.done)
        jobs[dataset] = _Job(inventory, tasks, status.pending, status.done)
    return jobs


def _open_sources(options: PrepareOptions) -> dict[str, HubSource]:
    """Data set -> repository, of the streamed data sets; downloads their tables."""
    sources = {}
    for name, repo in options.stream.items():
        if name not in STREAMED_TABLES:
            raise ValueError(f"{name} cannot be streamed, only {', '.join(STREAMED_TABLES)}; download it and give its folder")
        sources[name] = open_hub(repo, options.roots[name], STREAMED_TABLES[name])
    return sources


def _list_raw_data(options: PrepareOptions, sources: Mapping[str, HubSource]) -> dict[str, Inventory]:
    for name, root in options.roots.items():
        if not root.is_dir():
            raise FileNotFoundError(f"the {DATASETS[name].title} folder {root} does not exist")
    listings = {name: list(source.sizes) for name, source in sources.items()}
    return {name: SOURCES[name](root, replace(options, listing=listings.get(name))) for name, root in options.roots.items()}


def _check_splits(dataset: str, inventory: Inventory, stored: set[str], quarantine: Path) -> None:
    """Refuse an inventory without a volume for a required split, after writing its exclusions to `quarantine`.

    stored: ids of volumes that are in shards; these may have no raw files.
    """
    usable = Counter(record.split for record in inventory.records if record.files or record.volume_id in stored)
    empty = [split for split in DATASETS[dataset].required_splits if not usable[split]]
    if usable and not empty:
        return
    write_quarantine(quarantine, inventory.quarantined, {dataset})
    codes = ", ".join(f"{code} {number}" for code, number in counts(inventory.quarantined).items())
    why = f"excluded: {codes}, see {quarantine}" if codes else "nothing was excluded, so the download is incomplete"
    found = ", ".join(f"{split} {number}" for split, number in usable.items()) or "none"
    raise ValueError(
        f"{dataset} has no usable volume for {' and '.join(empty) or 'any split'} (usable: {found}); {why}; add at least one "
        "volume (docs/data.md lists the splits), or raise --limit if it is set"
    )


def _rotate(tasks: list[ShardTask], worker: tuple[int, int] | None) -> list[ShardTask]:
    """All tasks, starting at i/n of the list for worker (i, n)."""
    index, count = worker or (0, 1)
    start = len(tasks) * index // count
    return tasks[start:] + tasks[:start]


def _run_tasks(tasks: Sequence[ShardTask], job: _Job, engine: Engine, summary: PrepareSummary) -> None:
    try:
        with closing(engine(build_shard, tasks)) as results:
            for result in results:
                job.done |= {result.shard: result.sidecar} if result.sidecar else {}
                summary.add(result)
    except BaseException:
        for task in tasks:
            remove_partial_shard(task)
        raise


def _wait(jobs: Mapping[str, _Job], engine: Engine, summary: PrepareSummary, *, until_done: bool) -> list[str]:
    """Build shards that other processes leave unfinished. Returns those they still hold, unless `until_done`: then wait for them.

    A run checks only while it holds no shard, so that of several that end together the last one finds everything finished.
    """
    while any(job.unfinished for job in jobs.values()):
        free = {name: [task for task in job.unfinished if not is_locked(task.lock)] for name, job in jobs.items()}
        for name, tasks in free.items():
            _run_tasks(tasks, jobs[name], engine, summary)
        if any(free.values()):
            continue
        if not until_done:
            return [task.path.stem for job in jobs.values() for task in job.unfinished]
        time.sleep(POLL_S)
    return []


def _finish(options: PrepareOptions, jobs: Mapping[str, _Job], summary: PrepareSummary) -> None:
    """Write quarantine, manifests and index, one process at a time; a second run writes the same again."""
    lock = options.out / "finish.lock"
    with FileLock(lock):
        tables = {dataset: _join(dataset, job, options.out, summary) for dataset, job in jobs.items()}
        write_quarantine(options.out / "quarantine.jsonl", summary.quarantined, jobs.keys())
        for dataset, job in jobs.items():
            if job.inventory.hides_files:
                write_key(options.out / f"{dataset}_key.csv", job.inventory.records)
        _check_leaks(tables, options.out, summary)
        for dataset, rows in tables.items():
            write_index(options.out, dataset, options.recipe, rows)
        for pattern in ("*.arrow", "quarantine.jsonl"):
            remove_partial(options.out, pattern)
        lock.unlink(missing_ok=True)


def _join(dataset: str, job: _Job, out: Path, summary: PrepareSummary) -> pa.Table:
    """The index rows of a data set; adds its counts and exclusions to the summary and removes files left by killed runs."""
    folder, sidecars = out / "shards" / dataset, [job.done[task.path.name] for task in job.tasks]
    rows, quarantined, not_downloaded = join(job.tasks, sidecars, out)
    stored = set(rows["volume_id"].to_pylist())
    excluded = [entry for entry in job.inventory.quarantined if entry.volume_id not in stored]
    summary.quarantined += [*excluded, *quarantined]
    summary.not_downloaded += len(set(not_downloaded) - {entry.volume_id for entry in excluded})
    per_split = Counter(rows["split"].to_pylist())
    summary.rows[dataset] = {split: per_split[split] for split in SPLITS}
    facts_of_all = (facts for sidecar in sidecars for facts in sidecar["volumes"].values())
    changes = Counter(code for facts in facts_of_all for code, _ in facts.get("changes", ()))
    summary.notes += [f"{dataset}: {number} volumes {CHANGES[code]}" for code, number in sorted(changes.items())]
    waiting = len({record.patient_id for record in job.inventory.records if record.split == "val"})
    if waiting and not per_split["val"]:
        summary.notes.append(f"{dataset}: val is empty: none of its {waiting} patients is downloaded yet")
    write_manifest(folder, sidecars)
    remove_partial(folder, MANIFEST)
    for lock in folder.glob("*.lock"):
        with try_lock(lock) as free:  # deleted while it is held: another process must not lock the deleted file
            if free:  # otherwise another run is rebuilding the shard, for example with --verify
                remove_partial(folder, f"{lock.stem}.*")
                lock.unlink(missing_ok=True)
    return rows


def _check_leaks(tables: Mapping[str, pa.Table], out: Path, summary: PrepareSummary) -> None:
    leaks = find_leaks(pa.concat_tables(tables.values()))
    summary.notes += [leak.message for leak in leaks] or ["no leak between splits"]
    if any(leak.is_error for leak in leaks):
        for dataset in tables:
            remove_index(out, dataset)
        raise LeakError("; ".join(f"{leak.message}. {leak.fix}" for leak in leaks if leak.is_error))
