"""Retrieval metrics: rank of the first relevant item, recall at k, label overlap of the nearest neighbours."""

from collections.abc import Sequence

import numpy as np


def first_rank(similarity: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Rank (from 1) of the most similar relevant item of each query; similarity and relevant (bool) are [queries, gallery].

    Irrelevant items that tie with it rank first, so that a constant similarity scores nothing.

    Raises:
        ValueError: a query has no relevant item, or a similarity is nan.
    """
    _refuse_nan(similarity)
    if not relevant.any(1).all():
        raise ValueError("some queries have no relevant item in the gallery; exclude them")
    best = np.where(relevant, similarity, -np.inf).max(1, keepdims=True)
    return 1 + ((similarity >= best) & ~relevant).sum(1)


def recall_at(ranks: np.ndarray, ks: Sequence[int]) -> dict[int, float]:
    """Recall at each k: fraction of queries whose first rank is at most k."""
    return {k: float((ranks <= k).mean()) for k in ks}


def chance_recall_at(relevant: np.ndarray, ks: Sequence[int]) -> dict[int, float]:
    """Expected recall at each k of a random ranking; relevant bool [queries, gallery].

    1 - C(irrelevant, k) / C(gallery, k), averaged over the queries.
    """
    gallery, n_relevant = relevant.shape[1], relevant.sum(1)
    recall = {}
    for k in ks:
        drawn = np.arange(min(k, gallery))
        miss = np.clip(gallery - n_relevant[:, None] - drawn, 0, None) / (gallery - drawn)
        recall[k] = float(1 - miss.prod(1).mean())
    return recall


def nearest_jaccards(similarity: np.ndarray, labels: np.ndarray, k: int, *, groups: np.ndarray) -> np.ndarray:
    """Label Jaccard index [n, k] of every volume with its k most similar volumes, as in CT-CLIP; nearest first.

    similarity [n, n], one query per row; labels [n, L]: 1, 0, or unknown (ignored by a pair). The gallery of a query holds the
    volumes with a positive label, except those of the query's group (groups [n], such as patients; `arange(n)` excludes only the
    query). A query without a positive label scores 0. Ties are ordered by row.

    Raises:
        ValueError: the shapes do not match, a similarity is nan, or a gallery is smaller than k.
    """
    if similarity.shape != (len(labels), len(labels)):
        raise ValueError(f"similarities {similarity.shape} of {len(labels)} labelled volumes; expected [n, n]")
    _refuse_nan(similarity)
    in_gallery = np.flatnonzero((labels == 1).any(1))
    scores = similarity[:, in_gallery].astype(float)
    scores[groups[:, None] == groups[in_gallery]] = -np.inf
    smallest = int((scores > -np.inf).sum(1)[in_gallery].min(initial=len(in_gallery)))
    if smallest < k:
        raise ValueError(f"{smallest} other volumes with a positive label; k = {k} needs at least {k}")
    nearest = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(_jaccard(labels, labels[in_gallery]), nearest, 1)


def _jaccard(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Jaccard index [q, g] of labels [q, L] and [g, L]; labels unknown on either side are ignored; 0 without a positive."""
    query_pos, query_neg, item_pos, item_neg = ((x == value).astype(float) for x in (queries, gallery) for value in (1, 0))
    both = query_pos @ item_pos.T
    return both / np.maximum(both + query_pos @ item_neg.T + query_neg @ item_pos.T, 1)


def _refuse_nan(similarity: np.ndarray) -> None:
    if np.isnan(similarity).any():
        raise ValueError("some similarities are nan and cannot be ranked; check whether the model diverged")
