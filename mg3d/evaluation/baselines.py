"""Supervised baseline: logistic regression on block means of the volume."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from mg3d.metrics.classification import macro_auroc

POOLED_GRID = (8, 6, 8)


def pooled_volume(volume: np.ndarray) -> np.ndarray:
    """Mean intensities [384] of 8 x 6 x 8 blocks of a volume [1, D, H, W]."""
    return F.adaptive_avg_pool3d(torch.from_numpy(volume), POOLED_GRID).flatten().numpy()


def fit_logistic(
    features: np.ndarray | csr_matrix, labels: np.ndarray, *, c: float, solver: str = "lbfgs"
) -> tuple[np.ndarray, np.ndarray]:
    """Weights [L, F] and intercepts [L] of one logistic regression per label; features [n, F], labels [n, L].

    Unknown labels (below 0) are excluded; a label with one class gets zeros. c: inverse of the L2 penalty.
    """
    weights, intercepts = np.zeros((labels.shape[1], features.shape[1])), np.zeros(labels.shape[1])
    for index in range(labels.shape[1]):
        known = np.flatnonzero(labels[:, index] >= 0)
        if len(np.unique(labels[known, index])) == 2:
            model = LogisticRegression(C=c, max_iter=1000, solver=solver).fit(features[known], labels[known, index])
            weights[index], intercepts[index] = model.coef_[0], model.intercept_[0]
    return weights, intercepts


def fit_best_logistic(
    train: tuple[np.ndarray | csr_matrix, np.ndarray],
    val: tuple[np.ndarray | csr_matrix, np.ndarray],
    penalties: Sequence[float],
    *,
    solver: str = "lbfgs",
) -> tuple[float, float, np.ndarray, np.ndarray]:
    """(c, macro AUROC on `val`, weights, intercepts) of the best inverse penalty; `train` and `val` are features and labels.

    See `fit_logistic`.
    """
    best = None
    for c in penalties:
        weights, intercepts = fit_logistic(*train, c=c, solver=solver)
        score = macro_auroc(val[1], val[0] @ weights.T + intercepts)
        if best is None or np.nan_to_num(score) > np.nan_to_num(best[1]):
            best = (c, score, weights, intercepts)
    return best


def logistic_scores(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Held-out scores [m, L] of one logistic regression per label on standardized features [n, F] and [m, F], labels [n, L].

    See `fit_logistic`.
    """
    scaler = StandardScaler().fit(train)
    weights, intercepts = fit_logistic(scaler.transform(train), train_labels, c=0.01)
    return scaler.transform(test) @ weights.T + intercepts
