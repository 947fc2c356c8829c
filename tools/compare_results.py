"""Compare two results of tools/evaluate_card.py --json on the same data: paired bootstrap over patients, first minus second."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mg3d.evaluation.results import compare, print_tables, read_result


def main(arguments: Sequence[str]) -> int:
    """Prints the comparison; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--resamples", type=int, default=2000, help="draws of patients; p is at least 2 / (draws + 1)")
    given = parser.parse_args(arguments)
    try:
        first, second = read_result(given.first), read_result(given.second)
        tables = compare(first, second, resamples=given.resamples)
    except (OSError, ValueError) as error:
        print(f"compare_results: {error}", file=sys.stderr)
        return 2
    print_tables(first.title, tables, Console(highlight=False, width=None if sys.stdout.isatty() else 150))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
