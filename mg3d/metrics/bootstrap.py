"""Patient-level bootstrap: percentile intervals of a statistic, and paired comparisons of two systems."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.stats import permutation_test

Statistics = Callable[[np.ndarray], Mapping[str, float]]
"""Statistics by name, of the cases at row indices int64 [m]."""
UNDEFINED = "undefined"
"""How a value that does not exist, such as an AUROC with one class, is printed."""
MIN_PATIENTS, MAX_EXACT_PATIENTS = 6, 12
"""Fewer than 6 patients cannot reach p < 0.05 and give no interval. Up to 12, the bootstrap is supplemented by an exact test."""
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
        return format_p(self.p, self.smallest_p if self.patients > MAX_EXACT_PATIENTS else 0.0)


def format_p(p: float, smallest_p: float = 0.0) -> str:
    """p as text, never 0; `<= 0.007` where the number of resamples bounds it."""
    if np.isnan(p):
        return UNDEFINED
    return "< 0.001" if p < 0.001 else f"<= {p:.3f}" if p <= smallest_p else f"{p:.3f}"


def holm(p: Sequence[float]) -> np.ndarray:
    """p values [n] adjusted for n tests (Holm-Bonferroni), which bounds the chance of any false positive; nan is not counted."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p)[: int((~np.isnan(p)).sum())]
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return adjusted


def too_few_patients(groups: np.ndarray) -> str:
    """`too few patients (4)` for the patients [n] of the cases that a score depends on; empty if there are enough."""
    count = len(np.unique(groups))
    return f"too few patients ({count})" if count < MIN_PATIENTS else ""


def insufficient_reason(labels: np.ndarray, groups: np.ndarray, *, classes: Sequence[int] = (1, 0)) -> str:
    """Why a score of these labels has no interval, such as `too few positives (1)`; empty if it has one, or no value at all.

    labels: [n], or [n, L] for a mean over the labels that have all `classes`, each with enough patients; 1 positive, 0 negative.
    groups: [n], the patient of each case. classes: the classes that the score needs.
    """
    columns = labels.reshape(len(labels), -1).T
    counts = [[len(np.unique(groups[column == value])) for value in classes] for column in columns]
    fewest = min((row for row in counts if min(row) > 0), key=min, default=[MIN_PATIENTS_PER_CLASS])
    if min(fewest) >= MIN_PATIENTS_PER_CLASS:
        return ""
    return f"too few {'positives' if classes[fewest.index(min(fewest))] == 1 else 'negatives'} ({min(fewest)})"


def defined_components(
    systems: Sequence[Statistics], means: Mapping[str, Sequence[str]], n_cases: int
) -> dict[str, tuple[str, ...]]:
    """The components of every mean that all systems define on all cases; later means may be over earlier ones."""
    values = [dict(system(np.arange(n_cases))) for system in systems]
    defined: dict[str, tuple[str, ...]] = {}
    for name, parts in means.items():
        defined[name] = tuple(part for part in parts if not any(np.isnan(value[part]) for value in values))
        for value in values:
            value[name] = _mean(value, defined[name])
    return defined


def with_means(system: Statistics, means: Mapping[str, Sequence[str]]) -> Statistics:
    """`system` with each of `means` over the same components in every resample; nan in one where a component is undefined.

    A mean over whichever labels are defined in a resample would differ in what it averages, and be centred elsewhere.
    """

    def statistics(rows: np.ndarray) -> dict[str, float]:
        values = dict(system(rows))
        for name, parts in means.items():
            values[name] = _mean(values, parts)
        return values

    return statistics


def _mean(values: Mapping[str, float], names: Sequence[str]) -> float:
    return float(np.mean([values[name] for name in names])) if names else float("nan")


def bootstrap_intervals(
    statistics: Statistics, groups: np.ndarray, *, n_bootstrap: int = 300, level: float = 0.95, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of statistics over resamples of groups (patients) with replacement; empty for n_bootstrap=0.

    groups: [n], the patient of each case. Resamples with a nan statistic are skipped; (nan, nan) if all are.

    Raises:
        ValueError: there is no case.
    """
    return {name: _interval(values, level) for name, values in resample_statistics(statistics, groups, n_bootstrap, seed).items()}


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
    """Compare statistics of two systems on the same resamples of patients.

    support_masks: name of each compared statistic -> bool [n], the cases that it uses (default: every statistic, all cases).

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
    for name in support_masks or [name for name in values[0] if name in values[1]]:
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
