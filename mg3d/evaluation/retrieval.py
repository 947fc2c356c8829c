"""Finding the report of a volume and the volume of a report, among all held-out ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mg3d.metrics.bootstrap import bootstrap_interval
from mg3d.metrics.retrieval import chance_recall_at, first_rank, recall_at

KS = (1, 5, 10)


def retrieval_table(
    volumes: np.ndarray, reports: np.ndarray, *, report_keys: Sequence[str], patients: np.ndarray
) -> list[dict[str, Any]]:
    """One row per direction: gallery size, recall at 1, 5, 10 with its chance and interval, and the median rank.

    volumes and reports [n, E] of length 1, row i being one study. Equal `report_keys` are equal texts: the gallery of reports
    holds each once, and any volume with a report's text is right for it. `low` and `high` are those at 10. Intervals draw the
    queries' patients again and leave the gallery as it is.
    """
    similarity, right, first = against_unique_reports(volumes, reports, report_keys)
    return [
        _direction("volume to report", similarity, right, patients),
        _direction("report to volume", similarity.T, right.T, patients[first]),
    ]


def against_unique_reports(
    volumes: np.ndarray, reports: np.ndarray, report_keys: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(similarity [n, u], right bool [n, u], row int [u] at which each report first comes) of the u unique reports."""
    keys, first, which = np.unique(np.asarray(report_keys, dtype=object), return_index=True, return_inverse=True)
    return volumes @ reports[first].T, which[:, None] == np.arange(len(keys)), first


def _direction(name: str, similarity: np.ndarray, right: np.ndarray, patients: np.ndarray) -> dict[str, Any]:
    ranks = first_rank(similarity, right)
    recall, chance = recall_at(ranks, KS), chance_recall_at(right, KS)
    row: dict[str, Any] = {"direction": name, "gallery": right.shape[1], "queries": right.shape[0]}
    for k in KS:
        low, high = bootstrap_interval(lambda rows, k=k: recall_at(ranks[rows], [k])[k], patients)
        row |= {f"recall_at_{k}": recall[k], f"chance_at_{k}": chance[k], f"low_at_{k}": low, f"high_at_{k}": high}
    return row | {"low": low, "high": high, "median_rank": float(np.median(ranks))}
