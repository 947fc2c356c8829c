"""Prepared files in a local folder, or behind a URL from which each file is downloaded into a cache when first read."""

import hashlib
import shutil
import time
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from filelock import FileLock

from mg3d.files import is_full_disk

RETRY_DELAYS_S = (2.0, 15.0, 60.0)
"""Waits before the 2nd, 3rd and 4th attempt at a download, in addition to the retries of the fsspec backend."""


class Storage:
    """Files below one root. Picklable; every process opens its own connection (fsspec keeps one per process).

    fsspec's `filecache` downloads into the final file name, so a second loader process could map half a file. Here a download
    is renamed into place, under a lock, and its name contains fsspec's `ukey`: a changed file is downloaded again.

    Args:
        root: a folder, or a URL that fsspec supports (s3://bucket/folder, hf://datasets/name/folder, ...).
        cache_dir: folder for downloads.

    Raises:
        ValueError: unknown URL scheme, or the package for it is not installed.
    """

    def __init__(self, root: str | Path, cache_dir: str | Path = "data/cache") -> None:
        self.root, self.cache_dir = str(root).rstrip("/"), Path(cache_dir)
        self.is_remote = "://" in self.root
        if self.is_remote:
            self._remote("")

    def __str__(self) -> str:
        return self.root

    def has(self, name: str) -> bool:
        """Whether a file of this name (path below the root) exists."""
        if not self.is_remote:
            return (Path(self.root) / name).is_file()
        system, path = self._remote(name)
        return system.isfile(path)

    def path(self, name: str) -> Path:
        """Local path of a file, downloaded if necessary. Files of a local folder are not checked for existence.

        Raises:
            FileNotFoundError: the URL does not exist.
            OSError: the download failed, or the disk of `cache_dir` is full.
        """
        if not self.is_remote:
            return Path(self.root) / name
        system, path = self._remote(name)
        for wait in (*RETRY_DELAYS_S, None):
            try:
                return self._download(system, path, name)
            except FileNotFoundError:
                raise FileNotFoundError(f"{self.root}/{name} does not exist. Check data_root") from None
            except Exception as error:  # each backend raises its own exceptions
                if is_full_disk(error):
                    raise OSError(f"no space left in cache_dir for {self.root}/{name}. Set cache_dir to a larger disk") from error
                if wait is None or isinstance(error, PermissionError):
                    reason = f"{type(error).__name__}: {str(error)[:200]}"
                    raise OSError(f"cannot read {self.root}/{name} ({reason}). Check the network and credentials") from error
                time.sleep(wait)
        raise AssertionError("unreachable")

    def check(self, names: Iterable[str]) -> None:
        """Check that files of a URL exist and that those not yet downloaded fit into the cache; downloads nothing.

        Raises:
            FileNotFoundError: a file is missing.
            OSError: not enough free space for all of them.
        """
        if not self.is_remote:
            return
        needed = 0
        for name in names:
            system, path = self._remote(name)
            if not system.isfile(path):
                raise FileNotFoundError(f"{self.root}/{name} is missing. Copy it there from where it was prepared")
            needed += 0 if self._cached(system, path, name).is_file() else system.size(path)
        self.cache_dir.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.cache_dir).free
        if free < needed:
            raise OSError(
                f"cache_dir={self.cache_dir} has {free / 1e9:.1f} GB free, but the files of {self.root} not yet downloaded "
                f"take {needed / 1e9:.1f} GB. Set cache_dir to a larger disk"
            )

    def _remote(self, name: str) -> tuple[Any, str]:
        """(fsspec file system, path in it)."""
        try:
            return fsspec.core.url_to_fs(f"{self.root}/{name}")
        except (ImportError, ValueError) as error:
            scheme = self.root.split("://")[0]
            raise ValueError(
                f"data_root={self.root}: cannot read {scheme}:// ({error}). Install its fsspec package (s3://: s3fs, "
                "gs://: gcsfs, az://: adlfs), or use a local folder"
            ) from error

    def _cached(self, system: Any, path: str, name: str) -> Path:
        """Where a file is cached: the name changes with the content, as far as the store reports it."""
        folder = self.cache_dir / hashlib.sha256(self.root.encode()).hexdigest()[:16] / PurePosixPath(name).parent
        version = hashlib.sha256(str(system.ukey(path)).encode()).hexdigest()[:12]
        return folder / f"{PurePosixPath(name).stem}@{version}{PurePosixPath(name).suffix}"

    def _download(self, system: Any, path: str, name: str) -> Path:
        cached = self._cached(system, path, name)
        if cached.is_file():
            return cached
        cached.parent.mkdir(parents=True, exist_ok=True)
        partial = cached.with_name(f"{cached.name}.partial")
        with FileLock(cached.with_name(f"{cached.name}.lock")):
            if cached.is_file():
                return cached
            try:
                system.get_file(path, str(partial))
                if partial.stat().st_size != system.size(path):
                    raise ConnectionError("the connection closed before the end of the file")
                return partial.replace(cached)
            finally:
                partial.unlink(missing_ok=True)
