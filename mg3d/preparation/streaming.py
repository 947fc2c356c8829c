"""Download raw volumes from a Hugging Face data set shortly before they are prepared, and delete each one afterwards."""

import json
import re
import shutil
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path

from filelock import FileLock
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import disable_progress_bars

from mg3d.files import is_full_disk, write_json
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.records import VolumeRecord

ATTEMPTS = 3
"""Downloads of one file before it counts as failed; each attempt resumes the file, and huggingface_hub retries internally."""
RETRY_WAIT_S = 5.0
MAX_CONSECUTIVE_FAILURES = 8
MAX_THREADS = 4
"""Parallel downloads per worker."""


class HubAccessError(PermissionError):
    """The Hub denies access; another attempt does not help."""


@dataclass(frozen=True)
class HubSource:
    """One commit of a data set repository, and how a worker downloads from it."""

    repo: str
    revision: str
    cache: Path
    """Folder of the tables, and of one subfolder per shard that is being prepared."""
    sizes: Mapping[str, int] = field(repr=False)
    """Path in the repository -> bytes."""
    prefix: str = ""
    """Folder of the repository that record files are relative to, e.g. "dataset/"."""
    prefetch: int = 1
    """Volumes on disk per worker, including the one that is being read."""

    def bytes_of(self, record: VolumeRecord) -> int:
        """Total size of a record's files."""
        return sum(self.sizes[self.prefix + name] for name in record.files)

    def for_shard(self, records: Sequence[VolumeRecord], prefetch: int) -> "HubSource":
        """The source for one shard, with the sizes of its files only."""
        names = [self.prefix + name for record in records for name in record.files]
        return replace(self, sizes={name: self.sizes[name] for name in names}, prefetch=prefetch)

    def folder(self, shard: str) -> Path:
        """Download folder of a shard."""
        return self.cache / "volumes" / shard


def open_hub(repo: str, cache: Path, tables: Sequence[str]) -> HubSource:
    """List the files of the newest commit of `repo` and download those that match `tables` into `cache`.

    Raises:
        ValueError: `repo` is not `owner/name`. The argument is not repeated if it may contain a password.
        HubAccessError, ConnectionError: the Hub denies access or cannot be reached.
    """
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo):
        shown = "a URL" if "://" in repo or "@" in repo else repr(repo)
        raise ValueError(f"--stream {shown}: expected owner/name of a data set on the Hugging Face Hub (--ct-rate for a folder)")
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "tables.lock"):
        try:
            revision = HfApi().repo_info(repo, repo_type="dataset").sha or "main"
            sizes = _list_files(repo, revision, cache / "listing.json")
        except Exception as error:
            _raise_if_fatal(repo, error)
            raise ConnectionError(f"{repo}: no valid answer from the Hugging Face Hub ({type(error).__name__})") from None
        prefix = "dataset/" if any(path.startswith("dataset/") for path in sizes) else ""
        source = HubSource(repo, revision, cache, sizes, prefix)
        for path in [path for path in sizes if any(fnmatch(path, prefix + pattern) for pattern in tables)]:
            try:
                _download(source, path, cache)
            except Refusal as failure:
                raise ConnectionError(f"{path} of {repo} could not be downloaded ({failure.detail}); run again") from None
    return source


def prefetch_count(source: HubSource, records: Sequence[VolumeRecord], budget: int, workers: int) -> int:
    """Volumes that each worker may hold on disk while all workers stay below `budget` bytes.

    Raises:
        ValueError: the budget is too small for one volume per worker.
    """
    largest = max((source.bytes_of(record) for record in records if record.files), default=1)
    count = budget // (workers * largest)
    if count < 1:
        raise ValueError(
            f"--stream-budget {budget / 1e9:.3g} is too small for {workers} workers and volumes of up to {largest / 1e9:.3g} GB; "
            f"use at least {workers * largest / 1e9:.3g}, or fewer --workers"
        )
    return count


def stream_volumes(
    records: Sequence[VolumeRecord], source: HubSource, folder: Path
) -> Iterator[tuple[VolumeRecord, Refusal | None]]:
    """Yield each record once its files are in `folder`, or with the failure; delete them when the next one is requested.

    Raises:
        HubAccessError, ConnectionError: access denied, or many consecutive downloads failed.
        OSError: the disk is full.
    """
    upcoming, failures = iter(records), 0
    pending: deque[tuple[VolumeRecord, Future[Refusal | None]]] = deque()
    executor = ThreadPoolExecutor(min(source.prefetch, MAX_THREADS))

    def submit(count: int) -> None:
        pending.extend((record, executor.submit(_download_volume, source, record, folder)) for record in islice(upcoming, count))

    try:
        submit(source.prefetch)
        while pending:
            record, future = pending.popleft()
            failure = future.result()
            failures = failures + 1 if failure else 0
            if failures == MAX_CONSECUTIVE_FAILURES:
                raise ConnectionError(
                    f"{failures} consecutive downloads failed ({failure.detail}); check the network and run again, finished "
                    "shards are kept"
                )
            yield record, failure
            for name in record.files:
                (folder / source.prefix / name).unlink(missing_ok=True)
            submit(1)
    finally:
        executor.shutdown(cancel_futures=True)
    shutil.rmtree(folder, ignore_errors=True)


def _download_volume(source: HubSource, record: VolumeRecord, folder: Path) -> Refusal | None:
    try:
        for name in record.files:
            _download(source, source.prefix + name, folder)
    except Refusal as failure:
        return failure
    return None


def _download(source: HubSource, path: str, folder: Path) -> None:
    disable_progress_bars()
    for attempt in range(ATTEMPTS):
        try:
            hf_hub_download(source.repo, path, repo_type="dataset", revision=source.revision, local_dir=folder)
            return
        except Exception as error:
            _raise_if_fatal(source.repo, error)
            kind = type(error).__name__
            time.sleep(RETRY_WAIT_S * attempt)
    raise Refusal("download_failed", kind)


def _raise_if_fatal(repo: str, error: Exception) -> None:
    """Raise for errors that a retry cannot fix. Messages of the Hub are not passed on: they may contain signed URLs."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, (GatedRepoError, RepositoryNotFoundError)) or status in {401, 403}:
        raise HubAccessError(
            f"no access to the data set {repo} ({type(error).__name__}); accept its terms on its page, then log in with "
            "`hf auth login` or set HF_TOKEN"
        ) from None
    if is_full_disk(error):
        raise error


def _list_files(repo: str, revision: str, cached: Path) -> dict[str, int]:
    """All files of a commit. The list is cached, because a large repository takes many requests and every worker needs it."""
    try:
        listing = json.loads(cached.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        listing = {}
    if listing.get("revision") == revision:
        return listing["files"]
    tree = HfApi().list_repo_tree(repo, recursive=True, revision=revision, repo_type="dataset")
    files = {item.path: item.size for item in tree if isinstance(item, RepoFile)}
    write_json(cached, {"revision": revision, "files": dict(sorted(files.items()))})
    return files
