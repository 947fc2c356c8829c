"""A table of scans -> an Arrow file that a folder of downstream/ reads as its data_root.

usage: python prepro/make_arrow.py TABLE.csv folder=FOLDER out=FILE.arrow [root=DIR]

TABLE.csv  one row per scan; columns:
             image       path below root; a folder of slice images is one scan, from inferior to superior
             case_id     default: name of the image
             patient_id  default: the case
             mask        label map on the grid of the image
             report      text
             split       train (default) or test
             fold        counted from 0; empty: by seed
             one column per output of the folder (1, 0, empty = unknown), or for exclusive classes `target` with the class name
folder     ACDC, cc-ccii, Covid19_20, CTRG, MSD or stoic2021
root       folder of relative paths (default: that of the table)
"""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mg3d.finetune.cases import FinetuneCase, Source
    from mg3d.finetune.tasks.base import TaskType

DOWNSTREAM = Path(__file__).parents[1] / "downstream"
FOLDERS = ("ACDC", "cc-ccii", "Covid19_20", "CTRG", "MSD", "stoic2021")
COLUMNS = ("case_id", "patient_id", "image", "mask", "report", "split", "fold", "target")


def read_table(path: Path, task_type: "TaskType", root: Path, *, folds: int) -> list["FinetuneCase"]:
    """Cases of a table; ValueError or FileNotFoundError with the line and what is wrong."""
    import pandas as pd

    from mg3d.finetune.cases import check_cases

    if not path.is_file():
        raise FileNotFoundError(f"there is no table {path}")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as CSV ({type(error).__name__})") from error
    if "image" not in table:
        raise ValueError(f"{path} has no column image; it has {', '.join(table)}")
    known = (*COLUMNS, *task_type.outputs)
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise ValueError(f"{path} has the unknown columns {unknown}; expected some of {', '.join(known)}")
    cases = []
    for line, row in enumerate(table.to_dict("records"), start=2):
        try:
            cases.append(_case(row, task_type, root, folds))
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from error
    check_cases(cases, where=path)
    return cases


def _case(row: Mapping[str, str], task_type: "TaskType", root: Path, folds: int) -> "FinetuneCase":
    from mg3d.finetune.cases import NO_FOLD, FinetuneCase

    if not row["image"]:
        raise ValueError("image is empty")
    name = row.get("case_id") or Path(row["image"]).name.split(".")[0]
    split = row.get("split") or "train"
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}; expected train or test")
    fold = _integer(row.get("fold", ""), "fold", NO_FOLD)
    if row.get("fold") and not 0 <= fold < folds:
        raise ValueError(f"fold is {fold}; expected 0 to {folds - 1}, or nothing")
    return FinetuneCase(
        case_id=name,
        patient_id=row.get("patient_id") or name,
        image=_source(root / row["image"]),
        mask=_source(root / row["mask"]) if row.get("mask") else None,
        target=_target(row, task_type),
        report=row.get("report", ""),
        split=split,
        fold=fold,
    )


def _source(path: Path) -> "Source":
    from mg3d.finetune.images import slice_files

    return (slice_files(path.iterdir()) or path) if path.is_dir() else path


def _target(row: Mapping[str, str], task_type: "TaskType") -> tuple[int, ...]:
    from mg3d.finetune.cases import UNKNOWN
    from mg3d.finetune.tasks.classification import Classification

    outputs = task_type.outputs
    if not isinstance(task_type, Classification):
        return ()
    if task_type.exclusive:
        if row.get("target") not in outputs:
            raise ValueError(f"target is {row.get('target', 'missing')!r}; expected one of {', '.join(outputs)}")
        return (outputs.index(row["target"]),)
    targets = tuple(_integer(row.get(name, ""), name, UNKNOWN) for name in outputs)
    if not set(targets) <= {0, 1, UNKNOWN}:
        raise ValueError(f"the targets are {targets}; expected 0, 1 or nothing for each of {', '.join(outputs)}")
    return targets


def _integer(text: str, name: str, default: int) -> int:
    try:
        value = float(text or default)
    except ValueError:
        value = math.nan
    if not value.is_integer():
        raise ValueError(f"{name} is {text!r}; expected an integer")
    return int(value)


def make(table: Path, overrides: dict[str, Any]) -> Path:
    """Writes the Arrow file and returns it; ValueError or OSError for a mistake of the user."""
    from mg3d.finetune.arrows import write_cases
    from mg3d.finetune.task import load_task

    unknown, missing = set(overrides) - {"folder", "out", "root"}, {"folder", "out"} - set(overrides)
    if unknown or missing:
        parts = [f"{name}=... is missing" for name in sorted(missing)] + [f"{name}=... is unknown" for name in sorted(unknown)]
        raise ValueError(f"{', '.join(parts)}; expected folder, out, root")
    folder, file = str(overrides["folder"]), Path(str(overrides["out"]))
    if file.suffix != ".arrow":
        raise ValueError(f"out={file}: the name must end in .arrow")
    if folder not in FOLDERS:
        raise ValueError(f"folder={folder}: expected one of {', '.join(FOLDERS)}")
    task = load_task(DOWNSTREAM, folder)
    settings = task.resolve(task.settings(**task.defaults({}, False)))
    cases = read_table(table, task.build(settings), Path(str(overrides.get("root", table.parent))), folds=task.folds)
    stored = {name: getattr(settings, name) for name in task.stored}
    excluded = write_cases(file, cases, {"folder": folder, "settings": stored, "synthetic": False, "cases": len(cases)})
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
        make(Path(arguments[0]), read_arguments(arguments[1:]))
    except (ValueError, OSError) as error:
        print(f"mg3d: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
