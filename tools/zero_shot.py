"""Score findings of a scan zero-shot, from two prompts each ("There is ...", "There is no ...").

Prints the scores of one scan; with --out, writes a CSV table of many scans (run the same command again to continue).
Probabilities are not calibrated: compare them between scans, not with 0.5.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mg3d.cli import output_file
from mg3d.inference.cli import (
    add_batch_options,
    add_finding_options,
    check_early,
    load_model,
    new_parser,
    predict_table,
    run_and_print,
)

if TYPE_CHECKING:
    from mg3d.inference.scan import Scan


def main(arguments: Sequence[str]) -> int:
    """Print or write the scores; returns the exit code."""
    parser = new_parser("zero_shot.py", __doc__)
    parser.add_argument("source", metavar="SOURCE", help="a scan; with --out also a folder of scans or an .arrow index")
    add_finding_options(parser)
    parser.add_argument("--out", type=output_file, metavar="FILE.csv", help="table to write, one row per scan")
    add_batch_options(parser)
    options = parser.parse_args(arguments)
    return run_and_print(lambda: run(options))


def run(options: argparse.Namespace) -> str:
    """The scores of one scan, or a summary of the table; errors as `ScanModel.classify` and `write_predictions`."""
    check_early(options, options.source, scan=options.source if options.out is None else None)
    model = load_model(options)
    if options.out is None:
        return str(model.classify(model.read(options.source), options.findings, wording=options.wording))
    columns = [present for present, _ in model.prompts(options.findings, wording=options.wording)]

    def predict(scans: Sequence["Scan"]) -> list[list[str]]:
        scores = model.classify(scans, options.findings, wording=options.wording)
        return [[f"{finding.probability:.6f}" for finding in row] for row in scores]

    return predict_table(options, model, columns=columns, predict=predict)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
