"""What the tools share: they print an answer, or a line or two about what went wrong and exit code 2, never a stack trace."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from mg3d.files import is_full_disk


class Parser(argparse.ArgumentParser):
    """Says what is wrong beneath one line of usage, where argparse prints every option first."""

    def error(self, message: str) -> NoReturn:
        """Exit code 2."""
        self.exit(2, f"usage: {self.prog} --help tells all options\n{self.prog}: error: {message}\n")


def new_file(text: str) -> Path:
    """The type of an option that names a file to write: its folder must be there, so that a typo makes no folders."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder; name a file")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}; make it, or name a file in a folder that is there")
    return path


def count(text: str) -> int:
    """The type of an option that starts at 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no count; it starts at 1")
    return int(text)


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
