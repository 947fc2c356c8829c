"""What a run leaves behind: predictions as CSV, scores as JSON, one page; read again to pool folds (and by compare.py)."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from mg3d.files import write_bytes, write_json
from mg3d.finetune.kinds.base import Kind, Score
from mg3d.visualize.page import PageItem, write_page
from mg3d.visualize.plots import curves_figure

SCORES = "scores.json"
_TEXTS = {"case_id": str, "patient_id": str}


def predictions_file(folder: Path, part: str) -> Path:
    """Where a run's predictions of a part lie."""
    return folder / f"predictions_{part}.csv"


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Predictions as CSV, whole or not at all."""
    write_bytes(path, table.to_csv(index=False).encode())


def read_table(path: Path) -> pd.DataFrame:
    """What `write_table` wrote; FileNotFoundError with what to do when it is not there."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; a run writes it when it has ended (mode=evaluate writes it again)")
    return pd.read_csv(path, dtype=_TEXTS, keep_default_na=True)


def write_results(
    folder: Path, kind: Kind, tables: Mapping[str, pd.DataFrame], *, facts: Mapping[str, Any], dev: pd.DataFrame | None
) -> dict[str, list[Score]]:
    """Predictions, scores with intervals and a page of each part (`val`, `test`); scores.json is the last to appear."""
    scores = {}
    sections: list[tuple[str, list[PageItem]]] = []
    for part, table in tables.items():
        write_table(predictions_file(folder, part), table)
        scores[part] = kind.scores(table, dev=dev if part == "test" else None)
        pictures: list[PageItem] = []
        for title, figure in kind.figures(table):
            pictures += [title, figure]
        sections.append((f"{part}: {len(table)} rows", [[score._asdict() for score in scores[part]], *pictures]))
    parts = sorted(folder.glob("csv/part-*/metrics.csv"))
    if parts:
        sections.append(("Training", [curves_figure(parts)]))
    write_page(folder / "results.html", title=f"{kind.task.title}: {folder.name}", sections=sections)
    told = {part: [score._asdict() for score in found] for part, found in scores.items()}
    write_json(
        folder / SCORES, {**facts, "metric": kind.task.metric, "settings": dataclasses.asdict(kind.settings), "scores": told}
    )
    return scores


def show_scores(console: Console, title: str, scores: Mapping[str, Sequence[Score]]) -> None:
    """One table per part."""
    for part, found in scores.items():
        table = Table(title=f"{title}, {part}", title_justify="left")
        for name in ("score", "value", "95 % interval", "cases", "patients"):
            table.add_column(name, justify="left" if name == "score" else "right")
        for score in found:
            interval = "not known" if np.isnan(score.low) else f"{score.low:.3f} to {score.high:.3f}"
            table.add_row(score.name, f"{score.value:.3f}", interval, str(score.cases), str(score.patients))
        console.print(table)


def read_scores(folder: Path) -> dict[str, list[Score]]:
    """The scores of a finished run; ValueError for those of an earlier version."""
    try:
        return {part: [Score(**row) for row in rows] for part, rows in read_facts(folder)["scores"].items()}
    except TypeError as error:
        raise ValueError(f"{folder / SCORES} is of an earlier version; mode=evaluate writes it again") from error


def read_facts(folder: Path) -> dict[str, Any]:
    """All of a finished run's scores.json; FileNotFoundError when it has not ended."""
    path = folder / SCORES
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {SCORES}; name the folder of a finished run, such as .../fold0")
    return json.loads(path.read_text(encoding="utf-8"))
