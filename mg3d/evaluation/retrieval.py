"""Retrieval: find the report of a volume and the volume of a report, and volumes with similar findings."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mg3d.evaluation.tables import Bootstrap, Rows
from mg3d.metrics.retrieval import chance_recall_at, first_rank, nearest_jaccards

SAME_LABELS = ", same labels relevant"
"""Suffix of a direction in which reports of studies with equal labels count as relevant too."""


class RetrievalDirection(NamedTuple):
    """Queries, gallery and relevance of one retrieval direction."""

    name: str
    similarity: np.ndarray
    """[queries, gallery]."""
    relevant: np.ndarray
    """bool [queries, gallery]."""
    queries: np.ndarray
    """int64 [queries]: row of the study of each query."""


def retrieval_directions(
    volumes: np.ndarray, reports: np.ndarray, *, report_keys: Sequence[str], labels: np.ndarray | None = None
) -> list[RetrievalDirection]:
    """Volume to report and report to volume; volumes and reports [n, E] of unit length, one row per study.

    Equal `report_keys` mark equal texts: the report gallery holds each text once, and every volume with that text is relevant.
    With labels [n, L], both directions are repeated with every study of the same, fully known labels relevant: with 18 findings
    many patients share a label set, and retrieving such a neighbour is not an error.
    """
    keys, first, key_of_study = np.unique(np.asarray(report_keys, dtype=object), return_index=True, return_inverse=True)
    relevant = key_of_study[:, None] == np.arange(len(keys))
    similarity = volumes @ reports[first].T
    studies = np.arange(len(volumes))
    relevance = {"": relevant}
    if labels is not None:
        relevance[SAME_LABELS] = relevant | (_equal_labels(labels).astype(float) @ relevant.astype(float) > 0)
    directions = []
    for suffix, items in relevance.items():
        directions.append(RetrievalDirection(f"volume to report{suffix}", similarity, items, studies))
        directions.append(RetrievalDirection(f"report to volume{suffix}", similarity.T, items.T, first))
    return directions


def recall_rows(
    directions: Sequence[RetrievalDirection], patients: np.ndarray, *, ks: Sequence[int], bootstrap: Bootstrap
) -> tuple[Rows, dict[str, np.ndarray]]:
    """Recall at k with chance, for each direction and each k below the gallery size, and the rank of every query by direction.

    patients [studies]. The bootstrap draws the queries' patients; the gallery stays fixed.
    """
    rows, ranks = [], {}
    for direction in directions:
        first_ranks = ranks[direction.name] = first_rank(direction.similarity, direction.relevant)
        queries, gallery = direction.relevant.shape
        for k, chance in chance_recall_at(direction.relevant, [k for k in ks if k < gallery]).items():
            recall = bootstrap.mean((first_ranks <= k).astype(float), patients[direction.queries])
            row = {"direction": direction.name, "k": k, "queries": queries, "gallery": gallery, "recall": recall}
            rows.append(row | {"chance": chance, "median rank": float(np.median(first_ranks))})
    return rows, ranks


def label_jaccard_rows(
    volumes: np.ndarray, labels: np.ndarray, patients: np.ndarray, *, ks: Sequence[int], bootstrap: Bootstrap
) -> Rows:
    """Volume-to-volume retrieval by label Jaccard (CT-CLIP), without the query and without the query's patient in the gallery.

    volumes [n, E] of unit length, labels [n, L]. One row per k that the gallery allows; chance is the mean over the whole
    gallery. See `metrics.retrieval.label_jaccard_at`.
    """
    similarity, rows = volumes @ volumes.T, []
    for name, groups in (("query removed", np.arange(len(volumes))), ("query's patient removed", patients)):
        _, sizes = np.unique(groups, return_counts=True)
        gallery = int((labels == 1).any(1).sum()) - int(sizes.max(initial=0))
        possible = [k for k in ks if k <= gallery]
        if not possible:
            continue
        jaccards = nearest_jaccards(similarity, labels, gallery, groups=groups)
        for k in possible:
            cell = bootstrap.mean(jaccards[:, :k].mean(1), patients)
            rows.append({"gallery": name, "k": k, "label jaccard": cell, "chance": float(jaccards.mean())})
    return rows


def _equal_labels(labels: np.ndarray) -> np.ndarray:
    """bool [n, n]: studies with the same labels, all of them known."""
    _, group = np.unique(labels, axis=0, return_inverse=True)
    known = (labels >= 0).all(1)
    return (group.reshape(-1, 1) == group.reshape(-1)) & known[:, None] & known
