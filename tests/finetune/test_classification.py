import numpy as np
import pytest
from downstream.folders import load
from finetune.small_tables import prediction_table

from mg3d.finetune.scoring import score_table

STOIC, CCCCII = (load(name).TASK.build(load(name).TASK.settings(n_bootstrap=10)) for name in ("stoic2021", "cc-ccii"))


TARGETS = [(1, 1), (1, 0), (1, 0), (0, 0), (0, 0)]
SCORES = [(0.9, 0.6), (0.8, 0.2), (0.3, 0.7), (0.4, 0.9), (0.1, 0.1)]


def test_severity_is_scored_among_positives_only():
    """Severe 0.6 against 0.2 and 0.7: one of two pairs is right. Over all patients it would be two of four."""
    found = STOIC.statistics(prediction_table(STOIC, TARGETS, SCORES))
    assert found["auroc/probSevere"] == pytest.approx(1 / 2)
    assert found["auroc/probCOVID"] == pytest.approx(5 / 6)  # 0.3 is below 0.4
    assert found["auprc/probSevere"] == pytest.approx(1 / 2)
    assert found["brier"] == pytest.approx(np.mean([(0.01 + 0.04 + 0.49 + 0.16 + 0.01) / 5, (0.16 + 0.04 + 0.49) / 3]))


def test_decisions_at_one_half_by_hand():
    found = STOIC.statistics(prediction_table(STOIC, TARGETS, SCORES))
    assert found["sensitivity@0.5/probCOVID"] == pytest.approx(2 / 3)
    assert found["specificity@0.5/probCOVID"] == 1
    assert found["f1@0.5/probCOVID"] == pytest.approx(4 / 5)
    assert found["balanced_accuracy@0.5/probSevere"] == pytest.approx((1 + 1 / 2) / 2)
    assert not [name for name in found if "@val" in name]


def test_thresholds_are_chosen_on_validation_cases():
    """On dev 0.2 parts the classes; there all positives and one negative of two are called."""
    dev = prediction_table(STOIC, [(1, 1), (1, 0), (0, 0)], [(0.2, 0.9), (0.25, 0.1), (0.1, 0.5)])
    found = STOIC.statistics(prediction_table(STOIC, TARGETS, SCORES), dev)
    assert found["sensitivity@val/probCOVID"] == 1
    assert found["specificity@val/probCOVID"] == pytest.approx(1 / 2)
    assert found["sensitivity@val/probSevere"] == 0  # 0.6 is below 0.9
    other = prediction_table(STOIC, [(1, 1), (1, 0), (0, 0)], [(0.5, 0.9), (0.6, 0.1), (0.45, 0.5)])
    assert STOIC.statistics(prediction_table(STOIC, TARGETS, SCORES), other)["specificity@val/probCOVID"] == 1


def test_scores_of_exclusive_classes_by_hand():
    probabilities = [(0.8, 0.1, 0.1), (0.1, 0.8, 0.1), (0.6, 0.3, 0.1), (0.2, 0.2, 0.6)]
    found = CCCCII.statistics(prediction_table(CCCCII, np.eye(3, dtype=int)[[0, 1, 1, 2]], probabilities))
    assert found["accuracy"] == 3 / 4
    assert found["balanced_accuracy"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert found["sensitivity/CP"] == 1 / 2
    assert found["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert found["brier"] == pytest.approx((0.06 + 0.06 + (0.36 + 0.49 + 0.01) + (0.04 + 0.04 + 0.16)) / 4)
    assert found["ece"] == pytest.approx((2 * 0.2 + 2 * abs(0.6 - 0.5)) / 4)


def test_scores_have_intervals_and_figures_show_both_curves():
    made = prediction_table(STOIC, TARGETS * 4, SCORES * 4)
    scores = {score.name: score for score in score_table(STOIC, made, made)}
    assert scores["auroc/probCOVID"].low <= scores["auroc/probCOVID"].value <= scores["auroc/probCOVID"].high
    assert [title for title, _ in STOIC.figures(made)] == ["ROC curves", "Precision-recall curves"]
