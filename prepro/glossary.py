"""Print the vocabulary of chest CT findings (mg3d/glossary.py): labels, prevalences, prompts.

Headings and cue words of reports are in mg3d/languages.

Label files in the format of CT-RATE are compared with it; exit code 1 if one does not match.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mg3d.glossary import LABELS, PREVALENCE, PROMPTS, prompts

MAX_DIFFERENCE = 0.1
"""Larger differences of a label's frequency from CT-RATE's are reported."""


def mismatches(path: Path) -> list[str]:
    """Differences of a label file from the glossary, one sentence each.

    Raises:
        ValueError: the file cannot be read.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    missing = [label for label in LABELS if label not in table.columns]
    if missing:
        return [f"{path}: no column for {', '.join(missing)}"]
    in_order = [name for name in table.columns if name in LABELS] == list(LABELS)
    found = [] if in_order else [f"{path}: the labels are in another order than in CT-RATE"]
    frequency = table[list(LABELS)].mean()
    return found + [
        f"{path}: {label} is positive in {frequency[label]:.3f} of {len(table)} rows; in CT-RATE in {prevalence:.3f}"
        for label, prevalence in zip(LABELS, PREVALENCE, strict=True)
        if abs(frequency[label] - prevalence) > MAX_DIFFERENCE
    ]


def show() -> None:
    """Print the vocabulary as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("label", "prevalence", *(f"{name}, {polarity}" for name in PROMPTS for polarity in ("present", "absent")))
    for label, prevalence in zip(LABELS, PREVALENCE, strict=True):
        table.add_row(label, f"{prevalence:.3f}", *(text for name in PROMPTS for text in prompts(label, wording=name)))
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(table)


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="LABELS.csv", help="label files to compare with the glossary")
    files = parser.parse_args(arguments).files
    show()
    try:
        found = [text for path in files for text in mismatches(path)]
    except ValueError as error:
        print(f"mg3d: {error}", file=sys.stderr)
        return 2
    for text in found:
        print(f"mg3d: {text}", file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
