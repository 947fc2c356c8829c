"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A binary stream that takes the place of `path` when the block ends well, and leaves nothing behind when it does not.

    The bytes are on disk (fsync) before the name is; a killed process leaves a `.tmp-` file, see `remove_partial`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with partial.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def remove_partial(folder: Path) -> None:
    """Removes what killed runs left in `folder`."""
    for partial in folder.glob("*.tmp-*"):
        partial.unlink(missing_ok=True)
