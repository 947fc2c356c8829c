"""Generate the report of a scan, with a model trained with a captioning head; with --out a CSV table of many scans.

Generated reports are not findings: read docs/inference.md before acting on one.
"""

import argparse
import sys
from collections.abc import Sequence

from mg3d.cli import output_file, positive_int
from mg3d.inference.cli import add_batch_options, check_early, load_model, new_parser, predict_table, run_and_print


def main(arguments: Sequence[str]) -> int:
    """Print or write reports; returns the exit code."""
    parser = new_parser("generate.py", __doc__)
    parser.add_argument("source", metavar="SOURCE", help="a scan; with --out also a folder of scans or an .arrow index")
    parser.add_argument("--out", type=output_file, metavar="FILE.csv", help="table to write, one row per scan")
    parser.add_argument(
        "--beams", type=positive_int, default=1, metavar="N", help="beam width (default: %(default)s, greedy search)"
    )
    parser.add_argument(
        "--no-repeat", type=int, default=0, metavar="N", help="never repeat an n-gram of N words (default: 0, off)"
    )
    add_batch_options(parser)
    options = parser.parse_args(arguments)
    return run_and_print(lambda: run(options))


def run(options: argparse.Namespace) -> str:
    """The report of one scan, or a summary of the table; errors as `ScanModel.generate` and `write_predictions`."""
    check_early(options, options.source, scan=options.source if options.out is None else None)
    model = load_model(options)
    model.require_captioning()
    decoding = {"num_beams": options.beams, "no_repeat_ngram_size": options.no_repeat}
    if options.out is None:
        return model.generate(model.read(options.source), **decoding)
    predict = lambda scans: [[report] for report in model.generate(scans, **decoding)]  # noqa: E731
    return predict_table(options, model, columns=["report"], predict=predict)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
