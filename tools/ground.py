"""Write a grounding map: where in a scan a sentence is supported, as NIfTI in the geometry of the scan. 1 is the mean."""

import argparse
import sys
from collections.abc import Sequence

from mg3d.cli import output_file
from mg3d.inference.cli import check_early, load_model, new_parser, run_and_print


def main(arguments: Sequence[str]) -> int:
    """Write the map; returns the exit code."""
    parser = new_parser("ground.py", __doc__)
    parser.add_argument("scan", metavar="SCAN", help="NIfTI, MetaImage, NRRD, .npz, .zip or a DICOM folder")
    parser.add_argument("sentence", metavar="SENTENCE", help='such as "A small effusion on the left."')
    parser.add_argument("--against", metavar="TEXT", help='contrasting text, such as "There is no effusion." (default: none)')
    parser.add_argument(
        "--by", choices=("contrast", "attention"), default="contrast", help="method; attention needs DCL or SSM (%(default)s)"
    )
    parser.add_argument("--out", type=output_file, required=True, metavar="FILE.nii.gz", help="map to write; must not exist")
    options = parser.parse_args(arguments)
    return run_and_print(lambda: run(options))


def run(options: argparse.Namespace) -> str:
    """Write the map and return its peak; errors as `ScanModel.ground` and `write_nifti`."""
    if options.out.exists():
        raise ValueError(f"{options.out} exists and may be a scan. Choose a new file or remove it.")
    if options.against == options.sentence:
        raise ValueError("--against equals the sentence. Pass a contrasting text.")
    check_early(options, scan=options.scan)
    from mg3d.inference.scan import write_nifti

    model = load_model(options)
    found = model.ground(model.read(options.scan), options.sentence, against=options.against, by=options.by)
    write_nifti(options.out, found.in_file())
    return f"mg3d: {found}; wrote {options.out}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
