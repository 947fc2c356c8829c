"""Check raw data or prepared Arrow files before training (docs/data.md).

Finds leaks between splits, wrong intensities, duplicates, damaged files, and problems of reports and labels. Prints a table.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, get_args

from mg3d.cli import ArgumentParser, output_file
from mg3d.settings.schema import DatasetName

if TYPE_CHECKING:
    from mg3d.doctor.run import DoctorReport

COLORS = {"error": "red", "warning": "yellow", "info": "dim"}
T = TypeVar("T")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line as values."""
    parser = ArgumentParser(description=__doc__, epilog="exit code: 0 no errors, 1 errors (see --fail-on), 2 data not checked")
    parser.add_argument("path", type=Path, help="raw folder, folder of Arrow files, or one index file")
    parser.add_argument(
        "--dataset", choices=get_args(DatasetName), help="data set of the raw folder; default: detect ct_rate and ctrg"
    )
    parser.add_argument("--table", type=Path, metavar="FILE", help="--dataset custom: table of volumes and reports")
    parser.add_argument(
        "--sample",
        type=int,
        metavar="N",
        help="volumes to read, 0 = all (default: all of Arrow files; 200 and all incomplete files of raw data)",
    )
    parser.add_argument(
        "--workers", type=int, default=min(8, os.cpu_count() or 1), metavar="N", help="number of processes (default: %(default)s)"
    )
    parser.add_argument(
        "--lists", type=Path, nargs="+", default=[], metavar="FILE",
        help="evaluation lists, one volume, study or patient id per line: nothing in them may be in train",
    )  # fmt: skip
    parser.add_argument(
        "--prepared", type=Path, metavar="DIR", help="raw ctrg or custom: prepared folder, to report the ids used there"
    )
    parser.add_argument(
        "--val-patients", type=int, default=500, metavar="N", help="as passed to the preparation (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="as passed to the preparation (default: %(default)s)")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write all results as JSON")
    parser.add_argument("--html", type=output_file, metavar="FILE", help="write a page with histograms and label prevalences")
    parser.add_argument(
        "--fail-on",
        choices=("error", "warning"),
        default="error",
        help="severity that makes the exit code 1 (default: %(default)s)",
    )
    values = parser.parse_args(arguments)
    if values.table and values.dataset != "custom":
        parser.error("--table requires --dataset custom")
    if values.workers < 1 or (values.sample or 0) < 0 or values.val_patients < 0:
        parser.error("--workers must be at least 1, --sample and --val-patients at least 0")
    return values


def main(arguments: Sequence[str]) -> int:
    """Runs the checks and returns the exit code; 130 if interrupted."""
    values = parse(arguments)
    from mg3d.doctor.html_report import write_html_report
    from mg3d.doctor.run import DoctorOptions, run_doctor
    from mg3d.files import write_json

    names = ("path", "dataset", "sample", "workers", "prepared", "table", "val_patients", "seed")
    options = DoctorOptions(lists=tuple(values.lists), **{name: getattr(values, name) for name in names})
    try:
        report = run_doctor(options, show_progress)
        print_report(report)
        if values.json:
            write_json(values.json, report.as_dict())
        if values.html:
            write_html_report(values.html, report)
            print(f"doctor: wrote {values.html}")
    except (ValueError, OSError) as error:
        print(f"doctor: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("doctor: interrupted", file=sys.stderr)
        return 130
    return int(report.verdict in ({"error"} if values.fail_on == "error" else {"error", "warning"}))


def show_progress(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Passes items on and shows a progress bar if stderr is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=total == 0 or not console.is_terminal) as bar:
        yield from bar.track(items, total=total, description=description)


def print_report(report: "DoctorReport") -> None:
    """Prints the table of results and the verdict."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from mg3d.doctor.html_report import VERDICTS

    catalog = report.data.catalog
    table = Table(title=escape(str(catalog.path)), title_justify="left", expand=True, show_lines=True)
    table.add_column("", no_wrap=True)
    for heading, ratio in (("found (expected)", 5), ("what to do", 3)):
        table.add_column(heading, overflow="fold", ratio=ratio)
    for result in report.results:
        expected = f" (expected: {result.expected})" if result.expected else ""
        cells = (result.severity, f"{result.code}\n{result.message}{expected}", result.action)
        table.add_row(*map(escape, cells), style=COLORS[result.severity])
    console = Console(highlight=False)
    console.print(table)
    synthetic = " (a synthetic set)" if catalog.is_synthetic else ""
    console.print(f"doctor: {VERDICTS[report.verdict]}{synthetic}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
