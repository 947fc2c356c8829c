"""Result tables: cells with patient-level bootstrap intervals, and how they are printed."""

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from mg3d.metrics.bootstrap import (
    UNDEFINED,
    PairedDifference,
    Statistics,
    bootstrap_intervals,
    insufficient_reason,
    paired_comparisons,
    too_few_patients,
)
from mg3d.metrics.classification import mean_of_defined, per_label

Rows = list[dict[str, Any]]
Statistic = Callable[[np.ndarray], float]
"""A value of the cases at row indices int64 [m]."""
_DIGITS = 6


def on_rows(metric: Callable[..., float], *arrays: np.ndarray) -> Statistic:
    """The statistic `metric(*arrays)` of the given rows of all arrays."""
    return lambda rows: metric(*(array[rows] for array in arrays))


class Macro(NamedTuple):
    """Mean of a metric over the columns of labels and scores [n, L] that define it on all rows, in every system.

    Undefined on rows where one of these columns is, so that all resamples average the same columns.
    """

    statistics: list[Statistic]
    """Of each system."""
    labels: np.ndarray
    """[n, columns that are averaged]."""
    without: int
    """Number of columns left out."""


def macro(metric: Callable[[np.ndarray, np.ndarray], float], labels: np.ndarray, *systems: np.ndarray) -> Macro:
    """The macro average of `metric(labels, scores)` for the scores [n, L] of each system."""
    defined = ~np.any([np.isnan(per_label(metric, labels, scores)) for scores in systems], axis=0)
    labels, mean = labels[:, defined], lambda labels, scores: float(per_label(metric, labels, scores).mean())
    undefined = lambda rows: float("nan")  # noqa: E731
    statistics = [on_rows(mean, labels, scores[:, defined]) if defined.any() else undefined for scores in systems]
    return Macro(statistics, labels, int((~defined).sum()))


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
        support: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """Cell with the statistic of all cases and its interval.

        labels: [n] or [n, L]. With too few patients, or too few of one of `classes`, there is no interval, and the cell says so.
        support: bool [n], the cases that the statistic depends on (default: all).
        """
        value, reason = statistic(np.arange(len(patients))), _withheld(labels, patients, classes, support)
        low, high = np.nan, np.nan
        if not reason:
            low, high = bootstrap_intervals(_named(statistic), patients, **self._asdict()).get("", (low, high))
        return _cell(value, low, high, reason)

    def metric(
        self,
        metric: Callable[[np.ndarray, np.ndarray], float],
        labels: np.ndarray,
        scores: np.ndarray,
        patients: np.ndarray,
        *,
        classes: Sequence[int] = (1, 0),
    ) -> dict[str, Any]:
        """Cell with `metric(labels, scores)` of [n], or its mean over the defined columns of [n, L]. classes: see `interval`."""
        if labels.ndim == 1:
            return self.interval(on_rows(metric, labels, scores), patients, labels=labels, classes=classes)
        mean = macro(metric, labels, scores)
        return self.interval(mean.statistics[0], patients, labels=mean.labels, classes=classes) | _without(mean)

    def mean(self, values: np.ndarray, patients: np.ndarray) -> dict[str, Any]:
        """Cell with the mean of values [n] that are not NaN."""
        support = ~np.isnan(values.reshape(len(values), -1)).all(1)
        return self.interval(on_rows(mean_of_defined, values), patients, support=support)

    def difference(
        self, first: Statistic, second: Statistic, patients: np.ndarray, *, labels: np.ndarray | None = None
    ) -> tuple[dict[str, Any], PairedDifference]:
        """Cell with the paired difference, first minus second, and the comparison behind it; labels as for `interval`."""
        reason = _withheld(labels, patients)
        comparison = paired_comparisons(_named(first), _named(second), patients, **self._asdict())[""]
        low, high = (np.nan, np.nan) if reason else (comparison.low, comparison.high)
        return _cell(comparison.difference, low, high, reason), comparison

    def macro_difference(
        self, metric: Callable[[np.ndarray, np.ndarray], float], labels: np.ndarray, systems: Sequence[np.ndarray],
        patients: np.ndarray,
    ) -> tuple[dict[str, Any], PairedDifference]:  # fmt: skip
        """`difference` of the mean of a metric over the columns of labels and of the two systems' scores [n, L]."""
        mean = macro(metric, labels, *systems)
        cell, comparison = self.difference(*mean.statistics, patients, labels=mean.labels)
        return cell | _without(mean), comparison


def _named(statistic: Statistic) -> Statistics:
    return lambda rows: {"": statistic(rows)}


def _withheld(
    labels: np.ndarray | None, patients: np.ndarray, classes: Sequence[int] = (1, 0), support: np.ndarray | None = None
) -> str:
    reason = insufficient_reason(labels, patients, classes=classes) if labels is not None else ""
    return reason or too_few_patients(patients if support is None else patients[support])


def _without(mean: Macro) -> dict[str, str]:
    return {"without": f"{mean.without} label" + "s" * (mean.without > 1)} if mean.without else {}


def _cell(value: float, low: float, high: float, reason: str) -> dict[str, Any]:
    cell = {name: round(float(number), _DIGITS) for name, number in (("value", value), ("low", low), ("high", high))}
    return cell | ({"no_interval": reason} if reason else {})


def format_cell(cell: Any) -> str:
    """`value [low, high]`, or the reason for a missing interval; floats with three decimals."""
    if isinstance(cell, Mapping):
        interval = cell.get("no_interval") or f"{format_cell(cell['low'])}, {format_cell(cell['high'])}"
        interval = "" if _is_undefined(cell["value"]) else f" [{interval}]"
        return format_cell(cell["value"]) + interval + (f", without {cell['without']}" if cell.get("without") else "")
    if _is_undefined(cell):
        return UNDEFINED
    if isinstance(cell, float) and 0 < cell < 0.0005:
        return "< 0.001"
    return f"{cell:.3f}" if isinstance(cell, float) else f"{cell:,}" if isinstance(cell, int) else str(cell)


def _is_undefined(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


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
