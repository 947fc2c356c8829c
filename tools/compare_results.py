"""Compare two results of tools/evaluate_card.py --json on the same data: paired bootstrap over patients, first minus second."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mg3d.cli import ArgumentParser, positive_int, run_and_print


def comparison(given: argparse.Namespace) -> str:
    """The tables as text."""
    from mg3d.evaluation.card_result import compare_results, read_result
    from mg3d.evaluation.tables import format_tables

    first, second = read_result(given.first), read_result(given.second)
    return format_tables(first.title, compare_results(first, second, n_bootstrap=given.n_bootstrap))


def main(arguments: Sequence[str]) -> int:
    """Prints the comparison; returns the exit code."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("first", type=Path, help="JSON file of the first model")
    parser.add_argument("second", type=Path, help="JSON file of the second model, with the same card and data")
    parser.add_argument(
        "--n-bootstrap", type=positive_int, default=2000, help="bootstrap draws of patients; the smallest p is 2 / (draws + 1)"
    )
    given = parser.parse_args(arguments)
    return run_and_print(lambda: comparison(given))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
