"""Shared by the command-line programs: argument types, short errors, exit codes. Cheap to import, for a fast --help."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from mg3d.files import os_advice


class ArgumentParser(argparse.ArgumentParser):
    """Reports an error below one line of usage; argparse prints all options first."""

    def error(self, message: str) -> NoReturn:
        """Exits with code 2."""
        self.exit(2, f"usage: {self.prog} --help lists all options\n{self.prog}: error: {message}\n")


def output_file(text: str) -> Path:
    """Argument type: a file to write, in an existing folder."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder; name a file")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"the folder {path.parent} does not exist; create it or choose another one")
    return path


def positive_int(text: str) -> int:
    """Argument type: an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Options of all programs that compute with a trained model."""
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: GPU if available)")
    parser.add_argument(
        "--precision",
        choices=("auto", "32-true", "16-mixed", "bf16-mixed"),
        default="auto",
        help="numerical precision (default: that of the training on a GPU, float32 on a CPU)",
    )


def run_and_print(work: Callable[[], str]) -> int:
    """Prints the result of `work`; returns the exit code: 2 with one line on stderr for a ValueError or OSError."""
    try:
        with exit_without_environment():
            text = work()
    except (ValueError, OSError) as error:
        print(f"mg3d: {error_sentence(error)}", file=sys.stderr)
        return 2
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter reports it again at exit
        if not isinstance(error, BrokenPipeError):  # `| head` closed the pipe; the work is done
            print(f"mg3d: cannot print the result: {error_sentence(error)}", file=sys.stderr)
            return 2
    return 0


@contextmanager
def exit_without_environment() -> Iterator[None]:
    """Exits with one sentence if a dependency is not installed, as in a Python outside of the virtual environment."""
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "mg3d").split(".")[0]
        if name == "mg3d":
            raise
        sys.exit(f"mg3d: no module named {name}. Activate the environment (source .venv/bin/activate) or install {name}.")


def error_sentence(error: ValueError | OSError) -> str:
    """Our own messages unchanged, the system's with the path."""
    if not isinstance(error, OSError) or error.errno is None:
        return " ".join(str(error).split())
    path = error.filename2 or error.filename
    return f"{f'{path}: ' if path else ''}{os_advice(error)}"
