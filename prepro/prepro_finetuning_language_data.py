"""Reports of CT-RATE or CTRG-Chest -> Arrow files for the report labeller: reports with 18 labels, sentences with weak ones.

Labels of sentences come from cue words and negation. No volume is opened. An unchanged file is kept.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mg3d.cli import ArgumentParser


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__)
    root = "folder of {} in its published layout, or of Arrow files of its volumes"
    parser.add_argument("--ct-rate", type=Path, metavar="ROOT", help=root.format("CT-RATE"))
    parser.add_argument("--ctrg", type=Path, metavar="ROOT", help=root.format("CTRG-Chest"))
    parser.add_argument("--out", type=Path, default=Path("data/finetune_language_arrows"), help="output folder (%(default)s)")
    parser.add_argument("--val-patients", type=int, default=500, help="patients of the validation split; at most a tenth of the "
                        "training patients (%(default)s)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed of the validation split (%(default)s)")
    values = parser.parse_args(arguments)
    if values.ct_rate is None and values.ctrg is None:
        parser.error("--ct-rate ROOT or --ctrg ROOT is required")
    return values


def main(arguments: Sequence[str]) -> int:
    """Writes the files of each data set; returns the exit code."""
    values = parse(arguments)
    from mg3d.finetune.language import write_language

    for dataset in ("ct_rate", "ctrg"):
        root = getattr(values, dataset)
        if root is None:
            continue
        try:
            counts = write_language(root, dataset, values.out, val_patients=values.val_patients, seed=values.seed)
        except (ValueError, OSError) as error:
            print(error, file=sys.stderr)
            return 2
        for name, count in counts.items():
            print(f"{values.out / name}: {count} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
