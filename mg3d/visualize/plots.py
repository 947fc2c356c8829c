"""Training curves and reliability diagrams."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

COLUMNS = 4


def curves_figure(parts: Sequence[Path]) -> Figure:
    """Training and validation loss over optimizer steps, one panel per objective.

    parts: CSV logs of a run and its resumed parts, oldest first; later parts override steps they repeat. If nothing was logged,
    the figure says so.
    """
    table = pd.DataFrame()
    for path in parts:
        part = pd.read_csv(path)
        table = part if table.empty else pd.concat([table[table["step"] < part["step"].min()], part])
    logged = [column for column in table.columns if column.startswith(("train/", "val/"))]
    names = sorted({column.split("/")[1].removesuffix("_step").removesuffix("_epoch") for column in logged})
    if not names:
        figure = Figure(figsize=(3.4, 1.0))
        figure.text(0.5, 0.5, "no value was logged", ha="center", va="center")
        return figure
    rows, columns = -(-len(names) // COLUMNS), min(COLUMNS, len(names))
    figure = Figure(figsize=(3.4 * columns, 2.6 * rows), layout="constrained")
    for panel, name in enumerate(names, 1):
        axes = figure.add_subplot(rows, columns, panel)
        for phase, column in (("train", f"train/{name}_step"), ("train", f"train/{name}"), ("val", f"val/{name}")):
            if column in table:
                points = table[["step", column]].dropna()
                axes.plot(points["step"], points[column], label=phase, marker="o" if phase == "val" else None, markersize=3)
        axes.set_title(name)
        axes.set_xlabel("optimizer step")
        if axes.lines:
            axes.legend(fontsize=7)
    return figure


def reliability_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Reliability diagram: observed frequency with its confidence interval over mean predicted probability.

    rows: one bin each, `probability` and `frequency` ({value, low, high}).
    """
    figure = Figure(figsize=(4.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    x, frequencies = [row["probability"] for row in rows], [row["frequency"] for row in rows]
    axes.vlines(x, [cell["low"] for cell in frequencies], [cell["high"] for cell in frequencies], color="tab:blue", alpha=0.5)
    axes.plot(x, [cell["value"] for cell in frequencies], marker="o", markersize=4, color="tab:blue")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("mean predicted probability")
    axes.set_ylabel("observed frequency")
    return figure
