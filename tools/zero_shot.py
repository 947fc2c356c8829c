"""Score findings of a scan zero-shot, from two prompts each ("There is ...", "There is no ...").

Prints the scores of one scan; with --out, writes a CSV table of many scans (run the same command again to continue).
Probabilities are not calibrated: compare them between scans, not with 0.5.
"""

import argparse
import sys
from collections.abc import Sequence

from mg3d.cli import output_file
from mg3d.inference.cli import (
    add_batch_options,
    add_finding_options,
    check_early,
    load_model,
    new_parser,
    run_and_print,
    track,
)


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
    check_early(options, options.source)
    from mg3d.inference.batch_prediction import format_numbers, write_predictions
    from mg3d.inference.scan_sources import list_scans, record_source

    model = load_model(options)
    if options.out is None:
        return str(model.classify(model.read(options.source), options.findings, wording=options.wording))
    sources = list_scans(model, options.source, table=options.table)
    record_source(options.out.with_name(f"{options.out.name}.source.json"), options.source)
    outcome = write_predictions(
        model,
        sources,
        options.out,
        columns=[present for present, _ in model.prompts(options.findings, wording=options.wording)],
        predict=lambda scans: [
            format_numbers(row.probability for row in scores)
            for scores in model.classify(scans, options.findings, wording=options.wording)
        ],
        workers=options.workers,
        track=track,
    )
    return f"mg3d: {outcome}; see {options.out}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
