"""Extra report negatives: reports of other training studies, sampled per volume and read from the text cache."""

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
from mg3d.sentence_spans import normalize_text, text_key
from mg3d.types import Sample

NEGATIVES = 5
"""Last element of the seed of these draws; see `collate` for the others."""


class TokenizedReport(NamedTuple):
    """A report in few bytes, kept because tokenising takes longer than everything else of a batch."""

    ids: np.ndarray
    """int32 [T]."""
    sentence_index: np.ndarray
    """int16 [T], as in `EncodedReport`."""
    sentences: int
    patient_key: int
    report_key: int


class TextNegatives:
    """Samples R reports for every volume from the volume's own seed, independent of ranks, chunks and restarts.

    A report of the volume's own patient can be drawn; the keys identify it, and the loss ignores it.

    Args:
        parts: studies to sample from.
        count: R; at most the number of studies.
        features: cache of the frozen text encoder that contains every report of `parts`.
    """

    def __init__(
        self, parts: Sequence[Studies], *, count: int, tokenizer: PreTrainedTokenizerBase, max_text_len: int, features: TextCache
    ) -> None:
        self.studies = [(part, study) for part in parts for study in range(len(part))]
        self.count = min(count, len(self.studies))
        self.tokenizer, self.max_text_len, self.features = tokenizer, max_text_len, features
        self.tokenized: dict[int, TokenizedReport] = {}

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """The `negative_*` fields of the batch of these samples."""
        generators = [np.random.default_rng([*sample.seed, NEGATIVES]) for sample in samples]
        drawn = [generator.choice(len(self.studies), self.count, replace=False) for generator in generators]
        reports = [self._tokenize(int(study)) for study in np.concatenate(drawn)]
        # one at a time: the token features of all reports are far larger than their sentence means
        means = [sentence_means(report, self.features([report.ids])[0]) for report in reports]
        padded, lengths = pad_sequence(means, batch_first=True), torch.tensor([len(mean) for mean in means])

        def by_sample(rows: Tensor) -> Tensor:
            return rows.unflatten(0, (len(samples), self.count))

        return {
            "negative_sentences": by_sample(padded),
            "negative_sentence_mask": by_sample(torch.arange(padded.shape[1]) < lengths[:, None]),
            "negative_patient_key": by_sample(torch.tensor([report.patient_key for report in reports])),
            "negative_report_key": by_sample(torch.tensor([report.report_key for report in reports])),
        }

    def _tokenize(self, index: int) -> TokenizedReport:
        if index not in self.tokenized:
            part, study = self.studies[index]
            report = part.report(study)
            ids, sentence_index, spans = encode_report(self.tokenizer, *report, self.max_text_len)
            keys = text_key(part.patient(study)), text_key(normalize_text(report.report))
            compact = ids.astype(np.int32), sentence_index.astype(np.int16)
            self.tokenized[index] = TokenizedReport(*compact, len(spans), *keys)
        return self.tokenized[index]


def sentence_means(report: TokenizedReport, features: Tensor) -> Tensor:
    """[S, width]: mean of the token features [>= T, width] of each sentence."""
    index = torch.from_numpy(report.sentence_index).long()
    inside = index >= 0
    sums = features.new_zeros(report.sentences, features.shape[1]).index_add_(0, index[inside], features[: len(index)][inside])
    return sums / torch.bincount(index[inside], minlength=report.sentences).clamp(min=1)[:, None]
