"""Intervals by drawing patients again, of one system and of the difference between two."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

Statistic = Callable[[np.ndarray], float]
"""Of rows int64, the cases of a draw."""
Statistics = Callable[[np.ndarray], Mapping[str, float]]
"""Several of them by name."""
MIN_PATIENTS, FEW = 6, 12
"""Below so many patients no p can lie below 0.05; up to so many it is also of every turn of signs, above of drawn patients
alone."""

MIN_PATIENTS_PER_CLASS = 5
"""Below so many patients with, or without, what is ranked an interval is not known: more than one draw in a hundred (exp -5) then
lacks the class, and of one positive every draw that has a value has much the same."""


class PairedDifference(NamedTuple):
    """Of two systems on the same cases: first minus second, its interval, and a two-sided p for no difference."""

    difference: float
    low: float
    high: float
    p: float
    """nan where there are too few patients, or no value."""
    patients: int
    """Of whom the difference is."""
    least: float
    """The smallest p that so many patients and draws can show."""

    @property
    def p_text(self) -> str:
        """p as text, never 0."""
        if self.patients < MIN_PATIENTS:
            return "too few"
        if np.isnan(self.p):
            return "-"
        if self.p < 0.001:
            return "< 0.001"
        return f"<= {self.p:.3f}" if self.patients > FEW and self.p <= self.least else f"{self.p:.3f}"


def insufficient_reason(labels: np.ndarray, groups: np.ndarray, *, classes: Sequence[int] = (1, 0)) -> str:
    """Why a score of these labels has no interval, such as `too few positives (1)`; empty where it has one, or no value.

    labels [n] or [n, L] (for a mean over columns, of which one with enough suffices): 1 positive, 0 negative; groups [n]: the
    patients, who are counted. classes: those that the score needs.
    """
    columns = labels.reshape(len(labels), -1).T
    counts = [[len(np.unique(groups[column == one])) for one in classes] for column in columns]
    best = max((row for row in counts if min(row) > 0), key=min, default=[MIN_PATIENTS_PER_CLASS])
    if min(best) >= MIN_PATIENTS_PER_CLASS:
        return ""
    return f"too few {'positives' if classes[best.index(min(best))] == 1 else 'negatives'} ({min(best)})"


def bootstrap_interval(
    statistic: Statistic, groups: np.ndarray, *, n_bootstrap: int = 300, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of `statistic(rows)`, rows int64 being the cases of a draw of groups (patients) with replacement.

    groups [n]: the patient of each case. A draw for which the statistic is nan is left out; (nan, nan) when all are.

    Raises:
        ValueError: there is no case.
    """
    return bootstrap_intervals(_named(statistic), groups, n_bootstrap=n_bootstrap, level=level, seed=seed)[""]


def bootstrap_intervals(
    statistics: Statistics, groups: np.ndarray, *, n_bootstrap: int = 300, level: float = 0.95, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """`bootstrap_interval` of every statistic, of the same draws; nothing without a draw."""
    return {name: _interval(values, level) for name, values in _drawn(statistics, groups, n_bootstrap, seed).items()}


def paired_comparison(first: Statistic, second: Statistic, groups: np.ndarray, **named: int | float) -> PairedDifference:
    """Difference of two systems' statistics; both see the same rows of every draw of patients. See `paired_comparisons`."""
    return paired_comparisons(_named(first), _named(second), groups, **named)[""]


def paired_comparisons(
    first: Statistics,
    second: Statistics,
    groups: np.ndarray,
    *,
    support_masks: Mapping[str, np.ndarray] | None = None,
    n_bootstrap: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, PairedDifference]:
    """`PairedDifference` of every statistic that both have.

    support_masks: bool [n] by name, the cases that a statistic uses (default: all).

    p is `two_sided_p` of the draws; up to `FEW` patients the larger of it and `sign_flip_p` of every patient's part, for either
    alone can be too small: the draws of so few, the parts of what is no mean.

    Raises:
        ValueError: there is no case.
    """
    rows = np.arange(len(groups))
    values = [system(rows) for system in (first, second)]
    drawn = [_drawn(system, groups, n_bootstrap, seed) for system in (first, second)]
    without = cache(lambda one: [system(np.flatnonzero(groups != one)) for system in (first, second)])
    found = {}
    for name in (name for name in values[0] if name in values[1]):
        difference = values[0][name] - values[1][name]
        draws = drawn[0][name] - drawn[1][name] if n_bootstrap else np.empty(0)
        draws = draws[~np.isnan(draws)]
        patients = np.unique(groups[support_masks[name]] if support_masks else groups)
        p, least = two_sided_p(draws), 2 / (len(draws) + 1)
        if len(patients) < MIN_PATIENTS:
            p, least = float("nan"), 2.0 ** (1 - len(patients))
        elif len(patients) <= FEW:
            lacking = np.array([values[0][name] - values[1][name] for values in map(without, patients)])
            flipped = sign_flip_p(len(patients) * difference - (len(patients) - 1) * lacking)
            p, least = float(np.maximum(flipped, p)), max(2.0 ** (1 - len(patients)), least)
        found[name] = PairedDifference(float(difference), *_interval(draws, level), p, len(patients), least)
    return found


def two_sided_p(differences: np.ndarray) -> float:
    """p for no difference, of drawn differences [n] without nan.

    Twice the smaller share of draws that do not lie above, or below, 0, one draw at 0 added so that it is never 0: its least
    value is 2 / (n + 1). nan without a draw.
    """
    smaller = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(min(1.0, 2 * (smaller + 1) / (len(differences) + 1))) if len(differences) else float("nan")


def sign_flip_p(parts: np.ndarray) -> float:
    """p for no difference, of patients' parts in it [n]: the share of the 2^n turns of signs with a sum as far from 0 or further.

    A part is n times the difference minus n - 1 times that without the patient (jackknife), for a mean the patient's own
    difference: there the p is exact. For an AUROC it is approximate; for what jumps when one patient leaves (calibration error,
    medians) it can be too small. Its least value is 1 / 2^(n - 1); nan where a part is.
    """
    if np.isnan(parts).any():
        return float("nan")
    signs = 1 - 2 * ((np.arange(2 ** len(parts))[:, None] >> np.arange(len(parts))) & 1)
    sums = np.abs(signs @ parts)
    return float((sums >= sums[0] - 1e-9 * np.abs(parts).sum()).mean())  # the first is of the parts as they are


def _named(statistic: Statistic) -> Statistics:
    return lambda rows: {"": statistic(rows)}


def _drawn(statistics: Statistics, groups: np.ndarray, n_bootstrap: int, seed: int) -> dict[str, np.ndarray]:
    """[n_bootstrap] values of each."""
    each = [statistics(rows) for rows in _draws(groups, n_bootstrap, seed)]
    return {name: np.array([values[name] for values in each], dtype=float) for name in (each[0] if each else ())}


def _interval(values: np.ndarray, level: float) -> tuple[float, float]:
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return float(low), float(high)


def _draws(groups: np.ndarray, n_bootstrap: int, seed: int) -> Iterator[np.ndarray]:
    """Rows of as many groups as there are, drawn with replacement."""
    if len(groups) == 0:
        raise ValueError("there is no case to draw from; at least one patient is needed for an interval")
    generator = np.random.default_rng(seed)
    _, group = np.unique(groups, return_inverse=True)
    order, counts = np.argsort(group, kind="stable"), np.bincount(group)
    starts = np.cumsum(counts) - counts
    for _ in range(n_bootstrap):
        drawn = generator.integers(len(counts), size=len(counts))
        offset = np.repeat(starts[drawn] - np.cumsum(counts[drawn]) + counts[drawn], counts[drawn])
        yield order[offset + np.arange(len(offset))]
