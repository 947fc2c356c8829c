import numpy as np
import pytest
import torch
from downstream.folders import load
from finetune.small_tables import prediction_table

from mg3d import distributed
from mg3d.finetune.cases import FinetuneCase, Split
from mg3d.finetune.scoring import score_table
from mg3d.finetune.settings import FinetuneSettings
from mg3d.finetune.tasks.classification import Classification

STOIC, CCCCII = (load(name).TASK.build(load(name).TASK.settings(n_bootstrap=10)) for name in ("stoic2021", "cc-ccii"))


TARGETS = [(1, 1), (1, 0), (1, 0), (0, 0), (0, 0)]
SCORES = [(0.9, 0.6), (0.8, 0.2), (0.3, 0.7), (0.4, 0.9), (0.1, 0.1)]


def test_severity_is_scored_among_positives_only():
    """Severe 0.6 against 0.2 and 0.7: one of two pairs is right. Over all patients it would be two of four."""
    result = STOIC.statistics(prediction_table(STOIC, TARGETS, SCORES))
    assert result["auroc/probSevere"] == pytest.approx(1 / 2)
    assert result["auroc/probCOVID"] == pytest.approx(5 / 6)  # 0.3 is below 0.4
    assert result["auprc/probSevere"] == pytest.approx(1 / 2)
    assert result["brier"] == pytest.approx(np.mean([(0.01 + 0.04 + 0.49 + 0.16 + 0.01) / 5, (0.16 + 0.04 + 0.49) / 3]))


def test_decisions_at_one_half_by_hand():
    result = STOIC.statistics(prediction_table(STOIC, TARGETS, SCORES))
    assert result["sensitivity@0.5/probCOVID"] == pytest.approx(2 / 3)
    assert result["specificity@0.5/probCOVID"] == 1
    assert result["f1@0.5/probCOVID"] == pytest.approx(4 / 5)
    assert result["balanced_accuracy@0.5/probSevere"] == pytest.approx((1 + 1 / 2) / 2)
    assert not [name for name in result if "@val" in name]


def test_thresholds_are_chosen_on_validation_cases():
    """On dev 0.2 parts the classes; there all positives and one negative of two are called."""
    dev = prediction_table(STOIC, [(1, 1), (1, 0), (0, 0)], [(0.2, 0.9), (0.25, 0.1), (0.1, 0.5)])
    result = STOIC.statistics(prediction_table(STOIC, TARGETS, SCORES), dev)
    assert result["sensitivity@val/probCOVID"] == 1
    assert result["specificity@val/probCOVID"] == pytest.approx(1 / 2)
    assert result["sensitivity@val/probSevere"] == 0  # 0.6 is below 0.9
    second = prediction_table(STOIC, [(1, 1), (1, 0), (0, 0)], [(0.5, 0.9), (0.6, 0.1), (0.45, 0.5)])
    assert STOIC.statistics(prediction_table(STOIC, TARGETS, SCORES), second)["specificity@val/probCOVID"] == 1


def test_scores_of_exclusive_classes_by_hand():
    probabilities = [(0.8, 0.1, 0.1), (0.1, 0.8, 0.1), (0.6, 0.3, 0.1), (0.2, 0.2, 0.6)]
    result = CCCCII.statistics(prediction_table(CCCCII, np.eye(3, dtype=int)[[0, 1, 1, 2]], probabilities))
    assert result["accuracy"] == 3 / 4
    assert result["balanced_accuracy"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert result["sensitivity/CP"] == 1 / 2
    assert result["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert result["brier"] == pytest.approx((0.06 + 0.06 + (0.36 + 0.49 + 0.01) + (0.04 + 0.04 + 0.16)) / 4)
    assert result["ece"] == pytest.approx((2 * 0.2 + 2 * abs(0.6 - 0.5)) / 4)


def test_scores_have_intervals_and_figures_show_both_curves():
    made = prediction_table(STOIC, TARGETS * 4, SCORES * 4)
    scores = {score.name: score for score in score_table(STOIC, made, made)}
    assert scores["auroc/probCOVID"].low <= scores["auroc/probCOVID"].value <= scores["auroc/probCOVID"].high
    assert [title for title, _ in STOIC.figures(made)] == ["ROC curves", "Precision-recall curves"]


LOGITS = torch.tensor([[0.0, 1.0], [2.0, -1.0], [0.5, 3.0]])
LABELS = torch.tensor([[1, -1], [0, 1], [-1, -1]])


def classification(**options):
    return Classification(FinetuneSettings(mode="evaluate"), outputs=("a", "b"), metric="auroc", **options)


def test_masked_losses_are_the_mean_over_the_known_labels_of_all_ranks(monkeypatch):
    """The first rank knows one label and the second two: their own means would count the first label twice."""
    whole = classification().loss_of(LOGITS, LABELS)
    parts = [(LOGITS[:1], LABELS[:1]), (LOGITS[1:], LABELS[1:])]
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "gather_rows", lambda count: (LABELS != -1,))
    assert torch.stack([classification().loss_of(*part) for part in parts]).mean() == pytest.approx(whole.item())


def test_class_weights_and_focal_loss_by_hand():
    """Training labels of a: 1 positive, 3 negatives; b: 2 and 2, so weights n / (2 count) of 2, 2/3, 1, 1."""
    cases = [FinetuneCase(case_id=str(i), patient_id=str(i), image=None, target=target)
             for i, target in enumerate([(1, 1), (0, 0), (0, 1), (0, 0)])]  # fmt: skip
    weighted, focal = classification(class_weights=True), classification(focal_gamma=2.0)
    weighted.setup(Split(cases, [], []), {})
    terms = np.log1p(np.exp([0.0, 2.0, 1.0]))  # a positive at 0, a negative at 2, b positive at -1
    assert weighted.loss_of(LOGITS, LABELS).item() == pytest.approx(np.mean(terms * [2, 2 / 3, 1]))
    assert focal.loss_of(LOGITS, LABELS).item() == pytest.approx(np.mean(terms * (1 - np.exp(-terms)) ** 2))


def test_unknown_classes_are_left_out_of_the_loss():
    task_type = classification(exclusive=True)
    expected = task_type.loss_of(LOGITS[1:2], torch.tensor([[0]]))
    assert task_type.loss_of(LOGITS, torch.tensor([[-1], [0], [-1]])) == pytest.approx(expected.item())
