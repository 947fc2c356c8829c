"""Collates samples into a batch. Masks, views and augmentations are drawn here and only here, from each sample's own seed."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mg3d.datasets import augment
from mg3d.datasets.masking import IGNORE_INDEX, WholeWordMasker, draw_patch_mask, draw_view, label_positions
from mg3d.datasets.negatives import TextNegatives
from mg3d.datasets.text_cache import TextCache
from mg3d.datasets.tokenizer import EncodedReport, encode_report, stack_padded
from mg3d.datasets.windowing import stack_volumes
from mg3d.polarity import span_polarities
from mg3d.sentence_spans import normalize_text, text_key
from mg3d.settings.schema import AugmentSettings
from mg3d.types import Batch, Sample, StoredVolumes

PAD_SENTENCE = -2
"""Sentence index of padding while views are stacked; -1 is a token that belongs to no sentence."""
PATCHES, WORDS, VIEW, AUGMENTATION = 0, 1, 2, 4
"""Last element of the seed of each kind of draw; 3 draws the reconstruction (`studies`), 5 the negatives (`negatives`)."""


class EncodedSample(NamedTuple):
    """One patient's part of a batch before padding; int64 [T], views [T'] each."""

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
    """Tokenises, masks, augments and pads.

    Args:
        tokenizer: fast tokenizer with [CLS], [SEP], [MASK] and [PAD].
        max_text_len: maximum tokens per report.
        mim_patch_size: side of a masked patch in voxels.
        mim_mask_ratio: fraction of patches masked.
        mlm_probability: probability that a word is masked.
        sentence_views: views of one to three sentences per report for the contrastive loss.
        negated_view_fraction: fraction of views that start from a negated sentence, see `masking.draw_view`.
        pad_to_max_length: pad every report to `max_text_len`, as the released gates count padding; else to the batch's longest.
        min_sentences: pad every report to at least this number of sentences, which must be equal on all ranks.
        text_features: cached features of the text encoder; None = the model computes them.
        augmentation: random transforms of volumes; None = none.
        negatives: sampler of extra report negatives; None = none.
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
        min_sentences: int = 1,
        text_features: TextCache | None = None,
        augmentation: AugmentSettings | None = None,
        negatives: TextNegatives | None = None,
    ) -> None:
        self.tokenizer, self.max_text_len = tokenizer, max_text_len
        self.min_length, self.min_sentences = max_text_len if pad_to_max_length else 1, min_sentences
        self.mim_patch_size, self.mim_mask_ratio = mim_patch_size, mim_mask_ratio
        self.sentence_views, self.negated_view_fraction = sentence_views, negated_view_fraction
        self.text_features, self.negatives = text_features, negatives
        self.mask_words = WholeWordMasker(tokenizer, mlm_probability)
        self.augmentation = augmentation if augmentation is not None and augment.is_enabled(augmentation) else None

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """The batch of these samples, in their order."""
        rows = [self._row(sample) for sample in samples]
        pad = self.tokenizer.pad_token_id

        def stack(name: str, padding: int) -> Tensor:
            return stack_padded([getattr(row, name) for row in rows], padding, self.min_length)

        ids, labels = stack("ids", pad), stack("mlm_labels", IGNORE_INDEX)
        view_index = self._stack_views([row.view_sentence_index for row in rows], PAD_SENTENCE)
        polarities = stack_padded([row.polarity for row in rows], 0, self.min_sentences)
        return Batch(
            volume=self._volumes(samples),
            patch_mask=torch.from_numpy(np.stack([row.patch_mask for row in rows])),
            report_ids=ids,
            attention_mask=torch.arange(ids.shape[1]) < torch.tensor([len(row.ids) for row in rows])[:, None],
            sentence_index=stack("sentence_index", -1),
            sentence_mask=polarities != 0,
            sentence_polarity=polarities,
            mlm_ids=stack("mlm_ids", pad),
            mlm_labels=labels,
            mlm_positions=label_positions(labels),
            view_ids=self._stack_views([row.view_ids for row in rows], pad),
            view_attention_mask=view_index != PAD_SENTENCE,
            view_sentence_index=view_index.clamp(min=-1),
            patient_key=torch.tensor([text_key(sample.patient_id) for sample in samples]),
            report_key=torch.tensor([text_key(normalize_text(sample.report)) for sample in samples]),
            view_key=torch.tensor([row.view_keys for row in rows], dtype=torch.int64),
            labels=torch.from_numpy(np.stack([sample.labels for sample in samples])),
            study_id=[sample.study_id for sample in samples],
            text_features=() if self.text_features is None else self.text_features([row.ids for row in rows]),
            **({} if self.negatives is None else self.negatives(samples)),
        )

    def encode(self, sample: Sample) -> EncodedReport:
        """A sample's report as unmasked tokens."""
        return encode_report(self.tokenizer, sample.report, sample.sentence_spans, self.max_text_len)

    def _volumes(self, samples: Sequence[Sample]) -> StoredVolumes:
        stored, settings = stack_volumes(samples), self.augmentation
        if settings is None:
            return stored
        drawn = [
            augment.draw_params(
                settings, sample.volume.shape[1:], sample.window, np.random.default_rng([*sample.seed, AUGMENTATION])
            )
            for sample in samples
        ]
        stored = stored._replace(window=torch.tensor([params.window for params in drawn], dtype=torch.float32))
        if augment.is_spatial(settings):
            stored = stored._replace(affine=torch.from_numpy(np.stack([params.affine for params in drawn])))
        if settings.augment_noise:
            noise = torch.tensor([[params.noise_std] for params in drawn], dtype=torch.float32)
            stored = stored._replace(noise=noise, noise_seed=[params.noise_seed for params in drawn])
        return stored

    def _row(self, sample: Sample) -> EncodedSample:
        patches, words, view = (np.random.default_rng([*sample.seed, purpose]) for purpose in (PATCHES, WORDS, VIEW))
        encoded = self.encode(sample)
        sentences = [sample.report[start:end] for start, end in encoded.sentence_spans]
        polarities = np.array(span_polarities(sample.report, encoded.sentence_spans), dtype=np.int8)
        chosen = [draw_view(polarities, self.negated_view_fraction, view) for _ in range(self.sentence_views)]
        views = [view_tokens(encoded, indices) for indices in chosen]
        mlm_ids, mlm_labels = self.mask_words(encoded.ids, words)
        grid = [side // self.mim_patch_size for side in sample.volume.shape[1:]]
        return EncodedSample(
            ids=encoded.ids,
            sentence_index=encoded.sentence_index,
            mlm_ids=mlm_ids,
            mlm_labels=mlm_labels,
            view_ids=[ids for ids, _ in views],
            view_sentence_index=[index for _, index in views],
            view_keys=[text_key(" ".join(normalize_text(sentences[index]) for index in indices)) for indices in chosen],
            polarity=polarities,
            patch_mask=draw_patch_mask(grid, self.mim_mask_ratio, patches),
        )

    def _stack_views(self, rows: Sequence[Sequence[np.ndarray]], padding: int) -> Tensor:
        if self.sentence_views == 0:
            return torch.empty(len(rows), 0, 1, dtype=torch.int64)
        return rearrange(stack_padded([view for row in rows for view in row], padding), "(b k) t -> b k t", b=len(rows))


def view_tokens(encoded: EncodedReport, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ids, sentence_index) int64 [T'] of the chosen sentences (ascending) between the report's [CLS] and [SEP]."""
    if len(chosen) == len(encoded.sentence_spans):
        return encoded.ids, encoded.sentence_index
    selected = np.isin(encoded.sentence_index, chosen)
    selected[[0, -1]] = True
    index = encoded.sentence_index[selected]
    return encoded.ids[selected], np.where(index < 0, -1, np.searchsorted(chosen, index))
