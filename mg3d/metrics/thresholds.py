"""Decision thresholds: choose them on one split, apply them to another."""

from functools import partial
from types import MappingProxyType

import numpy as np
from sklearn.metrics import roc_curve

from mg3d.metrics.classification import known_cases, per_label

RULES = MappingProxyType(
    {
        "corner": lambda tp, fp, positives, negatives: -np.hypot(fp / negatives, 1 - tp / positives),
        "youden": lambda tp, fp, positives, negatives: tp / positives - fp / negatives,
        "f1": lambda tp, fp, positives, negatives: 2 * tp / (tp + fp + positives),
    }
)
"""Objective that the threshold maximises: closeness to (0, 1) of the ROC curve (CT-CLIP), sensitivity + specificity - 1, F1."""


def choose_threshold(labels: np.ndarray, scores: np.ndarray, *, rule: str) -> float:
    """Best threshold by `rule` among the scores [n]: a case is positive from it on. The highest of several equally good ones.

    labels [n]: 1, 0, or unknown (ignored); nan with a single class. The evaluation script of CT-CLIP, which the original code
    uses, chooses thresholds on the split that it then reports; choose them on another one.

    Raises:
        ValueError: the rule is unknown, or a score is nan.
    """
    if rule not in RULES:
        raise ValueError(f"unknown threshold rule {rule!r}; choose from {', '.join(RULES)}")
    positive, scores = known_cases(labels, scores)
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if positives == 0 or negatives == 0:
        return float("nan")
    fpr, tpr, thresholds = (values[1:] for values in roc_curve(positive, scores, drop_intermediate=False))
    objective = RULES[rule](tpr * positives, fpr * negatives, positives, negatives)
    return float(thresholds[np.flatnonzero(objective >= objective.max() - 1e-12)[0]])


def choose_thresholds(labels: np.ndarray, scores: np.ndarray, *, rule: str) -> np.ndarray:
    """Apply `choose_threshold` to every column of labels and scores [n, L]; returns [L]."""
    return per_label(partial(choose_threshold, rule=rule), labels, scores)


def decide(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Decisions int8 [n, L]: 1 from the threshold [L] on, 0 below it, -1 (undecided) if the threshold is nan.

    Raises:
        ValueError: a score is nan.
    """
    if np.isnan(scores).any():
        raise ValueError("some scores are nan, so no decision is possible; check whether the model diverged")
    return np.where(np.isnan(thresholds), -1, scores >= thresholds).astype(np.int8)
