"""Measure mg3d against another way of doing the same, both in one run, and print the ratios (`--help`)."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mg3d.benchmarks.timing import Comparison
from mg3d.files import write_json

TOPICS = {"data": ("preparation", "reading")}
"""Topic -> modules of mg3d.benchmarks; each has `run(*, quick: bool) -> list[Comparison]`."""


def main(arguments: Sequence[str]) -> int:
    """Runs what was asked for; returns the exit code: 1 when a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("topic", choices=TOPICS, help="what to measure")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"only these parts, of {TOPICS}; all without")
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds: shows that it runs, not how fast")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers too")
    given = parser.parse_args(arguments)
    unknown = [part for part in given.parts if part not in TOPICS[given.topic]]
    if unknown:
        parser.error(f"{given.topic} has no part {unknown[0]!r}, only {', '.join(TOPICS[given.topic])}")
    found: list[Comparison] = []
    for part in given.parts or TOPICS[given.topic]:
        found += importlib.import_module(f"mg3d.benchmarks.{part}").run(quick=given.quick)
    Console(width=None if sys.stdout.isatty() else 160).print(_table(found))
    if given.json:
        write_json(given.json, [{**comparison._asdict(), "ratio": comparison.ratio} for comparison in found])
    return int(any(comparison.goal is not None and comparison.ratio < comparison.goal for comparison in found))


def _table(found: Sequence[Comparison]) -> Table:
    table = Table("measured", "ours", "s", "other", "s", "ratio", "goal", "seen")
    for one in found:
        goal = "" if one.goal is None else f"{one.goal:g}"
        seconds = (f"{one.our_seconds:.3g}", f"{one.their_seconds:.3g}")
        table.add_row(one.name, one.ours, seconds[0], one.theirs, seconds[1], f"{one.ratio:.2f}", goal, one.note)
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
