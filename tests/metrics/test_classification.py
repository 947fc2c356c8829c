import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mg3d.metrics.classification import (
    auprc,
    auroc,
    class_scores,
    count_decisions,
    decision_scores,
    macro_auroc,
    per_label,
)


def slow_auroc(labels, scores):
    """Fraction of (positive, negative) pairs in the right order; a tie counts half."""
    pairs = [(p, q) for p, a in zip(scores, labels) if a == 1 for q, b in zip(scores, labels) if b == 0]
    return sum(1.0 if p > q else 0.5 if p == q else 0.0 for p, q in pairs) / len(pairs)


@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_the_fraction_of_correctly_ordered_pairs_with_ties(seed):
    random = np.random.default_rng(seed)
    labels = np.array([0, 1, *random.integers(0, 2, 30)])
    scores = random.integers(0, 6, 32) / 4
    assert auroc(labels, scores) == pytest.approx(slow_auroc(labels, scores), abs=1e-12)
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_auroc_by_hand():
    assert auroc(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])) == 0.75
    assert auroc(np.array([0, 1, 0]), np.zeros(3)) == 0.5


def test_unknown_labels_are_ignored_whatever_their_scores():
    labels, scores = np.array([1, 0, -1, 1, 0, -1]), np.array([0.9, 0.3, np.nan, 0.2, 0.1, 5.0])
    assert auroc(labels, scores) == auroc(labels[[0, 1, 3, 4]], scores[[0, 1, 3, 4]]) == 0.75


def test_auroc_of_a_single_class_is_nan():
    assert np.isnan(auroc(np.ones(4), np.arange(4.0)))
    assert np.isnan(auroc(np.full(4, -1), np.arange(4.0)))


@pytest.mark.parametrize("metric", [auroc, auprc])
def test_nan_scores_and_different_shapes_are_refused(metric):
    with pytest.raises(ValueError, match="nan"):
        metric(np.array([0, 1, 1]), np.array([0.1, np.nan, 0.2]))
    with pytest.raises(ValueError, match="differ in shape"):
        metric(np.array([0, 1, 1]), np.array([0.1, 0.2]))


@pytest.mark.filterwarnings("error")
def test_macro_auroc_is_the_mean_over_columns_with_both_classes():
    labels = np.array([[1, 1, 0, 1], [0, 1, 1, 0], [1, 1, 0, 0]])
    scores = np.array([[0.2, 0.1, 0.9, 0.5], [0.3, 0.2, 0.8, 0.1], [0.9, 0.3, 0.1, 0.9]])
    assert macro_auroc(labels, scores) == pytest.approx((0.5 + 0.5 + 0.5) / 3)
    assert macro_auroc(labels[:, ::-1], scores, of=[2, 1]) == pytest.approx(auroc(labels[:, 2], scores[:, 1]))
    assert np.isnan(macro_auroc(labels, scores, of=[1]))


def test_average_precision_by_hand():
    # Sorted: 1 0 1 0; precision at the two positives is 1/1 and 2/3, each adds half of the recall: (1 + 2/3) / 2.
    labels, scores = np.array([0, 1, -1, 1, 0]), np.array([0.1, 0.9, np.nan, 0.4, 0.7])
    assert auprc(labels, scores) == pytest.approx(5 / 6)
    assert auprc(np.ones(3), np.arange(3.0)) == 1
    assert np.isnan(auprc(np.zeros(3), np.arange(3.0)))


def test_a_metric_is_applied_to_every_label():
    labels = np.array([[1, 0, 1], [0, 0, -1], [1, 0, 0]])
    scores = np.array([[0.9, 0.3, 0.2], [0.5, 0.1, 0.0], [0.1, 0.2, 0.8]])
    # First column: of the pairs (0.9, 0.5) and (0.1, 0.5) one is correct; the second has one class; the third is reversed.
    assert per_label(auroc, labels, scores).tolist() == pytest.approx([0.5, np.nan, 0.0], nan_ok=True)


def test_decision_scores_by_hand():
    # Known: 4 positives, 3 of them detected; 3 negatives, 1 of them a false positive; the rest is unknown or undecided.
    labels = np.array([1, 1, 1, 1, 0, 0, 0, -1, -1, 1])
    decisions = np.array([1, 1, 1, 0, 1, 0, 0, 1, 0, -1])
    counts = count_decisions(labels, decisions)
    assert [int(count) for count in counts] == [3, 1, 1, 2]
    found = {name: float(value) for name, value in decision_scores(counts).items()}
    assert found == pytest.approx(
        {
            "accuracy": 5 / 7,
            "sensitivity": 3 / 4,
            "specificity": 2 / 3,
            "balanced_accuracy": (3 / 4 + 2 / 3) / 2,
            "precision": 3 / 4,
            "f1": 6 / 8,
        }
    )


@pytest.mark.filterwarnings("error")
def test_undefined_decision_scores_are_nan():
    # Columns: only positives, all missed; only negatives, all correct; nothing known.
    labels = np.array([[1, 0, -1], [1, 0, -1]])
    found = decision_scores(count_decisions(labels, np.zeros((2, 3))))
    assert found["sensitivity"].tolist() == pytest.approx([0, np.nan, np.nan], nan_ok=True)
    assert found["specificity"].tolist() == pytest.approx([np.nan, 1, np.nan], nan_ok=True)
    assert found["accuracy"].tolist() == pytest.approx([0, 1, np.nan], nan_ok=True)
    assert found["f1"].tolist() == pytest.approx([0, np.nan, np.nan], nan_ok=True)
    assert np.isnan(found["precision"]).all()
    with pytest.raises(ValueError, match="differ in shape"):
        count_decisions(labels, np.zeros((2, 2)))


@pytest.mark.filterwarnings("error")
def test_class_scores_by_hand():
    classes = np.array([0, 0, 1, 1, 1, -1])
    predicted = np.array([0, 1, 1, 1, 3, 2])
    probabilities = np.full((6, 4), 0.1)
    probabilities[np.arange(6), predicted] = 0.7
    found = class_scores(classes, probabilities)
    assert found["confusion"].tolist() == [[1, 1, 0, 0], [0, 2, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert found["accuracy"] == 3 / 5
    # Sensitivities 1/2 and 2/3. F1: 2/3 for class 0, 4/6 for class 1, undefined for class 2, 0 for class 3 (1 fp).
    assert found["balanced_accuracy"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert found["f1"].tolist() == pytest.approx([2 / 3, 2 / 3, np.nan, 0], nan_ok=True)
    assert found["macro_f1"] == pytest.approx(4 / 9)
    # Class 0: 6 pairs, positives 0.7 and 0.1 against 0.1 three times: (3 + 1.5) / 6. Class 1: positives 0.7 0.7 0.1 against
    # 0.1 and 0.7: (1 + 1 + .5) + (.5 + .5 + 0) of 6.
    assert found["auroc"].tolist() == pytest.approx([0.75, 3.5 / 6, np.nan, np.nan], nan_ok=True)
    assert found["macro_auroc"] == pytest.approx((0.75 + 3.5 / 6) / 2)


@pytest.mark.parametrize(
    ("classes", "probabilities", "message"),
    [
        ([0, 3], np.full((2, 3), 1 / 3), "expected some of 0 to 2"),
        ([-1, -1], np.full((2, 3), 1 / 3), "known classes are \\[\\]"),
        ([0, 1], np.full((3, 3), 1 / 3), r"expected \[n\] and \[n, classes\]"),
        ([0, 1], np.full((2, 3), np.nan), "nan"),
    ],
)
def test_invalid_classes_are_refused(classes, probabilities, message):
    with pytest.raises(ValueError, match=message):
        class_scores(np.array(classes), probabilities)
