"""Result tables: cells with patient-level bootstrap intervals, and how they are printed."""

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from mg3d.metrics.bootstrap import PairedDifference, bootstrap_interval, insufficient_reason, paired_comparison
from mg3d.metrics.classification import mean_of_defined

Rows = list[dict[str, Any]]
Statistic = Callable[[np.ndarray], float]
"""A value of the cases at row indices int64 [m]."""
_DIGITS = 6


def on_rows(metric: Callable[..., float], *arrays: np.ndarray) -> Statistic:
    """The statistic `metric(*arrays)` of the given rows of all arrays."""
    return lambda rows: metric(*(array[rows] for array in arrays))


class Bootstrap(NamedTuple):
    """Settings of the patient-level bootstrap behind every 95 % interval."""

    n_bootstrap: int
    seed: int

    def interval(
        self,
        statistic: Statistic,
        patients: np.ndarray,
        *,
        labels: np.ndarray | None = None,
        classes: Sequence[int] = (1, 0),
    ) -> dict[str, Any]:
        """Cell with the statistic of all cases and its interval.

        labels: [n] or [n, L]. With too few patients of one of `classes` there is no interval, and the cell says so.
        """
        reason = insufficient_reason(labels, patients, classes=classes) if labels is not None else ""
        low, high = (np.nan, np.nan) if reason else bootstrap_interval(statistic, patients, **self._asdict())
        return _cell(statistic(np.arange(len(patients))), low, high, reason)

    def metric(
        self,
        metric: Callable[[np.ndarray, np.ndarray], float],
        labels: np.ndarray,
        scores: np.ndarray,
        patients: np.ndarray,
        *,
        classes: Sequence[int] = (1, 0),
    ) -> dict[str, Any]:
        """Cell with `metric(labels, scores)`; labels and classes as for `interval`."""
        return self.interval(on_rows(metric, labels, scores), patients, labels=labels, classes=classes)

    def mean(self, values: np.ndarray, patients: np.ndarray) -> dict[str, Any]:
        """Cell with the mean of values [n] that are not NaN."""
        return self.interval(on_rows(mean_of_defined, values), patients)

    def difference(
        self, first: Statistic, second: Statistic, patients: np.ndarray, *, labels: np.ndarray | None = None
    ) -> tuple[dict[str, Any], PairedDifference]:
        """Cell with the paired difference, first minus second, and the comparison behind it; labels as for `interval`."""
        reason = insufficient_reason(labels, patients) if labels is not None else ""
        comparison = paired_comparison(first, second, patients, **self._asdict())
        low, high = (np.nan, np.nan) if reason else (comparison.low, comparison.high)
        return _cell(comparison.difference, low, high, reason), comparison


def _cell(value: float, low: float, high: float, reason: str) -> dict[str, Any]:
    cell = {name: round(float(number), _DIGITS) for name, number in (("value", value), ("low", low), ("high", high))}
    return cell | ({"no_interval": reason} if reason else {})


def format_cell(cell: Any) -> str:
    """`value [low, high]`, or the reason for a missing interval; floats with three decimals."""
    if isinstance(cell, Mapping) and cell.get("no_interval"):
        return f"{format_cell(cell['value'])} [{cell['no_interval']}]"
    if isinstance(cell, Mapping):
        return f"{format_cell(cell['value'])} [{format_cell(cell['low'])}, {format_cell(cell['high'])}]"
    if cell is None or (isinstance(cell, float) and np.isnan(cell)):
        return "-"
    if isinstance(cell, float) and 0 < cell < 0.0005:
        return "< 0.001"
    return f"{cell:.3f}" if isinstance(cell, float) else f"{cell:,}" if isinstance(cell, int) else str(cell)


def format_rows(rows: Rows) -> list[dict[str, str]]:
    """Rows as text; every row gets all columns."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: format_cell(row[name]) if name in row else "" for name in names} for row in rows]


def format_tables(title: str, tables: Mapping[str, Rows]) -> str:
    """Tables for the terminal, each headed by its name and `title`."""
    console = Console(highlight=False, markup=False, file=io.StringIO(), width=None if sys.stdout.isatty() else 150)
    for heading, rows in tables.items():
        lines = format_rows(rows)
        if not lines:
            continue
        console.print(f"\n{heading} · {title}", soft_wrap=True)
        table = Table(*lines[0])
        for line in lines:
            table.add_row(*line.values())
        console.print(table)
    return console.file.getvalue().strip("\n")
