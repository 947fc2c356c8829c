"""Which sentences the text side of SSM matches: to judge its two thresholds, or choose them for another text encoder."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from mg3d.datasets.studies import ReportText
from mg3d.evaluation.card_data import CardEmbeddings
from mg3d.evaluation.encoder import MG3DEncoder
from mg3d.evaluation.tables import Rows
from mg3d.polarity import span_polarities

Meanings = Callable[[Sequence[ReportText]], list[str | None]]
"""Meaning of every sentence of all reports, in order: equal strings mean the same, None is unknown."""
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(6, 20))
MAX_SENTENCES = 4_000
"""The first sentences are used; 4,000 have 16 million cosines."""


class ScoredPairs(NamedTuple):
    """All m pairs of sentences of equal polarity and different patients, which SSM matches by their cosine."""

    cosine: np.ndarray
    known: np.ndarray
    """bool [m]: both meanings are known."""
    equal: np.ndarray
    """bool [m]: both meanings are known and equal."""


def read_sentence_pairs(
    encoder: MG3DEncoder, reports: Sequence[ReportText], patients: np.ndarray, *, meanings: Meanings | None
) -> ScoredPairs:
    """Pairs of sentences of reports [r] that fit into the text encoder; patients [r]."""
    read = encoder.sentence_vectors(reports)
    count = sum(len(report.sentence_spans) for report, _ in read)
    return sentence_pairs(
        torch.cat([vectors for _, vectors in read]),
        polarities=np.array([value for report, _ in read for value in span_polarities(report.report, report.sentence_spans)]),
        patients=np.repeat(patients, [len(report.sentence_spans) for report, _ in read]),
        meanings=meanings([report for report, _ in read]) if meanings else [None] * count,
    )


def sentence_pairs(
    vectors: Tensor, *, polarities: np.ndarray, patients: np.ndarray, meanings: Sequence[str | None]
) -> ScoredPairs:
    """Pairs of the first `MAX_SENTENCES` of n sentences; vectors [n, d] of any length, the others [n]."""
    unit = F.normalize(vectors[:MAX_SENTENCES].float(), dim=-1)
    patient, meaning = (pd.factorize(np.array(part, object)[:MAX_SENTENCES])[0] for part in (patients, meanings))  # None is -1
    polarities = polarities[:MAX_SENTENCES]
    comparable = (patient[:, None] != patient) & (polarities[:, None] == polarities)
    first, second = np.nonzero(np.triu(comparable, 1))
    known = (meaning[first] >= 0) & (meaning[second] >= 0)
    return ScoredPairs((unit @ unit.T).numpy()[first, second], known, known & (meaning[first] == meaning[second]))


def threshold_rows(pairs: ScoredPairs, thresholds: Sequence[float]) -> Rows:
    """One row per threshold: fraction of pairs at or above it and, if meanings are known, their precision and recall as `same`.

    False negatives: the fraction of the pairs at or below it that mean the same.
    """
    rows: Rows = []
    for threshold in thresholds:
        above, below = pairs.cosine >= threshold, pairs.cosine <= threshold
        rows.append({"threshold": float(threshold), "pairs at or above": _fraction(above, np.ones_like(above))})
        if pairs.known.any():
            rows[-1] |= {
                "precision of same": _fraction(pairs.equal, above & pairs.known),
                "recall of same": _fraction(above, pairs.equal),
                "false negatives at or below": _fraction(pairs.equal, below & pairs.known),
            }
    return rows


def sentence_pair_tables(
    embeddings: CardEmbeddings, *, meanings: Meanings | None, same_above: float, differ_below: float
) -> dict[str, Rows]:
    """Matching by the text side of SSM; precision and recall need `meanings`, which only the phantom has."""
    if not embeddings.reports:
        return {}
    pairs = read_sentence_pairs(embeddings.encoder, embeddings.reports, embeddings.report_patients, meanings=meanings)
    return {"Sentence pairs by SSM threshold": threshold_rows(pairs, sorted({*THRESHOLDS, same_above, differ_below}))}


def _fraction(part: np.ndarray, whole: np.ndarray) -> float:
    """Fraction of `whole` that is also in `part`; NaN if `whole` is empty."""
    return float((part & whole).sum() / whole.sum()) if whole.any() else float("nan")
