"""List the standard evaluation sets in a folder of prepared data, or the volume ids of one of them."""

import sys
from collections.abc import Sequence
from pathlib import Path

from mg3d.cli import ArgumentParser, output_file
from mg3d.datasets.evaluation_sets import EVALUATION_SETS, evaluation_set, read_volumes
from mg3d.files import write_bytes


def main(arguments: Sequence[str]) -> int:
    """Prints or writes a list; returns the exit code."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of Arrow files written by prepro/prepro_pretraining_data.py")
    names = ", ".join(EVALUATION_SETS)
    parser.add_argument("--set", metavar="NAME", help=f"print the volume ids of this set (default: sizes of all sets): {names}")
    parser.add_argument("--out", type=output_file, metavar="FILE", help="write the ids to FILE, one per line")
    parser.add_argument("--stored", action="store_true", help="only volumes with stored voxels, without quarantined ones")
    options = parser.parse_args(arguments)
    if options.out and not options.set:
        parser.error("--out requires --set NAME")
    try:
        volumes = read_volumes(options.folder)
        selected = evaluation_set(options.set, volumes) if options.set else []
    except (OSError, ValueError) as error:
        print(f"evaluation_sets: {error}", file=sys.stderr)
        return 2
    if not options.set:
        for name, entry in EVALUATION_SETS.items():
            print(f"{entry.describe(name, evaluation_set(name, volumes))} ({entry.source})")
        return 0
    print(EVALUATION_SETS[options.set].describe(options.set, selected), file=sys.stderr)
    lines = "".join(f"{volume.volume_id}\n" for volume in selected if not (options.stored and volume.quarantine_code))
    if options.out:
        write_bytes(options.out, lines.encode())
    else:
        sys.stdout.write(lines)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
