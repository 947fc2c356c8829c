"""Convert CT-RATE or CTRG-Chest to an Arrow file of reports with 18 labels, a data_root of CT-RATE for task=labeller."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mg3d.cli import ArgumentParser

FILES = {"ct_rate": "CT-RATE-reports.arrow", "ctrg": "CTRG-reports.arrow"}


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
    """Writes the file of each data set. Exit codes: 0 done; 2 invalid options or data."""
    values = parse(arguments)
    from mg3d.finetune.arrows import write_cases
    from mg3d.finetune.reports import read_report_cases

    for dataset, name in FILES.items():
        root = getattr(values, dataset)
        if root is None:
            continue
        try:
            cases = read_report_cases(root, dataset, val_patients=values.val_patients, seed=values.seed)
            write_cases(values.out / name, cases, {"folder": "CT-RATE", "settings": {"task": "labeller"}, "synthetic": False})
        except (ValueError, OSError) as error:
            print(f"mg3d: {error}", file=sys.stderr)
            return 2
        print(f"{values.out / name}: {len(cases)} reports")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
