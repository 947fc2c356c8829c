"""Files that appear whole or not at all."""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def is_full_disk(error: BaseException | None) -> bool:
    """Whether there was no room to write."""
    return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def replacing(path: Path, *, durable: bool = True, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """A binary stream that takes the place of `path` when the block ends well, and leaves nothing behind when it does not.

    durable: the bytes are on disk (fsync) before the name is, which a power cut needs and thousands of small files cannot afford.
    mode: permissions of the file from its first byte on, less what the umask takes.
    A killed process leaves a `.tmp-` file, see `remove_partial`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")  # numbers recur between machines
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
        if isinstance(error, RuntimeError) and is_full_disk(error.__context__):  # torch.save hides it: its archive cannot end
            raise error.__context__ from error
        raise


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` when the block ends well; otherwise what was there is there again.

    A process killed between the two renames leaves what was there beside it, as `.NAME.old-`.
    """
    folder = folder.resolve()
    mark = f"{os.getpid()}-{secrets.token_hex(4)}"
    beside, old = (folder.with_name(f".{folder.name}.{word}-{mark}") for word in ("tmp", "old"))
    try:
        beside.mkdir(parents=True)
        yield beside
        if folder.exists():
            folder.replace(old)
        beside.replace(folder)
    except BaseException:
        if old.exists():
            old.replace(folder)
        raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def remove_partial(folder: Path, names: str = "*") -> None:
    """Removes what killed runs left in `folder` of files whose names match `names`."""
    for partial in folder.glob(f"{names}.tmp-*"):
        partial.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, *, durable: bool = True, mode: int = 0o666) -> None:
    """Writes a file; see `replacing`."""
    with replacing(path, durable=durable, mode=mode) as stream:
        stream.write(content)


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Writes builtins as JSON for people to read; see `replacing`."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode(), durable=durable)
