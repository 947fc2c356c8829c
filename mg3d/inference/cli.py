"""Shared parts of the inference tools: options, loading the model, progress bar.

Networks are imported after the options are parsed, so that `--help` stays fast.
"""

import argparse
import difflib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mg3d.checkpoints.resolve import find_local
from mg3d.cli import ArgumentParser, add_device_options, positive_int
from mg3d.cli import run_and_print as print_result
from mg3d.glossary import LABELS, PROMPTS

if TYPE_CHECKING:
    from mg3d.inference.scan import Scan
    from mg3d.inference.scan_model import ScanModel


def new_parser(name: str, doc: str) -> argparse.ArgumentParser:
    """Parser with the options of all inference tools."""
    parser = ArgumentParser(prog=name, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", required=True, help="run folder (result/tiny), checkpoint, saved model folder, released file, or hub id"
    )
    parser.add_argument("--tokenizer", metavar="FOLDER", help="tokenizer, if it is not stored with the model")
    add_device_options(parser)
    return parser


def add_batch_options(parser: argparse.ArgumentParser) -> None:
    """Options of tools that process many scans."""
    parser.add_argument("--batch", type=positive_int, default=4, metavar="N", help="scans per forward pass (%(default)s)")
    parser.add_argument("--workers", type=positive_int, default=2, metavar="N", help="threads that read scans (%(default)s)")
    add_table_option(parser)


def add_table_option(parser: argparse.ArgumentParser) -> None:
    """Option of tools that read the scans of a table."""
    parser.add_argument(
        "--table",
        metavar="FILE",
        help="table with a column `volume` (scans below SOURCE) and optionally `report`: CSV, Excel or JSON (docs/data.md)",
    )


def add_finding_options(parser: argparse.ArgumentParser) -> None:
    """Options of zero-shot classification."""
    parser.add_argument(
        "--findings", nargs="+", default=list(LABELS), metavar="NAME", help="findings to score, any names (default: CT-RATE's 18)"
    )
    parser.add_argument("--wording", choices=PROMPTS, default="there_is", help="wording of the prompts (default: %(default)s)")


def run_and_print(work: Callable[[], str]) -> int:
    """`cli.run_and_print` that also reports an interrupt, with exit code 130, and that no scan can be used, with exit code 1."""
    from mg3d.inference.batch_prediction import NoUsableScanError

    try:
        return print_result(work)
    except NoUsableScanError as error:
        print(f"mg3d: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mg3d: interrupted. Finished work is saved; run the same command to continue.", file=sys.stderr)
        return 130


def check_early(options: argparse.Namespace, *paths: str | Path | None, scan: str | Path | None = None) -> None:
    """Check paths and findings before the model is loaded; prints a warning for misspelt findings.

    scan: the only scan that will be read, if it is only one.

    Raises:
        FileNotFoundError: one of `paths`, the scan, the table or the model does not exist.
        ValueError: the model's folder has no model, a finding has no letters, or `scan` is not one scan.
    """
    find_local(options.model)
    for path in (*paths, scan, getattr(options, "table", None)):
        if path is not None and not Path(path).exists():
            raise FileNotFoundError(f"{path} does not exist")
    for warning in finding_warnings(getattr(options, "findings", ())):
        print(f"mg3d: warning: {warning}", file=sys.stderr)
    if scan is not None:
        from mg3d.inference.scan import check_scan

        check_scan(scan)


def finding_warnings(findings: Sequence[str]) -> list[str]:
    """A warning for each name that resembles one of CT-RATE's 18 findings without being one. Any name is allowed.

    Raises:
        ValueError: a name has no letters.
    """
    if not all(any(map(str.isalpha, name)) for name in findings):
        raise ValueError("--findings: a name has no letters. Pass names such as 'Pleural effusion'.")
    known = {label.lower(): label for label in LABELS}
    similar = {name: difflib.get_close_matches(name.strip().lower(), known, n=1, cutoff=0.8) for name in findings}
    return [
        f"{name!r} is used as given, but is not one of CT-RATE's 18 findings. Did you mean {known[match[0]]!r}?"
        for name, match in similar.items()
        if match and name.strip().lower() not in known
    ]


def load_model(options: argparse.Namespace) -> "ScanModel":
    """Load the model of the options; errors as `load`."""
    from mg3d.inference.load import load

    batch = getattr(options, "batch", 1)
    return load(options.model, device=options.device, precision=options.precision, tokenizer=options.tokenizer, batch=batch)


def predict_table(
    options: argparse.Namespace,
    model: "ScanModel",
    *,
    columns: Sequence[str],
    predict: Callable[[Sequence["Scan"]], Sequence[Sequence[object]]],
) -> str:
    """Write predictions for all scans of `options.source` to `options.out`; returns a summary. See `write_predictions`."""
    from mg3d.inference.batch_prediction import write_predictions
    from mg3d.inference.scan_sources import list_scans, record_source

    sources = list_scans(model, options.source, table=options.table)
    record_source(options.out.with_name(f"{options.out.name}.source.json"), options.source)
    outcome = write_predictions(
        model, sources, options.out, columns=columns, predict=predict, workers=options.workers, track=track
    )
    outcome.require_usable(options.out)
    return f"mg3d: {outcome}; see {options.out}"


def track(items: Iterable, total: int) -> Iterator:
    """Pass items through with a progress bar on stderr, which shows counts and no names."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("scans"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=total < 2 or not console.is_terminal) as bar:
        yield from bar.track(items, total=total)
