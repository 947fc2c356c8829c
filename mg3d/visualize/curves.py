"""Training curves from the CSV that the logger writes."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure


def curves_figure(parts: Sequence[Path]) -> Figure:
    """One panel per objective, training and validation over optimiser steps, from the CSV files of a run's parts, oldest first.

    Where a later part goes back to earlier steps, it counts. A run so short that nothing was logged gives a figure that says so.
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
    figure = Figure(figsize=(3.4 * min(4, len(names)), 2.6 * -(-len(names) // 4)), layout="constrained")
    for place, name in enumerate(names):
        axes = figure.add_subplot(-(-len(names) // 4), min(4, len(names)), place + 1)
        for phase, column in (("train", f"train/{name}_step"), ("train", f"train/{name}"), ("val", f"val/{name}")):
            if column in table:
                part = table[["step", column]].dropna()
                axes.plot(part["step"], part[column], label=phase, marker="o" if phase == "val" else None, markersize=3)
        axes.set_title(name)
        axes.set_xlabel("optimiser step")
        if axes.lines:
            axes.legend(fontsize=7)
    return figure
