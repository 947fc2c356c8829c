"""Map where in a scan a sentence is looked for, as NIfTI over the scan's own voxels: 1 = no more there than anywhere."""

import argparse
import sys
from collections.abc import Sequence

from mg3d.cli import output_file
from mg3d.inference.command import answer, check_early, load_model, new_parser


def main(arguments: Sequence[str]) -> int:
    """Writes the map; returns the exit code."""
    parser = new_parser("ground.py", __doc__)
    parser.add_argument("scan", help="NIfTI, .mha, .mhd, .npz or a folder of DICOM slices")
    parser.add_argument("sentence", help='such as "A small effusion on the left."')
    parser.add_argument("--against", metavar="TEXT", help='what it stands against, such as "There is no effusion."')
    parser.add_argument("--by", default="contrast", help="contrast, or attention for models with DCL or SSM (%(default)s)")
    parser.add_argument("--out", type=output_file, required=True, metavar="FILE.nii.gz", help="the map")
    options = parser.parse_args(arguments)
    return answer(lambda: run(options))


def run(options: argparse.Namespace) -> str:
    """Grounds, writes and says where the map is strongest; errors as `ScanModel.ground` and `write_nifti`."""
    from mg3d.inference.scans import write_nifti

    if options.out.exists():
        raise ValueError(f"{options.out} exists, and may be a scan; name a new file or remove it")
    if options.against == options.sentence:
        raise ValueError("--against is the sentence itself: nothing speaks for it rather than for itself")
    check_early(options, options.scan)
    model = load_model(options)
    region = model.ground(model.read(options.scan), options.sentence, against=options.against, by=options.by)
    write_nifti(options.out, region.in_file())
    return f"mg3d: {region}; the map is {options.out}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
