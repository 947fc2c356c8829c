import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mg3d.metrics.classification import auroc, macro_auroc


def counted_auroc(labels, scores):
    """Share of (positive, negative) pairs in the right order; a tie is half a pair."""
    pairs = [(p, q) for p, a in zip(scores, labels) if a == 1 for q, b in zip(scores, labels) if b == 0]
    return sum(1.0 if p > q else 0.5 if p == q else 0.0 for p, q in pairs) / len(pairs)


@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_the_share_of_rightly_ordered_pairs_also_with_ties(seed):
    random = np.random.default_rng(seed)
    labels = np.array([0, 1, *random.integers(0, 2, 30)])
    scores = random.integers(0, 6, 32) / 4
    assert auroc(labels, scores) == pytest.approx(counted_auroc(labels, scores), abs=1e-12)
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_auroc_by_hand():
    assert auroc(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])) == 0.75
    assert auroc(np.array([0, 1, 0]), np.zeros(3)) == 0.5


def test_auroc_asks_only_for_an_order():
    random = np.random.default_rng(7)
    labels, scores = random.integers(0, 2, 40), random.normal(size=40)
    assert auroc(labels, np.exp(3 * scores)) == pytest.approx(auroc(labels, scores))
    assert auroc(labels, -scores) == pytest.approx(1 - auroc(labels, scores))


def test_unknown_labels_are_left_out_whatever_their_scores():
    labels, scores = np.array([1, 0, -1, 1, 0, -1]), np.array([0.9, 0.3, np.nan, 0.2, 0.1, 5.0])
    assert auroc(labels, scores) == auroc(labels[[0, 1, 3, 4]], scores[[0, 1, 3, 4]]) == 0.75


def test_one_class_has_no_auroc():
    assert np.isnan(auroc(np.ones(4), np.arange(4.0)))
    assert np.isnan(auroc(np.full(4, -1), np.arange(4.0)))


def test_nan_scores_are_refused():
    with pytest.raises(ValueError, match="nan"):
        auroc(np.array([0, 1, 1]), np.array([0.1, np.nan, 0.2]))


@pytest.mark.filterwarnings("error")
def test_macro_is_the_mean_of_the_chosen_columns_that_have_both_classes():
    labels = np.array([[1, 1, 0, 1], [0, 1, 1, 0], [1, 1, 0, 0]])
    scores = np.array([[0.2, 0.1, 0.9, 0.5], [0.3, 0.2, 0.8, 0.1], [0.9, 0.3, 0.1, 0.9]])
    assert macro_auroc(labels, scores) == pytest.approx((0.5 + 0.5 + 0.5) / 3)
    assert macro_auroc(labels[:, ::-1], scores, of=[2, 1]) == pytest.approx(auroc(labels[:, 2], scores[:, 1]))
    assert np.isnan(macro_auroc(labels, scores, of=[1]))
