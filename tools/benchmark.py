"""Measure mg3d against another way of doing the same, both in one run, and print the ratios (`--help`)."""

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mg3d.benchmarks.timing import Comparison, Options
from mg3d.cli import ArgumentParser, output_file, positive_int
from mg3d.files import write_json

TOPICS = {
    "data": ("preparation", "reading"),
    "encoder": ("encoder",),
    "step": ("step",),
    "losses": ("losses", "growth"),
    "text": ("text",),
    "loader": ("loader",),
}
"""Topic -> modules of mg3d.benchmarks; each has `run(options: Options) -> list[Comparison]`."""
SHAPES = {"losses": {"batch": 16}, "text": {"batch": 4}, "loader": {"batch": 4}, "step": {"batch": 2}}
"""Topic -> options that have another default there."""


def main(arguments: Sequence[str]) -> int:
    """Runs what was asked for; returns the exit code: 1 when a goal was missed."""
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    topic, parts, json = given.pop("topic"), given.pop("parts"), given.pop("json")
    unknown = [part for part in parts if part not in TOPICS[topic]]
    if unknown:
        parser.error(f"{topic} has no part {unknown[0]!r}, only {', '.join(TOPICS[topic])}")
    _refuse_early(parser, given)
    chosen = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items() if value is not None}
    options = Options(**SHAPES.get(topic, {}) | chosen)
    found: list[Comparison] = []
    for part in parts or TOPICS[topic]:
        found += importlib.import_module(f"mg3d.benchmarks.{part}").run(options)
    Console(width=None if sys.stdout.isatty() else 200).print(_table(found))
    if json:
        rows = [{**comparison._asdict(), "ratio": comparison.ratio} for comparison in found]
        write_json(json, {"topic": topic, "options": options._asdict(), "rows": rows})
    return int(any(comparison.goal is not None and comparison.ratio < comparison.goal for comparison in found))


def _refuse_early(parser: argparse.ArgumentParser, given: Mapping[str, Any]) -> None:
    """Ends with a sentence what would fail after it has measured."""
    if given["device"] == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("topic", choices=TOPICS, help="what to measure")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"only these parts, of {TOPICS}; all without")
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds: shows that it runs, not how fast")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the numbers too")
    parser.add_argument("--size", type=positive_int, nargs=3, metavar="VOXELS", help="of a volume, z y x (128 96 128)")
    parser.add_argument("--batch", type=positive_int, help="volumes or reports")
    parser.add_argument("--threads", type=positive_int, help="CPU threads of a measured process (2)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where to compute (cpu)")
    parser.add_argument("--precision", choices=("32", "bf16"), help="bf16: autocast (32)")
    parser.add_argument("--repeats", type=positive_int, help="rounds, of which the median is shown (3)")
    parser.add_argument("--tokens", type=positive_int, help="of a report (250)")
    parser.add_argument("--sentences", type=positive_int, help="of a report (32)")
    parser.add_argument("--workers", type=positive_int, nargs="+", help="loader: numbers of loader processes (1 2 4 8)")
    parser.add_argument("--step-ms", type=float, help="loader: how long the step takes for which batches are loaded (250)")
    parser.add_argument("--compile", action="store_true", help="encoder: also ours with torch.compile, beside ours without")
    return parser


def _table(found: Sequence[Comparison]) -> Table:
    table = Table("measured", "ours", "", "other", "", "ratio", "goal", "seen")
    for one in found:
        goal = "" if one.goal is None else f"{one.goal:g}"
        costs = (f"{one.our_cost:.3g} {one.unit}", f"{one.their_cost:.3g} {one.unit}")
        table.add_row(one.name, one.ours, costs[0], one.theirs, costs[1], f"{one.ratio:.2f}", goal, one.note)
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
