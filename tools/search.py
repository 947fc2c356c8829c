"""Find what is near to a text, to a sentence, or to a scan, in an index that tools/embed.py made."""

import argparse
import sys
from collections.abc import Sequence

from mg3d.cli import positive_int
from mg3d.inference.command import answer, check_early, load_model, new_parser


def main(arguments: Sequence[str]) -> int:
    """Prints the nearest entries; returns the exit code."""
    parser = new_parser("search.py", __doc__)
    parser.add_argument("index", help="folder of the index")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--text", help="a report, a sentence, or a few words")
    asked.add_argument("--scan", metavar="FILE", help="NIfTI, .mha, .mhd, .npz or a folder of DICOM slices")
    parser.add_argument("-k", type=positive_int, default=10, help="how many (%(default)s)")
    parser.add_argument("--kind", metavar="KIND", help="only entries of this kind: scan, report or sentence")
    options = parser.parse_args(arguments)
    return answer(lambda: run(options))


def run(options: argparse.Namespace) -> str:
    """The nearest entries as a table; errors as `ScanModel.read` and `ScanModel.retrieve`."""
    check_early(options, options.index, options.scan)
    from mg3d.inference.index import SearchIndex

    index = SearchIndex.load(options.index)
    index.require_kind(options.kind)
    model = load_model(options)
    query = options.text if options.scan is None else model.read(options.scan)
    return str(model.retrieve(query, index, k=options.k, kind=options.kind))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
