"""Atomic writing of files and folders, and the walk through folders."""

import errno
import json
import os
import platform
import re
import resource
import secrets
import shutil
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

OPEN_FILES = 8192
"""Files that a run may have open at once, where the system allows it."""


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an error means that the disk is full or a quota is exceeded."""
    return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}


def raise_open_file_limit() -> None:
    """Raises this process's limit of open files to what the system allows; every shard of a data set is one."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if most == resource.RLIM_INFINITY else min(OPEN_FILES, most)
    if limit != resource.RLIM_INFINITY and limit < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def os_advice(error: OSError) -> str:
    """What to do about an error of the system, as the end of a sentence; empty if it is clear."""
    if is_full_disk(error):
        return "the disk is full; free some space or write elsewhere"
    advice = {
        errno.EMFILE: "raise the limit with `ulimit -n 4096`",
        errno.ENFILE: "the machine has no more; close other programs",
        errno.EIO: "the disk or the network file system is faulty",
        errno.ESTALE: "the network file system has replaced the file; start again",
        errno.EROFS: "choose a folder on a writable disk",
        errno.ENAMETOOLONG: "choose a shorter path",
    }.get(error.errno or 0, "")
    return f"{(error.strerror or str(error)).lower()}{f'; {advice}' if advice else ''}"


@contextmanager
def replacing(path: Path, *, durable: bool = True, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """A binary stream that replaces `path` if the block succeeds, and is deleted if it raises.

    durable: flush to disk (fsync) before renaming, to survive a power cut; too slow for thousands of small files.
    mode: permissions of the new file, masked by the umask.
    A killed process leaves a `.tmp-` file, see `remove_partial`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")  # unique across machines
    try:
        partial.touch(mode=mode, exist_ok=False)
        with partial.open("wb") as stream:
            yield stream
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, RuntimeError) and is_full_disk(error.__context__):  # torch.save hides the cause
            raise error.__context__ from error
        raise


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A new folder that replaces `folder` if the block succeeds; otherwise `folder` stays as it was.

    A killed process leaves `.NAME.tmp-*` in the same parent, which the next call on this machine removes. One killed between the
    two renames leaves the previous folder as `.NAME.old-*`.
    """
    folder = folder.resolve()
    left = re.compile(rf"\.{re.escape(folder.name)}\.tmp-{re.escape(platform.node())}-(\d+)-[0-9a-f]+")
    for path in folder.parent.iterdir() if folder.parent.is_dir() else ():
        if (match := left.fullmatch(path.name)) and not _is_running(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)
    mark = f"{platform.node()}-{os.getpid()}-{secrets.token_hex(4)}"
    new, old = (folder.with_name(f".{folder.name}.{kind}-{mark}") for kind in ("tmp", "old"))
    try:
        new.mkdir(parents=True)
        yield new
        if folder.exists():
            folder.replace(old)
        new.replace(folder)
    except BaseException:
        if old.exists():
            old.replace(folder)
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        pass
    return True


def remove_partial(folder: Path, names: str = "*") -> None:
    """Deletes temporary files that killed processes left in `folder`, of files whose names match the pattern `names`."""
    for partial in folder.glob(f"{names}.tmp-*"):
        partial.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, *, durable: bool = True, mode: int = 0o666) -> None:
    """Writes a file; see `replacing`."""
    with replacing(path, durable=durable, mode=mode) as stream:
        stream.write(content)


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Writes indented JSON; see `replacing`."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode(), durable=durable)


def walk_folders(root: Path, passed_over: Counter[str]) -> Iterator[tuple[Path, list[str]]]:
    """Every folder below `root` with the names of its files. Links are followed, and a folder that is reached twice comes once.

    Links come last, so that a folder below `root` has its own path. Hidden files and folders are left out.

    passed_over: what is left out -> its number, to which this adds.
    """
    pending, links, seen = deque([root]), deque(), set()
    while pending or links:
        folder = pending.popleft() if pending else links.popleft()
        try:
            state = folder.stat()
            with os.scandir(folder) as entries:
                entries = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            passed_over["unreadable folders"] += 1
            continue
        if (state.st_dev, state.st_ino) in seen:
            passed_over["links to folders that are listed already"] += 1
            continue
        seen.add((state.st_dev, state.st_ino))
        files = []
        for entry in entries:
            if entry.name.startswith("."):
                passed_over["hidden files and folders"] += 1
            elif entry.is_dir():
                (links if entry.is_symlink() else pending).append(folder / entry.name)
            elif entry.is_file():
                files.append(entry.name)
            else:
                passed_over["broken links and special files"] += 1
        yield folder, files
