"""A table of scans -> one Arrow file, for faster fine-tuning; an interrupted run continues.

usage: python prepro/make_arrow.py TABLE out=FILE.arrow [name=value ...]

TABLE       CSV, Excel or dataset.json, as docs/finetune.md describes
out         Arrow file to write; use it as the table: bash run_scripts/finetune.sh custom table=FILE.arrow
name=value  settings that decide what is read from the table: task, targets, classes

Rows and files that cannot be used are listed in <file>.excluded.csv.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def make(table: str, overrides: dict[str, Any]) -> Path:
    """Writes the Arrow file and returns it; ValueError or OSError for a mistake of the user."""
    from mg3d.finetune.arrows import write_cases
    from mg3d.finetune.custom import TASK
    from mg3d.finetune.data_root import data_locations
    from mg3d.finetune.settings import as_builtins, parse_settings

    file = Path(str(overrides.pop("out", "")))
    if file.suffix != ".arrow":
        raise ValueError("out=FILE.arrow is missing: the file to write")
    settings = parse_settings(TASK.settings, {"table": table, **overrides}, {})
    data_locations(TASK, settings)
    settings = TASK.resolve(settings)
    cases = TASK.read_cases(Path(table), settings)
    stored = {name: as_builtins(settings)[name] for name in TASK.stored}
    excluded = write_cases(file, cases, {"folder": TASK.folder, "settings": stored, "synthetic": False, "cases": len(cases)})
    print(f"mg3d: {len(cases) - len(excluded)} of {len(cases)} cases; wrote {file}")
    for row in excluded[:3]:
        print(f"mg3d: excluded {row['case_id']}: {row['reason']}")
    return file


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    from mg3d.finetune.settings import read_arguments

    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    try:
        make(arguments[0], read_arguments(arguments[1:]))
    except (ValueError, OSError) as error:
        print(f"mg3d: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
