"""Supervised baseline: logistic regression on block means of the volume."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

POOLED_GRID = (8, 6, 8)


def pooled_volume(volume: np.ndarray) -> np.ndarray:
    """Mean intensities [384] of 8 x 6 x 8 blocks of a volume [1, D, H, W]."""
    return F.adaptive_avg_pool3d(torch.from_numpy(volume), POOLED_GRID).flatten().numpy()


def logistic_scores(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Decision scores [m, L] on features [m, F] of one logistic regression per label, fitted on [n, F] and labels [n, L].

    Unknown labels (-1) are left out. A label with a single class scores 0.
    """
    scores = np.zeros((len(test), train_labels.shape[1]))
    for index, label in enumerate(train_labels.T):
        known = label >= 0
        if len(np.unique(label[known])) < 2:
            continue
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
        model.fit(train[known], label[known])
        scores[:, index] = model.decision_function(test)
    return scores
