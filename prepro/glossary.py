"""Prints the vocabulary that mg3d's parts share (mg3d/glossary.py) and checks it; exit code 1 where something is wrong.

usage: python prepro/glossary.py [LABELS.csv]      a label file of CT-RATE's shape: its columns and frequencies are checked too
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from mg3d import glossary

FAR = 0.1
"""Difference of a label's frequency from the one noted that is told."""


def problems() -> list[str]:
    """What is wrong with the glossary, a sentence each."""
    found = []
    labels, cues = glossary.LABELS, glossary.NEGATION_CUES
    if len(set(map(str.lower, labels))) != len(labels):
        found.append("a label occurs twice")
    if len(glossary.PREVALENCE) != len(labels) or not all(0 < share < 1 for share in glossary.PREVALENCE):
        found.append(
            f"{len(glossary.PREVALENCE)} shares for {len(labels)} labels; one for each, above 0 and below 1, is expected"
        )
    for name in glossary.PROMPTS:
        pairs = [glossary.prompts(label, wording=name) for label in labels]
        texts = [text for pair in pairs for text in pair]
        if len(set(texts)) != 2 * len(labels) or any(
            label.lower() not in text.lower() for label, pair in zip(labels, pairs) for text in pair
        ):
            found.append(f"the prompts {name!r} do not tell every finding and its absence apart")
    for name, words in (("negation cue", cues), ("missing section", glossary.NOT_GIVEN)):
        found += [
            f"{name} {word!r} is not in lower case without blanks around it" for word in words if word != word.lower().strip()
        ]
        if len(set(words)) != len(words):
            found.append(f"a {name} occurs twice")
    denying = [label for label in labels if set(label.lower().split()) & set(cues)]
    return found + [f"the label {label!r} holds a negation cue, so naming it would deny it" for label in denying]


def problems_of(path: Path) -> list[str]:
    """What of a label file of CT-RATE's shape does not fit the glossary; ValueError where it cannot be read."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    table = pd.read_csv(path)
    columns = [name for name in table.columns if name in glossary.LABELS]
    absent = [label for label in glossary.LABELS if label not in columns]
    if absent:
        return [f"{path} has no column for {', '.join(absent[:5])}"]
    found = [] if columns == list(glossary.LABELS) else [f"{path} has the labels in another order"]
    means = table[list(glossary.LABELS)].mean()
    return found + [
        f"{label}: {means[label]:.3f} of {len(table)} rows of {path}, the glossary notes {share:.3f}"
        for label, share in zip(glossary.LABELS, glossary.PREVALENCE, strict=True)
        if abs(means[label] - share) > FAR
    ]


def show(console: Console) -> None:
    """Prints labels with shares and prompts, and the words."""
    table = Table("label", "share", *(f"{name}, {word}" for name in glossary.PROMPTS for word in ("present", "absent")))
    for label, share in zip(glossary.LABELS, glossary.PREVALENCE, strict=False):
        texts = [text for name in glossary.PROMPTS for text in glossary.prompts(label, wording=name)]
        table.add_row(label, f"{share:.3f}", *texts)
    console.print(table)
    console.print("negation cues:", ", ".join(glossary.NEGATION_CUES))
    console.print("missing sections:", ", ".join(repr(word) for word in glossary.NOT_GIVEN))


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    if any(word in ("-h", "--help") for word in arguments):
        print(__doc__)
        return 0
    show(Console(highlight=False, width=None if sys.stdout.isatty() else 160))
    try:
        found = problems() + [problem for path in arguments for problem in problems_of(Path(path))]
    except ValueError as error:
        print(f"mg3d: {error}", file=sys.stderr)
        return 2
    for problem in found:
        print(f"mg3d: {problem}", file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
