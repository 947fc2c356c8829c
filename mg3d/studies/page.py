"""Tables, CSV and page of a study."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mg3d.files import write_bytes
from mg3d.studies.execute import Folders, read_result
from mg3d.studies.measure import METRICS
from mg3d.studies.study import Study
from mg3d.studies.summary import Estimate, Sample, difference, mean_over_seeds

Results = dict[str, list[dict[str, Any]]]
"""Run -> results of its finished seeds."""


def collect(study: Study, folders: Folders) -> Results:
    """Results of all finished runs.

    Raises:
        ValueError: two results are of different held-out studies, or a result differs from the study.
    """
    results: Results = {}
    for run, seed in study.jobs:
        if (result := read_result(folders.result(run, seed), run)) is not None:
            results.setdefault(run.name, []).append(result)
    data = {result["data"]["ids_sha256"] for part in results.values() for result in part}
    if len(data) > 1:
        raise ValueError(f"the results in {folders.results} are of different held-out studies; measure all runs on the same data")
    return {name: results[name] for name in study.runs if name in results}


def sample(results: list[dict[str, Any]], metric: str) -> Sample | None:
    """A metric over the seeds of a run; None if the run does not have it."""
    cells = [result["metrics"][metric] for result in results if metric in result["metrics"]]
    if not cells or any(cell["value"] is None for cell in cells):
        return None
    return Sample(np.array([cell["value"] for cell in cells]), np.array([cell["draws"] for cell in cells], dtype=float))


def estimates(study: Study, results: Results) -> list[dict[str, Any]]:
    """One row per run and metric: mean over seeds, and difference to the baseline, with intervals."""
    rows = []
    for metric in METRICS:
        base = sample(results.get(study.baseline, []), metric)
        for name, part in results.items():
            values = sample(part, metric)
            if values is None:
                continue
            compared = difference(values, base) if base is not None and name != study.baseline else None
            rows.append({"metric": metric, "run": name, "mean": mean_over_seeds(values), "difference": compared})
    return rows


def summary_rows(study: Study, results: Results) -> list[dict[str, str]]:
    """One row per run: minutes, and the mean of every metric; `*` where the difference to the baseline excludes zero."""
    cells = {(row["run"], row["metric"]): row for row in estimates(study, results)}
    used = [metric for metric in METRICS if any((name, metric) in cells for name in results)]
    table = []
    for name, part in results.items():
        minutes = np.mean([result["minutes"]["training"] for result in part])
        row = {"run": name, "seeds": str(len(part)), "minutes": f"{minutes:.1f}"}
        row |= {METRICS[metric].short: _short(cells.get((name, metric))) for metric in used}
        table.append(row)
    return table


def _short(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    star = " *" if row["difference"] is not None and row["difference"].excludes_zero else ""
    return f"{row['mean'].value:.3f}{star}"


def difference_rows(study: Study, results: Results) -> list[dict[str, str]]:
    """One row per metric and run: mean and difference to the baseline with intervals."""
    return [
        {
            "metric": METRICS[row["metric"]].title,
            "run": row["run"],
            "mean [95 %]": _text(row["mean"]),
            f"minus {study.baseline} [95 %]": _text(row["difference"], sign="+"),
        }
        for row in estimates(study, results)
    ]


def _text(estimate: Estimate | None, sign: str = "") -> str:
    if estimate is None:
        return ""
    interval = "" if np.isnan(estimate.low) else f" [{estimate.low:{sign}.3f}, {estimate.high:{sign}.3f}]"
    return f"{estimate.value:{sign}.3f}{interval}{' (patients only)' if estimate.seeds == 1 else ''}"


def write_csv(path: Path, study: Study, results: Results) -> None:
    """Write `estimates` as CSV."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["metric", "run", "seeds", "mean", "low", "high", "difference", "difference_low", "difference_high"])
    for row in estimates(study, results):
        compared = row["difference"] or (None, None, None)
        numbers = [*row["mean"][:3], *compared[:3]]
        writer.writerow([row["metric"], row["run"], row["mean"].seeds, *("" if x is None else f"{x:.5f}" for x in numbers)])
    write_bytes(path, stream.getvalue().encode())


def write_study_page(path: Path, study: Study, results: Results) -> None:
    """Write the page: question, table, one plot per metric, all differences."""
    from mg3d.visualize.page import CaptionedFigure, PageItem, write_page

    missing = [f"{run.name} (seed {seed})" for run, seed in study.jobs if seed not in _seeds(results, run.name)]
    about = [
        study.question,
        "Intervals (95 %) cover the choice of held-out patients and, with more than one seed, the training seed. They are not "
        f"corrected for the number of comparisons. * marks a difference to {study.baseline} whose interval excludes zero.",
    ]
    if missing:
        about.append(f"Not finished: {', '.join(missing)}.")
    rows = estimates(study, results)
    plots: list[PageItem] = []
    for metric in dict.fromkeys(row["metric"] for row in rows):
        chosen = {row["run"]: row["mean"] for row in rows if row["metric"] == metric}
        better = "higher" if METRICS[metric].higher_is_better else "lower"
        alt = "; ".join(f"{name} {_text(estimate)}" for name, estimate in chosen.items())
        shown = METRICS[metric]
        figure = interval_figure(f"{shown.short}: {shown.title} ({better} is better)", chosen, study.baseline)
        plots.append(CaptionedFigure(figure, alt))
    sections: list[tuple[str, list[PageItem]]] = [
        ("Question", [text for text in about if text]),
        ("Means over seeds", [summary_rows(study, results)]),
        ("Metrics", plots),
        (f"Differences to {study.baseline}", [difference_rows(study, results)]),
    ]
    write_page(path, title=f"mg3d study: {study.title}", sections=sections)


def _seeds(results: Results, name: str) -> set[int]:
    return {result["seed"] for result in results.get(name, [])}


def interval_figure(title: str, means: Mapping[str, Estimate], baseline: str) -> Figure:
    """Dot and interval of every run, one line each, with a vertical line at the baseline's mean."""
    figure = Figure(figsize=(9.5, 0.7 + 0.28 * len(means)), layout="constrained")
    axes = figure.add_subplot()
    for line, (name, estimate) in enumerate(means.items()):
        color = "black" if name == baseline else "tab:blue"
        if not np.isnan(estimate.low):
            axes.hlines(line, estimate.low, estimate.high, color=color, alpha=0.6)
        axes.plot(estimate.value, line, "o", color=color, markersize=5)
    if baseline in means:
        axes.axvline(means[baseline].value, color="grey", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(means)), list(means))
    axes.set_ylim(len(means) - 0.5, -0.5)
    axes.set_title(title, fontsize=9, loc="left")
    return figure
