"""Samples -> one batch. The only place where masks, views and changes are drawn, each from its sample's own seed words."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mg3d.datasets import augment
from mg3d.datasets.masking import IGNORED, WordMasker, choose_view, hidden_cubes
from mg3d.datasets.negatives import TextNegatives
from mg3d.datasets.text_cache import TextCache
from mg3d.datasets.tokenizer import EncodedReport, encode_report
from mg3d.datasets.windowing import stack_volumes
from mg3d.sentence_spans import normalise, polarity, text_key
from mg3d.settings.schema import AugmentSettings
from mg3d.types import Batch, Sample, StoredVolumes

NO_TOKEN = -2
"""Sentence index of padding while views are stacked; -1 is a real token of no sentence."""
CUBES, WORDS, VIEW, CHANGES = 0, 1, 2, 4
"""Last seed word of each kind of draw; 3 is the reconstruction's, 5 that of further reports."""


class Row(NamedTuple):
    """One patient's part of a batch, before padding; all int64 [T], views [T'] each."""

    ids: np.ndarray
    sentence_index: np.ndarray
    mlm_ids: np.ndarray
    mlm_labels: np.ndarray
    view_ids: list[np.ndarray]
    view_sentence_index: list[np.ndarray]
    view_keys: list[int]
    polarity: np.ndarray
    """int8 [S]."""
    patch_mask: np.ndarray


class Collator:
    """Tokenises, masks and pads.

    Args:
        tokenizer: a fast tokenizer with [CLS], [SEP], [MASK] and [PAD].
        max_text_len: most tokens of a report.
        mim_patch_size: voxels per side of a hidden cube.
        mim_mask_ratio: share of cubes hidden.
        mlm_probability: share of words asked for.
        sentence_views: views of one to three sentences that the contrast sees beside each report.
        negated_view_fraction: share of views that begin with a denial, see `masking.choose_view`.
        pad_to_max_length: pad every report to `max_text_len`, for the released gates, which count padding as words; else to the
            longest of the batch.
        text_features: from token ids of reports to the text encoder's features; None = the model makes them.
        changes: how volumes are changed at random; None = not at all.
        negatives: what draws further reports for the contrast; None = nothing.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_text_len: int,
        mim_patch_size: int,
        mim_mask_ratio: float,
        mlm_probability: float,
        sentence_views: int,
        negated_view_fraction: float,
        pad_to_max_length: bool = False,
        text_features: TextCache | None = None,
        changes: AugmentSettings | None = None,
        negatives: TextNegatives | None = None,
    ) -> None:
        self.tokenizer, self.max_text_len = tokenizer, max_text_len
        self.least_length = max_text_len if pad_to_max_length else 1
        self.mim_patch_size, self.mim_mask_ratio = mim_patch_size, mim_mask_ratio
        self.sentence_views, self.negated_view_fraction = sentence_views, negated_view_fraction
        self.text_features, self.negatives = text_features, negatives
        self.mask_words = WordMasker(tokenizer, mlm_probability)
        self.changes = changes if changes is not None and augment.is_on(changes) else None

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """The batch of these samples, in their order."""
        rows = [self._row(sample) for sample in samples]
        pad, least = self.tokenizer.pad_token_id, self.least_length
        ids = _stack([row.ids for row in rows], pad, least)
        view_ids = self._stack_views([row.view_ids for row in rows], pad)
        view_index = self._stack_views([row.view_sentence_index for row in rows], NO_TOKEN)
        lengths = torch.tensor([len(row.ids) for row in rows])
        polarities = _stack([row.polarity for row in rows], 0)
        return Batch(
            volume=self._volumes(samples),
            patch_mask=torch.from_numpy(np.stack([row.patch_mask for row in rows])),
            report_ids=ids,
            attention_mask=torch.arange(ids.shape[1]) < lengths[:, None],
            sentence_index=_stack([row.sentence_index for row in rows], -1, least),
            sentence_mask=polarities != 0,
            sentence_polarity=polarities,
            mlm_ids=_stack([row.mlm_ids for row in rows], pad, least),
            mlm_labels=_stack([row.mlm_labels for row in rows], IGNORED, least),
            view_ids=view_ids,
            view_attention_mask=view_index != NO_TOKEN,
            view_sentence_index=view_index.clamp(min=-1),
            patient_key=torch.tensor([text_key(sample.patient_id) for sample in samples]),
            report_key=torch.tensor([text_key(normalise(sample.report)) for sample in samples]),
            view_key=torch.tensor([row.view_keys for row in rows], dtype=torch.int64),
            labels=torch.from_numpy(np.stack([sample.labels for sample in samples])),
            study_id=[sample.study_id for sample in samples],
            text_features=() if self.text_features is None else self.text_features([row.ids for row in rows]),
            **({} if self.negatives is None else self.negatives(samples)),
        )

    def encode(self, sample: Sample) -> EncodedReport:
        """A sample's report as tokens, nothing masked."""
        return encode_report(self.tokenizer, sample.report, sample.sentence_spans, self.max_text_len)

    def _volumes(self, samples: Sequence[Sample]) -> StoredVolumes:
        stored = stack_volumes(samples)
        if self.changes is None:
            return stored
        drawn = [
            augment.draw(self.changes, sample.volume.shape[1:], sample.window, np.random.default_rng([*sample.seed, CHANGES]))
            for sample in samples
        ]
        stored = stored._replace(window=torch.tensor([one.window for one in drawn], dtype=torch.float32))
        if augment.moves(self.changes):
            stored = stored._replace(affine=torch.from_numpy(np.stack([one.affine for one in drawn])))
        if self.changes.augment_noise:
            noise = torch.tensor([[one.noise] for one in drawn], dtype=torch.float32)
            stored = stored._replace(noise=noise, noise_seed=[one.noise_seed for one in drawn])
        return stored

    def _row(self, sample: Sample) -> Row:
        cubes, words, view = (np.random.default_rng([*sample.seed, purpose]) for purpose in (CUBES, WORDS, VIEW))
        encoded = self.encode(sample)
        sentences = [sample.report[start:end] for start, end in encoded.sentence_spans]
        polarities = np.array([polarity(sentence) for sentence in sentences], dtype=np.int8)
        chosen = [choose_view(polarities, self.negated_view_fraction, view) for _ in range(self.sentence_views)]
        views = [view_tokens(encoded, sentences_of_view) for sentences_of_view in chosen]
        mlm_ids, mlm_labels = self.mask_words(encoded.ids, words)
        grid = [side // self.mim_patch_size for side in sample.volume.shape[1:]]
        return Row(
            ids=encoded.ids,
            sentence_index=encoded.sentence_index,
            mlm_ids=mlm_ids,
            mlm_labels=mlm_labels,
            view_ids=[ids for ids, _ in views],
            view_sentence_index=[index for _, index in views],
            view_keys=[text_key(" ".join(normalise(sentences[place]) for place in those)) for those in chosen],
            polarity=polarities,
            patch_mask=hidden_cubes(grid, self.mim_mask_ratio, cubes),
        )

    def _stack_views(self, rows: Sequence[Sequence[np.ndarray]], padding: int) -> Tensor:
        if self.sentence_views == 0:
            return torch.empty(len(rows), 0, 1, dtype=torch.int64)
        return rearrange(_stack([view for row in rows for view in row], padding), "(b k) t -> b k t", b=len(rows))


def view_tokens(encoded: EncodedReport, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ids, sentence_index) int64 [T'] of the chosen sentences (ascending) alone, between the report's first and last token."""
    if len(chosen) == len(encoded.sentence_spans):
        return encoded.ids, encoded.sentence_index
    keep = np.isin(encoded.sentence_index, chosen)
    keep[[0, -1]] = True
    index = encoded.sentence_index[keep]
    return encoded.ids[keep], np.where(index < 0, -1, np.searchsorted(chosen, index))


def _stack(rows: Sequence[np.ndarray], padding: int, least: int = 1) -> Tensor:
    longest = max(least, *(len(row) for row in rows))
    stacked = np.full((len(rows), longest), padding, dtype=rows[0].dtype)
    for place, row in enumerate(rows):
        stacked[place, : len(row)] = row
    return torch.from_numpy(stacked)
