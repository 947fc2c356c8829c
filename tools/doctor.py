"""Say whether a raw folder or prepared Arrow files are in order (docs/data.md): a table, and JSON and a page if asked for."""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mg3d.cli import ArgumentParser, output_file
from mg3d.datasets.schema import DATASETS
from mg3d.doctor.examine import Examination, Options, examine
from mg3d.doctor.page import VERDICTS, write_examination
from mg3d.files import write_json
from mg3d.preparation.sources.registry import SOURCES

COLOURS = {"blocking": "red", "warning": "yellow", "fact": "dim"}
T = TypeVar("T")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line as values."""
    kinds = ", ".join(f"{name} ({DATASETS[name].title})" for name in SOURCES if name in DATASETS)
    parser = ArgumentParser(description=__doc__, epilog="exit code: 0 go on, 1 blocking, 2 not possible as asked")
    parser.add_argument("path", type=Path, help="raw folder, folder of Arrow files, or one index file")
    parser.add_argument("--kind", choices=tuple(SOURCES), help=f"what the raw folder is, if its content does not tell: {kinds}")
    parser.add_argument(
        "--sample", type=int, metavar="N", help="volumes to read, 0 = all (raw: 200 and all suspects; Arrow: all)"
    )
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), metavar="N", help="processes (%(default)s)")
    parser.add_argument("--lists", type=Path, nargs="+", default=[], metavar="FILE", help="evaluation lists: one id a line")
    parser.add_argument("--prepared", type=Path, metavar="FOLDER", help="raw CTRG or own: prepared folder whose ids are used")
    parser.add_argument("--table", type=Path, metavar="FILE", help="--kind custom: table of its reports, as the preparation's")
    parser.add_argument("--val-patients", type=int, default=500, help="as given to the preparation (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="as given to the preparation (%(default)s)")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write everything that was found")
    parser.add_argument("--html", type=output_file, metavar="FILE", help="write a page with pictures")
    parser.add_argument("--fail-on", choices=("blocking", "warning"), default="blocking", help="what makes the exit code 1")
    given = parser.parse_args(arguments)
    if given.table and given.kind != "custom":
        parser.error("--table describes a raw folder of --kind custom; give that too")
    if given.workers < 1 or (given.sample or 0) < 0 or given.val_patients < 0:
        parser.error("--workers starts at 1, --sample and --val-patients at 0")
    return given


def main(arguments: Sequence[str]) -> int:
    """Examines and shows: 0 go on, 1 blocking (or warnings, as --fail-on says), 2 not possible as asked, 130 stopped."""
    given = parse(arguments)
    options = Options(
        path=given.path,
        kind=given.kind,
        sample=given.sample,
        workers=given.workers,
        lists=tuple(given.lists),
        prepared=given.prepared,
        table=given.table,
        val_patients=given.val_patients,
        seed=given.seed,
    )
    try:
        examination = examine(options, show_progress)
        show(examination)
        if given.json:
            write_json(given.json, examination.as_dict())
        if given.html:
            write_examination(given.html, examination)
            print(f"doctor: the page is {given.html}")
    except (ValueError, OSError) as error:
        print(f"doctor: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("doctor: stopped", file=sys.stderr)
        return 130
    bad = {"blocking"} if given.fail_on == "blocking" else {"blocking", "warning"}
    return int(examination.verdict in bad)


def show_progress(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Passes items on with a bar on the terminal's error stream."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=total == 0 or not console.is_terminal) as bar:
        yield from bar.track(items, total=total, description=what)


def show(examination: Examination) -> None:
    """Prints the table and the verdict."""
    table = Table(title=escape(f"{examination.catalogue.path}"), title_justify="left", expand=True, show_lines=True)
    table.add_column("", no_wrap=True)
    for heading, share in (("found (expected)", 5), ("what to do", 3)):
        table.add_column(heading, overflow="fold", ratio=share)
    for finding in examination.findings:
        expected = f" (expected: {finding.expected})" if finding.expected else ""
        cells = (finding.severity, f"{finding.code}\n{finding.found}{expected}", finding.action)
        table.add_row(*map(escape, cells), style=COLOURS[finding.severity])
    console = Console(highlight=False)
    console.print(table)
    synthetic = " (a synthetic set)" if examination.catalogue.synthetic else ""
    console.print(f"doctor: {VERDICTS[examination.verdict]}{synthetic}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
