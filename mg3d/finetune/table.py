"""Tables of scans with labels: CSV, Excel or dataset.json; every row becomes a case, or is excluded with its row number."""

import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from mg3d.finetune.cases import NO_FOLD, UNKNOWN, Candidate, FinetuneCase
from mg3d.finetune.dataset_json import read_dataset_json
from mg3d.finetune.images import SLICE_SUFFIXES, VOLUME_SUFFIXES, slice_files
from mg3d.preparation.sources.listing import SPLIT_NAMES
from mg3d.preparation.sources.tables import decode, match_columns

ROLES: dict[str, tuple[str, ...]] = {
    "path": ("image", "imagepath", "file", "filepath", "filename", "scan", "scanpath", "volume", "volumepath", "volumename"),
    "case": ("caseid", "scanid", "id"),
    "patient": ("patientid", "subject", "subjectid"),
    "split": ("set", "subset", "partition"),
    "fold": (),
    "mask": ("maskpath", "segmentation", "labelmap"),
    "report": ("reporttext",),
    "use": (),
    "x": ("xmm", "coordx"),
    "y": ("ymm", "coordy"),
    "z": ("zmm", "coordz"),
}
"""Column -> other names for it; case, spaces and punctuation do not matter. All other columns may be targets."""
FLAGS = {**dict.fromkeys(("1", "1.0", "true", "yes"), 1), **dict.fromkeys(("0", "0.0", "false", "no"), 0)}
MISSING = {"", "nan", "na", "n/a", "none", "null", "unknown", "?"}
VAL_FOLD = 0
"""Fold of rows whose split is val; those of train are then fold 1."""
MAX_INTEGER_CLASSES, MAX_CLASSES = 10, 20
"""A column with more integers is a number to predict; one with more texts is not a target."""


class TargetColumn(NamedTuple):
    """What a column holds."""

    kind: str
    """binary, multiclass, regression, or text (not a target)."""
    values: tuple[str, ...]
    """Its distinct known values, sorted."""


def read_tables(paths: Sequence[Path]) -> pd.DataFrame:
    """All rows as text: columns of `ROLES` under those names, other columns as they are, `row` and `folder` for each.

    Rows whose column `use` is 0, as `prepro/index_dicom.py` writes it, are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, has no header or path column, or no row.
    """
    tables = []
    for path in paths:
        table = _read_table(path)
        positions = match_columns(list(table.columns), ROLES)
        if not set("xyz") <= positions.keys():  # one of them alone may be a target
            positions = {name: position for name, position in positions.items() if name not in "xyz"}
        if "path" not in positions:
            raise ValueError(
                f"{path} has no path column (path, image, file or scan) in its first line, the header; it has {_names(table)}"
            )
        columns = {table.columns[position]: name for name, position in positions.items()}
        table = table.rename(columns=columns)
        name = f"{path.name} " if len(paths) > 1 else ""
        tables.append(table.assign(row=[f"{name}row {index + 2}" for index in range(len(table))], folder=str(path.parent)))
    merged = pd.concat(tables, ignore_index=True).fillna("")
    if merged.empty:
        raise ValueError(f"{paths[0]} has a header but no row")
    if "use" not in merged:
        return merged
    used = merged[[FLAGS.get(cell.lower(), 1) == 1 for cell in merged["use"]]]
    if used.empty:
        raise ValueError(f"{paths[0]}: every row has use = 0; write 1 into the rows to use")
    return used.reset_index(drop=True)


def _names(table: pd.DataFrame) -> str:
    shown = ", ".join(str(name)[:40] for name in table.columns[:8])
    return shown + (", ..." if len(table.columns) > 8 else "")


def _read_table(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise FileNotFoundError(f"there is no table {path}")
    if path.suffix.lower() == ".json":
        pairs = read_dataset_json(path).pairs
        return pd.DataFrame([{"path": str(image), "mask": str(mask)} for image, mask in pairs], dtype=str)
    try:
        if path.suffix.lower() in (".xlsx", ".xls"):
            table = pd.read_excel(path, dtype=str, keep_default_na=False)
        else:
            text, _ = decode(path.read_bytes())
            separator = max(",;\t", key=text.partition("\n")[0].count)
            table = pd.read_csv(io.StringIO(text), sep=separator, dtype=str, keep_default_na=False, quoting=csv.QUOTE_MINIMAL)
    except ImportError:
        raise ValueError(f"{path}: reading Excel needs a package (pip install openpyxl); or save the sheet as CSV") from None
    except ValueError as error:  # also pandas' parser errors
        raise ValueError(f"{path} cannot be read as a table ({str(error).splitlines()[0]}); save it as CSV") from error
    if not isinstance(table.index, pd.RangeIndex):
        raise ValueError(f"{path}: rows have more cells than the header; is a comma inside an unquoted cell?")
    return table.rename(columns=str.strip).map(str.strip)


def target_columns(table: pd.DataFrame) -> dict[str, TargetColumn]:
    """Every column that is not of `ROLES`, and what it holds."""
    is_position = set("xyz") <= set(table)
    roles = {name for name in (*ROLES, "row", "folder") if name not in "xyz" or is_position}
    return {name: describe_column(table[name]) for name in table.columns if name not in roles}


def describe_column(cells: pd.Series) -> TargetColumn:
    """What a column of text cells holds; -1 is unknown where all other values are 0 and 1, or classes."""
    known = {cell for cell in cells if cell.lower() not in MISSING}
    labels = {cell for cell in known if not is_unknown(cell)}
    if all(cell.lower() in FLAGS for cell in labels):
        return TargetColumn("binary", tuple(sorted({str(FLAGS[cell.lower()]) for cell in labels})))
    numbers = {cell: number(cell) for cell in known}
    if not any(map(math.isnan, numbers.values())):
        classes = {int(numbers[cell]) for cell in labels if numbers[cell].is_integer()}
        if len(classes) <= MAX_INTEGER_CLASSES and all(numbers[cell].is_integer() for cell in labels):
            return TargetColumn("multiclass", tuple(map(str, sorted(classes))))
        return TargetColumn("regression", tuple(sorted(known)))
    return TargetColumn("multiclass" if len(labels) <= MAX_CLASSES else "text", tuple(sorted(labels)))


def number(cell: str) -> float:
    """The number in a cell; nan if it is something else."""
    try:
        value = float(cell)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def is_unknown(cell: str) -> bool:
    """Whether a cell states no label."""
    return cell.lower() in MISSING or number(cell) == UNKNOWN


def read_target(row: Mapping[str, str], task: str, targets: Sequence[str], classes: Sequence[str]) -> tuple[float, ...]:
    """The target of one row; ValueError if a cell holds something else, or no label is known."""
    if task == "multiclass":
        cell = row[targets[0]]
        names = {_class_name(name): index for index, name in enumerate(classes)}
        if is_unknown(cell):
            raise ValueError(f"{targets[0]} is unknown")
        if _class_name(cell) not in names:
            raise ValueError(f"{targets[0]} is {cell!r}; expected one of {', '.join(classes)}")
        return (names[_class_name(cell)],)
    values: list[float] = []
    for name in targets:
        cell = row[name]
        if task == "regression":
            values.append(math.nan if cell.lower() in MISSING else number(cell))
            if math.isnan(values[-1]) and cell.lower() not in MISSING:
                raise ValueError(f"{name} is {cell!r}; expected a number")
        elif is_unknown(cell):
            values.append(UNKNOWN)
        elif cell.lower() in FLAGS:
            values.append(FLAGS[cell.lower()])
        else:
            raise ValueError(f"{name} is {cell!r}; expected 0, 1, or nothing if it is unknown")
    if all(math.isnan(value) if task == "regression" else value == UNKNOWN for value in values):
        raise ValueError(f"{', '.join(targets)}: unknown")
    return tuple(values)


def _class_name(cell: str) -> str:
    """1.0, as spreadsheets write integers, is the class 1."""
    return str(int(number(cell))) if number(cell).is_integer() else cell


def read_cases(
    table: pd.DataFrame, task: str, *, targets: Sequence[str] = (), classes: Sequence[str] = (), folds: int = 5
) -> list[FinetuneCase]:
    """One case per row (candidates: per scan). A row that cannot be used becomes a case with an `error`.

    Raises:
        ValueError: a target column is missing, or a patient is in two splits.
    """
    needed = {"segmentation": ("mask",), "candidates": ("x", "y", "z", *targets)}.get(task, tuple(targets))
    if missing := [name for name in needed if name not in table]:
        raise ValueError(f"the table has no column {', '.join(missing)}, which task={task} needs; it has {_names(table)}")
    cases, errors = {}, {}
    for name, row in zip(_case_names(table), table.to_dict("records"), strict=True):
        try:
            cases[row["row"]] = _case(name, row, task, targets=targets, classes=classes, folds=folds)
        except (ValueError, OSError) as error:
            errors[row["row"]] = str(error)
    if task == "candidates":
        usable = _merge_candidates(cases.values())
    else:
        errors |= _duplicates(cases)
        usable = [case for row, case in cases.items() if row not in errors]
    _check_splits(usable)
    if any(case.fold == VAL_FOLD and case.split == "train" for case in usable) and "fold" not in table:
        is_training = lambda case: case.split == "train" and case.fold == NO_FOLD  # noqa: E731
        usable = [dataclasses.replace(case, fold=1) if is_training(case) else case for case in usable]
    rejected = [
        FinetuneCase(case_id=row, patient_id=row, image=None, error=f"{row}: {errors[row]}")
        for row in table["row"] if row in errors
    ]  # fmt: skip
    return [*usable, *rejected]


def _case_names(table: pd.DataFrame) -> list[str]:
    """Column `case`, else the file's name, with its folders where it is not unique."""
    if "case" in table:
        return [case or row for case, row in zip(table["case"], table["row"], strict=True)]
    paths = [Path(cell.replace("\\", "/")) for cell in table["path"]]
    stems = [path.name.removesuffix(".gz").rpartition(".")[0] or path.name for path in paths]
    scans_of: dict[str, set[Path]] = {}
    for stem, folder, path in zip(stems, table["folder"], paths, strict=True):
        scans_of.setdefault(stem, set()).add(Path(folder, path))
    return [
        stem if len(scans_of[stem]) == 1 else "_".join((Path(folder).name, *path.parent.parts[-3:], path.name)).replace("/", "")
        for stem, folder, path in zip(stems, table["folder"], paths, strict=True)
    ]


def _case(
    name: str, row: Mapping[str, str], task: str, *, targets: Sequence[str], classes: Sequence[str], folds: int
) -> FinetuneCase:
    split = SPLIT_NAMES.get(row.get("split", "").lower() or "train")
    if split is None:
        raise ValueError(f"split is {row['split']!r}; expected train, val or test")
    fold = number(row.get("fold") or str(NO_FOLD))
    if not fold.is_integer() or not NO_FOLD <= fold < folds:
        raise ValueError(f"fold is {row['fold']!r}; expected 0 to {folds - 1}, or nothing")
    candidates: tuple[Candidate, ...] = ()
    target = () if task == "segmentation" else read_target(row, task, targets, classes)
    if task == "candidates":
        centre = tuple(number(row[axis]) for axis in "xyz")
        if any(map(math.isnan, centre)):
            raise ValueError(f"x, y, z are {[row[axis] for axis in 'xyz']}; expected numbers in mm")
        candidates, target = (Candidate(centre, int(target[0])),), ()
    if task == "segmentation" and not row["mask"]:
        raise ValueError("mask is empty")
    return FinetuneCase(
        case_id=name,
        patient_id=row.get("patient") or name,
        image=_source(Path(row["folder"]), row["path"], "path"),
        mask=_source(Path(row["folder"]), row["mask"], "mask") if task == "segmentation" else None,
        target=target,
        candidates=candidates,
        report=row.get("report", ""),
        split="test" if split == "test" else "train",
        fold={"val": VAL_FOLD, "train": int(fold)}.get(split, NO_FOLD),
    )


def _source(folder: Path, cell: str, column: str) -> Any:
    """A file, a folder of DICOM slices, or the slice images of a folder."""
    if not cell:
        raise ValueError(f"{column} is empty")
    path = folder / cell.replace("\\", "/")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if path.is_dir():
        return slice_files(path.iterdir())[::-1] or path
    if path.name.lower().endswith(SLICE_SUFFIXES):
        raise ValueError(f"{path} is one image; name the folder of the scan's slices, or a volume ({', '.join(VOLUME_SUFFIXES)})")
    return path


def _duplicates(cases: Mapping[str, FinetuneCase]) -> dict[str, str]:
    """Row -> reason, for rows that repeat a scan; if their labels differ, none of them is used."""
    rows: dict[Any, list[str]] = {}
    for row, case in cases.items():
        rows.setdefault(case.image, []).append(row)
    reasons = {}
    for first, *repeated in rows.values():
        fields = {(cases[row].target, cases[row].mask, cases[row].split, cases[row].fold) for row in (first, *repeated)}
        if len(fields) > 1:
            reasons |= dict.fromkeys((first, *repeated), f"{', '.join((first, *repeated))} of one scan contradict each other")
        else:
            reasons |= dict.fromkeys(repeated, f"repeats {first}")
    return reasons


def _merge_candidates(cases: Iterable[FinetuneCase]) -> list[FinetuneCase]:
    """One case per scan, with the candidates of all its rows."""
    merged: dict[str, FinetuneCase] = {}
    for case in cases:
        known = merged.get(case.case_id)
        merged[case.case_id] = dataclasses.replace(case, candidates=known.candidates + case.candidates) if known else case
    return list(merged.values())


def _check_splits(cases: Sequence[FinetuneCase]) -> None:
    splits: dict[str, set[tuple[str, int]]] = {}
    for case in cases:
        splits.setdefault(case.patient_id, set()).add((case.split, case.fold))
    mixed = sorted(patient for patient, parts in splits.items() if len(parts) > 1)
    if mixed:
        raise ValueError(f"{len(mixed)} patients are in two splits or folds, such as {mixed[:3]}; give each patient one")
