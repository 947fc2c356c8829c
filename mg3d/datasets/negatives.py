"""Reports of other training studies, drawn for every volume and read from the text cache: wrong answers that cost no encoder."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from mg3d.datasets.studies import Studies
from mg3d.datasets.text_cache import TextCache
from mg3d.datasets.tokenizer import encode_report
from mg3d.sentence_spans import normalise, text_key
from mg3d.types import Sample

NEGATIVES = 5
"""Last seed word of the draw."""


class Known(NamedTuple):
    """A report that was drawn before, in few bytes."""

    ids: np.ndarray
    """int32 [T]"""
    sentence_index: np.ndarray
    """int16 [T], as of `EncodedReport`."""
    sentences: int
    patient_key: int
    report_key: int


class TextNegatives:
    """Draws R reports for every sample, from its own seed words, so that ranks, chunks and resumed runs see the same.

    A report of the sample's own patient may be drawn; the keys say so, and the loss leaves it out.

    Args:
        parts: the studies to draw from.
        count: R; fewer where there are fewer studies.
        features: the frozen text encoder's, which hold every report of `parts`.
    """

    def __init__(
        self, parts: Sequence[Studies], *, count: int, tokenizer: PreTrainedTokenizerBase, max_text_len: int, features: TextCache
    ) -> None:
        self.parts, self.tokenizer, self.max_text_len, self.features = tuple(parts), tokenizer, max_text_len, features
        self.first = np.cumsum([0, *(len(part) for part in self.parts)])
        """Where each part's studies begin among all."""
        self.count = min(count, int(self.first[-1]))
        self.known: dict[int, Known] = {}
        """By study, counted over all parts: tokenising them anew each time takes longer than all else of a batch."""

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """The `negative_*` fields of the batch of these samples."""
        chosen = np.concatenate([self._draw(sample) for sample in samples])
        drawn = [self._read(int(study)) for study in chosen]
        # One by one: the features of all tokens at once are hundreds of times as large as their means.
        means = [sentence_means_of(one, self.features([one.ids])[0]) for one in drawn]
        counts = torch.tensor([len(one) for one in means])
        stacked = pad_sequence(means, batch_first=True)

        def by_sample(rows: Tensor) -> Tensor:
            return rows.unflatten(0, (len(samples), self.count))

        return {
            "negative_sentences": by_sample(stacked),
            "negative_sentence_mask": by_sample(torch.arange(stacked.shape[1]) < counts[:, None]),
            "negative_patient_key": by_sample(torch.tensor([one.patient_key for one in drawn])),
            "negative_report_key": by_sample(torch.tensor([one.report_key for one in drawn])),
        }

    def _read(self, study: int) -> Known:
        if study not in self.known:
            part = int(np.searchsorted(self.first, study, side="right")) - 1
            studies, place = self.parts[part], study - int(self.first[part])
            report = studies.report(place)
            encoded = encode_report(self.tokenizer, *report, self.max_text_len)
            small = (encoded.ids.astype(np.int32), encoded.sentence_index.astype(np.int16), len(encoded.sentence_spans))
            self.known[study] = Known(*small, text_key(studies.patient(place)), text_key(normalise(report.report)))
        return self.known[study]

    def _draw(self, sample: Sample) -> np.ndarray:
        return np.random.default_rng([*sample.seed, NEGATIVES]).choice(int(self.first[-1]), self.count, replace=False)


def sentence_means_of(report: Known, features: Tensor) -> Tensor:
    """[S, width]: the mean over each sentence's tokens of features [>= T, width]."""
    index = torch.from_numpy(report.sentence_index).long()
    inside = index >= 0
    sums = features.new_zeros(report.sentences, features.shape[1]).index_add_(0, index[inside], features[: len(index)][inside])
    return sums / torch.bincount(index[inside], minlength=report.sentences).clamp(min=1)[:, None]
