from functools import partial
from itertools import product

import numpy as np
import pytest

from mg3d.metrics.bootstrap import (
    bootstrap_intervals,
    defined_components,
    format_p,
    holm,
    insufficient_reason,
    paired_comparisons,
    sign_flip_p,
    too_few_patients,
    two_sided_p,
    with_means,
)
from mg3d.metrics.classification import auroc


def bootstrap_interval(statistic, groups, **options):
    return bootstrap_intervals(lambda rows: {"": statistic(rows)}, groups, **options)[""]


def paired_comparison(first, second, groups, **options):
    return paired_comparisons(lambda rows: {"": first(rows)}, lambda rows: {"": second(rows)}, groups, **options)[""]


def mean_of(values):
    """Statistic: mean of the resampled values."""
    return lambda rows: float(values[rows].mean())


def test_interval_of_a_mean_matches_the_normal_approximation():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    width = 1.96 * values.std() / 20
    expected = (values.mean() - width, values.mean() + width)
    assert bootstrap_interval(mean_of(values), np.arange(400), n_bootstrap=3000) == pytest.approx(expected, abs=0.03)


def test_patients_are_resampled_with_all_their_cases():
    patients = np.array(["b", "a", "c", "a", "b", "a"])
    seen = []

    def statistic(rows):
        seen.append(rows)
        return 0.0

    bootstrap_interval(statistic, patients, n_bootstrap=50)
    for rows in seen:
        drawn = [np.bincount(rows[patients[rows] == name], minlength=6) for name in "abc"]
        assert sum(count.max() for count in drawn) == 3
        for name, count in zip("abc", drawn):
            assert len(set(count[patients == name])) == 1
    assert len({tuple(rows) for rows in seen}) > 5


def test_repeated_studies_of_a_patient_widen_the_interval():
    values = np.repeat(np.random.default_rng(1).normal(size=40), 10)
    by_patient, by_study = (
        bootstrap_interval(mean_of(values), groups, n_bootstrap=1000) for groups in (np.repeat(np.arange(40), 10), np.arange(400))
    )
    assert np.ptp(by_patient) / np.ptp(by_study) == pytest.approx(10**0.5, rel=0.12)


def test_level_and_seed_determine_the_interval():
    interval = partial(bootstrap_interval, mean_of(np.random.default_rng(2).random(30)), np.arange(30))
    assert interval(seed=4) == interval(seed=4) != interval(seed=5)
    wide, narrow = interval(level=0.99), interval(level=0.5)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.filterwarnings("error")
def test_resamples_with_a_nan_statistic_are_skipped():
    groups, values = np.arange(3), iter([np.nan, 1.0, np.nan, 3.0])
    assert bootstrap_interval(lambda rows: next(values), groups, n_bootstrap=4, level=1.0) == (1.0, 3.0)
    assert np.isnan(bootstrap_interval(lambda rows: np.nan, groups)).all()
    for patients in (3, 7):
        comparison = paired_comparison(lambda rows: np.nan, lambda rows: np.nan, np.arange(patients), n_bootstrap=5)
        assert np.isnan(comparison[:4]).all()


@pytest.mark.parametrize("function", [partial(bootstrap_interval, np.sum), partial(paired_comparison, np.sum, np.sum)])
def test_an_empty_group_array_is_refused(function):
    with pytest.raises(ValueError, match="no case"):
        function(np.array([]))


def test_too_few_patients_of_a_class_are_reported():
    patients = np.array([0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    labels = np.array([1, 1, 1, 1, 1, 0, 0, 0, 0, 0, -1])  # positives of 4 patients, negatives of 5
    assert insufficient_reason(labels, patients) == "too few positives (4)"
    assert insufficient_reason(np.where(labels < 0, -1, 1 - labels), patients, classes=(0,)) == "too few negatives (4)"
    assert insufficient_reason(labels, patients, classes=(0,)) == ""
    assert insufficient_reason(np.zeros(11), patients) == ""  # no value either
    enough = np.array([1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0])
    assert insufficient_reason(enough, patients) == ""
    assert insufficient_reason(np.stack([enough, labels], 1), patients) == "too few positives (4)"  # a mean needs each of them
    assert insufficient_reason(np.stack([enough, np.zeros(11)], 1), patients) == ""  # the second is not part of the mean
    assert (too_few_patients(np.array([1, 1, 2, 3, 4])), too_few_patients(np.arange(6))) == ("too few patients (4)", "")


def test_a_mean_is_over_the_same_components_in_every_resample():
    values = {"a": np.array([1.0, 2, 3, 4]), "b": np.array([np.nan, np.nan, 8, 8]), "c": np.full(4, np.nan)}

    def components(rows):
        return {name: np.nan if np.isnan(part[rows]).all() else np.nanmean(part[rows]) for name, part in values.items()}

    def system(rows):
        return components(rows) | {"mean": np.nanmean(list(components(rows).values()))}

    defined = defined_components([system], {"mean": ["a", "b", "c"]}, 4)
    assert defined == {"mean": ("a", "b")}
    fixed = with_means(system, defined)
    assert fixed(np.arange(4))["mean"] == (2.5 + 8) / 2
    assert system(np.array([0, 1]))["mean"] == 1.5  # of a alone
    assert np.isnan(fixed(np.array([0, 1]))["mean"])


def test_an_interval_of_a_mean_with_a_rare_label_contains_its_value():
    """The second label has one positive: resamples without it would average the first label alone."""
    random, labels = np.random.default_rng(0), np.zeros((60, 2), int)
    labels[:30, 0], labels[7, 1] = 1, 1
    scores = random.normal(size=(60, 2)) + np.array([2.0, 0.0]) * labels
    scores[7, 1] = -3.0

    def aurocs(rows):
        each = {name: auroc(labels[rows, column], scores[rows, column]) for column, name in enumerate("ab")}
        return each | {"mean": np.nanmean(list(each.values()))}

    value, means = aurocs(np.arange(60))["mean"], {"mean": ["a", "b"]}
    plain = bootstrap_intervals(aurocs, np.arange(60))["mean"]
    fixed = bootstrap_intervals(with_means(aurocs, defined_components([aurocs], means, 60)), np.arange(60))["mean"]
    assert np.ptp(plain) > 0.4 > np.ptp(fixed)
    assert fixed[0] < value < fixed[1]
    assert insufficient_reason(labels, np.arange(60)) == "too few positives (1)"


def test_holm_multiplies_by_the_number_of_remaining_tests():
    assert holm([0.01, 0.04, np.nan, 0.03, 0.9])[[0, 1, 3, 4]] == pytest.approx([0.04, 0.09, 0.09, 0.9])
    assert np.isnan(holm([0.01, np.nan])[1])
    random = np.random.default_rng(0)
    draws = np.array([holm(random.random(10)).min() for _ in range(2000)])
    assert (draws < 0.05).mean() == pytest.approx(1 - (1 - 0.005) ** 10, abs=0.015)  # 40 % without the correction


def test_a_paired_difference_by_hand():
    # The first system is better by 1 in 4 of 16 patients and equal in the others. A resample without a better patient has
    # probability .75 ** 16 = .0100, and none has a worse one: p is twice that.
    first, second = np.repeat([1.0, 0.0], [4, 12]), np.zeros(16)
    found = paired_comparison(mean_of(first), mean_of(second), np.arange(16), n_bootstrap=4000)
    assert found.difference == 0.25
    assert found.low > 0
    assert found.p == pytest.approx(2 * 0.75**16, abs=0.006)
    assert found.patients == 16


def test_p_of_few_patients_is_the_exact_sign_flip_p():
    contributions = np.array([0.9, 0.4, -0.3, 0.8, 0.05, -0.1, 0.6])
    slow = [abs(sum(sign * part for sign, part in zip(signs, contributions))) for signs in product((1, -1), repeat=7)]
    expected = sum(value >= contributions.sum() - 1e-12 for value in slow) / 128
    assert sign_flip_p(contributions) == expected
    patients = np.repeat(np.arange(7), 2)  # two cases per patient: the mean over cases is the mean over patients
    assert paired_comparison(mean_of(np.repeat(contributions, 2) + 1), mean_of(np.ones(14)), patients).p == expected
    assert sign_flip_p(np.arange(1.0, 9)) == 2 / 2**8  # all positive: the smallest p of 8 patients


def test_p_of_a_median_of_few_patients_is_not_the_sign_flip_p_alone():
    values = np.array([-1.0, -0.9, -0.8, 0.2, 0.25, 0.3, 0.35, 0.4])  # three of eight are far below 0: no evidence
    median, zero = (lambda rows: float(np.median(values[rows]))), (lambda rows: 0.0)
    contributions = 8 * np.median(values) - 7 * np.array([np.median(np.delete(values, index)) for index in range(8)])
    assert sign_flip_p(contributions) == 2 / 2**8
    assert paired_comparison(median, zero, np.arange(8)).p > 0.3


def test_p_of_an_auroc_of_few_patients_agrees_with_its_interval():
    random, labels = np.random.default_rng(4), np.arange(12) % 2
    first, second = labels + random.normal(0, 0.6, 12), labels + random.normal(0, 2.0, 12)
    found = paired_comparison(lambda r: auroc(labels[r], first[r]), lambda r: auroc(labels[r], second[r]), np.arange(12))
    assert 1 / 2**11 <= found.p < 1
    assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


def test_a_statistic_of_some_patients_is_compared_among_them():
    random, known = np.random.default_rng(5), np.arange(40) < 8
    values = random.normal(0.7, 1, 40)
    first = lambda rows: {"all": values[rows].mean(), "some": values[rows][known[rows]].mean()}  # noqa: E731
    zero = lambda rows: {"all": 0.0, "some": 0.0, "more": 0.0}  # noqa: E731
    masks = {"all": np.ones(40, bool), "some": known}
    found = paired_comparisons(first, zero, np.arange(40), support_masks=masks, n_bootstrap=99)
    assert found.keys() == masks.keys()
    assert found["some"].p == pytest.approx(max(sign_flip_p(values[:8]), found["some"].smallest_p))
    assert (found["some"].patients, found["all"].patients) == (8, 40)


@pytest.mark.parametrize(
    ("p", "smallest_p", "text"),
    [(1 / 32, 0.0, "0.031"), (0.0004, 0.0001, "< 0.001"), (2 / 301, 2 / 301, "<= 0.007"), (0.02, 2 / 301, "0.020"),
     (float("nan"), 1.0, "undefined")],
)  # fmt: skip
def test_p_is_printed_with_its_bound(p, smallest_p, text):
    assert format_p(p, smallest_p) == text


def test_several_statistics_have_the_same_intervals_as_each_alone():
    values = np.random.default_rng(6).random(9)
    both = bootstrap_intervals(lambda rows: {"mean": values[rows].mean(), "sd": values[rows].std()}, np.arange(9))
    assert both["sd"] == bootstrap_interval(lambda rows: values[rows].std(), np.arange(9))
    assert bootstrap_intervals(lambda rows: {"mean": 0.0}, np.arange(9), n_bootstrap=0) == {}


def test_a_paired_comparison_finds_a_difference_that_separate_intervals_hide():
    random, patients = np.random.default_rng(0), np.arange(200)
    second = random.normal(0, 5, 200)
    first = second + 0.5 + random.normal(0, 0.5, 200)
    assert bootstrap_interval(mean_of(first), patients)[0] < bootstrap_interval(mean_of(second), patients)[1]
    found = paired_comparison(mean_of(first), mean_of(second), patients, n_bootstrap=500)
    width = 1.96 * (first - second).std() / 200**0.5
    assert found.difference == pytest.approx((first - second).mean())
    assert (found.low, found.high) == pytest.approx((found.difference - width, found.difference + width), abs=0.01)
    assert found.p == 2 / 501
    swapped = paired_comparison(mean_of(second), mean_of(first), patients, n_bootstrap=500)[:4]
    assert swapped == pytest.approx((-found.difference, -found.high, -found.low, found.p))


@pytest.mark.parametrize("patients", [9, 20])
def test_a_system_does_not_differ_from_itself(patients):
    mean = mean_of(np.random.default_rng(3).random(20))
    assert paired_comparison(mean, mean, np.arange(patients), n_bootstrap=50)[:4] == (0, 0, 0, 1)


def test_p_counts_ties_on_both_sides_and_is_never_zero():
    assert two_sided_p(np.array([1.0, 2, 3, 4])) == 2 / 5
    assert two_sided_p(np.array([-1.0, 0, 2, 3, 4, 5, 6])) == 2 * 3 / 8
    assert two_sided_p(np.zeros(4)) == 1
