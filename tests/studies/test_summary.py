"""Intervals over seeds and patients, against hand-computed numbers and by coverage."""

import numpy as np
import pytest
from scipy import stats

from mg3d.studies.summary import Sample, difference, mean_over_seeds


def sample(values, draws=None):
    values = np.array(values, float)
    return Sample(values, np.zeros((len(values), 0)) if draws is None else np.array(draws, float))


def test_without_resamples_the_interval_is_students_t_over_seeds():
    values = [0.70, 0.74, 0.75]
    result = mean_over_seeds(sample(values))
    expected = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (result.low, result.high) == pytest.approx(expected)
    assert result.value == pytest.approx(0.73)


def test_without_resamples_the_difference_is_welchs():
    first, second = [0.70, 0.74, 0.75], [0.60, 0.61, 0.65, 0.66]
    result = difference(sample(first), sample(second))
    welch = stats.ttest_ind(first, second, equal_var=False).confidence_interval()
    assert (result.low, result.high) == pytest.approx((welch.low, welch.high))
    assert result.seeds == 3
    assert result.excludes_zero


def test_one_seed_has_the_normal_interval_of_the_paired_resamples():
    first, second = [[0.5, 0.6, 0.7, 0.9]], [[0.4, 0.6, 0.6, 0.6]]  # differences .1 0 .1 .3: variance 0.0475 / 3
    result = difference(sample([0.7], first), sample([0.55], second))
    half = 1.959964 * np.sqrt(0.0475 / 3)
    assert (result.value, result.high - result.value) == pytest.approx((0.15, half))
    assert not result.excludes_zero


def test_undefined_resamples_are_skipped_and_one_value_has_no_interval():
    assert mean_over_seeds(sample([0.7], [[0.6, np.nan, 0.8]])).high == pytest.approx(0.7 + 1.959964 * np.sqrt(0.02))
    assert np.isnan(mean_over_seeds(sample([0.7])).low)


def test_intervals_cover_the_true_difference_as_often_as_they_say():
    rng, inside, patients, draws, runs = np.random.default_rng(0), [], 80, 100, 600
    for _ in range(runs):
        scores = [rng.normal(size=patients) * 0.5 for _ in range(2)]  # of each patient, by run
        seeds = [rng.normal(size=3) * 0.05 for _ in range(2)]
        resamples = rng.integers(patients, size=(draws, patients))
        both = [
            Sample(score.mean() + seed, score[resamples].mean(1)[None] + seed[:, None])
            for score, seed in zip(scores, seeds, strict=True)
        ]
        result = difference(*both)
        inside.append(result.low <= 0 <= result.high)
    assert 0.92 < np.mean(inside) < 0.985
