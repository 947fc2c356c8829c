"""Who works on what, on a disk that several machines may share: lock files that only one process can make.

A lock saves work, it does not guard the result: what is written under it is the same whoever writes it, and appears whole. Two
processes that both believe to hold one, after a pause of many minutes, lose time and nothing else.
"""

import json
import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

HEARTBEAT_S = 30.0
"""A holder renews the time of its lock so often."""
STALE_S = 600.0
"""A lock of another machine that was not renewed for so long is taken over. One of this machine is when its process is dead."""
POLL_S = 0.5
"""A process that waits for a lock looks so often."""
UNWRITTEN_S = 10.0
"""A lock without a name in it, of a process that died in between, is taken over after so long."""


class Holder(NamedTuple):
    """A process, told from one that has its number later or elsewhere."""

    host: str
    pid: int
    started: str
    """When, as the kernel counts it; empty where it cannot be asked."""

    def __str__(self) -> str:
        return f"process {self.pid} of {self.host.split('/')[0]}"


@contextmanager
def holding(path: Path) -> Iterator[bool]:
    """Whether this process got the lock `path`; held, renewed and removed with the block."""
    if not _take(path):
        yield False
        return
    done = threading.Event()
    beat = threading.Thread(target=_renew, args=(path, done), daemon=True)
    beat.start()
    try:
        yield True
    finally:
        done.set()
        beat.join()
        _release(path)


@contextmanager
def waiting_for(path: Path) -> Iterator[None]:
    """Holds the lock `path`, after waiting for whoever has it."""
    while True:
        with holding(path) as mine:
            if mine:
                yield
                return
        time.sleep(POLL_S)


def holder(path: Path) -> Holder | None:
    """Who holds a lock; None when nobody does who may be alive."""
    found = _content(path)
    with suppress(FileNotFoundError):
        if found is not None and _alive(path, found):
            return found
    return None


def clear(path: Path) -> None:
    """Removes a lock whose holder is dead."""
    found = _content(path)
    with suppress(FileNotFoundError):  # let go meanwhile: what lies there now is another's
        if found is not None and not _alive(path, found):
            _set_aside(path, found)


def _take(path: Path) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            clear(path)
            continue
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(json.dumps(_me()._asdict()) + "\n")
        return True
    return False


def _renew(path: Path, done: threading.Event) -> None:
    while not done.wait(HEARTBEAT_S):
        with suppress(OSError):  # taken over: see the first lines of this file
            os.utime(path)


def _release(path: Path) -> None:
    """Removes this process's lock, also one that another has in hand just now, takes for a stale one and will give back."""
    for _ in range(100):
        if _content(path) == _me():
            path.unlink(missing_ok=True)
            return
        if not any(path.parent.glob(f"{path.name}.tmp-*")) and _content(path) != _me():
            return
        time.sleep(0.01)


def _set_aside(path: Path, stale: Holder) -> None:
    """Removes a stale lock; one that was made anew by another in between is given back."""
    grave = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
    with suppress(FileNotFoundError):
        path.rename(grave)
        if _content(grave) != stale:
            with suppress(OSError):
                os.link(grave, path)
        grave.unlink()


def _content(path: Path) -> Holder | None:
    """Who wrote a lock; an empty host when nothing whole is in it, None when it is not there."""
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        return Holder("", 0, "")


def _alive(path: Path, found: Holder) -> bool:
    if found.host == _me().host:
        return _started(found.pid) == found.started
    with tempfile.TemporaryFile(dir=path.parent) as probe:  # its time is the disk's, as the lock's; ours may differ
        age = os.fstat(probe.fileno()).st_mtime - path.stat().st_mtime
    return age < (STALE_S if found.host else UNWRITTEN_S)


def _me() -> Holder:
    return Holder(_host(), os.getpid(), _started(os.getpid()) or "")


def _host() -> str:
    """The machine, and the name space of its process numbers: containers of one name count their own."""
    try:
        return f"{socket.gethostname()}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> str | None:
    """When a process of this machine was started; None when it is dead, empty where the kernel does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""
