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


def label_jaccard_at(
    similarity: np.ndarray, labels: np.ndarray, ks: Sequence[int], *, as_published: bool = False
) -> dict[int, float]:
    """Volume to volume, as CT-CLIP: mean over queries of the mean label Jaccard of the k most similar other volumes.

    similarity [n, n] of n volumes, a query per row; labels [n, L]: 1, 0, others unknown, which a pair leaves out. The gallery
    holds the volumes with a positive label; queries are all n, and one without a positive label scores 0. Of ties the
    earlier row is taken.

    as_published: what the released script computes, to compare with printed numbers: the query stays in its own gallery, where it
    comes first with a Jaccard of 1, and the value at each k is the mean of the values at it and all k named before it.

    Raises:
        ValueError: shapes do not fit, a similarity is nan, or the gallery is smaller than the largest k.
    """
    groups = np.arange(len(labels)) if not as_published else None
    jaccard = nearest_jaccards(similarity, labels, max(ks), groups=groups)
    values = np.array([jaccard[:, :k].mean() for k in ks])
    if as_published:
        values = np.cumsum(values) / np.arange(1, len(ks) + 1)
    return dict(zip(ks, values.tolist()))


def nearest_jaccards(similarity: np.ndarray, labels: np.ndarray, most: int, *, groups: np.ndarray | None) -> np.ndarray:
    """[n, most]: label Jaccard of every query with its nearest volumes, nearest first; see `label_jaccard_at`, also for errors.

    groups [n]: volumes of the query's group are not in its gallery; None = all are, the query among them.
    """
    if similarity.shape != (len(labels), len(labels)):
        raise ValueError(f"similarities {similarity.shape} of {len(labels)} labelled volumes; expected [n, n]")
    if np.isnan(similarity).any():
        raise ValueError("some similarities are nan, so they cannot be ranked; look for the step at which the model diverged")
    shown = np.flatnonzero((labels == 1).any(1))
    gallery = similarity[:, shown].astype(float)
    if groups is not None:
        gallery[groups[:, None] == groups[shown]] = -np.inf
    others = int((gallery > -np.inf).sum(1)[shown].min(initial=len(shown)))
    if others < most:
        raise ValueError(f"{others} other volumes with a positive label; at least {most} are needed for k = {most}")
    nearest = np.argsort(-gallery, axis=1, kind="stable")[:, :most]
    return np.take_along_axis(_jaccard(labels, labels[shown]), nearest, 1)


def _jaccard(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """[q, g] from labels [q, L] and [g, L]: labels positive in both, of those positive in either and known in both; else 0."""
    (here, absent), (there, missing) = ((part == 1, part == 0) for part in (queries, gallery))
    both, one, other = (a.astype(float) @ b.T.astype(float) for a, b in ((here, there), (here, missing), (absent, there)))
    return both / np.maximum(both + one + other, 1)
