"""Search an index of tools/embed.py by text or by scan."""

import argparse
import sys
from collections.abc import Sequence

from mg3d.cli import positive_int
from mg3d.inference.cli import check_early, load_model, new_parser, run_and_print


def main(arguments: Sequence[str]) -> int:
    """Print the nearest entries; returns the exit code."""
    parser = new_parser("search.py", __doc__)
    parser.add_argument("index", metavar="INDEX", help="folder of the index")
    query = parser.add_mutually_exclusive_group(required=True)
    query.add_argument("--text", help="query text: a report, a sentence, or a few words")
    query.add_argument("--scan", metavar="FILE", help="query scan: NIfTI, MetaImage, NRRD, .npz, .zip or a DICOM folder")
    parser.add_argument("-k", type=positive_int, default=10, metavar="N", help="number of results (default: %(default)s)")
    parser.add_argument("--kind", choices=("scan", "report", "sentence"), help="kind of results (default: all)")
    options = parser.parse_args(arguments)
    return run_and_print(lambda: run(options))


def run(options: argparse.Namespace) -> str:
    """The nearest entries as text; errors as `ScanModel.read` and `ScanModel.retrieve`."""
    check_early(options, options.index, scan=options.scan)
    from mg3d.inference.search_index import SearchIndex

    index = SearchIndex.load(options.index)
    index.require_kind(options.kind)
    model = load_model(options)
    query = options.text if options.scan is None else model.read(options.scan)
    return str(model.retrieve(query, index, k=options.k, kind=options.kind))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
