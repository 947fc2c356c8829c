"""Build a search index of scans, with their reports and sentences.

Run the same command again to continue after an interruption or to add new scans. Scans that cannot be used are listed in
OUT/failed.csv. The index contains report text and paths below SOURCE: protect it like the scans.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mg3d.inference.cli import add_batch_options, check_early, load_model, new_parser, run_and_print, track


def main(arguments: Sequence[str]) -> int:
    """Build the index; returns the exit code."""
    parser = new_parser("embed.py", __doc__)
    parser.add_argument("source", metavar="SOURCE", help="folder of scans, a scan, or an .arrow index of prepared data")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder of the index")
    add_batch_options(parser)
    options = parser.parse_args(arguments)
    return run_and_print(lambda: run(options))


def run(options: argparse.Namespace) -> str:
    """Build the index and return a summary; errors as `list_scans` and `build_index`."""
    check_early(options, options.source)
    from mg3d.inference.batch_prediction import FAILED, build_index
    from mg3d.inference.scan_sources import list_scans, record_source

    model = load_model(options)
    sources = list_scans(model, options.source, table=options.table)
    record_source(options.out / "source.json", options.source)
    outcome, entries = build_index(model, sources, options.out, workers=options.workers, track=track)
    outcome.require_usable(options.out / FAILED)
    return f"mg3d: {outcome}; {options.out} has {entries:,} embeddings"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
