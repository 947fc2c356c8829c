"""Patient-level bootstrap: percentile intervals of a statistic, and paired comparisons of two systems."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.stats import permutation_test

Statistic = Callable[[np.ndarray], float]
"""Function of the row indices (int64) of a resample."""
Statistics = Callable[[np.ndarray], Mapping[str, float]]
"""Several statistics by name."""
MIN_PATIENTS, MAX_EXACT_PATIENTS = 6, 12
"""Fewer than 6 patients cannot reach p < 0.05. Up to 12, an exact sign-flip test is used in addition to the bootstrap."""
MIN_PATIENTS_PER_CLASS = 5
"""Fewer patients with (or without) the finding give no interval: with 4, 2 % (exp(-4)) of the resamples lack the class."""


class PairedDifference(NamedTuple):
    """Difference of two systems on the same cases (first - second), its interval, and a two-sided p for no difference."""

    difference: float
    low: float
    high: float
    p: float
    """nan with too few patients, or without a value."""
    patients: int
    smallest_p: float
    """The smallest p that this number of patients and resamples can show."""

    @property
    def p_text(self) -> str:
        """p as text, never 0."""
        if self.patients < MIN_PATIENTS:
            return "too few"
        if np.isnan(self.p):
            return "-"
        if self.p < 0.001:
            return "< 0.001"
        bounded = self.patients > MAX_EXACT_PATIENTS and self.p <= self.smallest_p
        return f"<= {self.p:.3f}" if bounded else f"{self.p:.3f}"


def insufficient_reason(labels: np.ndarray, groups: np.ndarray, *, classes: Sequence[int] = (1, 0)) -> str:
    """Why a score of these labels has no interval, such as `too few positives (1)`; empty if it has one, or no value at all.

    labels: [n], or [n, L] for a mean over labels, of which one with enough patients suffices; 1 positive, 0 negative.
    groups: [n], the patient of each case. classes: the classes that the score needs.
    """
    columns = labels.reshape(len(labels), -1).T
    counts = [[len(np.unique(groups[column == value])) for value in classes] for column in columns]
    best = max((row for row in counts if min(row) > 0), key=min, default=[MIN_PATIENTS_PER_CLASS])
    if min(best) >= MIN_PATIENTS_PER_CLASS:
        return ""
    return f"too few {'positives' if classes[best.index(min(best))] == 1 else 'negatives'} ({min(best)})"


def bootstrap_interval(
    statistic: Statistic, groups: np.ndarray, *, n_bootstrap: int = 300, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of `statistic(rows)` over resamples of groups (patients) with replacement.

    groups: [n], the patient of each case. Resamples with a nan statistic are skipped; (nan, nan) if all are.

    Raises:
        ValueError: there is no case.
    """
    return bootstrap_intervals(_named(statistic), groups, n_bootstrap=n_bootstrap, level=level, seed=seed)[""]


def bootstrap_intervals(
    statistics: Statistics, groups: np.ndarray, *, n_bootstrap: int = 300, level: float = 0.95, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """`bootstrap_interval` of several statistics on the same resamples; empty for n_bootstrap=0."""
    return {name: _interval(values, level) for name, values in resample_statistics(statistics, groups, n_bootstrap, seed).items()}


def paired_comparison(first: Statistic, second: Statistic, groups: np.ndarray, **options: int | float) -> PairedDifference:
    """Compare one statistic of two systems on the same resamples of patients; see `paired_comparisons`."""
    return paired_comparisons(_named(first), _named(second), groups, **options)[""]


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
    """Compare every statistic that both systems have, on the same resamples of patients.

    support_masks: name -> bool [n], the cases that a statistic uses (default: all).

    p comes from the bootstrap (`two_sided_p`). Up to `MAX_EXACT_PATIENTS` patients it is the larger of that and `sign_flip_p` of
    the patients' jackknife contributions, because either can be too small alone: the bootstrap with few patients, the sign flips
    for statistics that are not means.

    Raises:
        ValueError: there is no case.
    """
    rows, systems = np.arange(len(groups)), (first, second)
    values = [system(rows) for system in systems]
    resampled = [resample_statistics(system, groups, n_bootstrap, seed) for system in systems]
    leave_out = cache(lambda patient: [system(np.flatnonzero(groups != patient)) for system in systems])
    comparisons = {}
    for name in (name for name in values[0] if name in values[1]):
        difference = values[0][name] - values[1][name]
        differences = resampled[0][name] - resampled[1][name] if n_bootstrap else np.empty(0)
        differences = differences[~np.isnan(differences)]
        patients = np.unique(groups[support_masks[name]] if support_masks else groups)
        p, smallest_p = two_sided_p(differences), 2 / (len(differences) + 1)
        if len(patients) < MIN_PATIENTS:
            p, smallest_p = float("nan"), 2.0 ** (1 - len(patients))
        elif len(patients) <= MAX_EXACT_PATIENTS:
            left_out = np.array([one[name] - other[name] for one, other in map(leave_out, patients)])
            contributions = len(patients) * difference - (len(patients) - 1) * left_out
            p, smallest_p = float(np.maximum(sign_flip_p(contributions), p)), max(2.0 ** (1 - len(patients)), smallest_p)
        interval = _interval(differences, level)
        comparisons[name] = PairedDifference(float(difference), *interval, p, len(patients), smallest_p)
    return comparisons


def two_sided_p(differences: np.ndarray) -> float:
    """Bootstrap p for no difference: twice the smaller fraction of resampled differences [n] on either side of 0.

    A difference of 0 counts on both sides, and one is added so that p is never 0 (at least 2 / (n + 1)). nan without a resample.
    """
    smaller = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(min(1.0, 2 * (smaller + 1) / (len(differences) + 1))) if len(differences) else float("nan")


def sign_flip_p(contributions: np.ndarray) -> float:
    """Exact two-sided sign-flip (permutation) test of the patients' contributions [n] to a difference; nan if one is nan.

    A contribution is n times the difference minus n - 1 times the difference without the patient (jackknife pseudo-value). For a
    mean that is the patient's own difference, and p is exact; for an AUROC it is approximate; for statistics that jump when one
    patient is removed (calibration error, medians) it can be too small. At least 1 / 2^(n - 1).
    """
    scale = np.abs(contributions).sum()
    if np.isnan(scale):
        return float("nan")
    # Rounded, because sums that are equal in exact arithmetic have to count as ties.
    statistic = lambda flipped, axis: (flipped.sum(axis) / max(scale, 1e-300)).round(9)  # noqa: E731
    test = permutation_test((contributions,), statistic, permutation_type="samples", n_resamples=np.inf, vectorized=True)
    return float(test.pvalue)


def _named(statistic: Statistic) -> Statistics:
    return lambda rows: {"": statistic(rows)}


def resample_statistics(statistics: Statistics, groups: np.ndarray, n_bootstrap: int, seed: int) -> dict[str, np.ndarray]:
    """Name -> [n_bootstrap] values on resamples of groups with replacement; the resamples depend on groups and seed only."""
    values = [statistics(rows) for rows in _resamples(groups, n_bootstrap, seed)]
    return {name: np.array([each[name] for each in values], dtype=float) for name in (values[0] if values else ())}


def _interval(values: np.ndarray, level: float) -> tuple[float, float]:
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return float(low), float(high)


def _resamples(groups: np.ndarray, n_bootstrap: int, seed: int) -> Iterator[np.ndarray]:
    """Row indices of as many groups as there are, drawn with replacement."""
    if len(groups) == 0:
        raise ValueError("there is no case to resample; an interval needs at least one patient")
    generator = np.random.default_rng(seed)
    _, group = np.unique(groups, return_inverse=True)
    rows_of_group = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
    for _ in range(n_bootstrap):
        yield np.concatenate([rows_of_group[index] for index in generator.integers(len(rows_of_group), size=len(rows_of_group))])
