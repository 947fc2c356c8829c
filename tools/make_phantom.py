"""Write a synthetic chest CT data set with known truth, in the layouts of CT-RATE and CTRG (`--help`)."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mg3d.cli import ArgumentParser
from mg3d.phantom.faults import ALL, FAULTS, LISTED, plant, wanted_faults
from mg3d.phantom.generate import PhantomSettings, generate


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share; it must lie between 0 and 1")
    return value


def main(arguments: Sequence[str]) -> int:
    """Writes the set; returns the exit code."""
    defaults = PhantomSettings()
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for ct_rate/, ctrg/ and truth/")
    parser.add_argument(
        "--train-patients", type=int, default=defaults.train_patients, help="patients of CT-RATE's training split"
    )
    parser.add_argument(
        "--valid-patients", type=int, default=defaults.valid_patients, help="patients of its official valid split"
    )
    parser.add_argument("--ctrg-cases", type=int, default=defaults.ctrg_cases, help="cases of CTRG")
    parser.add_argument("--grid", type=int, default=defaults.grid, help="voxels along x and y of 360 mm")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="seed of everything")
    parser.add_argument(
        "--second-scans", type=_share, default=defaults.second_scans, help="share of patients with two scans; CT-RATE: 0.14"
    )
    parser.add_argument(
        "--second-reconstructions",
        type=_share,
        default=defaults.second_reconstructions,
        help="share of scans with two reconstructions; CT-RATE: 0.90",
    )
    parser.add_argument("--masks", action="store_true", help="also truth/masks: where the findings are, as NIfTI label maps")
    parser.add_argument("--raw-tree", action="store_true", help="also the first release's tree: raw values and blank headers")
    parser.add_argument("--true-prevalence", action="store_true", help="CT-RATE's own prevalences, not raised for rare findings")
    parser.add_argument(
        "--faults",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"faults to plant into the set once it is made, told in {LISTED}: all, or {', '.join(FAULTS)}; "
        f"not among all: {', '.join(sorted(FAULTS.keys() - set(ALL)))}",
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    given = parser.parse_args(arguments)
    settings = PhantomSettings(
        train_patients=given.train_patients,
        valid_patients=given.valid_patients,
        ctrg_cases=given.ctrg_cases,
        grid=given.grid,
        seed=given.seed,
        second_scans=given.second_scans,
        second_reconstructions=given.second_reconstructions,
        raw_tree=given.raw_tree,
        tempered=not given.true_prevalence,
    )
    try:
        wanted_faults(given.faults)
        counts = generate(given.out, settings, workers=given.workers, masks=given.masks)
        planted = plant(given.out, given.faults) if given.faults else {}
    except (ValueError, OSError) as error:
        print(f"make_phantom: {error}", file=sys.stderr)
        return 2
    print(
        f"make_phantom: {given.out} holds {counts['studies']:,} synthetic studies, {counts['volumes']:,} volumes, and their truth"
    )
    if planted:
        print(f"make_phantom: {len(planted)} kinds of faults are planted, see {given.out / LISTED}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
