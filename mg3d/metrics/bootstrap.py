"""Intervals by drawing patients again."""

from collections.abc import Callable

import numpy as np


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float], groups: np.ndarray, *, resamples: int = 300, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of `statistic(rows)`, rows int64 being the cases of a draw of groups (patients) with replacement.

    groups [n]: the patient of each case. A draw for which the statistic is nan is left out; (nan, nan) when all are.

    Raises:
        ValueError: there is no case.
    """
    if len(groups) == 0:
        raise ValueError("there is no case to draw from; at least one patient is needed for an interval")
    generator = np.random.default_rng(seed)
    _, group = np.unique(groups, return_inverse=True)
    order, counts = np.argsort(group, kind="stable"), np.bincount(group)
    starts = np.cumsum(counts) - counts
    values = []
    for _ in range(resamples):
        drawn = generator.integers(len(counts), size=len(counts))
        offset = np.repeat(starts[drawn] - np.cumsum(counts[drawn]) + counts[drawn], counts[drawn])
        values.append(statistic(order[offset + np.arange(len(offset))]))
    defined = [value for value in values if not np.isnan(value)]
    if not defined:
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    low, high = np.quantile(defined, (tail, 1 - tail))
    return float(low), float(high)
