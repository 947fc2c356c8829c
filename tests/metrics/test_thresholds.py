import numpy as np
import pytest

from mg3d.metrics.thresholds import choose_threshold, choose_thresholds, decide

LABELS = np.array([1, 0, 1, 0, 1, 0, 0, 0, 0, 0, -1])
SCORES = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0, 0.75])
# From 0.9 on: tp (of 3) are 1 1 2 2 3 3 ..., fp (of 7) are 0 1 1 2 2 3 ...


@pytest.mark.parametrize(
    ("rule", "threshold"),
    [
        ("corner", 0.5),  # distances: 0.667 at 0.9, (1/3, 1/7) 0.363 at 0.7, (0, 2/7) 0.286 at 0.5
        ("youden", 0.5),  # 1/3 at 0.9, 2/3 - 1/7 = 0.524 at 0.7, 1 - 2/7 = 0.714 at 0.5
        ("f1", 0.5),  # 2/4 at 0.9, 4/6 at 0.7, 6/8 at 0.5
    ],
)
def test_thresholds_by_hand(rule, threshold):
    assert choose_threshold(LABELS, SCORES, rule=rule) == threshold


def test_the_rules_disagree_when_positives_are_rare():
    # At 3: 1 tp of 2 and no fp of 40. At 1: 2 tp and 3 fp.
    labels, scores = np.array([1, 1] + [0] * 40), np.array([3.0, 1.0] + [2.0] * 3 + [0.0] * 37)
    # F1: 2/3 against 4/7. Youden: 1/2 against 1 - 3/40.
    assert choose_threshold(labels, scores, rule="f1") == 3
    assert choose_threshold(labels, scores, rule="youden") == choose_threshold(labels, scores, rule="corner") == 1


def test_the_highest_of_equally_good_thresholds_is_chosen():
    # Sensitivity + specificity - 1 is 1/2 at 3 (1/2, 1) and at 1 (1, 1/2).
    assert choose_threshold(np.array([1, 0, 1, 0]), np.array([3.0, 2.0, 1.0, 0.0]), rule="youden") == 3


def test_thresholds_of_one_split_decide_another_and_a_label_without_one_stays_undecided():
    labels = np.stack([LABELS, np.zeros_like(LABELS)], 1)
    thresholds = choose_thresholds(labels, np.stack([SCORES, SCORES], 1), rule="youden")
    assert thresholds.tolist() == pytest.approx([0.5, np.nan], nan_ok=True)
    decided = decide(np.array([[0.5, 0.9], [0.49, 0.1], [0.6, 0.5]]), thresholds)
    assert decided.tolist() == [[1, -1], [0, -1], [1, -1]]


def test_unknown_rules_and_nan_scores_are_refused():
    with pytest.raises(ValueError, match="corner, youden, f1"):
        choose_threshold(LABELS, SCORES, rule="best")
    with pytest.raises(ValueError, match="nan"):
        choose_threshold(LABELS, np.full(11, np.nan), rule="f1")
    with pytest.raises(ValueError, match="nan"):
        decide(np.array([[np.nan]]), np.array([0.5]))
