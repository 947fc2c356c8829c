import numpy as np
import pytest

from mg3d.metrics.calibration import brier, calibration_error, fit_temperature, reliability_table


def test_brier_by_hand():
    # (0.3^2 + 0.4^2 + 0) / 3; the unknown case is ignored.
    assert brier(np.array([1, 0, 1, -1]), np.array([0.7, 0.4, 1.0, 0.9])) == pytest.approx(0.25 / 3)
    # 0.4^2 + 0.3^2 + 0.1^2 = 0.26 for class 0; all on the wrong class: 2.
    assert brier(np.array([0, 1, -1]), np.array([[0.6, 0.3, 0.1], [0, 0, 1], [1, 0, 0]])) == pytest.approx((0.26 + 2) / 2)
    assert np.isnan(brier(np.array([-1]), np.array([0.5])))


def test_reliability_table_and_calibration_error_by_hand():
    labels, probabilities = np.array([0, 1, 1, 1, 0, -1]), np.array([0.0, 0.2, 0.5, 0.9, 0.7, 0.3])
    # Two bins: 0, 0.2 and 0.5 hold two positives (mean 0.7 / 3); 0.9 and 0.7 one (mean 0.8).
    low, high = reliability_table(labels, probabilities, bins=2)
    assert low == pytest.approx({"low": 0.0, "high": 0.5, "cases": 3, "probability": 0.7 / 3, "frequency": 2 / 3})
    assert high == pytest.approx({"low": 0.5, "high": 1.0, "cases": 2, "probability": 0.8, "frequency": 0.5})
    assert calibration_error(labels, probabilities, bins=2) == pytest.approx((3 * (2 - 0.7) / 3 + 2 * 0.3) / 5)


def test_reliability_of_classes_is_that_of_the_predicted_one():
    probabilities = np.array([[0.6, 0.3, 0.1], [0.1, 0.1, 0.8], [0.2, 0.7, 0.1]])
    # Predicted with 0.6 (right), 0.8 (wrong), 0.7 (right): mean 0.7 against 2/3; empty bins have no row.
    (row,) = reliability_table(np.array([0, 1, 1]), probabilities, bins=2)
    assert row == pytest.approx({"low": 0.5, "high": 1.0, "cases": 3, "probability": 0.7, "frequency": 2 / 3})
    assert np.isnan(calibration_error(np.array([-1]), np.array([0.5])))


def test_temperature_by_hand():
    # Logits of 2 that are right 3 times of 4: sigmoid(2 / T) = 3/4, so T = 2 / ln 3.
    labels, logits = np.array([1, 1, 1, 0, 0, 0, 0, 1, -1]), np.array([2.0] * 4 + [-2.0] * 4 + [9.0])
    assert fit_temperature(labels, logits) == pytest.approx(2 / np.log(3), rel=1e-5)
    # The same as a two-class problem with logits that differ by 2.
    pairs = np.stack([np.zeros(9), logits], 1)
    assert fit_temperature(labels, pairs) == pytest.approx(2 / np.log(3), rel=1e-5)


def test_separable_labels_end_at_the_lower_bound():
    assert fit_temperature(np.array([1, 0]), np.array([3.0, -3.0])) < 0.1


@pytest.mark.parametrize(
    ("function", "labels", "values", "message"),
    [
        (brier, [0, 1], [-1.0, 2.0], r"between -1\.0 and 2\.0"),
        (calibration_error, [0, 1], [np.nan, 0.5], "nan"),
        (brier, [0], [[np.nan, 0.5]], "between nan and nan"),
        (brier, [0, 1], [[0.5, 0.5]], r"expected \[n\] and \[n, classes\]"),
        (fit_temperature, [0, 1], [np.inf, 0.5], "finite"),
        (fit_temperature, [-1], [0.5], "0 known cases"),
    ],
)
def test_invalid_probabilities_and_logits_are_refused(function, labels, values, message):
    with pytest.raises(ValueError, match=message):
        function(np.array(labels), np.array(values))
