import numpy as np
import pytest

from mg3d.metrics.bootstrap import bootstrap_interval, paired_comparison, two_sided_p


def test_interval_of_a_mean_is_the_textbook_one():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    low, high = bootstrap_interval(lambda rows: values[rows].mean(), np.arange(400), resamples=3000)
    width = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - width, abs=0.03)
    assert high == pytest.approx(values.mean() + width, abs=0.03)


def test_patients_are_drawn_whole():
    patients = np.array(["b", "a", "c", "a", "b", "a"])
    seen = []

    def statistic(rows):
        seen.append(rows)
        return 0.0

    bootstrap_interval(statistic, patients, resamples=50)
    for rows in seen:
        drawn = [np.bincount(rows[patients[rows] == name], minlength=6) for name in "abc"]
        assert sum(count.max() for count in drawn) == 3
        for name, count in zip("abc", drawn):
            assert len(set(count[patients == name])) == 1
    assert len({tuple(rows) for rows in seen}) > 5


def test_repeated_studies_of_a_patient_make_the_interval_wider():
    values = np.repeat(np.random.default_rng(1).normal(size=40), 10)
    one, other = (
        bootstrap_interval(lambda rows: values[rows].mean(), groups, resamples=1000)
        for groups in (np.repeat(np.arange(40), 10), np.arange(400))
    )
    assert (one[1] - one[0]) / (other[1] - other[0]) == pytest.approx(10**0.5, rel=0.12)


def test_the_level_and_the_seed_decide_the_interval():
    values = np.random.default_rng(2).random(30)
    interval = lambda **named: bootstrap_interval(lambda rows: values[rows].mean(), np.arange(30), **named)  # noqa: E731
    assert interval(seed=4) == interval(seed=4) != interval(seed=5)
    wide, narrow = interval(level=0.99), interval(level=0.5)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.filterwarnings("error")
def test_draws_without_a_value_are_left_out():
    groups, turns = np.arange(3), iter([np.nan, 1.0, np.nan, 3.0])
    assert bootstrap_interval(lambda rows: next(turns), groups, resamples=4, level=1.0) == (1.0, 3.0)
    assert np.isnan(bootstrap_interval(lambda rows: float("nan"), groups)).all()


def test_no_case_is_refused():
    with pytest.raises(ValueError, match="no case"):
        bootstrap_interval(lambda rows: 0.0, np.array([]))


def test_a_paired_difference_by_hand():
    # The first is better by 1 in two of three patients and equal in the third. A draw of three has no better one with probability
    # 1/27, and never a worse one: the difference is 0 to 1, and p is twice 1/27, of 4000 draws.
    first, second = np.array([1.0, 1.0, 0.0]), np.zeros(3)
    found = paired_comparison(lambda rows: first[rows].mean(), lambda rows: second[rows].mean(), np.arange(3), resamples=4000)
    assert found.difference == pytest.approx(2 / 3)
    assert (found.low, found.high) == (0.0, 1.0)
    assert found.p == pytest.approx(2 / 27, abs=0.02)


def test_pairing_sees_what_two_intervals_hide():
    random = np.random.default_rng(0)
    hardness = random.normal(0, 5, 200)
    first, second = hardness + 0.5 + random.normal(0, 0.5, 200), hardness
    one, other = (lambda rows: first[rows].mean()), (lambda rows: second[rows].mean())
    assert bootstrap_interval(one, np.arange(200))[0] < bootstrap_interval(other, np.arange(200))[1]
    found = paired_comparison(one, other, np.arange(200), resamples=500)
    width = 1.96 * (first - second).std() / 200**0.5
    assert found.difference == pytest.approx((first - second).mean())
    assert (found.low, found.high) == pytest.approx((found.difference - width, found.difference + width), abs=0.01)
    assert found.p == 2 / 501
    turned = paired_comparison(other, one, np.arange(200), resamples=500)
    assert turned == pytest.approx((-found.difference, -found.high, -found.low, found.p))


def test_a_system_does_not_differ_from_itself():
    values = np.random.default_rng(3).random(20)
    mean = lambda rows: values[rows].mean()  # noqa: E731
    assert paired_comparison(mean, mean, np.arange(20), resamples=50) == (0, 0, 0, 1)


@pytest.mark.filterwarnings("error")
def test_no_value_has_no_comparison_and_no_case_is_refused():
    nothing = lambda rows: float("nan")  # noqa: E731
    assert np.isnan(paired_comparison(nothing, nothing, np.arange(3), resamples=5)).all()
    with pytest.raises(ValueError, match="no case"):
        paired_comparison(nothing, nothing, np.array([]))


def test_a_p_counts_ties_on_both_sides_and_is_never_zero():
    assert two_sided_p(np.array([1.0, 2, 3, 4])) == 2 / 5
    assert two_sided_p(np.array([-1.0, 0, 2, 3, 4, 5, 6])) == 2 * 3 / 8
    assert two_sided_p(np.zeros(4)) == 1
