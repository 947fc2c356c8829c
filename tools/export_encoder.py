"""Export the image encoder with torch.export: volumes [1, 1, D, H, W] in [0, 1] -> embeddings [1, E].

The exported program is verified against the model before the file is written. It runs without mg3d:
`torch.export.load(FILE).module()`. docs/inference.md describes the preprocessing of a volume.
"""

import argparse
import sys
from collections.abc import Sequence

from mg3d.cli import output_file
from mg3d.inference.cli import check_early, load_model, new_parser, run_and_print


def main(arguments: Sequence[str]) -> int:
    """Export; returns the exit code."""
    parser = new_parser("export_encoder.py", __doc__)
    parser.add_argument("out", type=output_file, metavar="FILE.pt2", help="file to write")
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, help="maximum absolute difference of the embeddings (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    return run_and_print(lambda: run(options))


def run(options: argparse.Namespace) -> str:
    """Export and return the accuracy; errors as `export_encoder`."""
    if options.out.suffix != ".pt2":
        raise ValueError(f"{options.out}: expected the suffix .pt2, for torch.export.load")
    check_early(options)
    from mg3d.inference.export_encoder import export_encoder

    difference = export_encoder(load_model(options), options.out, tolerance=options.tolerance)
    return f"mg3d: wrote {options.out}; maximum difference of embeddings {difference:.1e}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
