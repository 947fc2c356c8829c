"""Training curves from the CSV that the logger writes."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure


def curves_figure(metrics_csv: Path) -> Figure:
    """One panel per objective, training and validation over optimiser steps, from `metrics.csv`."""
    table = pd.read_csv(metrics_csv)
    names = sorted({column.split("/")[1].removesuffix("_step") for column in table.columns if column.startswith("train/")})
    figure = Figure(figsize=(3.4 * min(4, len(names)), 2.6 * -(-len(names) // 4)), layout="constrained")
    for place, name in enumerate(names):
        axes = figure.add_subplot(-(-len(names) // 4), min(4, len(names)), place + 1)
        for phase, column in (("train", f"train/{name}_step"), ("train", f"train/{name}"), ("val", f"val/{name}")):
            if column in table:
                part = table[["step", column]].dropna()
                axes.plot(part["step"], part[column], label=phase, marker="o" if phase == "val" else None, markersize=3)
        axes.set_title(name)
        axes.set_xlabel("optimiser step")
        axes.legend(fontsize=7)
    return figure
