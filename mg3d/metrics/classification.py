"""How well scores rank what is there above what is not."""

from collections.abc import Sequence

import numpy as np


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve; ties count half. Labels [n]: 1 positive, 0 negative, others are left out; nan with one class.

    Raises:
        ValueError: a score is nan, which has no place in an order.
    """
    known = (labels == 0) | (labels == 1)
    positive = labels[known] == 1
    if np.isnan(scores[known]).any():
        raise ValueError("some scores are nan, so they cannot be ranked; look for the step at which the model diverged")
    _, place, counts = np.unique(scores[known], return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    here, absent = int(positive.sum()), int((~positive).sum())
    if here == 0 or absent == 0:
        return float("nan")
    return float((ranks[positive].sum() - here * (here + 1) / 2) / (here * absent))


def macro_auroc(labels: np.ndarray, scores: np.ndarray, *, of: Sequence[int] | None = None) -> float:
    """Mean over the columns `of` (default: all) of labels and scores [n, L]; of one class are left out; nan if all are."""
    columns = range(labels.shape[1]) if of is None else of
    values = [auroc(labels[:, column], scores[:, column]) for column in columns]
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")
