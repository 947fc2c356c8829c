"""From scores to decisions: thresholds are chosen on one part of the data and used on another."""

from functools import partial
from types import MappingProxyType

import numpy as np
from sklearn.metrics import roc_curve

from mg3d.metrics.classification import known_cases, per_label

RULES = MappingProxyType(
    {
        "corner": lambda hits, alarms, present, absent: -np.hypot(alarms / absent, 1 - hits / present),
        "youden": lambda hits, alarms, present, absent: hits / present - alarms / absent,
        "f1": lambda hits, alarms, present, absent: 2 * hits / (hits + alarms + present),
    }
)
"""What is made as large as can be: nearness to (0, 1) of the ROC curve, as CT-CLIP; sensitivity + specificity - 1; F1.

From hits and false alarms at every threshold and the numbers of positives and negatives.
"""


def choose_threshold(labels: np.ndarray, scores: np.ndarray, *, rule: str) -> float:
    """The score, one of those given, from which a case is called positive; the highest of several equally good ones.

    labels [n]: 1, 0, others are left out; nan with one class. CT-CLIP's script, which the original carries, chooses it on the
    very part that it then reports; choose on another.

    Raises:
        ValueError: the rule is unknown, or a score is nan.
    """
    if rule not in RULES:
        raise ValueError(f"no rule {rule!r} for a threshold; there are {', '.join(RULES)}")
    positive, scores = known_cases(labels, scores)
    present, absent = int(positive.sum()), int((~positive).sum())
    if present == 0 or absent == 0:
        return float("nan")
    false_alarm_rate, hit_rate, thresholds = (part[1:] for part in roc_curve(positive, scores, drop_intermediate=False))
    worth = RULES[rule](hit_rate * present, false_alarm_rate * absent, present, absent)
    return float(thresholds[np.flatnonzero(worth >= worth.max() - 1e-12)[0]])


def choose_thresholds(labels: np.ndarray, scores: np.ndarray, *, rule: str) -> np.ndarray:
    """[L], one for each column of labels and scores [n, L]."""
    return per_label(partial(choose_threshold, rule=rule), labels, scores)


def decide(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """int8, of the shape of scores [n, L]: 1 from the threshold [L] on, 0 below it, -1 (undecided) where there is none (nan).

    Raises:
        ValueError: a score is nan.
    """
    if np.isnan(scores).any():
        raise ValueError(
            "some scores are nan, so nothing can be decided from them; look for the step at which the model diverged"
        )
    return np.where(np.isnan(thresholds), -1, scores >= thresholds).astype(np.int8)
