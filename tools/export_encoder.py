"""Write the image encoder as a program of `torch.export`: from volumes [1, 1, D, H, W] in [0, 1] to embeddings [1, E].

The program is read again and compared with the model before the file appears. `torch.export.load(FILE).module()` runs it without
mg3d; docs/inference.md tells how a scan becomes a volume.
"""

import argparse
import sys
from collections.abc import Sequence

from mg3d.cli import output_file
from mg3d.inference.command import answer, check_early, load_model, new_parser


def main(arguments: Sequence[str]) -> int:
    """Exports; returns the exit code."""
    parser = new_parser("export_encoder.py", __doc__)
    parser.add_argument("out", type=output_file, metavar="FILE.pt2", help="file to write")
    parser.add_argument("--tolerance", type=float, help="largest difference allowed, where the usual one does not do")
    options = parser.parse_args(arguments)
    return answer(lambda: run(options))


def run(options: argparse.Namespace) -> str:
    """Exports and says what the program is worth; errors as `export_encoder`."""
    if options.out.suffix != ".pt2":
        raise ValueError(f"{options.out}: expected a name that ends in .pt2, which torch.export.load reads")
    check_early(options)
    from mg3d.inference.export_encoder import TOLERANCE, export_encoder

    tolerance = TOLERANCE if options.tolerance is None else options.tolerance
    return f"mg3d: {export_encoder(load_model(options), options.out, tolerance=tolerance)}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
