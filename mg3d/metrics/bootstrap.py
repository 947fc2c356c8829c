"""Intervals by drawing patients again, of one system and of the difference between two."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np


class Comparison(NamedTuple):
    """Of two systems on the same cases: first minus second, its interval, and a two-sided p for no difference."""

    difference: float
    low: float
    high: float
    p: float


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float], groups: np.ndarray, *, resamples: int = 300, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of `statistic(rows)`, rows int64 being the cases of a draw of groups (patients) with replacement.

    groups [n]: the patient of each case. A draw for which the statistic is nan is left out; (nan, nan) when all are.

    Raises:
        ValueError: there is no case.
    """
    values = _defined(statistic, groups, resamples, seed)
    return _interval(values, level)


def paired_comparison(
    first: Callable[[np.ndarray], float],
    second: Callable[[np.ndarray], float],
    groups: np.ndarray,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Difference of two systems' statistics; both see the same rows of every draw of patients, as in `bootstrap_interval`.

    p as `two_sided_p`; nan throughout when no draw has a value for both.

    Raises:
        ValueError: there is no case.
    """
    difference: Callable[[np.ndarray], float] = lambda rows: first(rows) - second(rows)  # noqa: E731
    values = _defined(difference, groups, resamples, seed)
    low, high = _interval(values, level)
    return Comparison(float(difference(np.arange(len(groups)))), low, high, two_sided_p(values))


def two_sided_p(differences: np.ndarray) -> float:
    """p for no difference, of drawn differences [n] without nan.

    Twice the smaller share of draws that do not lie above, or below, 0, one draw at 0 added so that it is never 0: its least
    value is 2 / (n + 1). nan without a draw.
    """
    smaller = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(min(1.0, 2 * (smaller + 1) / (len(differences) + 1))) if len(differences) else float("nan")


def _defined(statistic: Callable[[np.ndarray], float], groups: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    values = np.array([statistic(rows) for rows in _draws(groups, resamples, seed)], dtype=float)
    return values[~np.isnan(values)]


def _interval(values: np.ndarray, level: float) -> tuple[float, float]:
    if len(values) == 0:
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return float(low), float(high)


def _draws(groups: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Rows of as many groups as there are, drawn with replacement."""
    if len(groups) == 0:
        raise ValueError("there is no case to draw from; at least one patient is needed for an interval")
    generator = np.random.default_rng(seed)
    _, group = np.unique(groups, return_inverse=True)
    order, counts = np.argsort(group, kind="stable"), np.bincount(group)
    starts = np.cumsum(counts) - counts
    for _ in range(resamples):
        drawn = generator.integers(len(counts), size=len(counts))
        offset = np.repeat(starts[drawn] - np.cumsum(counts[drawn]) + counts[drawn], counts[drawn])
        yield order[offset + np.arange(len(offset))]
