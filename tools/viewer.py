"""Look at scans in a browser with what a model says of them: three planes, report, findings with their prompts, what is nearest
in an index, and the map of any sentence as an overlay.

The page needs no network, and only this machine reaches it; open the printed address, which holds this run's token. Nothing but
the scans that are listed is read, and of these only what lies below SOURCE once links are followed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mg3d.glossary import LABELS, PROMPTS
from mg3d.inference.command import answer, check_early, load_model, new_parser


def main(arguments: Sequence[str]) -> int:
    """Serves until it is stopped; returns the exit code."""
    options = parse(arguments)
    return answer(lambda: run(options))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = new_parser("viewer.py", __doc__)
    parser.add_argument("source", type=Path, help="folder of scans, a scan, or an .arrow index of prepared files")
    parser.add_argument("--index", metavar="FOLDER", help="of tools/embed.py, for neighbours and for reports of the same keys")
    parser.add_argument("--table", type=Path, metavar="FILE", help="names scans and their reports (docs/data.md)")
    parser.add_argument("--findings", nargs="+", default=list(LABELS), metavar="WORDS", help="any; CT-RATE's 18 without")
    parser.add_argument("--wording", choices=PROMPTS, default="there_is", help="of the prompts (%(default)s)")
    parser.add_argument(
        "--also", type=Path, action="append", default=[], metavar="FOLDER", help="where links may lead; more than once"
    )
    parser.add_argument("--port", type=int, default=0, help="any that is free without")
    parser.add_argument("--host", default="127.0.0.1", help="to bind to (%(default)s); others let the network in, unencrypted")
    parser.add_argument("--name", action="append", default=[], metavar="HOST[:PORT]", help="by which a proxy asks for the page")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> str:
    """Serves until it is stopped from the keyboard; errors as `Cases`, `SearchIndex.load` and `Viewer`."""
    check_early(options, options.source, options.index, *options.also)
    from mg3d.inference.index import SearchIndex
    from mg3d.inference.viewer.cases import Cases
    from mg3d.inference.viewer.server import Viewer

    index = SearchIndex.load(options.index) if options.index else None
    cases = Cases(
        load_model(options),
        options.source,
        table=options.table,
        index=index,
        findings=options.findings,
        wording=options.wording,
        also=options.also,
    )
    with Viewer(cases, host=options.host, port=options.port, names=options.name) as server:
        left = f" ({cases.left_out:,} left out: links that lead elsewhere, see --also)" if cases.left_out else ""
        print(f"mg3d: {len(cases.items):,} scans{left} at {server.address}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return "mg3d: stopped"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
