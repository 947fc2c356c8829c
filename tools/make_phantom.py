"""Write a synthetic chest CT data set with ground truth, in the layouts of CT-RATE and CTRG-Chest."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mg3d.checkpoints.command import Parser
from mg3d.phantom.spec import PhantomSettings


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _parser() -> Parser:
    defaults = PhantomSettings()
    parser = Parser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="output folder; gets ct_rate/, ctrg/ and truth/")
    add("--train-patients", type=int, default=defaults.train_patients, help="patients in the CT-RATE train split")
    add("--valid-patients", type=int, default=defaults.valid_patients, help="patients in the CT-RATE valid split")
    add("--ctrg-cases", type=int, default=defaults.ctrg_cases, help="CTRG-Chest cases")
    add("--grid", type=int, default=defaults.grid, help="voxels along x and y; the field of view is 360 mm, voxels are cubic")
    add("--seed", type=int, default=defaults.seed, help="random seed; the same seed and settings give the same data")
    add(
        "--second-scans", type=_fraction, default=defaults.second_scans, help="fraction of patients with two scans; CT-RATE: 0.14"
    )
    add(
        "--second-reconstructions",
        type=_fraction,
        default=defaults.second_reconstructions,
        help="fraction of scans with a second reconstruction (sharp kernel); CT-RATE: 0.90",
    )
    add("--masks", action="store_true", help="also write truth/masks: label maps of the findings (NIfTI); needed for grounding")
    add("--raw-tree", action="store_true", help="also write the layout of CT-RATE's first release: raw values, blank headers")
    add("--true-prevalence", action="store_true", help="use CT-RATE's prevalences instead of raising those of rare findings")
    add("--workers", type=int, default=os.cpu_count(), help="number of processes")
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
        f"make_phantom: wrote {counts['studies']:,} synthetic studies ({counts['volumes']:,} volumes) with ground truth to {out}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
