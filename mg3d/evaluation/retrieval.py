"""Finding the report of a volume and the volume of a report, among all held-out ones, and volumes of like findings."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mg3d.evaluation.results import Rows, measured
from mg3d.metrics.bootstrap import bootstrap_interval
from mg3d.metrics.retrieval import chance_recall_at, first_rank, nearest_jaccards, recall_at

KS = (1, 5, 10)
ALIKE = ", alike is right"
"""End of the name of a direction in which reports of equal label sets are right for one another."""


class Direction(NamedTuple):
    """One way of asking."""

    name: str
    similarity: np.ndarray
    """[queries, gallery]."""
    right: np.ndarray
    """bool [queries, gallery]."""
    queries: np.ndarray
    """int64 [queries]: the study that each query is of."""


def directions(
    volumes: np.ndarray, reports: np.ndarray, *, report_keys: Sequence[str], labels: np.ndarray | None = None
) -> list[Direction]:
    """Volume to report and report to volume; volumes and reports [n, E] of length 1, row i being one study.

    Equal `report_keys` are equal texts: the gallery of reports holds each once, and any volume with a report's text is right for
    it. With labels [n, L] the same two once more, in which also a report (volume) of a study with the same, fully known labels is
    right: at 18 findings many patients share a set, and a system that finds such a neighbour is not wrong.
    """
    keys, first, which = np.unique(np.asarray(report_keys, dtype=object), return_index=True, return_inverse=True)
    right = which[:, None] == np.arange(len(keys))
    similarity = volumes @ reports[first].T
    everyone = np.arange(len(volumes))
    found = [
        Direction("volume to report", similarity, right, everyone),
        Direction("report to volume", similarity.T, right.T, first),
    ]
    if labels is not None:
        alike = right | (_equal_labels(labels).astype(float) @ right.astype(float) > 0)
        found.append(Direction(f"volume to report{ALIKE}", similarity, alike, everyone))
        found.append(Direction(f"report to volume{ALIKE}", similarity.T, alike.T, first))
    return found


def retrieval_table(
    volumes: np.ndarray, reports: np.ndarray, *, report_keys: Sequence[str], patients: np.ndarray
) -> list[dict[str, Any]]:
    """One row per direction: gallery size, recall at 1, 5, 10 with its chance and interval, and the median rank.

    See `directions`. `low` and `high` are those at 10. Intervals draw the queries' patients again and leave the gallery as it is.
    """
    return [_flat_row(part, patients[part.queries]) for part in directions(volumes, reports, report_keys=report_keys)]


def _flat_row(part: Direction, patients: np.ndarray) -> dict[str, Any]:
    ranks = first_rank(part.similarity, part.right)
    recall, chance = recall_at(ranks, KS), chance_recall_at(part.right, KS)
    row: dict[str, Any] = {"direction": part.name, "gallery": part.right.shape[1], "queries": part.right.shape[0]}
    for k in KS:
        low, high = bootstrap_interval(lambda rows, k=k: recall_at(ranks[rows], [k])[k], patients)
        row |= {f"recall_at_{k}": recall[k], f"chance_at_{k}": chance[k], f"low_at_{k}": low, f"high_at_{k}": high}
    return row | {"low": low, "high": high, "median_rank": float(np.median(ranks))}


def recall_rows(
    parts: Sequence[Direction], patients: np.ndarray, *, ks: Sequence[int], n_bootstrap: int, seed: int
) -> tuple[Rows, dict[str, np.ndarray]]:
    """A row per direction and k below the gallery's size, and the rank of every query by direction; patients [studies]."""
    rows, ranks = [], {}
    for part in parts:
        ranks[part.name] = first_rank(part.similarity, part.right)
        possible = [k for k in ks if k < part.right.shape[1]]
        for k, chance in chance_recall_at(part.right, possible).items():
            recall = measured(
                lambda rows, name=part.name, k=k: recall_at(ranks[name][rows], [k])[k],
                patients[part.queries],
                n_bootstrap=n_bootstrap,
                seed=seed,
            )
            sizes = {"queries": part.right.shape[0], "gallery": part.right.shape[1]}
            rows.append({"direction": part.name, "k": k, **sizes, "recall": recall, "chance": chance})
    return rows, ranks


def jaccard_rows(
    volumes: np.ndarray, labels: np.ndarray, patients: np.ndarray, *, ks: Sequence[int], n_bootstrap: int, seed: int
) -> Rows:
    """Volume to volume as CT-CLIP, the query removed from its gallery, and once more without all volumes of the query's patient.

    volumes [n, E] of length 1, labels [n, L]. A row per k for which the gallery is large enough; chance is the
    mean over the whole gallery. See `metrics.retrieval.nearest_jaccards`.
    """
    similarity, rows = volumes @ volumes.T, []
    each = np.arange(len(volumes))
    for name, groups in (("the query removed", each), ("the query's patient removed", patients)):
        _, sizes = np.unique(groups, return_counts=True)
        gallery = int((labels == 1).any(1).sum()) - int(sizes.max(initial=0))
        possible = [k for k in ks if k <= gallery]
        if not possible:
            continue
        found = nearest_jaccards(similarity, labels, max(possible), groups=groups)
        everything = nearest_jaccards(similarity, labels, gallery, groups=groups)
        for k in possible:
            cell = measured(lambda rows, f=found, k=k: float(f[rows, :k].mean()), patients, n_bootstrap=n_bootstrap, seed=seed)
            rows.append({"gallery": name, "k": k, "label jaccard": cell, "chance": float(everything.mean())})
    return rows


def _equal_labels(labels: np.ndarray) -> np.ndarray:
    """bool [n, n]: whether two studies have the same labels, all of them known."""
    _, group = np.unique(labels, axis=0, return_inverse=True)
    known = (labels >= 0).all(1)
    return (group.reshape(-1, 1) == group.reshape(-1)) & known[:, None] & known
