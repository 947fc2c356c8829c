"""Where in a folder that the user names a data set begins, and lists of folds in the shape of the original's JSON files."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from mg3d.finetune.cases import Case


def find_level(root: Path, holds: str) -> Path:
    """`root` where it has the entry `holds`, else the one folder in it that has.

    Raises:
        FileNotFoundError: there is none; names the folder that was probably meant.
        ValueError: several folders in `root` have it.
    """
    if (root / holds).exists():
        return root
    inside = sorted(path.parent for path in root.glob(f"*/{holds}") if path.parent.is_dir())
    if len(inside) == 1:
        return inside[0]
    if inside:
        raise ValueError(f"{root} has several folders with {holds}: {', '.join(path.name for path in inside)}; name one of them")
    meant = next((path for path in root.absolute().parents[:3] if (path / holds).exists()), None)
    if meant is not None:
        raise FileNotFoundError(f"{root} is too deep in the data set; name the folder that holds {holds}: data_root={meant}")
    names = [path.name for path in sorted(root.iterdir())[:4]] if root.is_dir() else []
    raise FileNotFoundError(f"{root} holds no {holds} (it holds {', '.join(names) or 'nothing'}); name the folder that does")


def visible(paths: Sequence[Path]) -> list[Path]:
    """Paths in their order, without those that begin with a dot, such as the `._*` files of macOS archives."""
    return [path for path in sorted(paths) if not path.name.startswith(".")]


def with_folds(cases: Sequence[Case], file: Path) -> list[Case]:
    """Cases with the folds of a JSON file of the original's shape: `training` is a list of {"fold": 0, "image": path}.

    Entries belong to the case whose image file has the same name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another shape, names an unknown case, or leaves one out.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no file of folds {file}")
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))["training"]
        fold_of = {Path(entry["image"]).name: int(entry["fold"]) for entry in entries}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{file} is no list of folds ({type(error).__name__}); expected {{"training": [{{"fold": 0, "image": "name"}}]}}'
        ) from error
    names = {case.image.name for case in cases if case.part == "train"}
    if unknown := sorted(set(fold_of) - names):
        raise ValueError(f"{file} names {len(unknown)} cases that are not in the data set, such as {unknown[:3]}")
    if absent := sorted(names - set(fold_of)):
        raise ValueError(f"{file} leaves out {len(absent)} cases of the data set, such as {absent[:3]}")
    return [dataclasses.replace(case, fold=fold_of[case.image.name]) if case.part == "train" else case for case in cases]
