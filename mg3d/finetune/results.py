"""Files of a finished run: predictions as CSV, scores as JSON and one HTML page; and the comparison of two runs."""

import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from mg3d.evaluation.tables import format_cell, format_rows, format_tables
from mg3d.files import write_bytes, write_json
from mg3d.finetune.distributed import info
from mg3d.finetune.scoring import compare_tables, comparison_rows, score_table
from mg3d.finetune.settings import INITIALIZATION, UNCOMPARED, as_builtins, changed
from mg3d.finetune.tasks.base import TaskType
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
        computed = score_table(task_type, table, tables.get("val", dev) if split == "test" else None)
        scores[split] = [score._asdict() for score in computed]
        figures = task_type.figures(table)
        items = [format_rows(_score_rows(scores[split])), *(item for figure in figures for item in figure)]
        sections.append((f"{split}: {len(table)} rows", items))
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
    tables = {split: _score_rows(rows) for split, rows in scores.items()}
    print(format_tables(f"{title} [95 % interval]", tables), flush=True)


def _score_rows(scores: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for score in scores:
        row = {"score": score["name"], "value": {key: score[key] for key in ("value", "low", "high", "no_interval", "without")}}
        if folds := score["folds"]:
            mean, sd, low, high = (format_cell(folds[name]) for name in ("mean", "sd", "min", "max"))
            row["mean ± SD over folds"] = f"{mean} ± {sd} ({low} to {high})"
        rows.append(row | {"cases": score["cases"], "patients": score["patients"]})
    return rows


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
        info(f"{lacking} has no test split: comparing validation scores")
    split = "test" if all(has_test) else "val"
    if split == "val" and task_type.uses_sgd and any(summary["settings"]["select"] == "best" for summary in summaries):
        info("the best epochs were chosen on these cases; select=last avoids that")
    tables = [read_table(predictions_file(folder, split)) for folder in (first, second)]
    require_same_cases(*tables, first, second)
    dev = [read_table(predictions_file(folder, "val")) if split == "test" else None for folder in (first, second)]
    rows = comparison_rows(compare_tables(task_type, tables, dev))
    heading = "difference: second - first [95 % interval over patients]; p (Holm): p corrected for the findings of a measure"
    print(format_tables(f"{split}; {heading}", {"Paired comparison": rows}), flush=True)


def require_same_cases(one: pd.DataFrame, two: pd.DataFrame, first: Path, second: Path) -> None:
    """Raises ValueError unless two tables have the same cases in the same folds."""
    columns = ["case_id"] + ["fold"] * any("fold" in table for table in (one, two))
    keys = [table.reindex(columns=columns).to_numpy().tolist() for table in (one, two)]
    if keys[0] != keys[1]:
        only = sorted(set(one["case_id"]) ^ set(two["case_id"]))
        raise ValueError(
            f"{first} has {len(one)} rows and {second} {len(two)}; {len(only)} cases are in one run only, such as {only[:3]}. "
            "Two runs are compared on the same cases: same fold and seed"
        )


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
