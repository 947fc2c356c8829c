"""How early the right item comes when a gallery is sorted by similarity."""

from collections.abc import Sequence

import numpy as np


def first_rank(similarity: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Rank (from 1) of the best relevant item of each query; [queries, gallery] each, relevant bool with a True in every row.

    Items that are as similar as the best relevant one count as being before it, so that a constant similarity earns nothing.

    Raises:
        ValueError: a query has no relevant item, or a similarity is nan.
    """
    if np.isnan(similarity).any():
        raise ValueError("some similarities are nan, so they cannot be ranked; look for the step at which the model diverged")
    if not relevant.any(1).all():
        raise ValueError("some queries have no relevant item in the gallery; leave them out")
    best = np.where(relevant, similarity, -np.inf).max(1, keepdims=True)
    return 1 + ((similarity >= best) & ~relevant).sum(1)


def recall_at(ranks: np.ndarray, ks: Sequence[int]) -> dict[int, float]:
    """Share of queries whose first rank is at most k."""
    return {k: float((ranks <= k).mean()) for k in ks}


def chance_recall_at(relevant: np.ndarray, ks: Sequence[int]) -> dict[int, float]:
    """Expected recall of a random order: 1 - C(wrong, k) / C(gallery, k), mean over queries; relevant bool [queries, gallery]."""
    gallery, right = relevant.shape[1], relevant.sum(1)
    chances = {}
    for k in ks:
        drawn = np.arange(min(k, gallery))
        miss = np.clip(gallery - right[:, None] - drawn, 0, None) / (gallery - drawn)
        chances[k] = float(1 - miss.prod(1).mean())
    return chances
