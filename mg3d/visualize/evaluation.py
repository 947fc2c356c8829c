"""Plots of an evaluation's tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure


def reliability_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Observed frequency with its interval over mean probability, a point per row of `probability` and `frequency`."""
    figure = Figure(figsize=(4.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    x, cells = [row["probability"] for row in rows], [row["frequency"] for row in rows]
    y = [cell["value"] for cell in cells]
    axes.vlines(x, [cell["low"] for cell in cells], [cell["high"] for cell in cells], color="tab:blue", alpha=0.5)
    axes.plot(x, y, marker="o", markersize=4, color="tab:blue")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("mean probability")
    axes.set_ylabel("observed frequency")
    return figure


def cosines_figure(rows: Sequence[Mapping[str, Any]], *, same_above: float, differ_below: float) -> Figure:
    """Share of pairs by cosine, a line for each kind of pair, with the two thresholds; rows of from, to and counts by kind."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.add_subplot()
    edges = [*(row["from"] for row in rows), rows[-1]["to"]]
    for name in ("same", "different", "not known"):
        counts = [row[name] for row in rows]
        if sum(counts):
            axes.stairs([count / sum(counts) for count in counts], edges, label=f"{name}: {sum(counts):,} pairs")
    for threshold, name in ((differ_below, "different up to"), (same_above, "same from")):
        axes.axvline(threshold, color="black", linestyle=":")
        place = {"transform": axes.get_xaxis_transform(), "va": "top", "ha": "right"}
        axes.text(threshold, 0.98, f"{name} {threshold:g} ", fontsize=8, **place)
    axes.set_xlabel("cosine of the text sides of two sentences of different patients")
    axes.set_ylabel("share of the kind's pairs")
    axes.legend(fontsize=8, loc="upper left")
    return figure
