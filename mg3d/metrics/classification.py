"""How well scores rank what is there above what is not."""

from collections.abc import Sequence

import numpy as np


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve; ties count half. Labels [n]: 1 positive, 0 negative, others are left out; nan with one class."""
    known = (labels == 0) | (labels == 1)
    positive = labels[known] == 1
    _, place, counts = np.unique(scores[known], return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    here, absent = int(positive.sum()), int((~positive).sum())
    if here == 0 or absent == 0:
        return float("nan")
    return float((ranks[positive].sum() - here * (here + 1) / 2) / (here * absent))


def macro_auroc(labels: np.ndarray, scores: np.ndarray, *, of: Sequence[int] | None = None) -> float:
    """Mean over the columns `of` (default: all) of labels and scores [n, L]; columns with one class are left out."""
    columns = range(labels.shape[1]) if of is None else of
    return float(np.nanmean([auroc(labels[:, column], scores[:, column]) for column in columns]))
