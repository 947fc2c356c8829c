"""Convert CT-RATE or CTRG-Chest to Arrow files of reports with 18 labels, for the report labeller."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mg3d.cli import ArgumentParser


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--ct-rate", type=Path, metavar="ROOT", help="CT-RATE: its folder, or one of its Arrow files")
    parser.add_argument("--ctrg", type=Path, metavar="ROOT", help="CTRG-Chest: its folder, or one of its Arrow files")
    parser.add_argument(
        "--out", type=Path, default=Path("data/finetune_language_arrows"), metavar="FOLDER",
        help="output folder (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--val-patients", type=int, default=500, metavar="N",
        help="training patients that become the validation set, at most a tenth of them (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed of the validation split (default: %(default)s)")
    values = parser.parse_args(arguments)
    if values.ct_rate is None and values.ctrg is None:
        parser.error("no data set: use --ct-rate ROOT or --ctrg ROOT")
    return values


def main(arguments: Sequence[str]) -> int:
    """Writes the files of each data set. Exit codes: 0 done; 2 invalid options or data."""
    values = parse(arguments)
    from mg3d.finetune.reports import write_reports

    for dataset in ("ct_rate", "ctrg"):
        root = getattr(values, dataset)
        if root is None:
            continue
        try:
            counts = write_reports(root, dataset, values.out, val_patients=values.val_patients, seed=values.seed)
        except (ValueError, OSError) as error:
            print(error, file=sys.stderr)
            return 2
        for name, count in counts.items():
            print(f"{values.out / name}: {count} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
