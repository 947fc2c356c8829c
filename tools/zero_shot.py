"""Say how likely findings are in a scan, from two prompts each ("There is ...", "There is no ..."): nothing is trained for it.

With --out a CSV table of many scans, which the same command goes on with after a stop; without it one scan, printed.
Probabilities are not calibrated: compare them between scans, not with 0.5.
"""

import argparse
import sys
from collections.abc import Sequence

from mg3d.cli import output_file
from mg3d.glossary import LABELS, PROMPTS
from mg3d.inference.command import add_many, answer, check_early, load_model, new_parser, track


def main(arguments: Sequence[str]) -> int:
    """Prints or writes probabilities; returns the exit code."""
    parser = new_parser("zero_shot.py", __doc__)
    parser.add_argument("source", help="a scan, or with --out a folder of scans or an .arrow index of prepared files")
    parser.add_argument("--findings", nargs="+", default=list(LABELS), metavar="WORDS", help="any; CT-RATE's 18 without")
    parser.add_argument("--wording", choices=PROMPTS, default="there_is", help="of the prompts (%(default)s)")
    parser.add_argument("--out", type=output_file, metavar="FILE.csv", help="one row per scan")
    add_many(parser)
    options = parser.parse_args(arguments)
    return answer(lambda: run(options))


def run(options: argparse.Namespace) -> str:
    """Asks and says what was found; errors as `ScanModel.classify` and `answer_all`."""
    from mg3d.inference.many import answer_all, numbers
    from mg3d.inference.sources import list_scans, remember_source

    check_early(options, options.source)
    model = load_model(options)
    if options.out is None:
        return str(model.classify(model.read(options.source), options.findings, wording=options.wording))
    prompts = model.prompts(options.findings, wording=options.wording)
    items = list_scans(model, options.source, table=options.table)
    remember_source(options.out.with_name(f"{options.out.name}.made_from.json"), options.source)
    outcome = answer_all(
        model,
        items,
        options.out,
        columns=[present for present, _ in prompts],
        ask=lambda scans: [
            numbers(row.probability for row in found)
            for found in model.classify(scans, options.findings, wording=options.wording)
        ],
        workers=options.workers,
        track=track,
    )
    return f"mg3d: {outcome}; see {options.out}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
