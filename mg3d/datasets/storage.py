"""Where prepared files lie: in a folder, or behind a URL from which each is copied whole into a cache when it is first read."""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import fsspec

from mg3d.files import replacing

WAITS_S = (1.0, 4.0, 15.0, 60.0)
"""Pauses before each new attempt, when a store does not answer."""
_VERSION = ("ETag", "etag", "md5Hash", "blob_id", "LastModified", "last_modified", "mtime", "created")
"""What stores call that which changes with a file's content; the first one given counts."""
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
"""Answers that asking again does not change."""
T = TypeVar("T")


class Storage:
    """The files below one root. Connects when first needed, anew in every process, so that it can be handed to loader processes.

    The name of a cached file carries size and version of the original, so a file that has changed is copied again; of several
    processes one copies while the others wait.

    Args:
        root: a folder, or a URL that fsspec knows (s3://bucket/folder, hf://datasets/name/folder, ...).
        cache_dir: where copies of a URL's files are kept.

    Raises:
        ValueError: the URL's kind is not known, or the package that reads it is not installed.
    """

    def __init__(self, root: str | Path, cache_dir: str | Path = "data/cache") -> None:
        self.root, self.cache_dir = str(root), Path(cache_dir)
        self.is_remote = "://" in self.root
        self._connected: tuple[int, Any, str] | None = None
        if self.is_remote:
            self._connection()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_connected": None}

    def __str__(self) -> str:
        return self.root

    def has(self, name: str) -> bool:
        """Whether there is a file of this name (its path below the root)."""
        if not self.is_remote:
            return (Path(self.root) / name).is_file()
        with contextlib.suppress(FileNotFoundError):
            return self._facts(name)["type"] == "file"
        return False

    def path(self, name: str) -> Path:
        """The file on this machine, copied first where it must be; a folder's file is not looked for.

        Raises:
            FileNotFoundError: the store has no such file.
            OSError: the store did not answer, or the disk of the cache is full.
        """
        if not self.is_remote:
            return Path(self.root) / name
        try:
            facts = self._facts(name)
        except FileNotFoundError:
            raise FileNotFoundError(f"{self._url(name)} is missing; is data_root what the preparation wrote?") from None
        except OSError:
            if (kept := self._newest(name)) is None:
                raise
            return kept
        cached = self._cached(name, facts)
        if not cached.is_file():
            with _alone(cached.with_name(f"{cached.name}.lock")):
                if not cached.is_file():
                    _retrying(lambda: self._copy(name, cached, facts["size"]), self._url(name))
        return cached

    def check(self, names: Iterable[str]) -> None:
        """Asks for files without copying them, and for room in the cache for those not yet copied.

        Raises:
            FileNotFoundError: a file is missing.
            OSError: the cache has too little room for them all.
        """
        wanted = 0
        for name in names if self.is_remote else ():
            try:
                facts = self._facts(name)
            except FileNotFoundError:
                raise FileNotFoundError(f"{self._url(name)} is missing; copy it there from where it was prepared") from None
            wanted += 0 if self._cached(name, facts).is_file() else facts["size"]
        if wanted:
            self.cache_dir.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.cache_dir).free
            if free < wanted:
                raise OSError(
                    f"cache_dir={self.cache_dir} has {free / 1e9:.1f} GB left and the files of {self.root} not there yet "
                    f"take {wanted / 1e9:.1f} GB; set cache_dir to a larger disk"
                )

    def _connection(self) -> tuple[Any, str]:
        if self._connected is None or self._connected[0] != os.getpid():
            try:
                self._connected = (os.getpid(), *fsspec.core.url_to_fs(self.root))
            except (ImportError, ValueError) as error:
                kind = self.root.split("://")[0]
                raise ValueError(
                    f"data_root={self.root}: {kind}:// cannot be read here ({error}); install the fsspec package for it (s3://: "
                    "s3fs, gs://: gcsfs, az://: adlfs), or give a local folder"
                ) from error
        return self._connected[1:]

    def _url(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    def _facts(self, name: str) -> dict[str, Any]:
        system, root = self._connection()
        return _retrying(lambda: system.info(f"{root.rstrip('/')}/{name}"), self._url(name))

    def _folder(self, name: str) -> Path:
        return self.cache_dir / hashlib.sha256(self.root.rstrip("/").encode()).hexdigest()[:16] / PurePosixPath(name).parent

    def _cached(self, name: str, facts: dict[str, Any]) -> Path:
        version = next((str(facts[key]) for key in _VERSION if facts.get(key) is not None), "")
        digest = hashlib.sha256(f"{facts['size']} {version}".encode()).hexdigest()[:12]
        return self._folder(name) / f"{PurePosixPath(name).stem}@{digest}{PurePosixPath(name).suffix}"

    def _newest(self, name: str) -> Path | None:
        """The newest copy of a file whose store does not answer."""
        pattern = f"{PurePosixPath(name).stem}@*{PurePosixPath(name).suffix}"
        return max(self._folder(name).glob(pattern), key=lambda path: path.stat().st_mtime, default=None)

    def _copy(self, name: str, target: Path, size: int) -> None:
        system, root = self._connection()
        with system.open(f"{root.rstrip('/')}/{name}", "rb") as source, replacing(target) as stream:
            shutil.copyfileobj(source, stream, 1 << 20)
            if stream.tell() != size:
                raise ConnectionError(f"{stream.tell()} of {size} bytes came")


def _retrying(action: Callable[[], T], what: str) -> T:
    """What `action` gives, tried again after a pause when the store fails; OSError after the last attempt."""
    for wait in (*WAITS_S, None):
        try:
            return action()
        except _FINAL:
            raise
        except Exception as error:  # every store has errors of its own
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise OSError(f"no room is left in cache_dir for a copy of {what}; set cache_dir to a larger disk") from error
            if wait is None:
                raise OSError(f"{what} could not be read ({type(error).__name__}: {str(error)[:200]})") from error
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Holds a lock between processes, which a killed one gives back."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
