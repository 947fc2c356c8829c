"""What a run leaves behind: predictions as CSV, scores as JSON, one page; read again to pool folds and to compare runs."""

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
from mg3d.metrics.bootstrap import bootstrap_interval, two_sided_p
from mg3d.pictures.curves import curves_figure
from mg3d.pictures.page import Piece, write_page

SCORES = "scores.json"
_TEXTS = {"case_id": str, "patient_id": str}


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
    sections: list[tuple[str, list[Piece]]] = []
    for part, table in tables.items():
        write_table(folder / f"predictions_{part}.csv", table)
        scores[part] = kind.scores(table, dev=dev if part == "test" else None)
        pictures: list[Piece] = []
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
        for name in ("score", "value", "95 % interval", "rows"):
            table.add_column(name, justify="left" if name == "score" else "right")
        for score in found:
            interval = "" if np.isnan(score.low) else f"{score.low:.3f} to {score.high:.3f}"
            table.add_row(score.name, f"{score.value:.3f}", interval, str(score.count))
        console.print(table)


def read_scores(folder: Path) -> dict[str, list[Score]]:
    """The scores of a finished run."""
    return {part: [Score(**row) for row in rows] for part, rows in read_facts(folder)["scores"].items()}


def read_facts(folder: Path) -> dict[str, Any]:
    """All of a finished run's scores.json; FileNotFoundError when it has not ended."""
    path = folder / SCORES
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {SCORES}; name the folder of a finished run, such as .../fold0")
    return json.loads(path.read_text(encoding="utf-8"))


def compare_runs(kind: Kind, first: Path, second: Path) -> list[dict[str, Any]]:
    """Each score of two runs on the same cases, and their difference (second - first) with its paired interval and p.

    p: two-sided, of bootstrap draws of patients; see `two_sided_p`.

    Raises:
        ValueError: the runs were not judged on the same cases.
    """
    part = "test" if (first / "predictions_test.csv").is_file() else "val"
    one, two = (read_table(folder / f"predictions_{part}.csv") for folder in (first, second))
    if one["case_id"].tolist() != two["case_id"].tolist():
        only = set(one["case_id"]) ^ set(two["case_id"])
        raise ValueError(
            f"{first} has {len(one)} cases and {second} {len(two)}, {len(only)} in one alone, such as {sorted(only)[:3]}; two "
            "runs are compared on the same cases: the same fold, split and seed of the folds"
        )
    values = [kind.statistics(table) for table in (one, two)]
    names = [name for name in values[0] if name in values[1]]
    draws: list[list[float]] = []

    def draw(rows: np.ndarray) -> float:
        found = [kind.statistics(table.iloc[rows]) for table in (one, two)]
        draws.append([found[1][name] - found[0][name] for name in names])
        return 0.0

    bootstrap_interval(draw, one["patient_id"].to_numpy(), resamples=max(kind.settings.resamples, 1), seed=kind.settings.seed)
    rows = []
    for place, name in enumerate(names):
        drawn = np.array([draw[place] for draw in draws])
        drawn = drawn[~np.isnan(drawn)]
        low, high = np.quantile(drawn, (0.025, 0.975)) if len(drawn) else (float("nan"), float("nan"))
        difference = values[1][name] - values[0][name]
        rows.append({"score": name, "first": values[0][name], "second": values[1][name],
                     "difference": difference, "low": float(low), "high": float(high), "p": two_sided_p(drawn),
                     "cases": len(one), "part": part})  # fmt: skip
    return rows
