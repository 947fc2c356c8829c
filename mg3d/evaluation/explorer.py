"""Which sentences a text encoder takes for the same: to choose the two thresholds of SSM for another encoder."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mg3d.evaluation.results import Rows, measured
from mg3d.metrics.classification import mean_of_defined
from mg3d.sentence_spans import normalise

UNKNOWN = -1
_REPEATS = 25
"""How often a pair of texts may recur among the nearest to a threshold before others are missed."""
MOST = 4_000
"""Sentences whose pairs are looked at: 4,000 make 16 million cosines."""


class Sentences(NamedTuple):
    """Of n sentences of several patients."""

    vectors: Tensor
    """[n, d], the text side of SSM, any length."""
    polarity: Tensor
    """int8 [n]: SSM calls only pairs of one polarity same or different."""
    patient: Tensor
    """int64 [n]."""
    meaning: Tensor
    """int64 [n]: equal for what is known to say the same; `UNKNOWN`."""


class Pairs(NamedTuple):
    """Every pair of sentences of different patients and one polarity, m of them."""

    first: np.ndarray
    """int64 [m], below `second`."""
    second: np.ndarray
    cosine: np.ndarray
    known: np.ndarray
    """bool [m]: whether both meanings are known."""
    equal: np.ndarray
    """bool [m]: whether they are and say the same."""


def meaning_codes(meanings: Sequence[str | None]) -> Tensor:
    """int64 [n] of names of meanings."""
    codes = {name: place for place, name in enumerate(sorted({name for name in meanings if name is not None}))}
    return torch.tensor([UNKNOWN if name is None else codes[name] for name in meanings], dtype=torch.int64)


def all_pairs(sentences: Sentences) -> Pairs:
    """The pairs of the first `MOST` sentences."""
    vectors, polarity, patient, meaning = (part[:MOST] for part in sentences)
    unit = F.normalize(vectors.float(), dim=-1)
    cosine = unit @ unit.T
    eligible = (patient[:, None] != patient) & (polarity[:, None] == polarity)
    first, second = torch.triu(eligible, 1).nonzero().unbind(1)
    known = (meaning[first] != UNKNOWN) & (meaning[second] != UNKNOWN)
    equal = known & (meaning[first] == meaning[second])
    return Pairs(*(part.numpy() for part in (first, second, cosine[first, second], known, equal)))


def threshold_rows(pairs: Pairs, thresholds: Sequence[float]) -> Rows:
    """A row per threshold: share of pairs above it, and what that would be as `same_above` and as `differ_below`.

    Over pairs whose meanings are known. Precision and recall of same: of the pairs from the threshold on, how many say the same,
    and how many of those that do are found. `false negatives`: of the pairs up to the threshold, how many say the same after all.
    """
    rows = []
    for threshold in thresholds:
        above, below = pairs.cosine >= threshold, pairs.cosine <= threshold
        judged, called = above & pairs.known, below & pairs.known
        rows.append(
            {
                "threshold": float(threshold),
                "pairs at or above": float(above.mean()) if len(above) else float("nan"),
                "precision of same": _share(pairs.equal & judged, judged),
                "recall of same": _share(pairs.equal & above, pairs.equal),
                "false negatives at or below": _share(pairs.equal & called, called),
            }
        )
    return rows


def examples(pairs: Pairs, texts: Sequence[str], *, same_above: float, differ_below: float, most: int = 4) -> Rows:
    """The pairs nearest to each threshold on either side, and those judged most wrongly; equal texts once, and in full."""
    same, different = pairs.cosine >= same_above, pairs.cosine <= differ_below
    kinds = {
        "same, barely": (same, pairs.cosine),
        "ignored, almost the same": (~same & ~different, -pairs.cosine),
        "ignored, almost different": (~same & ~different, pairs.cosine),
        "different, barely": (different, -pairs.cosine),
        "same, though known to differ": (same & pairs.known & ~pairs.equal, -pairs.cosine),
        "different, though known to be equal": (different & pairs.equal, pairs.cosine),
    }
    rows = []
    for kind, (chosen, order) in kinds.items():
        places = np.flatnonzero(chosen)
        shown: dict[frozenset[str], dict[str, Any]] = {}
        for place in places[np.argsort(order[places], kind="stable")[: most * _REPEATS]]:
            pair = {"first": texts[pairs.first[place]], "second": texts[pairs.second[place]]}
            row = {"called": kind, "cosine": float(pairs.cosine[place]), **pair}
            shown.setdefault(frozenset(map(normalise, pair.values())), row)
        rows += list(shown.values())[:most]
    return rows


def histogram_rows(pairs: Pairs, *, bins: int = 24) -> Rows:
    """Pairs by cosine: how many are known to say the same, how many to differ, and how many are not known; 1 is the last edge."""
    edges = np.linspace(min(0.0, float(pairs.cosine.min(initial=0.0))), 1.0, bins + 1)
    kinds = {"same": pairs.equal, "different": pairs.known & ~pairs.equal, "not known": ~pairs.known}
    counts = {name: np.histogram(pairs.cosine[kind].clip(max=1.0), edges)[0].tolist() for name, kind in kinds.items()}
    return [
        {"from": float(low), "to": float(high), **{name: column[place] for name, column in counts.items()}}
        for place, (low, high) in enumerate(pairwise(edges.tolist()))
    ]


def precision_rows(sentences: Sentences, *, ks: Sequence[int], n_bootstrap: int, seed: int) -> Rows:
    """A row per k: of the k sentences of other patients nearest to one of known meaning, how many say the same; with chance.

    Neighbours of unknown meaning are left out of the gallery, and sentences that nobody else says are no queries.
    """
    known = (sentences.meaning != UNKNOWN).nonzero()[:MOST, 0]
    unit = F.normalize(sentences.vectors[known].float(), dim=-1)
    patient, meaning = sentences.patient[known], sentences.meaning[known]
    apart = patient[:, None] != patient
    equal = (meaning[:, None] == meaning) & apart
    asked = equal.any(1)
    order = (unit @ unit.T).masked_fill(~apart, -torch.inf)[asked].argsort(dim=1, descending=True, stable=True)
    right = equal[asked].gather(1, order).numpy()
    others, groups = apart[asked].sum(1).numpy(), patient[asked].numpy()
    chance = float((right.sum(1) / others).mean()) if len(right) else float("nan")
    rows = []
    for k in ks:
        if len(right) and k <= others.min():
            cell = measured(lambda r, k=k: float(right[r, :k].mean()), groups, n_bootstrap=n_bootstrap, seed=seed)
            rows.append({"k": k, "sentences": len(right), "precision": cell, "chance": chance})
    return rows


def batch_row(
    sentences: Sentences, *, patients: int, same_above: float, differ_below: float, n_bootstrap: int, seed: int
) -> Rows:
    """One row: what SSM gets wrong in batches of `patients` patients, in the order given; a mean over batches with its interval.

    `false negatives`: of the pairs that are pushed apart, how many say the same; `false positives`: of those pulled together, how
    many do not; both among pairs of known meaning.
    """
    _, place = torch.unique_consecutive(sentences.patient, return_inverse=True)
    batch = (place[:MOST] // patients).numpy()
    pairs = all_pairs(sentences)
    inside = (batch[pairs.first] == batch[pairs.second]) & pairs.known
    which = batch[pairs.first]
    called = {
        "false negatives": (pairs.cosine <= differ_below, pairs.equal),
        "false positives": (pairs.cosine >= same_above, ~pairs.equal),
    }
    row: dict[str, object] = {"patients in a batch": patients, "batches": int(batch.max(initial=-1)) + 1}
    for name, (chosen, wrong) in called.items():
        total = np.bincount(which[inside & chosen], minlength=row["batches"])
        bad = np.bincount(which[inside & chosen & wrong], minlength=row["batches"])
        shares = np.divide(bad, total, out=np.full(len(total), np.nan), where=total > 0)
        row[name] = measured(
            lambda r, v=shares: mean_of_defined(v[r]), np.arange(len(shares)), n_bootstrap=n_bootstrap, seed=seed
        )
    return [row]


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    return float(part.sum() / whole.sum()) if whole.any() else float("nan")
