"""Files of a finished run: predictions as CSV, scores as JSON and one HTML page; and the comparison of two runs."""

import io
import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mg3d.evaluation.tables import format_tables
from mg3d.files import write_bytes, write_json
from mg3d.finetune.distributed import info
from mg3d.finetune.settings import INITIALIZATION, UNCOMPARED, as_builtins, changed
from mg3d.finetune.tasks.base import TaskType
from mg3d.metrics.bootstrap import paired_comparisons
from mg3d.settings.encoders import ENCODERS
from mg3d.visualize.page import PageItem, write_page
from mg3d.visualize.plots import curves_figure

SCORES = "scores.json"


def predictions_file(folder: Path, split: str) -> Path:
    """Predictions of a split."""
    return folder / f"predictions_{split}.csv"


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Writes a CSV file atomically."""
    write_bytes(path, table.to_csv(index=False).encode())


def write_figure(path: Path, figure: Figure) -> None:
    """Writes a PNG file atomically."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    write_bytes(path, content.getvalue())


def read_table(path: Path) -> pd.DataFrame:
    """A table of predictions; FileNotFoundError if the run has not finished."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; it is written when a run has finished (mode=evaluate writes it again)")
    return pd.read_csv(path, dtype={"case_id": str, "patient_id": str})


def write_results(
    folder: Path,
    task_type: TaskType,
    title: str,
    tables: Mapping[str, pd.DataFrame],
    summary: Mapping[str, Any],
    *,
    dev: pd.DataFrame | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Writes predictions, scores with intervals, figures and a page; scores.json is written last.

    dev: predictions that thresholds are chosen on if `tables` has no `val`.
    """
    scores: dict[str, list[dict[str, Any]]] = {}
    sections: list[tuple[str, list[PageItem]]] = []
    for split, table in tables.items():
        write_table(predictions_file(folder, split), table)
        intervals = task_type.scores(table, dev=tables.get("val", dev) if split == "test" else None)
        scores[split] = [score._asdict() for score in intervals]
        figures = task_type.figures(table)
        sections.append((f"{split}: {len(table)} rows", [scores[split], *(item for figure in figures for item in figure)]))
        for name, figure in figures:
            write_figure(folder / "figures" / f"{split}_{re.sub(r'[^a-z0-9]+', '_', name.lower())}.png", figure)
    logs = sorted(folder.glob("csv/part-*/metrics.csv"))
    if logs:
        sections.append(("Training", [curves_figure(logs)]))
    write_page(folder / "results.html", title=f"{title}: {folder.name}", sections=sections)
    settings = as_builtins(task_type.settings)
    write_json(folder / SCORES, {**summary, "metric": task_type.metric, "settings": settings, "scores": scores})
    return scores


def show_scores(title: str, scores: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Prints the rows of each split."""
    tables = {}
    for split, rows in scores.items():
        tables[split] = [
            {
                "score": row["name"],
                "value": {key: row.get(key) for key in ("value", "low", "high", "no_interval")},
                "cases": row["cases"],
                "patients": row["patients"],
            }
            for row in rows
        ]
    print(format_tables(f"{title} [95 % interval]", tables), flush=True)


def read_summary(folder: Path) -> dict[str, Any]:
    """scores.json of a finished run.

    Raises:
        FileNotFoundError: it has not finished.
        ValueError: it was written by another version.
    """
    path = folder / SCORES
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {SCORES}; expected the folder of a finished run, such as .../fold0")
    summary = json.loads(path.read_text(encoding="utf-8"))
    if "config" not in summary:
        raise ValueError(f"{path} was written by another version; run mode=evaluate again, or start another run (run_name=...)")
    return summary


def compare(task_type: TaskType, first: Path, second: Path) -> None:
    """Prints whether two runs differ in more than their weights, and each score with its paired difference.

    Raises:
        FileNotFoundError: a run has not finished.
        ValueError: the runs were evaluated on different cases.
    """
    summaries = [read_summary(folder) for folder in (first, second)]
    for name, folder, summary in zip(("first ", "second"), (first, second), summaries, strict=True):
        info(f"{name}: {folder} (pretrained={summary['config']['settings']['pretrained']})")
    differences = run_differences(*summaries)
    for line in differences:
        info(f"the runs also differ in: {line}")
    if not differences:
        parameters = summaries[0]["parameters_total"] / 1e6
        info(f"fair comparison: one network ({parameters:.2f} M parameters), the same cases and settings")
    has_test = [predictions_file(folder, "test").is_file() for folder in (first, second)]
    if has_test[0] != has_test[1]:
        lacking = (second, first)[has_test[1]]
        info(f"{lacking} has no test split: comparing validation scores, by which the best epochs were chosen")
    split = "test" if all(has_test) else "val"
    rows = compare_tables(task_type, first, second, split=split)
    heading = "difference: second - first [95 % interval over patients]"
    print(format_tables(f"{split}; {heading}", {"Paired comparison": rows}), flush=True)


def run_differences(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    """What differs between two runs besides the source of their weights, from their scores.json."""
    first, second = one["config"], two["config"]
    names = ("parameters_total", "parameters", "processes", "epochs", "finished", "folds")
    lines = [f"{name} {one.get(name)} and {two.get(name)}" for name in names if one.get(name) != two.get(name)]
    used = {"vision_encoder", "standardise_voxels", "hidden_size", "fusion_heads"}
    used |= {name for config in (first, second) for name in ENCODERS[config["vision"]["vision_encoder"]].reads}
    vision = [{name: config["vision"].get(name) for name in sorted(used)} for config in (first, second)]
    lines += [f"encoder {line}" for line in changed(*vision, ignore=set())]
    for name, digest in first["cases"].items():
        other = second["cases"].get(name, "0")
        if digest != other:
            lines.append(f"other {name} cases ({digest.split('-')[0]} and {other.split('-')[0]})")
    if first["fold"] != second["fold"]:
        lines.append(f"fold {first['fold']} and {second['fold']}")
    return lines + changed(first["settings"], second["settings"], ignore=UNCOMPARED | INITIALIZATION | {"n_bootstrap"})


def compare_tables(task_type: TaskType, first: Path, second: Path, *, split: str) -> list[dict[str, Any]]:
    """A row per score with its paired difference; decision thresholds come from each run's own validation cases.

    Raises:
        ValueError: the runs were evaluated on different cases.
    """
    one, two = (read_table(predictions_file(folder, split)) for folder in (first, second))
    if one["case_id"].tolist() != two["case_id"].tolist():
        only = sorted(set(one["case_id"]) ^ set(two["case_id"]))
        raise ValueError(
            f"{first} has {len(one)} rows and {second} {len(two)}; {len(only)} cases are in one run only, such as {only[:3]}. "
            "Two runs are compared on the same cases: same fold and seed"
        )
    dev = [read_table(predictions_file(folder, "val")) if split == "test" else None for folder in (first, second)]
    systems = [partial(_statistics, task_type, table, val) for table, val in zip((one, two), dev, strict=True)]
    values = [system(np.arange(len(one))) for system in systems]
    masks = {name: task_type.support_mask(one, name) for name in values[0]}
    differences = paired_comparisons(
        *reversed(systems), one["patient_id"].to_numpy(), support_masks=masks,
        n_bootstrap=task_type.settings.n_bootstrap, seed=task_type.settings.seed,
    )  # fmt: skip
    return [
        {
            "score": name, "first": values[0][name], "second": values[1][name],
            "difference": {
                "value": row.difference, "low": row.low, "high": row.high,
                "no_interval": task_type.no_interval(row.difference, row.low),
            },
            "p": row.p_text, "patients": row.patients,
        }
        for name, row in differences.items()
    ]  # fmt: skip


def _statistics(task_type: TaskType, table: pd.DataFrame, dev: pd.DataFrame | None, rows: np.ndarray) -> Mapping[str, float]:
    return task_type.statistics(table.iloc[rows], dev)
