"""What the tools of `mg3d.inference` share: options that choose a model, how it is loaded, a bar that shows how far it is.

Neither this nor the tools import a network before the options were read: that takes ten seconds, and `--help` none.
"""

import argparse
import difflib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mg3d.checkpoints.resolve import find_local
from mg3d.cli import ArgumentParser, positive_int
from mg3d.cli import run_and_print as print_answer
from mg3d.glossary import LABELS

if TYPE_CHECKING:
    from mg3d.inference.model import ScanModel


def new_parser(name: str, doc: str) -> argparse.ArgumentParser:
    """A parser with the options of every tool."""
    parser = ArgumentParser(prog=name, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="saved folder, run (result/tiny), checkpoint, released file or hub id")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="where it is not found with the model")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ...; auto takes the GPU where there is one")
    return parser


def add_many(parser: argparse.ArgumentParser) -> None:
    """Options of tools that go over many scans."""
    parser.add_argument("--batch", type=positive_int, default=4, help="scans in one pass (%(default)s)")
    parser.add_argument("--workers", type=positive_int, default=2, help="threads that read scans (%(default)s)")
    parser.add_argument(
        "--table", metavar="FILE", help="CSV or JSON: a column `volume` with scans below SOURCE, `report` (docs/data.md)"
    )


def answer(work: Callable[[], str]) -> int:
    """As `cli.run_and_print`; a stop from the keyboard is told in a line too, exit code 130."""
    try:
        return print_answer(work)
    except KeyboardInterrupt:
        print("mg3d: stopped; what was done is kept, and the same command goes on", file=sys.stderr)
        return 130


def check_early(options: argparse.Namespace, *reads: str | Path | None) -> None:
    """Refuses in a moment what would else be told when the model is there; says which findings look misspelt.

    Raises:
        FileNotFoundError: one of `reads`, the table or the model is not there.
        ValueError: the model's folder holds none, or a finding has no word.
    """
    find_local(options.model)
    for path in (*reads, getattr(options, "table", None)):
        if path is not None and not Path(path).exists():
            raise FileNotFoundError(f"there is no {path}; correct the path")
    for sentence in doubts(getattr(options, "findings", ())):
        print(f"mg3d: {sentence}", file=sys.stderr)


def doubts(findings: Sequence[str]) -> list[str]:
    """A sentence for each name that is nearly, and not, one of CT-RATE's 18. Any words may be asked for, so it is no error.

    Raises:
        ValueError: a name has no letter.
    """
    if not all(any(map(str.isalpha, name)) for name in findings):
        raise ValueError("--findings: a finding without a word cannot be asked for; give words such as 'Pleural effusion'")
    known = {label.lower(): label for label in LABELS}
    near = {name: difflib.get_close_matches(name.strip().lower(), known, n=1, cutoff=0.8) for name in findings}
    return [
        f"{name!r} is none of CT-RATE's 18 findings and is asked as it stands; did you mean {known[match[0]]!r}?"
        for name, match in near.items()
        if match and name.strip().lower() not in known
    ]


def load_model(options: argparse.Namespace) -> "ScanModel":
    """The model that the options name; errors as `load`."""
    from mg3d.inference.load import load

    batch = getattr(options, "batch", 1)
    return load(options.model, device=options.device, tokenizer=options.tokenizer, batch=batch)


def track(items: Iterable, total: int) -> Iterator:
    """Passes items on with a bar on the terminal's error stream; it shows numbers and no names."""
    columns = (TextColumn("scans"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=total < 2 or not console.is_terminal) as bar:
        yield from bar.track(items, total=total)

