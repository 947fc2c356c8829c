"""Make a search index of scans: a folder, one scan, or an .arrow index of prepared files with its reports and sentences.

What was done stays done: the same command goes on after a stop, and adds scans that are new. Scans that cannot be used are listed
in OUT/set_aside.csv with the reason. Keys are paths below the folder, and reports are stored as they are: guard OUT like them.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mg3d.inference.command import add_many, answer, check_early, load_model, new_parser, track


def main(arguments: Sequence[str]) -> int:
    """Embeds; returns the exit code."""
    parser = new_parser("embed.py", __doc__)
    parser.add_argument("source", help="folder of scans, a scan, or an .arrow index of prepared files")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of the index")
    add_many(parser)
    options = parser.parse_args(arguments)
    return answer(lambda: run(options))


def run(options: argparse.Namespace) -> str:
    """Embeds and says what was done; errors as `list_scans` and `embed_all`."""
    from mg3d.inference.many import embed_all
    from mg3d.inference.sources import list_scans, remember_source

    check_early(options, options.source)
    model = load_model(options)
    items = list_scans(model, options.source, table=options.table)
    remember_source(options.out / "made_from.json", options.source)
    outcome, entries = embed_all(model, items, options.out, workers=options.workers, track=track)
    return f"mg3d: {outcome}; {options.out} holds {entries:,} embeddings"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
