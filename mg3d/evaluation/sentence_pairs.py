"""Which sentences the SSM text side matches: to judge its two thresholds, or choose them for another text encoder."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mg3d.datasets.studies import ReportText
from mg3d.evaluation.card_data import CardEmbeddings
from mg3d.evaluation.encoder import MG3DEncoder
from mg3d.evaluation.tables import Rows
from mg3d.sentence_spans import polarity

Meanings = Callable[[Sequence[ReportText]], list[str | None]]
"""Meaning of every sentence of all reports of a set, in order: equal strings mean the same, None is unknown."""
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(6, 20))
MAX_SENTENCES = 4_000
"""The first sentences are used; 4,000 have 16 million cosines."""
_UNKNOWN = -1


class Sentences(NamedTuple):
    """Sentences of several patients, n of them."""

    vectors: Tensor
    """[n, d] of the text side of SSM, any length."""
    polarity: Tensor
    """int8 [n]: SSM matches only sentences of equal polarity."""
    patient: Tensor
    """int64 [n]."""
    meaning: Tensor
    """int64 [n], see `meaning_codes`."""


class ScoredPairs(NamedTuple):
    """All m pairs of sentences of equal polarity and different patients, which SSM matches by their cosine."""

    cosine: np.ndarray
    known: np.ndarray
    """bool [m]: both meanings are known."""
    equal: np.ndarray
    """bool [m]: both meanings are known and equal."""


def meaning_codes(meanings: Sequence[str | None]) -> Tensor:
    """int64 [n]: equal for equal meanings, -1 for None."""
    codes = {name: code for code, name in enumerate(sorted({name for name in meanings if name is not None}))}
    return torch.tensor([_UNKNOWN if name is None else codes[name] for name in meanings], dtype=torch.int64)


def read_sentences(
    encoder: MG3DEncoder, reports: Sequence[ReportText], patients: np.ndarray, *, meanings: Meanings | None
) -> Sentences:
    """Sentences of reports [r] that fit into the text encoder; patients [r]."""
    read = encoder.sentence_vectors(reports)
    texts = [report.report[start:end] for report, _ in read for start, end in report.sentence_spans]
    meaning_of_each = meanings([report for report, _ in read]) if meanings else [None] * len(texts)
    _, patient = np.unique(patients, return_inverse=True)
    return Sentences(
        vectors=torch.cat([vectors for _, vectors in read]),
        polarity=torch.tensor([polarity(text) for text in texts], dtype=torch.int8),
        patient=torch.from_numpy(np.repeat(patient, [len(report.sentence_spans) for report, _ in read])),
        meaning=meaning_codes(meaning_of_each),
    )


def sentence_pairs(sentences: Sentences) -> ScoredPairs:
    """Pairs of the first `MAX_SENTENCES` sentences."""
    vectors, polarity, patient, meaning = (part[:MAX_SENTENCES] for part in sentences)
    comparable = (patient[:, None] != patient) & (polarity[:, None] == polarity)
    first, second = torch.triu(comparable, 1).nonzero().unbind(1)
    unit = F.normalize(vectors.float(), dim=-1)
    cosine = (unit @ unit.T)[first, second]
    known = (meaning[first] != _UNKNOWN) & (meaning[second] != _UNKNOWN)
    equal = known & (meaning[first] == meaning[second])
    return ScoredPairs(cosine.numpy(), known.numpy(), equal.numpy())


def threshold_rows(pairs: ScoredPairs, thresholds: Sequence[float]) -> Rows:
    """One row per threshold: precision and recall of the pairs at or above it as `same`.

    False negatives: the fraction of the pairs at or below it that mean the same.
    """
    rows = []
    for threshold in thresholds:
        above, below = pairs.cosine >= threshold, pairs.cosine <= threshold
        rows.append(
            {
                "threshold": float(threshold),
                "pairs at or above": _fraction(above, np.ones_like(above)),
                "precision of same": _fraction(pairs.equal, above & pairs.known),
                "recall of same": _fraction(above, pairs.equal),
                "false negatives at or below": _fraction(pairs.equal, below & pairs.known),
            }
        )
    return rows


def sentence_pair_tables(
    embeddings: CardEmbeddings, *, meanings: Meanings | None, same_above: float, differ_below: float
) -> dict[str, Rows]:
    """Matching by the text side of SSM; precision and recall need `meanings`, which only the phantom has."""
    if not embeddings.reports:
        return {}
    sentences = read_sentences(embeddings.encoder, embeddings.reports, embeddings.report_patients, meanings=meanings)
    thresholds = sorted({*THRESHOLDS, same_above, differ_below})
    return {"Sentence pairs by SSM threshold": threshold_rows(sentence_pairs(sentences), thresholds)}


def _fraction(part: np.ndarray, whole: np.ndarray) -> float:
    """Fraction of `whole` that is also in `part`; NaN if `whole` is empty."""
    return float((part & whole).sum() / whole.sum()) if whole.any() else float("nan")
