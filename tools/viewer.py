"""View scans in a browser with the outputs of a model: three planes, report, zero-shot findings, neighbours, grounding maps.

Open the printed address, which contains the access token of this run. The page needs no network connection, and by default only
this machine can reach it. To view it from elsewhere, use a tunnel: `ssh -L 8000:127.0.0.1:8000 HOST` with --port 8000.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mg3d.inference.cli import add_finding_options, add_table_option, check_early, load_model, new_parser, run_and_print

if TYPE_CHECKING:
    from mg3d.inference.viewer.session import ViewerSession


def main(arguments: Sequence[str]) -> int:
    """Serve until interrupted; returns the exit code."""
    parser = new_parser("viewer.py", __doc__)
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help="folder of scans, a scan, or an .arrow index of prepared data"
    )
    parser.add_argument("--index", metavar="FOLDER", help="index of tools/embed.py, for neighbours and reports (default: none)")
    add_table_option(parser)
    add_finding_options(parser)
    parser.add_argument("--port", type=int, default=0, metavar="N", help="port to listen on (default: a free port)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s); others expose unencrypted traffic"
    )
    options = parser.parse_args(arguments)
    return run_and_print(lambda: run(options))


def run(options: argparse.Namespace) -> str:
    """Serve until interrupted; errors as `ViewerSession`, `SearchIndex.load` and `ViewerServer`."""
    check_early(options, options.source, options.index)
    from mg3d.inference.viewer.server import ViewerServer

    with ViewerServer(host=options.host, port=options.port) as server:  # before the model is loaded: the port may be in use
        server.session = open_session(options)
        print(f"mg3d: {len(server.session.scans):,} scans at {server.address}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return "mg3d: stopped"


def open_session(options: argparse.Namespace) -> "ViewerSession":
    """Load the index and the model, and list the scans."""
    from mg3d.inference.search_index import SearchIndex
    from mg3d.inference.viewer.session import ViewerSession

    index = SearchIndex.load(options.index) if options.index else None
    return ViewerSession(
        load_model(options),
        options.source,
        table=options.table,
        index=index,
        findings=options.findings,
        wording=options.wording,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
