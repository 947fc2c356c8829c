"""Write a synthetic chest CT data set with ground truth, in the layouts of CT-RATE and CTRG-Chest."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from mg3d.cli import ArgumentParser
from mg3d.phantom.spec import PhantomSettings


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    defaults = PhantomSettings()

    def add(name: str, kind: Callable[[str], object], text: str, *, default: object, metavar: str = "N") -> None:
        parser.add_argument(name, type=kind, default=default, metavar=metavar, help=f"{text} (default: {default})")

    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="output; gets ct_rate/, ctrg/ and truth/")
    add("--train-patients", int, "patients in the CT-RATE train split", default=defaults.train_patients)
    add("--valid-patients", int, "patients in the CT-RATE valid split", default=defaults.valid_patients)
    add("--ctrg-cases", int, "cases of CTRG-Chest", default=defaults.ctrg_cases)
    add("--grid", int, "voxels along x and y of a 360 mm field of view; voxels are cubic", default=defaults.grid)
    add("--seed", int, "random seed; equal settings give equal data", default=defaults.seed)
    text = "fraction of patients with two scans; CT-RATE: 0.14"
    add("--second-scans", _fraction, text, default=defaults.second_scans, metavar="FRACTION")
    text = "fraction of scans with a second reconstruction (sharp kernel); CT-RATE: 0.90"
    add("--second-reconstructions", _fraction, text, default=defaults.second_reconstructions, metavar="FRACTION")
    add("--workers", int, "number of processes", default=os.cpu_count())
    flag = partial(parser.add_argument, action="store_true")
    flag(
        "--masks",
        help="also write truth/masks: label maps of the findings (NIfTI), used for grounding; also into an existing set",
    )
    flag("--raw-tree", help="also write the layout of CT-RATE's first release: raw values, blank headers")
    flag("--true-prevalence", help="use CT-RATE's prevalences; by default rare findings are more frequent (prevalence ** 0.7)")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    options = vars(_parser().parse_args(arguments))
    out, workers, masks = (options.pop(name) for name in ("out", "workers", "masks"))
    settings = PhantomSettings(tempered=not options.pop("true_prevalence"), **options)
    from mg3d.phantom.generate import generate  # heavy: keeps --help fast

    try:
        counts = generate(out, settings, workers=workers, masks=masks)
    except (ValueError, OSError) as error:
        print(f"make_phantom: {error}", file=sys.stderr)
        return 2
    print(
        f"make_phantom: {out} holds {counts['studies']:,} synthetic studies ({counts['volumes']:,} volumes) with ground truth; "
        f"{counts['new']:,} of them are new"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
