"""Scores of prediction tables with intervals, and paired comparisons of two tables. Everything is computed from the tables alone.

A table of several folds has a column `fold`. AUROC and average precision rank cases, and scores of different networks have no
common scale, so they are computed within each fold and averaged; all other scores are of the pooled cases.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mg3d.finetune.tasks.base import TaskType
from mg3d.metrics.bootstrap import (
    MAX_EXACT_PATIENTS,
    UNDEFINED,
    PairedDifference,
    bootstrap_intervals,
    defined_components,
    format_p,
    holm,
    paired_comparisons,
    too_few_patients,
    with_means,
)

RANKING = ("auroc", "auprc")
"""Measures that rank the cases of one network."""


class Score(NamedTuple):
    """One score with its confidence interval."""

    name: str
    value: float
    low: float
    high: float
    """95 % bootstrap interval over patients; nan if it is withheld."""
    cases: int
    """Cases (candidates, scans) that the score depends on, such as the positive ones of a sensitivity."""
    patients: int
    no_interval: str = ""
    """Why the interval is withheld, such as `too few positives (1)`."""
    without: str = ""
    """Outputs or folds that a mean leaves out, because their score is undefined."""
    folds: dict[str, float] | None = None
    """mean, sd, min and max over the folds that define the score; None for a single fold."""


def score_table(task_type: TaskType, table: pd.DataFrame, dev: pd.DataFrame | None = None) -> list[Score]:
    """Every score of a table with its interval.

    dev: predictions on the validation cases, which thresholds are chosen on.
    """
    settings, patients = task_type.settings, table["patient_id"].to_numpy()
    system = partial(_statistics, task_type, table, dev)
    means = _means(task_type, table, system(np.arange(len(table))))
    defined = defined_components([system], means, len(table))
    statistics = with_means(system, defined)
    values = statistics(np.arange(len(table)))
    intervals = bootstrap_intervals(statistics, patients, n_bootstrap=settings.n_bootstrap, seed=settings.seed)
    scores = []
    for name, value in values.items():
        if _fold_of(name):
            continue
        mask, interval = task_type.support_mask(table, name), intervals.get(name, (np.nan, np.nan))
        reason = withheld_reason(task_type, [table], mask, name) or no_interval(value, interval[0], settings.n_bootstrap)
        without = _left_out(means, defined, name)
        interval = (np.nan, np.nan) if reason else interval
        folds = _spread(values, name, table)
        scores.append(Score(name, value, *interval, int(mask.sum()), len(set(patients[mask])), reason, without, folds))
    return scores


def _statistics(task_type: TaskType, table: pd.DataFrame, dev: pd.DataFrame | None, rows: np.ndarray) -> dict[str, float]:
    """Scores of some rows, and those of each fold as `fold <n>: <score>`; nan for a fold of which none is drawn."""
    drawn = table.iloc[rows]
    overall = task_type.statistics(drawn, dev)
    values = dict(overall)
    for fold in sorted(set(table.get("fold", ()))):
        part = drawn[drawn["fold"] == fold]
        of_fold = task_type.statistics(part, dev) if len(part) else dict.fromkeys(overall, float("nan"))
        values |= {f"fold {fold}: {name}": value for name, value in of_fold.items()}
    return values


def _fold_of(name: str) -> str:
    """`fold 2` for the score of a fold, empty for that of all."""
    return name.partition(": ")[0] if name.startswith("fold ") else ""


def _means(task_type: TaskType, table: pd.DataFrame, values: Mapping[str, float]) -> dict[str, list[str]]:
    """The scores that are means, with their components: over folds first, then over outputs."""
    names = [name for name in values if not _fold_of(name)]
    over_outputs = {name: parts for name in names if (parts := [c for c in task_type.components(name) if c in values])}
    over_folds = {}
    if "fold" in table:
        folds = sorted(set(table["fold"]))
        ranking = [name for name in names if name.split("/")[0] in RANKING and name not in over_outputs]
        over_folds = {name: [f"fold {fold}: {name}" for fold in folds] for name in ranking}
    return over_folds | over_outputs


def _left_out(means: Mapping[str, Sequence[str]], defined: Mapping[str, Sequence[str]], name: str) -> str:
    left_out = [part for part in means.get(name, ()) if part not in defined[name]]
    return ", ".join(_fold_of(part) or part.partition("/")[2] for part in left_out)


def _spread(values: Mapping[str, float], name: str, table: pd.DataFrame) -> dict[str, float] | None:
    if "fold" not in table:
        return None
    each = pd.Series([value for part, value in values.items() if _fold_of(part) and part.endswith(f": {name}")], dtype=float)
    return {"mean": float(each.mean()), "sd": float(each.std()), "min": float(each.min()), "max": float(each.max())}


def withheld_reason(task_type: TaskType, tables: Sequence[pd.DataFrame], mask: np.ndarray, name: str) -> str:
    """Why a score of these tables has no interval and no p, such as `too few positives (1) in fold 2`; empty if it has.

    mask: bool [rows], the cases that the score depends on.
    """
    reasons = []
    for table in tables:
        if "fold" in table and name.split("/")[0] in RANKING:
            by_fold = [(fold, task_type.insufficient_reason(part, name)) for fold, part in table.groupby("fold")]
            reasons += [f"{reason} in fold {fold}" for fold, reason in by_fold if reason]
        else:
            reasons.append(task_type.insufficient_reason(table, name))
    return next(filter(None, [*reasons, too_few_patients(tables[0]["patient_id"].to_numpy()[mask])]), "")


def no_interval(value: float, low: float, n_bootstrap: int) -> str:
    """Why a value with this lower bound has no interval; empty if it has one."""
    if not np.isnan(low):
        return ""
    return UNDEFINED if np.isnan(value) or n_bootstrap else "n_bootstrap=0"


class ComparedScore(NamedTuple):
    """One score of two tables."""

    name: str
    first: float
    second: float
    difference: PairedDifference
    """Second minus first."""
    no_interval: str
    """Why there is neither an interval nor a p."""
    without: str
    """Outputs or folds that a mean leaves out, because their score is undefined in one of the tables."""
    p_holm: float = float("nan")
    """p adjusted for the findings (outputs) of its measure; nan for scores that are not of a single output."""


def compare_tables(
    task_type: TaskType, tables: Sequence[pd.DataFrame], dev: Sequence[pd.DataFrame | None]
) -> list[ComparedScore]:
    """Every score of two tables of the same cases with its paired difference; thresholds come from each run's own `dev`.

    A score rests on the cases that either table needs: a false-positive mask of one run alone lowers its Dice.
    """
    settings, patients = task_type.settings, tables[0]["patient_id"].to_numpy()
    systems = [partial(_statistics, task_type, table, val) for table, val in zip(tables, dev, strict=True)]
    values = systems[0](np.arange(len(patients)))
    means = _means(task_type, tables[0], values)
    defined = defined_components(systems, means, len(patients))
    first, second = (with_means(system, defined) for system in systems)
    names = [name for name in values if not _fold_of(name)]
    masks = {name: np.logical_or(*(task_type.support_mask(table, name) for table in tables)) for name in names}
    differences = paired_comparisons(
        second, first, patients, support_masks=masks, n_bootstrap=settings.n_bootstrap, seed=settings.seed
    )
    values = [system(np.arange(len(patients))) for system in (first, second)]
    rows = []
    for name, difference in differences.items():
        reason = withheld_reason(task_type, tables, masks[name], name)
        reason = reason or no_interval(difference.difference, difference.low, settings.n_bootstrap)
        without = _left_out(means, defined, name)
        rows.append(ComparedScore(name, values[0][name], values[1][name], difference, reason, without))
    return _with_holm(rows)


def _with_holm(rows: Sequence[ComparedScore]) -> list[ComparedScore]:
    measure = lambda row: row.name.rpartition("/")[0]  # noqa: E731
    adjusted = {}
    for name, group in groupby(sorted(rows, key=measure), key=measure):
        tested = [row for row in group if name and not row.no_interval]
        adjusted |= dict(zip([row.name for row in tested], holm([row.difference.p for row in tested]).tolist(), strict=True))
    return [row._replace(p_holm=adjusted.get(row.name, float("nan"))) for row in rows]


def comparison_rows(rows: Sequence[ComparedScore]) -> list[dict[str, Any]]:
    """Rows to print."""
    printed = []
    for row in rows:
        difference = row.difference
        cell = {"value": difference.difference, "low": difference.low, "high": difference.high}
        cell |= {"no_interval": row.no_interval, "without": row.without}
        adjusted = ""
        if not np.isnan(row.p_holm):
            is_bounded = difference.patients > MAX_EXACT_PATIENTS and difference.p <= difference.smallest_p
            adjusted = format_p(row.p_holm, row.p_holm if is_bounded else 0.0)
        printed.append({
            "score": row.name, "first": row.first, "second": row.second, "difference": cell,
            "p": "" if row.no_interval else difference.p_text, "p (Holm)": adjusted, "patients": difference.patients,
        })  # fmt: skip
    return printed
