"""Write the report of a scan, with a model that was trained with a captioning head; with --out a CSV table for many scans.

A report that a model wrote is not a finding: read docs/inference.md before anyone acts on one.
"""

import argparse
import sys
from collections.abc import Sequence

from mg3d.cli import output_file, positive_int
from mg3d.inference.command import add_many, answer, check_early, load_model, new_parser, track


def main(arguments: Sequence[str]) -> int:
    """Prints or writes reports; returns the exit code."""
    parser = new_parser("generate.py", __doc__)
    parser.add_argument("source", help="a scan, or with --out a folder of scans or an .arrow index of prepared files")
    parser.add_argument("--out", type=output_file, metavar="FILE.csv", help="one row per scan")
    parser.add_argument("--beams", type=positive_int, default=1, help="hypotheses kept (%(default)s: always the likeliest word)")
    parser.add_argument("--no-repeat", type=int, default=0, metavar="N", help="no run of N words comes twice (0: it may)")
    add_many(parser)
    options = parser.parse_args(arguments)
    return answer(lambda: run(options))


def run(options: argparse.Namespace) -> str:
    """Writes and says what was done; errors as `ScanModel.generate` and `answer_all`."""
    from mg3d.inference.many import answer_all
    from mg3d.inference.sources import list_scans, remember_source

    check_early(options, options.source)
    model = load_model(options)
    model.require_writer()
    how = {"num_beams": options.beams, "no_repeat_ngram_size": options.no_repeat}
    if options.out is None:
        return str(model.generate(model.read(options.source), **how))
    items = list_scans(model, options.source, table=options.table)
    remember_source(options.out.with_name(f"{options.out.name}.made_from.json"), options.source)
    outcome = answer_all(
        model,
        items,
        options.out,
        columns=["report"],
        ask=lambda scans: [[report.text] for report in model.generate(scans, **how)],
        workers=options.workers,
        track=track,
    )
    return f"mg3d: {outcome}; see {options.out}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
