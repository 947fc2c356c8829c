"""The volumes on which the field reports numbers, out of a prepared folder: `--list NAME` prints ids, without it all counts."""

import sys
from collections.abc import Sequence
from pathlib import Path

from mg3d.checkpoints.command import Parser, new_file
from mg3d.datasets.evaluation_sets import RULES, evaluation_set, read_volumes, told
from mg3d.files import write_bytes


def main(arguments: Sequence[str]) -> int:
    """Prints or writes a list; returns the exit code."""
    parser = Parser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of Arrow files, as prepro/prepro_pretraining_data.py makes it")
    parser.add_argument("--list", metavar="NAME", help=", ".join(RULES))
    parser.add_argument("--out", type=new_file, metavar="FILE", help="write the ids there, one a line, instead of printing them")
    parser.add_argument("--stored", action="store_true", help="only volumes whose voxels are stored")
    given = parser.parse_args(arguments)
    if given.out and not given.list:
        parser.error("--out needs --list NAME")
    try:
        volumes = read_volumes(given.folder)
        chosen = evaluation_set(given.list, volumes) if given.list else []
    except (OSError, ValueError) as error:
        print(f"evaluation_sets: {error}", file=sys.stderr)
        return 2
    if not given.list:
        print("\n".join(f"{told(name, rule.choose(volumes))} ({rule.source})" for name, rule in RULES.items()))
        return 0
    print(told(given.list, chosen), file=sys.stderr)
    lines = "".join(f"{volume.volume_id}\n" for volume in chosen if not (given.stored and volume.set_aside))
    if given.out:
        write_bytes(given.out, lines.encode())
    else:
        sys.stdout.write(lines)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
