"""The whole preparation: scan, shards, quarantine, leak check, index. What is done already is not done again."""

import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mg3d.datasets.schema import DATASETS, SPLITS
from mg3d.files import remove_partial
from mg3d.preparation.index import join, remove_index, write_index
from mg3d.preparation.leaks import LeakError, find_leaks
from mg3d.preparation.quarantine import Quarantined, counts, write_quarantine
from mg3d.preparation.recipe import Recipe
from mg3d.preparation.records import Scan
from mg3d.preparation.shards import ShardTask, build_shard, finished, plan_shards, start_worker
from mg3d.preparation.sources.ctrg import SplitRule
from mg3d.preparation.sources.registry import SCANS, ScanChoice
from mg3d.settings.schema import volume_shape

Engine = Callable[[Callable[[ShardTask], dict[str, Any]], Sequence[ShardTask]], Generator[dict[str, Any], None, None]]
"""Maps a function over tasks, yields results in any order and stops when closed; `local_engine` does so with processes."""


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    out: Path
    roots: Mapping[str, Path]
    """Data set -> folder of its raw files."""
    image_size: int = 128
    recipe: Recipe | None = None
    """How voxels are made; None: the paper's way at `image_size`, which decides nothing otherwise."""
    workers: int = 1
    val_patients: int = 500
    seed: int = 0
    split: SplitRule = "own"
    limit: int | None = None
    retry_quarantine: bool = False


@dataclass
class Summary:
    """What a run did."""

    rows: dict[str, dict[str, int]] = field(default_factory=dict)
    """Data set -> split -> volumes."""
    quarantined: list[Quarantined] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    built: int = 0
    """Shards written by this run."""
    skipped: int = 0
    """Shards that were up to date."""
    seconds: float = 0.0

    @property
    def share(self) -> float:
        """Quarantined volumes among all that should be usable; `no_chest` is left out of both."""
        lost = sum(entry.code != "no_chest" for entry in self.quarantined)
        stored = sum(sum(part.values()) for part in self.rows.values())
        return lost / max(lost + stored, 1)

    def lines(self) -> list[str]:
        """The summary for people."""
        parts = [f"{name}: " + ", ".join(f"{split} {part[split]}" for split in SPLITS) for name, part in self.rows.items()]
        codes = ", ".join(f"{code} {number}" for code, number in counts(self.quarantined).items())
        return [
            *self.notes,
            *parts,
            f"left out: {codes or 'nothing'} ({self.share:.1%} of the usable)",
            f"shards: {self.built} written, {self.skipped} up to date; {self.seconds:.1f} s",
        ]


def local_engine(workers: int) -> Engine:
    """Processes of this machine; in this very process when there is one worker or one task."""

    def run(work: Callable[[ShardTask], dict[str, Any]], tasks: Sequence[ShardTask]) -> Generator[dict[str, Any], None, None]:
        if min(workers, len(tasks)) <= 1:
            yield from map(work, tasks)
            return
        others = set(multiprocessing.active_children())
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context, initializer=start_worker) as pool:
            futures = [pool.submit(work, task) for task in tasks]
            try:
                yield from (future.result() for future in as_completed(futures))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in set(multiprocessing.active_children()) - others:
                    process.terminate()
                raise

    return run


def prepare(options: Options, engine: Engine | None = None) -> Summary:
    """Makes index files, shards and quarantine.jsonl in `options.out`; finished shards of an earlier run stay.

    Raises:
        FileNotFoundError, ValueError: a raw data set is not what was expected, or a split is empty.
        LeakError: a patient, scan or image lies in two splits; no index file is written.
        OSError: the disk is full.
    """
    began = time.monotonic()
    if options.image_size < 32 or options.image_size % 32:
        raise ValueError(f"image size {options.image_size} is no positive multiple of 32; use 64, 96 or 128")
    recipe = options.recipe or Recipe(shape=volume_shape(options.image_size))
    for dataset in options.roots:
        recipe.provenance(dataset)
    scans = _scan(options)
    summary = Summary()
    listed = options.out / "quarantine.jsonl"
    for dataset, scan in scans.items():
        _check_splits(dataset, scan, listed)
        summary.notes += scan.notes
        remove_partial(options.out / "shards" / dataset)
    rows = {}
    for dataset, scan in scans.items():
        tasks = plan_shards(scan.records, root=scan.root, out=options.out, recipe=recipe)
        sidecars = _build_all(tasks, dataset, options, engine=engine or local_engine(options.workers), summary=summary)
        rows[dataset], refused = join(tasks, sidecars, options.out)
        summary.quarantined += [*scan.refused, *refused]
        summary.rows[dataset] = {split: sum(its == split for its, _ in rows[dataset]) for split in SPLITS}
    write_quarantine(listed, summary.quarantined, scans.keys())
    _check_leaks(rows, options.out, summary)
    for dataset, part in rows.items():
        write_index(options.out, dataset, recipe, part)
    summary.seconds = time.monotonic() - began
    return summary


def _scan(options: Options) -> dict[str, Scan]:
    for name, root in options.roots.items():
        if not root.is_dir():
            raise FileNotFoundError(f"the {DATASETS[name].title} folder {root} does not exist")
    choice = ScanChoice(
        out=options.out, val_patients=options.val_patients, seed=options.seed, split=options.split, limit=options.limit
    )
    return {name: SCANS[name](root, choice) for name, root in options.roots.items()}


def _check_splits(dataset: str, scan: Scan, listed: Path) -> None:
    """Refuses a scan without a volume for training or test, after it has written to `listed` what was set aside."""
    found = Counter(record.split for record in scan.records)
    empty = [split for split in ("train", "test") if not found[split]]
    if not empty:
        return
    write_quarantine(listed, scan.refused, {dataset})
    codes = ", ".join(f"{code} {number}" for code, number in counts(scan.refused).items())
    told = f"set aside were {codes}, see {listed}" if codes else "nothing was set aside, so the download is not complete"
    usable = ", ".join(f"{split} {number}" for split, number in found.items())
    raise ValueError(f"{dataset} has no usable volume for {' and '.join(empty)} (usable: {usable or 'none'}); {told}")


def _build_all(
    tasks: Sequence[ShardTask], dataset: str, options: Options, *, engine: Engine, summary: Summary
) -> list[dict[str, Any]]:
    """The sidecars of all shards, those written that were not up to date."""
    sidecars = {task.path.name: finished(task) for task in tasks}
    if options.retry_quarantine:
        again = {name for name, sidecar in sidecars.items() if sidecar and sidecar["rows"] < len(sidecar["volumes"])}
        sidecars |= dict.fromkeys(again)
    pending = [task for task in tasks if sidecars[task.path.name] is None]
    summary.built += len(pending)
    summary.skipped += len(tasks) - len(pending)
    if pending:
        remove_index(options.out, dataset)
    total = sum(len(task.records) for task in pending)
    try:
        with closing(engine(build_shard, pending)) as results:
            for sidecar in _progress(results, dataset, total):
                sidecars[sidecar["shard"]] = sidecar
    finally:
        remove_partial(options.out / "shards" / dataset)  # of workers that were stopped because of another
    return [sidecars[task.path.name] for task in tasks]


def _progress(results: Iterable[dict[str, Any]], dataset: str, total: int) -> Iterator[dict[str, Any]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=total == 0 or not sys.stdout.isatty(), transient=True) as bar:
        task = bar.add_task(f"{dataset} volumes", total=total)
        for sidecar in results:
            bar.advance(task, len(sidecar["volumes"]))
            yield sidecar


def _check_leaks(rows: Mapping[str, Sequence[tuple[str, dict]]], out: Path, summary: Summary) -> None:
    pairs = [pair for part in rows.values() for pair in part]
    leaks = find_leaks((row for _, row in pairs), (split for split, _ in pairs))
    summary.notes += leaks.lines()
    if leaks.blocking:
        for dataset in rows:
            remove_index(out, dataset)
        raise LeakError("; ".join(leaks.lines()) + ". Remove one of each pair from the raw folder or from its tables")
