"""How well scores rank what is there above what is not, and how good the decisions made from them are.

Labels of findings are 1 present, 0 absent and anything else unknown; unknown places are left out whatever their scores. A number
that has no meaning for the cases at hand (one class only, nothing present) is nan, and is left out of means.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_fscore_support


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve; ties count half. Labels [n]: 1 positive, 0 negative, others are left out; nan with one class.

    Raises:
        ValueError: a score is nan, which has no place in an order.
    """
    positive, scores = known_cases(labels, scores)
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    here, absent = int(positive.sum()), int((~positive).sum())
    if here == 0 or absent == 0:
        return float("nan")
    return float((ranks[positive].sum() - here * (here + 1) / 2) / (here * absent))


def auprc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Average precision (steps, no interpolation) of labels and scores [n]; chance is the prevalence; nan without a positive.

    Raises:
        ValueError: a score is nan.
    """
    positive, scores = known_cases(labels, scores)
    return float(average_precision_score(positive, scores)) if positive.any() else float("nan")


def known_cases(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(positive bool, score) of the cases whose label is 0 or 1; labels and scores of one shape.

    Raises:
        ValueError: the shapes differ, or a score of a known case is nan.
    """
    if np.shape(labels) != np.shape(scores):
        raise ValueError(f"labels {np.shape(labels)} and scores {np.shape(scores)} differ in shape; give one score per label")
    known = (labels == 0) | (labels == 1)
    if np.isnan(scores[known]).any():
        raise ValueError("some scores are nan, so they cannot be ranked; look for the step at which the model diverged")
    return labels[known] == 1, scores[known]


def per_label(metric: Callable[[np.ndarray, np.ndarray], float], labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """[L]: `metric` (`auroc`, `auprc`, `brier`, ...) of every column of labels and scores [n, L]."""
    return np.array([metric(label, score) for label, score in zip(labels.T, scores.T)])


def mean_of_defined(values: np.ndarray) -> float:
    """Mean of what is not nan; nan when all are."""
    defined = np.asarray(values)[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def macro_auroc(labels: np.ndarray, scores: np.ndarray, *, of: Sequence[int] | None = None) -> float:
    """Mean over the columns `of` (default: all) of labels and scores [n, L]; of one class are left out; nan if all are."""
    columns = np.arange(labels.shape[1]) if of is None else np.asarray(of, dtype=int)
    return mean_of_defined(per_label(auroc, labels[:, columns], scores[:, columns]))


class ConfusionCounts(NamedTuple):
    """Decisions counted against known labels, int64 arrays of one shape."""

    hits: np.ndarray
    false_alarms: np.ndarray
    misses: np.ndarray
    rejections: np.ndarray


def count_decisions(labels: np.ndarray, decided: np.ndarray, *, axis: int | None = 0) -> ConfusionCounts:
    """Decisions (1, 0) against labels along `axis` (None: all); places where either is neither 0 nor 1 are left out.

    Raises:
        ValueError: the shapes differ.
    """
    if np.shape(labels) != np.shape(decided):
        raise ValueError(f"labels {np.shape(labels)} and decisions {np.shape(decided)} differ in shape; give one per label")
    present, absent = labels == 1, labels == 0
    called, denied = decided == 1, decided == 0
    pairs = ((present, called), (absent, called), (present, denied), (absent, denied))
    return ConfusionCounts(*(np.asarray((one & other).sum(axis)) for one, other in pairs))


def decision_scores(counts: ConfusionCounts) -> dict[str, np.ndarray]:
    """Accuracy, balanced accuracy, sensitivity, specificity, precision and F1, each of the shape of the counts.

    nan where the denominator is empty: sensitivity and balanced accuracy need a positive, specificity a negative, precision a
    call. F1 = 2 hits / (2 hits + false alarms + misses) is 0 when nothing is called, nan only when nothing is there either.
    """
    hits, false_alarms, misses, rejections = counts
    sensitivity = safe_divide(hits, hits + misses)
    specificity = safe_divide(rejections, rejections + false_alarms)
    return {
        "accuracy": safe_divide(hits + rejections, hits + false_alarms + misses + rejections),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "precision": safe_divide(hits, hits + false_alarms),
        "f1": safe_divide(2 * hits, 2 * hits + false_alarms + misses),
    }


def safe_divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, nan where whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)


def class_scores(classes: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    """One of K classes per case: classes int [n] (below 0 = unknown, left out), probabilities [n, K]; the largest is chosen.

    `confusion` [K, K] has a row per true class and a column per chosen one. `auroc` [K] is each class against the rest, and
    `macro_auroc` its mean. Sensitivity [K] is nan for a class without a case; F1 [K] for one that neither occurs nor is chosen:
    they are left out of `balanced_accuracy` (the mean sensitivity) and `macro_f1`.

    Raises:
        ValueError: shapes do not fit, a class is none of the K, no class is known, or a probability is nan.
    """
    if probabilities.ndim != 2 or len(classes) != len(probabilities):
        raise ValueError(f"{np.shape(classes)} classes do not fit probabilities {probabilities.shape}; give [n] and [n, classes]")
    classes, probabilities = classes[classes >= 0], probabilities[classes >= 0]
    wanted = np.arange(probabilities.shape[1])
    if len(classes) == 0 or classes.max() >= len(wanted):
        raise ValueError(f"the known classes are {np.unique(classes).tolist()}; expected some of 0 to {len(wanted) - 1}")
    each = classes[:, None] == wanted
    one_against_rest = per_label(auroc, each.astype(int), probabilities)
    chosen = probabilities.argmax(1)
    _, sensitivity, f1, cases = precision_recall_fscore_support(classes, chosen, labels=wanted, zero_division=0)
    sensitivity = np.where(cases > 0, sensitivity, np.nan)
    f1 = np.where((cases > 0) | np.isin(wanted, chosen), f1, np.nan)
    return {
        "accuracy": float((classes == chosen).mean()),
        "balanced_accuracy": mean_of_defined(sensitivity),
        "macro_f1": mean_of_defined(f1),
        "macro_auroc": mean_of_defined(one_against_rest),
        "auroc": one_against_rest,
        "sensitivity": sensitivity,
        "f1": f1,
        "confusion": confusion_matrix(classes, chosen, labels=wanted),
    }
