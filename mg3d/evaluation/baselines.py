"""What is reached without the model: how easy the data are, and how good one can be."""

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
    """Held-out scores [m, L] of one supervised logistic regression per label, on features [n, F] and [m, F], labels [n, L].

    Unknown labels (-1) are left out; a label with one class scores 0 everywhere.
    """
    scores = np.zeros((len(test), train_labels.shape[1]))
    for place in range(train_labels.shape[1]):
        known = train_labels[:, place] >= 0
        if len(np.unique(train_labels[known, place])) < 2:
            continue
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
        model.fit(train[known], train_labels[known, place])
        scores[:, place] = model.decision_function(test)
    return scores
