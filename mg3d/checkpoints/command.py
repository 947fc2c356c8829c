"""What the tools share: they print an answer, or one line about what went wrong and exit code 2, never a stack trace."""

import os
import sys
from collections.abc import Callable

from mg3d.files import is_full_disk


def answer(work: Callable[[], str]) -> int:
    """Prints what `work` gives; returns the exit code. A reader that stops early (`| head`) is no error: the work is done."""
    try:
        text = work()
    except (ValueError, OSError) as error:
        print(f"mg3d: {_sentence(error)}", file=sys.stderr)
        return 2
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter would complain at its end
        if not isinstance(error, BrokenPipeError):
            print(f"mg3d: the answer could not be printed: {_sentence(error)}", file=sys.stderr)
            return 2
    return 0


def _sentence(error: ValueError | OSError) -> str:
    """Our own words as they are; the system's with the path that they are about."""
    if not isinstance(error, OSError) or error.errno is None:
        return " ".join(str(error).split())
    name = error.filename2 or error.filename
    where = f"{name}: " if name else ""
    if is_full_disk(error):
        return f"{where}the disk is full; make room or name another place"
    return f"{where}{(error.strerror or str(error)).lower()}"
