"""Your own table of scans -> an Arrow file that a folder of downstream/ reads as its data_root.

usage: python prepro/make_arrow.py TABLE.csv folder=FOLDER out=FILE.arrow [root=DIR]

Columns of the table: `image` (a path below root, default the table's own folder; a folder of pictures is one scan, the picture of
the lowest number its inferior end), and where they apply `case_id` (default: the image's name), `patient_id` (default: the
case), `mask`, `report`, `part` (train or test), `fold` (counted from 0; empty: one is drawn), and
the targets: one column per output of the folder, named as it, or for exclusive classes `target` with the class's name. An empty
target is unknown.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mg3d.finetune.arrows import write_cases
from mg3d.finetune.cases import NO_FOLD, UNKNOWN, Case, check_cases
from mg3d.finetune.folders import load_task
from mg3d.finetune.images import slices_of
from mg3d.finetune.settings import read_words
from mg3d.finetune.task import Task

DOWNSTREAM = Path(__file__).parents[1] / "downstream"
KINDS = ("classification", "segmentation", "report")
PLAIN = ("case_id", "patient_id", "image", "mask", "report", "part", "fold", "target")


def read_table(path: Path, task: Task, root: Path) -> list[Case]:
    """Cases of a table; ValueError or FileNotFoundError with the line and what is wrong."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no table {path}")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if "image" not in table:
        raise ValueError(f"{path} has no column image; it has {', '.join(table)}")
    unknown = sorted(set(table) - {*PLAIN, *task.outputs})
    if unknown:
        raise ValueError(f"{path} has the columns {unknown}, which mean nothing; known are {', '.join((*PLAIN, *task.outputs))}")
    cases = []
    for line, row in enumerate(table.to_dict("records"), start=2):
        try:
            cases.append(_case(row, task, root))
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from error
    check_cases(cases, where=path)
    return cases


def _case(row: dict[str, str], task: Task, root: Path) -> Case:
    if not row["image"]:
        raise ValueError("there is no image")
    name = row.get("case_id") or Path(row["image"]).name.split(".")[0]
    part = row.get("part") or "train"
    if part not in ("train", "test"):
        raise ValueError(f"part is {part!r}; expected train or test")
    return Case(
        case_id=name,
        patient_id=row.get("patient_id") or name,
        image=_source(root / row["image"]),
        mask=_source(root / row["mask"]) if row.get("mask") else None,
        target=_target(row, task),
        report=row.get("report", ""),
        part=part,
        fold=_fold(row.get("fold", ""), task),
    )


def _fold(text: str, task: Task) -> int:
    fold = _number(text, "fold", NO_FOLD)
    if text and not 0 <= fold < task.folds:
        raise ValueError(f"fold is {text}; {task.folder} has folds 0 to {task.folds - 1} (empty: one is drawn)")
    return fold


def _source(path: Path) -> Path | tuple[Path, ...]:
    return (slices_of(path.iterdir()) or path) if path.is_dir() else path


def _target(row: dict[str, str], task: Task) -> tuple[int, ...]:
    if task.kind != "classification":
        return ()
    if not task.exclusive:
        targets = tuple(_number(row.get(name, ""), name, UNKNOWN) for name in task.outputs)
        if not set(targets) <= {0, 1, UNKNOWN}:
            raise ValueError(f"the targets are {targets}; expected 0, 1 or nothing for each of {', '.join(task.outputs)}")
        return targets
    if row.get("target") not in task.outputs:
        raise ValueError(f"target is {row.get('target', 'missing')!r}; expected one of {', '.join(task.outputs)}")
    return (task.outputs.index(row["target"]),)


def _number(text: str, name: str, empty: int) -> int:
    try:
        value = float(text or empty)
    except ValueError:
        value = math.nan
    if not value.is_integer():
        raise ValueError(f"{name} is {text!r}; expected a whole number")
    return int(value)


def make(table: Path, given: dict[str, Any]) -> Path:
    """Writes the file and returns it; ValueError or OSError for a user's mistake."""
    unknown, absent = set(given) - {"folder", "out", "root"}, {"folder", "out"} - set(given)
    if unknown or absent:
        told = [f"{name}=... is missing" for name in sorted(absent)] + [f"{name}=... means nothing" for name in sorted(unknown)]
        raise ValueError(f"{', '.join(told)}; known are folder, out, root")
    task, file = load_task(DOWNSTREAM, str(given["folder"])), Path(str(given["out"]))
    if file.suffix != ".arrow":
        raise ValueError(f"out={file}: the name must end in .arrow")
    if task.kind not in KINDS:
        raise ValueError(f"folder={task.folder} reads more than a table can tell; its README.md says how its data are prepared")
    cases = read_table(table, task, Path(str(given.get("root", table.parent))))
    facts = {
        "folder": task.folder, "split": "ours", "fold": 0, "options": {}, "declared": {"expected": {}}, "synthetic": False,
        "cases": len(cases),
    }  # fmt: skip
    refused = write_cases(file, cases, facts)
    print(f"mg3d: {len(cases) - len(refused)} of {len(cases)} cases; wrote {file}")
    for row in refused[:3]:
        print(f"mg3d: set aside {row['case_id']}: {row['reason']}")
    return file


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    try:
        make(Path(arguments[0]), read_words(arguments[1:]))
    except (ValueError, OSError) as error:
        print(f"mg3d: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
