"""From the results of a study's runs to one table: means over seeds, and differences to the baseline, with intervals.

An interval covers two sources of chance: which patients were held out (bootstrap) and which seed the training had. Their
variances are added; the few seeds enter with Student's t (Welch-Satterthwaite degrees of freedom).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student


class Sample(NamedTuple):
    """One metric of one run over its seeds."""

    values: np.ndarray
    """[seeds]."""
    draws: np.ndarray
    """[seeds, resamples]: the metric on resamples of patients, the same resamples for every seed and run; [seeds, 0] without."""


class Estimate(NamedTuple):
    """A mean over seeds or a difference of two, with its 95 % interval."""

    value: float
    low: float
    high: float
    seeds: int
    """The smaller number of seeds. With one, the interval covers patients only."""

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 is outside of the interval."""
        return self.low > 0 or self.high < 0


def mean_over_seeds(sample: Sample) -> Estimate:
    """Mean over seeds."""
    return _estimate([sample], sample.values.mean(), sample.draws.mean(0))


def difference(first: Sample, second: Sample) -> Estimate:
    """Mean of the first minus mean of the second, on the same patients."""
    both = [first, second]
    return _estimate(both, first.values.mean() - second.values.mean(), first.draws.mean(0) - second.draws.mean(0))


def _estimate(samples: Sequence[Sample], value: float, draws: np.ndarray, level: float = 0.95) -> Estimate:
    """draws [resamples]: the same quantity on resamples of patients."""
    draws = draws[~np.isnan(draws)]
    patients = draws.var(ddof=1) if len(draws) > 1 else 0.0
    repeated = [sample.values for sample in samples if len(sample.values) > 1]
    parts = [values.var(ddof=1) / len(values) for values in repeated]
    total = patients + sum(parts)
    spread = sum(part**2 / (len(values) - 1) for part, values in zip(parts, repeated, strict=True))
    freedom = total**2 / spread if spread > 0 else np.inf
    half = student.ppf((1 + level) / 2, freedom) * np.sqrt(total) if total > 0 else np.nan
    return Estimate(float(value), float(value - half), float(value + half), min(len(sample.values) for sample in samples))
