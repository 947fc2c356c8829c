"""What SSM takes for the same and for different, against what is known to be."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_ROWS_AT_ONCE = 512


def pair_shares(
    text: Tensor,
    *,
    polarity: Tensor,
    patient: Tensor,
    meaning: Sequence[str | None],
    same_above: float,
    differ_below: float,
) -> dict[str, float]:
    """Over all pairs of sentences of different patients: shares of same, different and ignored; precision and recall of same.

    text [n, d], polarity int8 [n], patient int64 [n]; meaning: what a sentence is known to say, None = about nothing known.
    Precision and recall are over pairs whose meanings are both known; nan without any.

    Raises:
        ValueError: the four do not speak of equally many sentences.
    """
    if not len(text) == len(polarity) == len(patient) == len(meaning):
        counts = f"{len(text)} vectors, {len(polarity)} polarities, {len(patient)} patients and {len(meaning)} meanings"
        raise ValueError(f"{counts} are not of the same sentences; give one of each per sentence")
    codes = {name: place for place, name in enumerate(sorted({name for name in meaning if name is not None}))}
    known = torch.tensor([codes.get(name, -1) for name in meaning])
    text = F.normalize(text, dim=-1)
    totals = torch.zeros(6, dtype=torch.float64)
    for rows in _chunks(len(text)):
        cosine = text[rows] @ text.T
        apart = patient[rows, None] != patient
        agree = polarity[rows, None] == polarity
        same, different = (cosine >= same_above) & agree & apart, (cosine <= differ_below) & agree & apart
        both_known = (known[rows, None] >= 0) & (known >= 0) & apart
        equal = (known[rows, None] == known) & both_known
        parts = (apart, same, different, same & both_known, same & equal, equal)
        totals += torch.stack([part.sum() for part in parts]).double()
    pairs, same, different, judged, right, equal = (float(value) for value in totals)
    return {
        "pairs": pairs / 2,
        "same": same / max(pairs, 1),
        "different": different / max(pairs, 1),
        "ignored": (pairs - same - different) / max(pairs, 1),
        "precision_same": right / judged if judged else float("nan"),
        "recall_same": right / equal if equal else float("nan"),
    }


def _chunks(count: int) -> Iterator[slice]:
    for start in range(0, count, _ROWS_AT_ONCE):
        yield slice(start, min(start + _ROWS_AT_ONCE, count))
